"""What a command did to its links, as one self-contained HTML page, a figure's files and a short table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.network.readings import Readings
from harness.provenance import made_by
from harness.record.execution import Execution, LinkTraffic, WorkerUse
from harness.record.observed import Metric, Training
from harness.report import text
from harness.report.figures import render
from harness.report.figures.drawing import style
from harness.report.figures.observed import observed
from harness.report.figures.traffic import traffic
from harness.report.rendering import render_html
from harness.report.text import NOTHING
from harness.units import format_rate, format_size

TITLE_LENGTH = 80


def write(found: Execution, folder: Path) -> Path:
    """Write ``exec.html`` and ``plots/`` into the record's folder; returns the page."""
    with style():
        drawings = render.write([*traffic(found.links), *observed(found.training)], folder / "plots")
    verified: dict[str, Readings] = {"before": found.before, **({"after": found.after} if found.after else {})}
    content: dict[str, object] = {"found": found, "title": title(found), "drawings": drawings, "verified": verified}
    content["training"] = training_rows(found.training) if found.training else []
    content["metrics"] = metric_rows(found.metrics)
    content["made_by"] = made_by([found.provenance])
    content["provenance"] = text.flat(found.provenance)
    return render_html(folder / "exec.html", content)


def as_json(found: Execution, page: Path) -> dict[str, Any]:
    """What is told of it to programs; the record holds all."""
    told = ("command", "ending", "reason", "exit_code", "wall_time_s", "cluster", "workers", "per_node", "drift")
    record = found.model_dump(mode="json", exclude={"links": {"__all__": {"samples"}}, "training": {"curve"}})
    links = zip(record["links"], found.links, strict=True)
    return {
        **{name: record[name] for name in told},
        "network": found.network_in_words,
        "links": [
            {**each, "mean_bps": link.mean_bps, "most_backlog_bytes": link.most_backlog_bytes} for each, link in links
        ],
        "uses": record["uses"],
        "training": record["training"],
        "metrics": [
            {"name": name, "times": len(values), "first": values[0], "last": values[-1]}
            for name, values in _by_name(found.metrics).items()
        ],
        "report": str(page),
    }


def title(found: Execution) -> str:
    """The command in one line that is not too long."""
    whole = " ".join(found.command)
    return whole if len(whole) <= TITLE_LENGTH else whole[: TITLE_LENGTH - 1] + "…"


def rows(found: Execution) -> list[Mapping[str, str]]:
    """A row a worker: what it sent, got, lost and took."""
    ways = {(link.worker, link.direction): link for link in found.links}
    return [_row(use, ways[number, "up"], ways[number, "down"]) for number, use in enumerate(found.uses)]


def training_rows(found: Training) -> list[tuple[str, str]]:
    """What was put into the scripts, and what was seen there: a line each."""
    params = ", ".join(f"{name} = {value}" for name, value in found.params.items())
    told = [("method", f"{found.method}{f' ({params})' if params else ''}" if found.method else "the script's own")]
    if found.method_code:
        told.append(("hash of its code", found.method_code))
    told.append(("steps", str(found.steps)))
    if found.curve:
        told += [
            ("optimizer", f"{found.optimizer}, of {found.parameters:,} parameters on {found.device}"),
            ("loss of the first step, of the last", f"{_loss(found.first_loss)}, {_loss(found.last_loss)}"),
            ("steps of the means below", f"from step {found.steady_from_step} on"),
            ("step", text.time(found.step_s)),
            ("forward passes", text.time(found.forward_s)),
            ("exposed communication", text.time(found.exposed_s)),
            ("encoding, decoding", f"{text.time(found.encode_s)}, {text.time(found.decode_s)}"),
            ("payload a step and rank, counted", _size(found.sent_bytes)),
            (f"the same by the formula of {found.formula}", _size(found.formula_bytes)),
            ("counted ÷ formula", text.fixed(_share(found.sent_bytes, found.formula_bytes), 3)),
            ("buckets", ", ".join(map(format_size, found.buckets_bytes)) or NOTHING),
        ]
    return told


def metric_rows(metrics: Sequence[Metric]) -> list[tuple[str, ...]]:
    """A row for each kind of metric: its name, how often it was told, its first and its last value."""
    return [
        (name, str(len(values)), _number(values[0]), _number(values[-1])) for name, values in _by_name(metrics).items()
    ]


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.6g}"


def _by_name(metrics: Sequence[Metric]) -> dict[str, list[float | None]]:
    """The values of each kind of metric, as they came."""
    found: dict[str, list[float | None]] = {}
    for metric in metrics:
        found.setdefault(metric.name, []).append(metric.value)
    return found


def _loss(loss: float | None) -> str:
    return NOTHING if loss is None else f"{loss:.4g}"


def _size(size_bytes: float | None) -> str:
    return NOTHING if size_bytes is None else text.size(size_bytes)


def _share(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _row(use: WorkerUse, up: LinkTraffic, down: LinkTraffic) -> Mapping[str, str]:
    return {
        "worker": use.worker,
        "sent": format_size(up.wire_bytes),
        "received": format_size(down.wire_bytes),
        "mean rate up": format_rate(up.mean_bps),
        "mean rate down": format_rate(down.mean_bps),
        "dropped": str(up.drops + down.drops),
        "sent again": str(use.retransmits),
        "processor": text.time(use.cpu_s),
        "peak memory": NOTHING if use.peak_memory_bytes is None else format_size(use.peak_memory_bytes),
    }
