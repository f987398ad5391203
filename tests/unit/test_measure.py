"""Links that are off are measured again; one that is too slow also later: what kept the machine busy may be over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from harness.network import measure
from harness.network.datagrams import PACE_S
from harness.network.measure import ATTEMPTS, COUNTED, COUNTING_S, again_where_off
from harness.network.readings import LinkReading
from harness.network.topology import Topology
from harness.network.wires import Queue

QUEUES = [*Topology.model_validate({"workers": 2, "link": {"rate": "20mbit"}}).queues()]

PAUSES_S = (1e-3, 1e-3)


def reading(queue: Queue, rate_bps: float, allowed: bool) -> LinkReading:
    return LinkReading(
        worker=queue.worker,
        link=queue.link,
        direction=queue.direction,
        rate_bps_asked=queue.pipe.rate_bps,
        rate_bps_measured=rate_bps,
        complaints=() if allowed else ("it is off",),
    )


class Answers:
    """What each later measurement of a link finds, in turn; and how many there were."""

    def __init__(self, rates_bps: list[float]) -> None:
        self._rates_bps: dict[Queue, Iterator[float]] = {queue: iter(rates_bps) for queue in QUEUES}
        self.asked = dict.fromkeys(QUEUES, 0)

    def __call__(self, queue: Queue) -> LinkReading:
        self.asked[queue] += 1
        rate_bps = next(self._rates_bps[queue])
        return reading(queue, rate_bps, abs(rate_bps - 20e6) < 1e6)


def readings(rate_bps: float) -> dict[Queue, LinkReading]:
    return {queue: reading(queue, rate_bps, abs(rate_bps - 20e6) < 1e6) for queue in QUEUES}


def test_what_is_as_asked_is_not_measured_again() -> None:
    answers = Answers([])
    assert again_where_off(readings(19.9e6), answers, PAUSES_S) == readings(19.9e6)
    assert set(answers.asked.values()) == {0}


@pytest.mark.parametrize("late", range(1, ATTEMPTS + len(PAUSES_S)))
def test_a_link_that_was_slow_while_the_machine_was_busy_is_as_asked_later(late: int) -> None:
    answers = Answers([12e6] * (late - 1) + [19.9e6])
    found = again_where_off(readings(15e6), answers, PAUSES_S)
    assert all(each.complaints == () for each in found.values())
    assert set(answers.asked.values()) == {late}


def test_only_one_link_that_stays_slow_is_waited_for() -> None:
    answers = Answers([12e6] * 20)
    found = again_where_off(readings(15e6), answers, PAUSES_S)
    assert all(each.complaints for each in found.values())
    assert [*answers.asked.values()] == [ATTEMPTS - 1 + len(PAUSES_S), *[ATTEMPTS - 1] * (len(QUEUES) - 1)]


def test_a_link_that_is_too_fast_is_not_waited_for() -> None:
    answers = Answers([30e6] * 20)
    again_where_off(readings(30e6), answers, PAUSES_S)
    assert set(answers.asked.values()) == {ATTEMPTS - 1}


@pytest.mark.parametrize(
    ("workers", "link"),
    [
        (45, {"loss": "0.1%"}),
        (128, {"loss": "0.1%", "delay": "50ms"}),
        (4, {"loss": "0.5%", "rate": "100kbit"}),
        (2, {"loss": "1%", "rate": "8kbit"}),
    ],
)
def test_packets_are_counted_for_a_minute_at_most_and_nodes_are_waited_for_as_long(
    workers: int, link: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[dict[str, Any]] = []
    waited_s: list[float] = []

    def call(to: str, request: dict[str, Any], dilation: float, takes_s: float) -> Any:
        requests.append(request)
        waited_s.append(takes_s)
        if len(requests) < ATTEMPTS:
            raise ConnectionError("the kernel had no more room for some of them")
        return {"counts": {"sent": request["packets"], "lost": 0, "bursts": 0, "duplicated": 0, "overtook": 0}}

    monkeypatch.setattr(measure, "call", call)
    topology = Topology.model_validate({"workers": workers, "link": link})
    queue = next(topology.queues())
    counts, pause_s = measure._count(topology, queue, None, 2 * workers)
    each_s = [request["packets"] / request["per_s"] for request in requests]
    assert max(each_s) == pytest.approx(COUNTING_S, rel=0.01)
    assert waited_s == pytest.approx([seconds + requests[0]["wait_s"] for seconds in each_s])
    assert sum(each_s) <= measure.counting_s(topology) * 1.02
    assert counts.sent == requests[-1]["packets"], "which the interval follows"
    assert pause_s == max(PACE_S, 1 / requests[-1]["per_s"])


def test_where_packets_leave_fast_as_many_are_counted_as_are_wanted() -> None:
    pipe = next(Topology.model_validate({"workers": 2, "link": {"loss": "0.1%"}}).queues()).pipe
    assert measure._to_count(pipe, measure._counted_per_s(pipe, 4)) == COUNTED[1]
    topology = Topology.model_validate({"workers": 2, "link": {"loss": "5%"}})
    assert measure._to_count(next(topology.queues()).pipe, 1000.0) == COUNTED[0]
    assert measure.counting_s(topology, counted=50_000) == pytest.approx(ATTEMPTS * 50_000 / 2_500)
