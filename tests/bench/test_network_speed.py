"""How true and how quick the emulated network is: ratios to what physics allows, each with its limit."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from harness.cluster.emulated import MEETING_PLACE, as_json
from harness.cluster.netns import NetnsCluster
from harness.cluster.protocol import SideTask
from harness.machine.probe import ProbeReport, probe
from harness.messages import Failed, LinksChanged
from harness.network.topology import Topology
from harness.scenario.links import Link

LIMITS = [
    (4, "10mbit", 1.08, 5.0),
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


def test_a_change_of_a_trace_is_in_force_in_time(benchmark) -> None:  # type: ignore[no-untyped-def]
    """Of all links' queues, both directions, while all workers keep their links full."""
    changes, start_file = 200, "/run/bench-trace"
    rows = [{"t_s": number / 20, "rate_bps": (50 if number % 2 else 100) * 10**6} for number in range(changes)]
    topology = Topology.model_validate({"workers": 4, "link": {"trace": {"rows": rows}}})
    traffic = {"bytes": 2_000_000, "workers": 4, **MEETING_PLACE, "port": 29900}
    player = SideTask("play", "player", {"topology": as_json(topology), "start_file": start_file})
    late_s = []

    def play() -> None:
        with NetnsCluster() as cluster:
            cluster.use(topology)
            cluster.preload()
            (universe,) = psutil.Process(cluster._agent._process.pid).children()
            Path(f"/proc/{universe.pid}/root{start_file}").touch()
            while len(late_s) < changes:
                for message in cluster._agent.task("all_reduce", topology.worker_nodes, traffic, 60.0, [player]):
                    assert not isinstance(message, Failed), message
                    if isinstance(message, LinksChanged):
                        late_s.append(message.late_s)

    benchmark.pedantic(play, rounds=1)
    benchmark.extra_info |= {"median_late_s": sorted(late_s)[len(late_s) // 2], "most_late_s": max(late_s)}
    assert max(late_s) <= 0.05
