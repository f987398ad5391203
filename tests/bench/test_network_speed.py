"""How true and how quick the emulated network is: ratios to what physics allows, each with its limit."""

from __future__ import annotations

import pytest

from harness.cluster.netns import NetnsCluster
from harness.network import Topology
from harness.probe import ProbeReport, probe
from harness.scenario import Link

LIMITS = [
    (3, "37mbit", 1.10, 5.0),
    (4, "100mbit", 1.08, 5.0),
    (4, "500mbit", 1.08, 5.0),
    (4, "1gbit", 1.08, 5.0),
    (8, "100mbit", 1.10, 5.0),
    (32, "50mbit", 1.12, 10.0),
]


@pytest.mark.parametrize(("workers", "rate", "most_ratio", "most_bring_up_s"), LIMITS)
def test_all_reduce_against_its_ring_bound(benchmark, workers, rate, most_ratio, most_bring_up_s) -> None:  # type: ignore[no-untyped-def]
    topology = Topology(workers=workers, link=Link.model_validate({"rate": rate}))
    report: ProbeReport = benchmark.pedantic(lambda: probe(NetnsCluster(), topology), rounds=1)
    ratio = report.all_reduce.ratio_to_ring_bound
    benchmark.extra_info |= {
        "ratio_to_ring_bound": ratio,
        "most_ratio": most_ratio,
        "bring_up_s": report.bring_up_s,
        "verification_s": report.readings.took_s,
    }
    assert ratio is not None
    assert ratio <= most_ratio
    assert report.bring_up_s <= most_bring_up_s
