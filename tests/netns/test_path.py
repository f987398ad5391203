"""``pacbench link`` between real namespaces, whose links are known: what it finds is what they are."""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path
from typing import Any

import pytest
from measured_path import measure_until

from harness.cluster.netns import NetnsCluster
from harness.network.path.findings import Findings
from harness.network.tolerances import RATE_TOLERANCE, RTT_TOLERANCE_S
from harness.network.topology import Topology
from harness.scenario.link_file import read_link

pytestmark = pytest.mark.netns


def pair(**link: Any) -> Topology:
    return Topology.model_validate({"workers": 2, "link": link})


def is_about(measured_bps: float, asked_bps: float) -> bool:
    low, high = RATE_TOLERANCE
    return low <= measured_bps / asked_bps <= high


LINKS: dict[str, tuple[dict[str, Any], float, float]] = {
    "alike": ({"rate": "40mbit"}, 40e6, 40e6),
    "a burst": ({"rate": "20mbit", "burst": "1MB"}, 20e6, 20e6),
    "fast": ({"rate": "300mbit"}, 300e6, 300e6),
    "each way another": ({"rate": "50mbit", "workers": {"w0": {"up": {"rate": "10mbit"}}}}, 10e6, 50e6),
    "jumbo frames": ({"rate": "50mbit", "mtu": 9000}, 50e6, 50e6),
}


@pytest.mark.parametrize("name", LINKS)
def test_the_path_between_two_workers_is_what_their_links_are(cluster: NetnsCluster, tmp_path: Path, name: str) -> None:
    link, up_bps, down_bps = LINKS[name]

    def check(found: Findings, folder: Path) -> None:
        assert is_about(found.up.rate_bps.median, up_bps), found.up
        assert is_about(found.down.rate_bps.median, down_bps), found.down
        assert found.rtt_s
        assert found.rtt_s.median < RTT_TOLERANCE_S
        assert found.up.loss == found.down.loss == 0.0
        assert found.mtu_bytes == link.get("mtu", 1500)
        written = read_link(folder / "link.toml")
        assert (written.delay_s, written.mtu_bytes) == (0.0, found.mtu_bytes)
        assert written.pipe("w0", "up").rate_bps == pytest.approx(found.up.rate_bps.median, rel=1e-3)
        assert written.pipe("w0", "down").rate_bps == pytest.approx(found.down.rate_bps.median, rel=1e-3)

    measure_until(check, cluster, pair(**link), tmp_path, "--for", "6s")


def test_a_rate_that_changes_is_followed_into_a_trace(cluster: NetnsCluster, tmp_path: Path) -> None:
    slow_bps, fast_bps = 10_000_000, 40_000_000
    rows = [{"t_s": 0.0, "rate_bps": fast_bps}, {"t_s": 3.0, "rate_bps": slow_bps}]

    def check(found: Findings, folder: Path) -> None:
        trace = read_link(folder / "link.toml").trace
        assert trace
        assert [row.rate_bps for row in trace.rows] == [round(sample.rate_bps) for sample in found.trace]
        rates_bps = [row.rate_bps for row in trace.rows]
        slow = [rate for rate in rates_bps if rate < 2 * slow_bps]
        fast = [rate for rate in rates_bps if rate > fast_bps / 2]
        assert min(len(slow), len(fast)) >= len(rates_bps) / 4, rates_bps
        assert is_about(statistics.median(slow), slow_bps), rates_bps
        assert is_about(statistics.median(fast), fast_bps), rates_bps
        is_fast = [rate > 1.5 * slow_bps for rate in rates_bps]
        assert sum(before != after for before, after in itertools.pairwise(is_fast)) >= 3, "up and down again"

    topology = pair(trace={"rows": rows, "period_s": 6.0})
    measure_until(check, cluster, topology, tmp_path, "--for", "26s", "--trace", "link.csv")
