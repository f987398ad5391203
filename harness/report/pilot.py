"""A pilot for two readers: a page for who decides and who implements, a method to paste, and tables for a scenario."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.analysis.explorer import bucket_sizes
from harness.analysis.pilot.elsewhere import elsewhere, ranks
from harness.analysis.pilot.forecast import UTILISATIONS
from harness.analysis.pilot.worth import Cost, Worth, money
from harness.files import write_whole
from harness.plugins import file_of
from harness.provenance import made_by
from harness.record.pilot import FILE, Interval, Pilot
from harness.report import explorer as explorer_page
from harness.report import text
from harness.report.figures import render
from harness.report.figures.drawing import style
from harness.report.figures.pilot import pilot as draw
from harness.report.rendering import render_html
from harness.report.text import NOTHING
from harness.scenario.link_file import link_text
from harness.scenario.writing import entries
from harness.units import format_rate

PAGE, TABLES, SNIPPET, LINK = "pilot.html", "recommended.toml", "snippet.py", "pilot-link.toml"

Rows = list[dict[str, str]]


def write(found: Pilot, worth: Worth, folder: Path) -> Path:
    """Write the page, its figures, the snippet and the tables; returns the page."""
    write_whole(folder / TABLES, tables(found))
    write_whole(folder / SNIPPET, snippet(found))
    if found.network.link.trace:
        table = found.network.link.model_dump(mode="json", by_alias=True, exclude_unset=True)
        write_whole(folder / LINK, link_text(table, [f"The links of {FILE}."]))
    with style():
        drawings = render.write(draw(found), folder / "plots")
    content: dict[str, object] = {
        "found": found,
        "worth": worth,
        "drawings": drawings,
        "title": " ".join(found.command)[:80],
        "network": describe_network(found),
        "communication": communication(found),
        "outcomes": outcomes(found),
        "costs": costs(worth),
        "faster": faster(worth),
        "needed": needed(worth),
        "links_change": found.network.at_mean is not found.network,
        "pay_back": pay_back(worth),
        "saved": _money(worth.saved, worth),
        "job": job(found),
        "gradients": gradients(found),
        "predictions": predictions(found),
        "probes": probes(found),
        "learnt_elsewhere": learnt_elsewhere(found),
        "snippet": snippet(found),
        "tables": tables(found),
        "reproduce": reproduce(found, folder),
        **explorer(found),
        "made_by": made_by([found.provenance]),
        "provenance": text.flat(found.provenance),
    }
    return render_html(folder / PAGE, content)


def explorer(found: Pilot) -> dict[str, Any]:
    """What the panel with sliders needs, which stand at the pilot's network."""
    told, network = elsewhere(found), found.network.at_mean
    rtt_s = max(network.rtt_s(0, other) for other in range(1, network.workers))
    at = explorer_page.nearest(told, network.slowest_bps, rtt_s, ranks(found))
    return {**explorer_page.parts(told, at), "ranks": ranks(found)}


def describe_network(found: Pilot) -> str:
    """``4 workers, 2 ranks on each, at 100 Mbit/s``."""
    ranks = f", {found.per_node} ranks on each," if found.per_node > 1 else ""
    return f"{found.network.workers} workers{ranks} {found.network.describe()}"


def communication(found: Pilot) -> str:
    """Communication against computation, with the script as it is."""
    plain = next(each for each in found.outcomes if each.label == found.plain_label)
    assert plain.exposed_share is not None, "what DDP itself does is timed"
    return f"With {plain.label}, {plain.exposed_share:.0%} of a step is communication that hides behind no computation."


def outcomes(found: Pilot) -> Rows:
    """A row a method that was trained."""
    return [
        {
            "method": each.label,
            "seeds": str(each.seeds),
            "step to step": text.time(each.pace_s),
            "predicted": text.time(each.predicted_pace_s),
            "measured ÷ predicted": text.fixed(each.pace_s / each.predicted_pace_s, 2),
            "exposed share of a step": text.percent(each.exposed_share),
            "loss at equal steps": _percent(each.loss_difference),
            "loss at equal time": _percent(each.timely_difference),
            "loss kept": each.keeps,
            "steps to dense's loss": _times(each.steps_factor),
            "time to dense's loss": text.time(each.time_to_loss_s),
            "sooner": _interval(each.sooner),
            "codec": text.time(each.codec_s),
            "memory it holds": NOTHING if each.held_bytes is None else text.size(each.held_bytes),
            "peak memory of a worker": NOTHING if each.peak_memory_bytes is None else text.size(each.peak_memory_bytes),
        }
        for each in found.outcomes
    ]


