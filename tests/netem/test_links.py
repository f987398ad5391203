"""Inside a kernel with netem: what is asked is what traffic finds, and what differs from it is found out."""

from __future__ import annotations

from typing import Any

import pytest

from harness.cluster.emulated import MOST_MEASUREMENTS, measured_again
from harness.cluster.uml import UmlCluster
from harness.errors import UsageError
from harness.network.readings import Readings
from harness.network.topology import Topology
from harness.scenario.schema import NO_LIMITS

pytestmark = pytest.mark.netem


def pair(**link: Any) -> Topology:
    return Topology.model_validate({"workers": 2, "link": {"rate": "20mbit", **link}})


LINKS: dict[str, dict[str, Any]] = {
    "delay": {"delay": "5ms"},
    "long": {"delay": "50ms", "rate": "5mbit"},
    "longer than TCP would be waited for": {"delay": "500ms", "rate": "5mbit"},
    "so slow that small datagrams take long": {"delay": "5ms", "rate": "100kbit"},
    "jitter": {"delay": "10ms", "jitter": "2ms"},
    "loss": {"delay": "1ms", "loss": "2%"},
    "bursts": {"delay": "1ms", "loss_bursts": {"p": 0.01, "r": 0.25}},
    "reorder": {"delay": "10ms", "reorder": "3%"},
    "duplicate": {"delay": "1ms", "duplicate": "2%"},
    "corrupt": {"delay": "1ms", "corrupt": "2%"},
    "asymmetric": {"delay": "2ms", "up": {"rate": "5mbit", "delay": "8ms"}},
}


@pytest.mark.parametrize("name", LINKS)
def test_a_link_is_what_was_asked(cluster: UmlCluster, name: str) -> None:
    topology = pair(**LINKS[name])
    cluster.check(topology)
    readings = cluster.use(topology)
    assert readings.complaints() == []
    for trip in readings.round_trips:
        assert trip.rtt_s_measured > 0.9 * trip.rtt_s_asked, "nothing arrives before it could"
    if name == "asymmetric":
        assert {trip.rtt_s_asked for trip in readings.round_trips} == {0.01}


ELSEWHERE: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"delay": "5ms"}, {"delay": "7ms"}, "round trip"),
    ({"delay": "20ms"}, {"delay": "20ms", "jitter": "5ms"}, "jitter"),
    ({"delay": "1ms", "loss": "4%"}, {"delay": "1ms", "loss": "1%"}, "packets lost"),
    ({"delay": "1ms", "loss": "5%"}, {"delay": "1ms", "loss_bursts": {"p": 0.0125, "r": 0.25}}, "in a burst"),
    ({"delay": "1ms", "rate": "10mbit"}, {"delay": "1ms"}, "asked 20 Mbit/s, measured"),
]


@pytest.mark.parametrize(("built", "asked", "says"), ELSEWHERE)
def test_a_link_that_is_something_else_is_found_out(
    cluster: UmlCluster, built: dict[str, Any], asked: dict[str, Any], says: str
) -> None:
    cluster._build(pair(**built), NO_LIMITS)
    for _ in range(MOST_MEASUREMENTS):  # on a busy machine a link may seem to be the one that was asked
        readings = Readings.model_validate_json(cluster._probe("probe_links", pair(**asked)).readings)
        if found_out := any(says in complaint for complaint in readings.complaints()):
            break
    assert found_out, readings.complaints()


def test_a_loss_is_counted_by_a_receiver_that_falls_behind_its_senders(cluster: UmlCluster) -> None:
    """Four directions at once and one CPU for all of it: whatever waits must find room."""
    topology = pair(delay="1ms", loss="0.1%")
    readings = measured_again(lambda: cluster.measure(topology, counted=20_000))
    assert [link.counts.sent for link in readings.links if link.counts] == [20_000] * 4
    assert readings.complaints() == []


def test_a_kernel_that_is_booted_again_has_no_network_until_one_is_built() -> None:
    cluster, topology = UmlCluster(), pair(delay="1ms")
    for _ in range(2):
        with cluster:
            cluster.use(topology)
            assert {traffic.node for traffic in cluster.count()} == set(topology.nodes)


def test_regions_are_as_far_apart_as_their_matrix_says(cluster: UmlCluster) -> None:
    topology = Topology.model_validate(
        {
            "workers": 3,
            "link": {"rate": "20mbit"},
            "fabric": {
                "groups": "tokyo virginia ireland",
                "mesh": True,
                "trunk": {"rate": "10mbit"},
                "trunks": {
                    "tokyo virginia": {"delay": "40ms"},
                    "tokyo ireland": {"delay": "60ms"},
                    "virginia ireland": {"delay": "20ms"},
                },
            },
        }
    )
    readings = cluster.use(topology)
    assert readings.complaints() == []
    assert readings.rtt_s_asked == pytest.approx((0.08, 0.04, 0.12))
    assert readings.rtt_s == pytest.approx(readings.rtt_s_asked, rel=0.1)


def test_jitter_finer_than_the_timers_is_refused_with_what_they_can(cluster: UmlCluster) -> None:
    with pytest.raises(UsageError, match=r"link\.jitter: found '1 µs'; allowed: 0, or at least"):
        cluster.check(pair(delay="1ms", jitter="1us"))


def test_more_packets_than_this_kernel_carries_are_refused_with_what_it_does(cluster: UmlCluster) -> None:
    topology = Topology.model_validate({"workers": 4, "link": {"rate": "1gbit", "delay": "1ms", "loss": "1%"}})
    allowed = r"allowed: up to .*, what this machine carries for 4 workers through netem"
    with pytest.raises(UsageError, match=rf"link\.rate: found '1 Gbit/s'; {allowed}"):
        cluster.check(topology)
