"""``pacbench link`` in a kernel with netem: delay, jitter and loss of a path are those of the links it leads over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from measured_path import measure_until

from harness.cluster.uml import UmlCluster
from harness.network.path.findings import Findings
from harness.network.tolerances import PINGS, RATE_TOLERANCE, median_spread_s, rtt_tolerance_s, share_interval
from harness.network.topology import Topology
from harness.scenario.link_file import read_link
from harness.scenario.links import Link

pytestmark = pytest.mark.netem

LINKS: dict[str, dict[str, Any]] = {
    "jitter": {"rate": "20mbit", "delay": "10ms", "jitter": "2ms"},
    "loss": {"rate": "10mbit", "delay": "2ms", "loss": "2%"},
}


@pytest.mark.parametrize("name", LINKS)
def test_the_link_that_is_written_is_the_link_that_was_measured(tmp_path: Path, name: str) -> None:
    asked = Link.model_validate(LINKS[name])

    def check_both(found: Findings, folder: Path) -> None:
        check(found, read_link(folder / "link.toml"), asked)

    measure_until(check_both, UmlCluster(), Topology(workers=2, link=asked), tmp_path, "--for", "10s")


def check(found: Findings, written: Link, asked: Link) -> None:
    """That what was measured, and what was written, is what was asked for."""
    assert found.rtt_s
    allowed_s = 2 * rtt_tolerance_s(4 * asked.delay_s) + median_spread_s(2 * asked.jitter_s, PINGS)
    assert abs(found.rtt_s.median - 4 * asked.delay_s) < allowed_s
    assert abs(written.delay_s - asked.delay_s) < allowed_s / 4
    assert written.jitter_s == pytest.approx(asked.jitter_s, rel=0.25, abs=1e-3)
    for way in (found.up, found.down):
        low, high = RATE_TOLERANCE[0] - 0.05, RATE_TOLERANCE[1]  # the guest has one processor, and others keep it busy
        assert low <= way.rate_bps.median / (asked.rate_bps or 0) <= high, way
        assert way.by_datagrams == (asked.loss > 0)
        assert way.counts
        least, most = share_interval(1 - (1 - asked.loss) ** 2, way.counts.sent)
        assert least <= way.loss <= most
        assert way.jitter_s is not None
        assert way.jitter_s == pytest.approx(2**0.5 * asked.jitter_s, rel=0.3, abs=1e-3)
