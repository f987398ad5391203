"""What a command did to its links, as one self-contained HTML page, a figure's files and a short table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from harness.network.readings import Readings
from harness.record.execution import Execution, LinkTraffic, WorkerUse
from harness.report import text
from harness.report.facts import flat
from harness.report.figures import render
from harness.report.figures.drawing import style
from harness.report.figures.traffic import traffic
from harness.report.page import render_html
from harness.report.text import NOTHING
from harness.units import format_rate, format_size

TITLE_LENGTH = 80


def write(found: Execution, folder: Path) -> Path:
    """Write ``exec.html`` and ``plots/`` into the record's folder; returns the page."""
    with style():
        drawings = render.write(traffic(found.links), folder / "plots")
    verified: dict[str, Readings] = {"before": found.before, **({"after": found.after} if found.after else {})}
    content: dict[str, object] = {"found": found, "title": title(found), "drawings": drawings, "verified": verified}
    content["provenance"] = flat(found.provenance)
    return render_html(folder / "exec.html", content)


def title(found: Execution) -> str:
    """The command in one line that is not too long."""
    whole = " ".join(found.command)
    return whole if len(whole) <= TITLE_LENGTH else whole[: TITLE_LENGTH - 1] + "…"


def rows(found: Execution) -> list[Mapping[str, str]]:
    """A row a worker: what it sent, got, lost and took."""
    ways = {(link.worker, link.direction): link for link in found.links}
    return [_row(use, ways[number, "up"], ways[number, "down"]) for number, use in enumerate(found.uses)]


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