def costs(worth: Worth) -> Rows:
    """Hours and money of a whole training by method."""
    return [
        {
            "method": each.label,
            "hours": _hours(each.hours),
            "workers": _money(each.worker_money, worth),
            "egress": _money(each.egress_money, worth),
            "together": _money(each.money, worth),
        }
        for each in worth.costs
    ]


def faster(worth: Worth) -> Rows:
    """Hours and money of a whole training on faster links."""
    return [
        {"rate of each link": format_rate(step.rate_bps), **{each.label: _cost(each, worth) for each in step.costs}}
        for step in worth.faster
    ]


def needed(worth: Worth) -> Rows:
    """Rates at which devices compute for such shares of a step."""
    shares = [f"{share:.0%}" for share in UTILISATIONS]
    rates = [[NOTHING if rate is None else format_rate(rate) for rate in each.rates_bps] for each in worth.needed]
    return [
        {"method": each.label, **dict(zip(shares, own, strict=True))}
        for each, own in zip(worth.needed, rates, strict=True)
    ]


def pay_back(worth: Worth) -> Rows:
    """What an hour of integration may cost, that one whole training pays for it."""
    return [
        {"hours of integration": str(each.hours), "an hour may cost": money(each.most_an_hour, worth.currency)}
        for each in worth.pay_back
    ]


def job(found: Pilot) -> list[tuple[str, str]]:
    """The profile, a line each."""
    profile = found.job.profile
    return [
        ("device", profile.device),
        ("parameters", f"{profile.numel:,} in {len(profile.gradients)} tensors"),
        ("optimizer", profile.optimizer),
        ("samples of a worker in a step", str(profile.batch_size)),
        ("forward passes", text.time(profile.forward_s)),
        ("last backward pass", text.time(profile.backward_s)),
        ("optimizer's step", text.time(profile.optimizer_s)),
        ("between steps", text.time(found.job.between_s)),
        ("beyond the model, in a step on this network", text.time(found.beyond_s)),
        ("DDP closes a bucket at", bucket_sizes(found.job.bucket_bytes, found.job.first_bucket_bytes)),
        ("entries of a gradient that are not zero", text.percent(found.job.non_zero)),
        ("entries that hold 90 % of its squared norm", text.percent(found.job.holding_90)),
        ("entries that hold 99 %", text.percent(found.job.holding_99)),
    ]


def gradients(found: Pilot) -> Rows:
    """What each method makes of the job's gradients."""
    return [
        {
            "method": each.method.label,
            "NMSE": _figure(each.nmse),
            "cosine": _figure(each.cosine),
            "progress": _figure(each.progress),
            "codec": text.time(each.codec_s),
            "memory it holds": NOTHING if each.held_bytes is None else text.size(each.held_bytes),
            "": each.refused or "",
        }
        for each in found.job.fits
    ]


def predictions(found: Pilot) -> Rows:
    """What the step model says of each method on this network, against what was measured."""
    measured = {each.label: each.pace_s for each in found.outcomes}
    return [
        {
            "method": each.label,
            "step, predicted": text.time(each.step_s),
            "for an exact step's progress": text.time(each.rank_s),
            "step to step, measured": text.time(measured.get(each.label)),
        }
        for each in found.predictions
    ]


def probes(found: Pilot) -> Rows:
    """What was tried in search of the smallest setting."""
    return [
        {
            "setting": each.label,
            "loss at equal steps": NOTHING if each.difference is None else f"{100 * each.difference:+.1f} %",
            "came to dense's loss": "yes" if each.within else "no",
        }
        for each in found.probes
    ]


