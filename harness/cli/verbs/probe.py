"""Measure a cluster's links."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.cli.console import print_table
from harness.cli.json_output import print_json
from harness.cli.options import AsJson, Keep, On, Rate, SetLinks, Workers, topology

if TYPE_CHECKING:
    from harness.machine.probe import ProbeReport


def verb(
    workers: Workers = 4,
    rate: Rate = "100mbit",
    on: On = "auto",
    set_: SetLinks = None,
    as_json: AsJson = False,
    keep: Keep = False,
) -> None:
    """Make a cluster, measure every link and one large all-reduce against its ring bound."""
    from harness.cluster import registry
    from harness.machine.probe import probe

    asked = topology(workers, rate, set_)
    cluster = registry.make(registry.choose(on)[0], keep)
    found = probe(cluster, asked)
    if as_json:
        print_json(found.as_json())
    else:
        _print(found, workers)


def _print(found: ProbeReport, workers: int) -> None:
    from harness.units import format_rate, format_size, format_time

    rows = [
        [
            link.link,
            link.direction,
            format_rate(link.rate_bps_asked) if link.rate_bps_asked else "unshaped",
            format_rate(link.rate_bps_measured),
        ]
        for link in found.readings.links
    ]
    print_table(f"{workers} workers", ["link", "direction", "asked", "measured"], rows)
    reduced = found.all_reduce
    ratio = f", {reduced.ratio_to_ring_bound:.3f} x its ring bound" if reduced.ratio_to_ring_bound else ""
    print(f"all-reduce of {format_size(reduced.bytes)}: {format_time(reduced.seconds)}{ratio}")
    print(f"round trip: {format_time(found.readings.rtt_median_s)}; brought up in {format_time(found.bring_up_s)}")
