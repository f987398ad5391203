"""Links that are off are measured again; one that is too slow also later: what kept the machine busy may be over."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from harness.network import measure, probe_protocol
from harness.network.bounds import ETHERNET_HEADER_BYTES
from harness.network.datagrams import PACE_S
from harness.network.measure import (
    AGREEING_ROUND_TRIPS,
    ATTEMPTS,
    CONCURRENT_BPS,
    COUNTED,
    COUNTING_S,
    MIN_FLOW_S,
    MOST_SETTLE_S,
    SETTLE_ROUND_TRIPS,
    again_where_off,
)
from harness.network.probe_protocol import PATIENCE_S, silence_s
from harness.network.readings import LinkReading
from harness.network.tolerances import UDP_IP_HEADER_BYTES
from harness.network.topology import Topology
from harness.network.wires import Queue
from harness.scenario.limits import ROW


def net(workers: int, **link: str) -> Topology:
    return Topology.model_validate({"workers": workers, "link": link})


QUEUES = [*net(2, rate="20mbit").queues()]

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
    topology = net(workers, **link)
    queue = next(topology.queues())
    counts, pause_s = measure._count(topology, queue, None, 2 * workers)
    each_s = [request["packets"] / request["per_s"] for request in requests]
    assert max(each_s) == pytest.approx(COUNTING_S, rel=0.01)
    agreeing_s = AGREEING_ROUND_TRIPS * 2 * queue.pipe.delay_s
    assert waited_s == pytest.approx([seconds + requests[0]["wait_s"] + agreeing_s for seconds in each_s])
    assert sum(each_s) <= measure.counting_s(topology) * 1.02
    assert counts.sent == requests[-1]["packets"], "which the interval follows"
    assert pause_s == max(PACE_S, 1 / requests[-1]["per_s"])


def test_where_packets_leave_fast_as_many_are_counted_as_are_wanted() -> None:
    pipe = next(net(2, loss="0.1%").queues()).pipe
    assert measure._to_count(pipe, measure._counted_per_s(pipe, 4)) == COUNTED[1]
    topology = net(2, loss="5%")
    queue = next(topology.queues())
    assert measure._to_count(queue.pipe, 1000.0) == COUNTED[0]
    waited_s = measure._grace_s(queue.pipe)
    assert measure.counting_s(topology, counted=50_000) == pytest.approx(ATTEMPTS * (50_000 / 2_500 + waited_s))


SLOW_LINKS: list[tuple[dict[str, str], float]] = [
    ({"delay": "60ms", "jitter": "60ms"}, 4 * 60 * 6 * 2**0.5 * 0.06),  # two of eight links at once
    ({"delay": "180ms", "jitter": "180ms"}, 4 * 60 * 6 * 2**0.5 * 0.18),
    ({"rate": "8kbit"}, 2 * 8 * (10_240 + 1000 * MIN_FLOW_S) / 8000),  # up, then down; half of what is skipped is saved
    ({"rate": "8kbit", "loss": "1%"}, COUNTING_S + 2 * 50 * 1514 * 8 / 8000),
    ({"delay": "200ms"}, 2 * SETTLE_ROUND_TRIPS * 0.4),
    ({"delay": "10s", "rate": "1mbit"}, 2 * 2 * 20.0),
]
"""Links within the limits, and what measuring eight of them takes at least, on two processors."""


@pytest.mark.parametrize(("link", "least_s"), SLOW_LINKS)
def test_slow_links_are_waited_for_as_long_as_they_take(link: dict[str, str], least_s: float) -> None:
    quick_s = measure.measuring_s(net(8, rate="20mbit"), 2)
    assert quick_s < 10
    assert measure.measuring_s(net(8, **link), 2) > least_s
    assert measure.measuring_s(net(8, **link), 1) >= measure.measuring_s(net(8, **link), 2), "one at a time"


@pytest.mark.parametrize("link", [link for link, _ in SLOW_LINKS])
def test_nodes_are_waited_for_as_long_as_what_they_are_asked_for_takes(
    link: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On links that are dilated, and so slower still."""
    asked: list[dict[str, Any]] = []

    def call(to: str, request: dict[str, Any], dilation: float, takes_s: float) -> Any:
        assert dilation == 2
        asked.append({**request, "takes_s": takes_s})
        return {"ping": [0.1] * request.get("pings", 0), "flow": 1.0, "count": {"arrived_per_s": 1.0}}[request["op"]]

    monkeypatch.setattr(measure, "call", call)
    topology = net(2, **link).slowed(2.0)
    wire = topology.wires[0]
    up, down = wire.queues()
    measure._round_trip(topology, (up, down))
    measure._pair_rtt_s(topology, 0, 1)
    measure._rate_bps(topology, up, 0.4)
    by_itself_s = {
        "ping": lambda each: each["pings"] * each["gap_s"],
        "flow": lambda each: 8 * each["bytes"] / (up.pipe.rate_bps or CONCURRENT_BPS),
        "count": lambda each: 8 * each["packets"] * each["bytes"] / up.pipe.rate_bps,
    }
    has_long_start = 24 * up.pipe.delay_s > MOST_SETTLE_S
    assert {each["op"] for each in asked} == {"ping", "count" if up.pipe.disturbs or has_long_start else "flow"}
    for each in asked:
        assert each["takes_s"] >= by_itself_s[each["op"]](each)


def test_what_a_slow_rate_adds_to_a_datagrams_time_is_no_delay() -> None:
    """On the wire it has 63 bytes, and its reply as many."""
    slow, by_bucket = net(2, rate="8kbit", delay="5ms"), net(2, rate="8kbit")
    pipes = [queue.pipe for queue in slow.wires[0].queues()]
    assert measure._typical_s([0.137, 0.2, 0.3], pipes) == pytest.approx(0.137 - 2 * 8 * 63 / 8000)
    assert measure._link_pings(slow.wires[0].queues()).request["gap_s"] == pytest.approx(2 * 8 * 63 / 8000)
    assert measure._typical_s([0.1, 0.2, 0.3], [queue.pipe for queue in by_bucket.wires[0].queues()]) == 0.1


def test_what_is_asked_again_and_again_leaves_room_on_the_slowest_links(monkeypatch: pytest.MonkeyPatch) -> None:
    patience_s = 3.0
    monkeypatch.setattr(probe_protocol, "PATIENCE_S", patience_s)
    with socket.socket(type=socket.SOCK_DGRAM) as mute:
        mute.bind(("127.0.0.53", probe_protocol.PORT))
        with pytest.raises(ConnectionError, match="does not answer"):
            probe_protocol.call("127.0.0.53", {"op": "flow", "to": "198.18.0.1", "skip": 20_480, "bytes": 30_480})
        mute.settimeout(0)
        sizes_bytes = []
        with suppress(BlockingIOError):
            while True:
                sizes_bytes.append(len(mute.recv(probe_protocol.MOST_BYTES)))
    headers_bytes = UDP_IP_HEADER_BYTES + ETHERNET_HEADER_BYTES
    asked_bps = 8 * sum(size + headers_bytes for size in sizes_bytes) / patience_s
    assert len(sizes_bytes) > 1
    assert asked_bps < ROW["rate_bps"].least


def test_a_node_waits_for_its_peer_for_less_long_than_it_is_waited_for() -> None:
    for dilation, takes_s in ((1.0, 0.0), (0.5, 80.0), (4.0, 300.0)):
        waited_s = PATIENCE_S * max(1.0, dilation) + takes_s
        assert takes_s < silence_s({"dilation": dilation, "takes_s": takes_s}) < waited_s