def snippet(found: Pilot) -> str:
    """What to paste where the model is under DistributedDataParallel and has its optimizer."""
    method = found.verdict.method
    if found.verdict.label == found.plain_label:
        return "# Nothing is to be changed: DistributedDataParallel all-reduces in 32 bits by itself.\n"
    params = ", ".join(f"{name}={value!r}" for name, value in method.params.items())
    if file_of(method.name):
        got = f"from harness.methods import method_named\n\nmethod = method_named({method.name!r})\n"
    else:
        got = f"method = baselines.get({method.name!r})\n"
    return (
        f"import baselines\n\n{got}"
        f"state = method.State({params})\n"
        "baselines.register(model, state, optimizer=optimizer)  # model: under DistributedDataParallel\n"
    )


def tables(found: Pilot) -> str:
    """Tables of a scenario: the method, the workers and the links."""
    verdict, ranks = found.verdict, found.network.with_ranks(found.per_node)
    network = ranks.model_dump(mode="json", by_alias=True, exclude_unset=True)
    lines = [f"# {verdict.sentence} How sure: {verdict.sureness}. See {FILE}."]
    lines += ["", "[cluster]", f"workers = {ranks.workers}", "", "[link]", *entries(network["link"])]
    if ranks.fabric.names:
        lines += ["", "[fabric]", *entries(network["fabric"])]
    lines += ["", "[[methods]]", *entries({"name": verdict.method.name, "label": verdict.label})]
    lines += entries(verdict.method.params)
    return "\n".join(lines) + "\n"


def learnt_elsewhere(found: Pilot) -> str:
    """Which losses are another network's; empty where none are."""
    count = sum(1 for each in found.trainings if each.learnt_in)
    if not count:
        return ""
    whose = f"{count} of {len(found.trainings)} trainings"
    return f"Of {whose} only the pace was measured here: losses are another network's, the first bit for bit."


def reproduce(found: Pilot, folder: Path = Path()) -> list[str]:
    """Commands: the pilot's own, the script with what is recommended, and the recheck.

    Args:
        folder: the pilot's, which has a file of links that change: Linux takes no argument of 128 KiB.
    """
    method, network = found.verdict.method, found.network.model_dump(mode="json", by_alias=True, exclude_unset=True)
    links = {name: network[name] for name in ("link", "fabric") if network.get(name)}
    where = ["--workers", str(found.network.workers)]
    if found.network.link.trace:
        del links["link"]
        where += ["--link", str(folder / LINK)]
    where += _options("--set", links)
    if found.per_node > 1:
        where += ["--per-node", str(found.per_node)]
    put_in = ["--method", method.name, *_options("--param", method.params)]
    if found.verdict.label == found.plain_label:
        put_in = ["--observe"]
    return [
        shlex.join(found.provenance["command"]),
        shlex.join(["pacbench", "exec", *where, *put_in, "--", *found.command]),
        shlex.join(["pacbench", "pilot", "--recheck", str(folder / FILE)]),
    ]


def _options(option: str, values: Mapping[str, Any]) -> list[str]:
    """An option for each value that is one, as TOML: ``--param ratio=0.01``."""
    return [word for entry in entries(values) for word in (option, entry.replace(" = ", "=", 1))]


def _percent(found: Interval | None) -> str:
    if found is None:
        return NOTHING
    ends = "" if found.low is None or found.high is None else f" [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    return f"{100 * found.value:+.1f} %{ends}"


def _interval(found: Interval | None) -> str:
    if found is None:
        return NOTHING
    ends = "" if found.low is None or found.high is None else f" [{found.low:.2f}, {found.high:.2f}]"
    return f"{found.value:.2f}x{ends}"


def _times(factor: float | None) -> str:
    return NOTHING if factor is None else f"{factor:.2f}x"


def _hours(hours: float | None) -> str:
    return NOTHING if hours is None else f"{hours:,.3g} h" if hours < 1000 else f"{hours:,.0f} h"


def _money(amount: float | None, worth: Worth) -> str:
    return NOTHING if amount is None else money(amount, worth.currency)


def _cost(cost: Cost, worth: Worth) -> str:
    return _hours(cost.hours) if cost.money is None else f"{_hours(cost.hours)}, {_money(cost.money, worth)}"


def _figure(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3g}"
