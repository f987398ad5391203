"""Measure a cluster's links."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli.console import print_table
from harness.cli.options import AsJson, Keep, On

if TYPE_CHECKING:
    from harness.machine.probe import ProbeReport


def verb(
    workers: Annotated[int, typer.Option(help="How many.")] = 4,
    rate: Annotated[str, typer.Option(help="Of each link and direction, such as 100mbit; or unshaped.")] = "100mbit",
    on: On = "auto",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="More of the links: link.delay=5ms.")
    ] = None,
    as_json: AsJson = False,
    keep: Keep = False,
) -> None:
    """Make a cluster, measure every link and one large all-reduce against its ring bound."""
    from harness.cluster import registry
    from harness.machine.probe import probe
    from harness.network.topology import Topology
    from harness.scenario.load import apply_override
    from harness.scenario.section import checked_section

    values: dict[str, Any] = {"workers": workers, "link": {"rate": rate}}
    for override in set_ or []:
        apply_override(values, override)
    cluster = registry.make(registry.choose(on)[0], keep)
    found = probe(cluster, checked_section(Topology, values, "command line"))
    if as_json:
        print(json.dumps(found.as_json(), indent=1))
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
