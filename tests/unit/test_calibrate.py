"""A row of the calibration: measured again while it is off, as often as verification would, and then called so."""

from __future__ import annotations

from typing import Any, cast

import pytest

from harness.cluster.netns import NetnsCluster
from harness.machine import calibrate
from harness.network.measure import ATTEMPTS
from harness.network.readings import LinkReading, Readings, RoundTrip
from harness.network.topology import Topology

TOPOLOGY = Topology.model_validate({"workers": 2, "link": {"rate": "20mbit", "delay": "1ms"}})


class Measuring:
    """A cluster that finds these round trips, one each time; the last of them again and again."""

    name = "uml"

    def __init__(self, *rtt_s: float) -> None:
        self.rtt_s = rtt_s
        self.measured = 0

    def measure(self, topology: Topology, counted: int) -> Readings:
        rtt_s = self.rtt_s[min(self.measured, len(self.rtt_s) - 1)]
        self.measured += 1
        asked: dict[str, Any] = {"rate_bps_asked": 20_000_000, "rate_bps_measured": 2e7}
        links = tuple(LinkReading(worker=0, link="w0", direction=way, **asked) for way in ("up", "down"))
        trip = RoundTrip(link="w0", rtt_s_asked=0.002, rtt_s_measured=rtt_s)
        return Readings(links=links, round_trips=(trip,), rtt_s=(), took_s=0.0)


@pytest.mark.parametrize(
    ("rtt_s", "times", "ok"),
    [((0.0022,), 1, True), ((0.0024, 0.0022), 2, True), ((0.0024,), ATTEMPTS, False)],
)
def test_a_row_that_is_off_is_measured_again_but_not_for_ever(rtt_s: tuple[float, ...], times: int, ok: bool) -> None:
    cluster = Measuring(*rtt_s)
    found = calibrate._measured(TOPOLOGY, cast(NetnsCluster, cluster))
    assert (found.times, found.ok) == (cluster.measured, ok)
    assert cluster.measured == times
    assert found.rtt_s_measured == rtt_s[-1]
