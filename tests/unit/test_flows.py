"""Flows that share queues: max-min fair, and in time as bytes per second say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.network.flows import arrivals_s, fair

RATES = st.floats(0.1, 100)


@st.composite
def networks(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which queue each flow passes and how often, what queues carry, and what flows want."""
    queues, flows = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    entries = st.sampled_from([0.0, 0.0, 0.05, 1.0, 1.0, 3.0])
    use = np.array(draw(st.lists(entries, min_size=queues * flows, max_size=queues * flows))).reshape(queues, flows)
    capacity = np.array(draw(st.lists(RATES, min_size=queues, max_size=queues)))
    wanted = draw(st.lists(st.one_of(RATES, st.just(np.inf), st.just(0.0)), min_size=flows, max_size=flows))
    return use, capacity, np.array(wanted)


@given(networks())
@settings(max_examples=200, deadline=None)
def test_no_queue_is_overfull_and_no_flow_gains_unless_one_that_has_no_more_loses(network) -> None:
    use, capacity, wanted = network
    got = fair(use, capacity, wanted)
    limited = ~np.isinf(got)
    load = use[:, limited] @ got[limited]
    assert (load <= capacity * (1 + 1e-6)).all()
    for flow, rate in enumerate(got):
        if rate < wanted[flow] * (1 - 1e-6):
            passed = use[:, flow] > 0
            full = passed & (load >= capacity * (1 - 1e-6))
            largest_there = [rate >= got[use[queue] > 0].max() * (1 - 1e-6) for queue in np.flatnonzero(full)]
            assert any(largest_there), "its bottleneck: full, and nobody has more there"
        else:
            assert rate == pytest.approx(wanted[flow]) or np.isinf(rate)


def test_a_classic_line_of_links() -> None:
    """Bertsekas and Gallager, figure 6.11: a long flow and short ones, of which one has a link of its own."""
    use = np.array([[1.0, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1]])
    assert fair(use, np.array([1.0, 2.0, 4.0]), np.full(4, np.inf)) == pytest.approx([0.5, 0.5, 1.5, 3.5])


def test_who_has_arrived_leaves_room_for_the_others() -> None:
    use, none = np.ones((1, 2)), np.zeros(1)
    assert arrivals_s(use, np.array([10.0]), none, np.array([10.0, 30.0])) == pytest.approx([2, 4])
    assert arrivals_s(use, np.array([10.0]), np.array([20.0]), np.array([10.0, 30.0])) == pytest.approx([0, 2])
    assert arrivals_s(use, np.array([np.inf]), none, np.array([10.0, 30.0])) == pytest.approx([0, 0])


@given(networks(), st.lists(RATES, min_size=6, max_size=6))
@settings(max_examples=100, deadline=None)
def test_the_last_arrives_no_sooner_than_the_busiest_queue_allows(network, sizes) -> None:
    use, rates, _ = network
    volumes = np.array(sizes[: use.shape[1]])
    arrived = arrivals_s(use, rates, np.zeros(len(rates)), volumes)
    busy_s = use @ volumes / rates
    assert arrived.max() >= busy_s.max() * (1 - 1e-6)
    assert arrived.max() <= busy_s.sum() * (1 + 1e-6), "some queue is full all the time"
