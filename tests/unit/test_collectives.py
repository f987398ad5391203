"""Collectives on networks: identities, and simulations that know every worker, segment and flow."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines._calls import AllGather, AllReduce, AllToAll, Barrier, Broadcast, Call, Pull, Push, ReduceScatter, Shift
from harness.network.bounds import TCP_IP_HEADER_BYTES, wire_share
from harness.network.flows import arrivals_s
from harness.network.pipeline import Hop, Lane, pipeline
from harness.network.topology import Topology
from harness.plan.collectives import Network

EVERY_CALL = [AllReduce(4e6), ReduceScatter(4e6), AllGather(4e5), AllToAll(4e6), Push(4e6, 2), Pull(4e6, 2)]
EVERY_CALL += [Shift(1e6, 3), Broadcast(1e6)]
ANY_CALL = pytest.mark.parametrize("call", EVERY_CALL, ids=lambda call: type(call).__name__)

RACKS = {"groups": "a b"}
NO_TIME = 0.0


def topology(workers: int = 8, fabric: dict[str, Any] | None = None, **link: Any) -> Topology:
    return Topology.model_validate({"workers": workers, "link": {"rate": "100mbit", **link}, "fabric": fabric or {}})


def took_s(call: Call, on: Topology, message_s: float = 0.0, idle_s: float = NO_TIME) -> float:
    return Network(on, message_s).timing(call, idle_s).took_s


@pytest.mark.parametrize("workers", [2, 5, 32])
def test_a_ring_on_a_star_is_the_closed_bound_with_headers(workers: int) -> None:
    star, payload = topology(workers), 40e6
    bound_s = star.ring_bound_s(payload) * wire_share(star.link)
    assert bound_s <= took_s(AllReduce(payload), star) <= 1.005 * bound_s
    assert took_s(ReduceScatter(payload), star) == pytest.approx(took_s(AllReduce(payload), star) / 2)


def test_a_long_delay_decides_the_pace_of_a_ring_as_its_two_segments_under_way_say() -> None:
    star, p, payload, delay_s = topology(4, delay="20ms"), 4, 8000, 0.02
    segment_s = 8 * (payload / (2 * p) * wire_share(star.link) + 342) / 1e8
    assert took_s(AllReduce(payload), star) == pytest.approx(2 * (p - 1) * (4 * delay_s + segment_s), rel=0.02)


def test_a_few_numbers_walk_round_the_ring_alone() -> None:
    star = topology(4, delay="20ms")
    assert took_s(AllReduce(4), star) == pytest.approx(2 * 3 * 2 * 0.02, rel=0.01)


@ANY_CALL
def test_a_trunk_that_is_wide_enough_changes_nothing(call: Call) -> None:
    star = took_s(call, topology())
    assert took_s(call, topology(fabric={**RACKS, "trunk": {"rate": "10gbit"}})) == pytest.approx(star, rel=1e-6)
    assert took_s(call, topology(fabric={**RACKS, "oversubscription": 0.9})) == pytest.approx(star, rel=1e-6)
    assert took_s(call, topology(fabric={**RACKS, "trunk": {"rate": "20mbit"}})) > 1.5 * star


@ANY_CALL
def test_half_the_rate_and_twice_the_delay_take_twice_as_long(call: Call) -> None:
    fabric = {**RACKS, "mesh": True, "trunk": {"rate": "50mbit", "delay": "10ms"}}
    here = topology(fabric=fabric, delay="5ms", up={"rate": "30mbit"})
    slower = here.slowed(2.0).model_copy(update={"most_segments": here.segments})
    assert took_s(call, slower) == pytest.approx(2 * took_s(call, here), rel=1e-3)


@ANY_CALL
def test_a_slower_worker_never_makes_it_faster_and_a_message_costs(call: Call) -> None:
    content = {"workers": 8, "link": {"rate": "100mbit", "workers": {"w1": {"rate": "40mbit"}}}}
    assert took_s(call, Topology.model_validate(content)) > took_s(call, topology())
    assert took_s(call, topology(), message_s=0.001) > took_s(call, topology()) + 0.0009


@ANY_CALL
def test_what_a_token_bucket_saved_is_given_once(call: Call) -> None:
    links = topology(burst="200kB")
    saved_s = took_s(call, links) - took_s(call, links, idle_s=math.inf)
    assert 0 < saved_s <= 2.01 * 8 * 200e3 / 1e8


def test_a_window_that_shrank_in_a_long_silence_costs_round_trips() -> None:
    far = topology(4, delay="50ms")
    at_once, after_a_while = (took_s(AllToAll(40e6), far, idle_s=idle_s) for idle_s in (0.1, 10.0))
    assert after_a_while > at_once + 0.5
    near = topology(4)
    assert took_s(AllToAll(40e6), near, idle_s=10.0) <= took_s(AllToAll(40e6), near, idle_s=0.1)


@pytest.mark.parametrize(("workers", "rounds"), [(2, 1), (3, 2), (8, 3), (9, 4), (1000, 10)])
def test_a_barrier_takes_a_round_trip_for_each_doubling_of_those_who_are_known_of(workers: int, rounds: int) -> None:
    """Hensgen, Finkel and Manber, 1988: of p workers, log2 p rounds. A message is asked for first."""
    star = topology(workers, delay="10ms")
    assert took_s(Barrier(), star) == pytest.approx(rounds * 4 * 0.01, rel=0.01)
    assert Network(star).timing(Barrier(), 5.0).rested_s > 5.0


def test_one_server_carries_all_and_as_many_as_workers_carry_what_a_ring_does() -> None:
    star, p, payload = topology(), 8, 8e6
    assert took_s(Push(payload, 1), star) == pytest.approx((p - 1) * 8 * payload * 1.0456 / 1e8, rel=0.01)
    assert took_s(Push(payload, p), star) == pytest.approx(took_s(AllToAll(payload), star))


@given(
    st.lists(st.floats(0.5, 2), min_size=4, max_size=24),
    st.lists(st.floats(0, 3), min_size=24, max_size=24),
    st.integers(2, 4),
)
@settings(max_examples=60, deadline=None)
def test_a_ring_goes_at_the_pace_of_its_slowest_hop(speeds: list[float], delays: list[float], of_each: int) -> None:
    """Against every worker's own moments. What is left out are the first segments' ways to the slowest hop."""
    p = len(speeds)
    there, segments = np.array(delays[:p]), of_each * (p - 1)
    hops = [Hop((Lane(speed, 0.0, delay),), delay, delay) for speed, delay in zip(speeds, there, strict=True)]
    found = max(pipeline(hop, 1.0, segments, 1, 0.0, 0.1)[0] for hop in hops)
    exact = ring_of_unlike_hops_s(1 / np.array(speeds), there, segments, 0.1)
    assert exact >= found * (1 - 1e-9)
    assert exact - found <= 2 * (2 * there.max() + 2 + 0.1) + 0.15 * found


def ring_of_unlike_hops_s(takes_s: np.ndarray, delay_s: np.ndarray, segments: int, message_s: float) -> float:
    """gloo/allreduce.cc, a phase of it: worker r receives from r + 1."""
    p = len(takes_s)
    arrived, before, entered, free = np.zeros(p), np.zeros(p), np.zeros(p), np.zeros(p)
    for _ in range(segments):
        entered = np.maximum(entered, before)
        start = np.maximum.reduce([np.roll(entered, -1), entered + delay_s, free])
        free = start + takes_s
        before, arrived = arrived, free + delay_s + message_s
    return float(arrived.max())


@pytest.mark.parametrize("segments", [7, 40, 401])
def test_a_rhythm_is_gone_on_with_as_if_every_segment_had_been_looked_at(segments: int) -> None:
    hop = Hop((Lane(1.0, 3.0, 0.0), Lane(0.7, 5.0, 0.0)), 0.4, 0.3)
    ended_s, rested_s = pipeline(hop, 1.0, segments, 2, 10.0, 0.1)
    late, now, before = [-3.0, -5.0], 0.0, 0.0
    for _ in range(2):
        before = now
        for _ in range(segments):
            start = before + 0.3
            late = [max(late[0], start - 3.0) + 1.0, max(late[1], start - 5.0) + 1 / 0.7]
            before, now = now, max(start, *late) + 0.4 + 0.1
    assert ended_s == pytest.approx(now)
    assert rested_s == pytest.approx(now - late[1])


def test_flows_of_a_kind_are_as_each_flow_by_itself() -> None:
    """An all-to-all over two racks, one of them with two workers, whose links are uneven."""
    link = {"rate": "100mbit", "workers": {"w0": {"rate": "60mbit"}, "w4": {"up": {"rate": "30mbit"}}}}
    content = {"workers": 5, "link": link, "fabric": {"groups": "a b", "trunk": {"rate": "90mbit"}}}
    uneven, p, payload = Topology.model_validate(content), 5, 5e6
    pairs = [(one, other) for one in range(p) for other in range(p) if one != other]
    queues = list(uneven.queues())
    places = {(queue.node, queue.interface): place for place, queue in enumerate(queues)}
    use = np.zeros((len(queues), len(pairs)))
    acks = 66 / (44 * (1500 - TCP_IP_HEADER_BYTES)) / wire_share(uneven.link)
    for number, (one, other) in enumerate(pairs):
        for share, way in ((1.0, uneven.path(one, other)), (acks, uneven.path(other, one))):
            for queue in way:
                use[places[queue.node, queue.interface], number] += share
    rates = np.array([queue.pipe.rate_bps / 8 for queue in queues])
    sizes = np.full(len(pairs), payload / p * wire_share(uneven.link) + 342)
    every_flow_s = arrivals_s(use, rates, np.zeros(len(queues)), sizes).max()
    assert took_s(AllToAll(payload), uneven) == pytest.approx(every_flow_s, rel=1e-6)


def test_ten_thousand_workers_are_as_few_numbers_as_four() -> None:
    fabric = {"groups": " ".join(f"r{number}" for number in range(10)), "oversubscription": 4.0}
    many = Network(topology(10_000, fabric), 0.0)
    assert many.timing(AllToAll(1e9), 0.0).took_s > 8 * 1e9 * 0.9 * 4 / 1e8
    assert many.timing(AllReduce(1e9), 0.0).took_s > 8 * 2e9 / 1e8 * 0.99
    assert len(many._hop_counts) == 2, "within a rack, and from one to the next"


@ANY_CALL
@given(idle_s=st.one_of(st.floats(0, 0.01), st.floats(0, 5), st.just(math.inf)))
@settings(max_examples=30)
def test_silences_that_are_taken_for_alike_are(call: Call, idle_s: float) -> None:
    for link in ({}, {"delay": "5ms"}, {"rate": "10gbit"}):
        network = Network(topology(**link))
        expected = network._timings[type(call)](call, idle_s)
        assert network.timing(call, idle_s) == pytest.approx(expected, nan_ok=True)


def test_a_network_that_has_seen_other_calls_of_that_size_says_the_same() -> None:
    network = Network(topology())
    for call in EVERY_CALL:
        same_size = type(call)(4e6, *call[1:])
        assert network.timing(same_size, 1e-3) == Network(topology()).timing(same_size, 1e-3)
