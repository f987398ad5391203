"""What links may be at most and at least: beyond it nothing could be measured, or no packet would ever pass.

These are limits of what a file says. A link that is made slower to dilate time may lie below them.
"""

from __future__ import annotations

from collections.abc import Iterator

from harness.scenario.links import PROPERTIES, WAYS, Fabric, Link, Pipe, TraceRow
from harness.scenario.properties import Property, percent
from harness.units import format_rate, format_size, format_time

ETHERNET_HEADER_BYTES = 14

LOST_BY_ROUNDING = 0.01
"""Share of a bucket that tc(8) may round away, since it holds buckets as times in ticks."""

MOST_TRACE_S = 24 * 3600.0

LEAST_ROW_S = 0.01
"""How long a row of a trace without an end is in force at least, in the mean: to change a link takes time as well."""

ROW = {row.name: row for row in PROPERTIES}


def complaint(link: Link, fabric: Fabric, workers: int) -> str | None:
    """What of links or trunks is beyond its limits, as ``field: found ...; allowed: ...``; None where nothing is."""
    return next(_complaints(link, fabric, workers), None)


def _complaints(link: Link, fabric: Fabric, workers: int) -> Iterator[str]:
    for name, pipe in _pipes(link, fabric):
        for row in PROPERTIES:
            if why := row.beyond(pipe) or _passes_no_frame(row, pipe, link.mtu_bytes):
                yield f"{name}{row.key}: {why}"
    yield from _beyond_by_oversubscription(link, fabric, workers)
    if link.trace and link.trace.period_s and link.trace.period_s < LEAST_ROW_S * len(link.trace.rows):
        allowed = f"at least {LEAST_ROW_S:g} for each of its rows, {len(link.trace.rows)}"
        yield f"link.trace: period_s: found {link.trace.period_s:g}; allowed: {allowed}"
    if link.trace and link.trace.period_s and link.trace.period_s > MOST_TRACE_S:
        yield f"link.trace: period_s: found {link.trace.period_s:g}; allowed: up to {MOST_TRACE_S:g}, a day"
    for number, at in enumerate(link.trace.rows if link.trace else (), start=1):
        for field, why in _beyond_in_trace(at):
            yield f"link.trace: row {number}: {field}: {why}"


def _pipes(link: Link, fabric: Fabric) -> Iterator[tuple[str, Pipe]]:
    """Every direction that a file may describe, by its name there."""
    plain = link.model_copy(update={"trace": None})  # whose rows are looked at each
    yield "link.", plain
    for way in WAYS:
        yield f"link.{way}.", plain.pipe("", way)
    for worker in link.workers:
        yield from ((f"link.workers.{worker}.{way}.", plain.pipe(worker, way)) for way in WAYS)
    for trunk in fabric.trunk_names:
        yield from ((f"fabric: trunk {trunk}: {way}.", fabric.pipe(trunk, way, None)) for way in WAYS)


def _beyond_by_oversubscription(link: Link, fabric: Fabric, workers: int) -> Iterator[str]:
    if fabric.oversubscription is None:
        return
    for trunk in fabric.trunk_names:
        for way in WAYS:
            pipe = fabric.pipe(trunk, way, fabric.shared_bps(trunk, way, link, workers))
            if why := ROW["rate_bps"].beyond(pipe):
                yield f"fabric.oversubscription: trunk {trunk}: {way}.rate: {why}"


def _passes_no_frame(row: Property, pipe: Pipe, mtu_bytes: int) -> str | None:
    """A bucket or queue that is smaller than a frame lets none pass, ever."""
    asked = getattr(pipe, row.name) if row.name in ("burst_bytes", "queue_bytes") else None
    if asked is None:
        return None
    least = mtu_bytes + ETHERNET_HEADER_BYTES
    least = round(least / (1 - LOST_BY_ROUNDING)) + 1 if row.name == "burst_bytes" else least
    if asked >= least:
        return None
    return f"found {format_size(asked)!r}; allowed: at least {least} B, a frame at an MTU of {mtu_bytes}"


def _beyond_in_trace(at: TraceRow) -> Iterator[tuple[str, str]]:
    if at.t_s > MOST_TRACE_S:
        yield "t_s", f"found {at.t_s:g}; allowed: up to {MOST_TRACE_S:g}, a day"
    for name, said in (("rate_bps", format_rate), ("delay_s", format_time), ("loss", percent)):
        row, value = ROW[name], getattr(at, name)
        if value and not row.least <= value <= row.most:
            yield name, f"found {said(value)!r}; allowed: {said(row.least)} to {said(row.most)}"
