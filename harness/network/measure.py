"""Measure links by real traffic before anything is believed of them, and again when they have served.

Every node answers (``responder.answer``); one of them asks (``measure``). Each direction of every link carries a bulk
flow, timed by its receiver once the token bucket is spent; where packets are lost or disturbed on purpose, numbered
datagrams are counted, and they are timed where TCP would be no measure of the rate, or take long to start. Round trips
are small datagrams over an idle link. It is the same in network namespaces and in containers, and needs no clock that
two nodes share: of a round trip, the time for which the answering process held the datagram is taken off, as NTP does
(RFC 5905, section 8), since it is that machine's and not the link's.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from harness.network.addresses import address, worker_name
from harness.network.bounds import ETHERNET_HEADER_BYTES, wire_share
from harness.network.datagrams import PACE_S
from harness.network.probe_protocol import PING, PINGED, call
from harness.network.qdisc import burst_bytes
from harness.network.readings import Counts, LinkReading, Readings, RoundTrip, off
from harness.network.tolerances import (
    COUNTED_BYTES,
    DEVIATIONS,
    PINGS,
    RTT_TOLERANCE_S,
    UDP_IP_HEADER_BYTES,
    complaints_of,
    median_spread_s,
    pair_tolerance_s,
    rtt_tolerance_s,
)
from harness.network.topology import Topology
from harness.network.wires import Queue
from harness.scenario.links import WAYS, Pipe
from harness.units import format_time

JITTER_PINGS = 60
"""The deviation of so many round trips is known to 12 %."""

PING_GAP_S = 1e-3

PING_BYTES = len(PING) + PINGED.size + UDP_IP_HEADER_BYTES + ETHERNET_HEADER_BYTES
"""Of a datagram whose round trip is timed, on the wire."""

FLOW_S = 0.4
"""How long a timed flow lasts at the rate that was asked; less where many must take turns."""

TURNS_S = 1.6
"""The time for all flows that must take turns."""

MIN_FLOW_BYTES, MIN_FLOW_S = 64 * 1024, 10.0
"""So much of a flow is timed at least, or for so long where the rate is low."""

SETTLE_S = 0.05

SETTLE_ROUND_TRIPS = 12
"""How much of a flow passes before it is timed, after the bucket is spent twice over: TCP's start-up."""

MOST_SETTLE_S = 5.0
"""Where that would take longer, datagrams tell the rate: they have no start-up, and netem lets no burst pass."""

AGREEING_ROUND_TRIPS = 3
"""In which a node is asked, finds its peer, and has its answer, beside what it is asked for."""

COUNTED_PER_S = 10_000
"""Datagrams a second, over all links that are counted together."""

COUNTED = (2_000, 10_000)
"""Datagrams to count: enough to meet 30 of what is rare, and no more than takes a second."""

MEETINGS = 30

COUNTING_S = 60.0
"""Fewer are counted where it would take longer, beside many other links or at a low rate; then their interval is wider.
"""

CPU_BPS = 250_000_000

CONCURRENT_BPS = CPU_BPS * (os.cpu_count() or 1)
"""Links are measured together up to this sum, so that their own traffic never makes the CPU the limit."""

PACKET_COST = 4
"""How much more a byte costs that goes packet by packet: in datagrams, or through netem, which has a timer for each.
Two links of 50 Mbit/s with a delay, measured together in user-mode-linux, came up to 7 % short; in turn, up to 1 %."""

ATTEMPTS = 3
"""A link that is not what was asked is measured again: a busy machine explains a slow or late reading, and chance
explains one count in a thousand. One that stays so is out of tolerance."""

PAUSES_S = (1.0, 2.0, 4.0)
"""Before a link that is still too slow is measured once more: what kept the machine busy may have ended by then."""


def measure(topology: Topology, counted: int | None = None) -> Readings:
    """Measure every link of a topology whose nodes answer. Runs on the last of its switches.

    Args:
        counted: datagrams to count on each link that loses or disturbs some; None chooses by its shares.

    Raises:
        OSError: a node cannot be reached, or stalls.
    """
    started = time.monotonic()
    try:
        wires, pairs = topology.wires, _neighbours(topology)
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # more of them would wait for one another's CPU
            round_trips = tuple(pool.map(lambda wire: _round_trip(topology, wire.queues()), wires))
            rtt_s = tuple(pool.map(lambda pair: _pair_rtt_s(topology, *pair), pairs))
        return Readings(
            links=tuple(_readings(topology, counted)),
            round_trips=round_trips,
            rtt_s=rtt_s,
            rtt_s_asked=tuple(topology.rtt_s(*pair) for pair in pairs),
            rtt_s_allowed=tuple(pair_tolerance_s(topology, *pair) for pair in pairs),
            took_s=time.monotonic() - started,
        )
    finally:
        _quit_all(topology)


def measure_ceiling(topology: Topology) -> float:
    """Bits per second that each worker of an unshaped star can send to its neighbour while all others do so too.

    Raises:
        OSError: a worker cannot be reached, or stalls.
    """

    def flood_bps(worker: int) -> float:
        request = {"op": "flood", "to": address((worker + 1) % topology.workers), "seconds": FLOW_S}
        return float(_ask(topology, worker_name(worker), _Work(request, FLOW_S)))

    try:
        with ThreadPoolExecutor(topology.workers) as pool:
            return min(pool.map(flood_bps, range(topology.workers))) * wire_share(topology.link)
    finally:
        _quit_all(topology)


def _readings(topology: Topology, counted: int | None) -> list[LinkReading]:
    """Every direction of every link, again where it is off."""
    queues = list(topology.queues())
    disturbed = [queue for queue in queues if queue.pipe.disturbs]
    counts: dict[Queue, _Counted] = {}
    if disturbed:
        with ThreadPoolExecutor(len(disturbed)) as pool:
            found = pool.map(lambda queue: _count(topology, queue, counted, len(disturbed)), disturbed)
            counts = dict(zip(disturbed, found, strict=True))
    turns = _turns(queues)
    flow_s = _flow_s(turns)
    readings: dict[Queue, LinkReading] = {}
    for turn in turns:
        with ThreadPoolExecutor(len(turn)) as pool:
            rates = pool.map(lambda queue: _rate_bps(topology, queue, flow_s), turn)
            readings |= {
                queue: _reading(queue, rate, counts.get(queue)) for queue, rate in zip(turn, rates, strict=True)
            }

    def read(queue: Queue) -> LinkReading:
        again = _count(topology, queue, counted, 1) if queue.pipe.disturbs else None
        return _reading(queue, _rate_bps(topology, queue, FLOW_S), again)

    readings = again_where_off(readings, read)
    return [readings[queue] for way in WAYS for queue in queues if queue.direction == way]


Way = TypeVar("Way", bound=Hashable)
"""What names one direction of a link."""


def again_where_off(
    readings: Mapping[Way, LinkReading], read: Callable[[Way], LinkReading], pauses_s: Sequence[float] = PAUSES_S
) -> dict[Way, LinkReading]:
    """The same readings; those that are off are replaced by later ones.

    Args:
        read: measures one direction of a link.
        pauses_s: before each further attempt where a link stays too slow. Only one link is waited for in vain.
    """
    last = dict(readings)
    for way in readings:
        for pause_s in (*[0.0] * (ATTEMPTS - 1), *pauses_s):
            if not last[way].complaints or (pause_s and not last[way].is_slow):
                break
            time.sleep(pause_s)
            last[way] = read(way)
        if last[way].complaints:
            pauses_s = ()
    return last


def _turns(queues: Sequence[Queue], at_once_bps: int = CONCURRENT_BPS) -> list[list[Queue]]:
    """Directions to measure together, one of each link in a turn."""
    turns: list[list[Queue]] = []
    for direction in WAYS:
        left_bps = 0
        for queue in (queue for queue in queues if queue.direction == direction):
            cost = PACKET_COST if queue.pipe.needs_netem else 1
            needs_bps = cost * (queue.pipe.rate_bps or CONCURRENT_BPS)
            if left_bps < needs_bps:
                turns.append([])
                left_bps = at_once_bps
            turns[-1].append(queue)
            left_bps -= needs_bps
    return turns


def _flow_s(turns: Sequence[list[Queue]]) -> float:
    """How long each turn's flows last."""
    return min(FLOW_S, TURNS_S / len(turns))


def _reading(queue: Queue, rate_bps: float, counted: _Counted | None) -> LinkReading:
    counts, pause_s = counted or (None, 0.0)
    return LinkReading(
        worker=queue.worker,
        link=queue.link,
        direction=queue.direction,
        rate_bps_asked=queue.pipe.rate_bps,
        rate_bps_measured=rate_bps,
        loss_asked=queue.pipe.mean_loss,
        counts=counts,
        complaints=tuple(complaints_of(queue, rate_bps, counts, pause_s)),
    )


def _round_trip(topology: Topology, both: tuple[Queue, Queue]) -> RoundTrip:
    """An idle link, there and back, measured again where it is off."""
    up, down = both
    asked_s, jitter_s = up.round_trip_s, _link_jitter_s(both)
    normal = {pipe.jitter_distribution for pipe in (up.pipe, down.pipe) if pipe.jitter_s} == {"normal"}
    for _ in range(ATTEMPTS):
        trips = _ping_s(topology, up.node, _link_pings(both))
        typical_s, deviation_s = _typical_s(trips, [up.pipe, down.pipe]), _deviation_s(trips)
        complaints = []
        allowed_s = rtt_tolerance_s(asked_s) + median_spread_s(jitter_s, len(trips))
        if abs(typical_s - asked_s) > allowed_s:
            allowed = f"within {format_time(allowed_s)}"
            complaints.append(f"link {up.link}: round trip: {off(asked_s, typical_s, format_time, allowed)}")
        spread_s = DEVIATIONS * 1.3 * jitter_s / math.sqrt(2 * len(trips)) + RTT_TOLERANCE_S / 2
        correlated = up.pipe.jitter_correlation + down.pipe.jitter_correlation > 0
        if normal and not correlated and abs(deviation_s - jitter_s) > spread_s:
            allowed = f"within {format_time(spread_s)}"
            complaints.append(f"link {up.link}: jitter: {off(jitter_s, deviation_s, format_time, allowed)}")
        if not complaints:
            break
    return RoundTrip(
        link=up.link,
        rtt_s_asked=asked_s,
        rtt_s_measured=typical_s,
        jitter_s_asked=jitter_s,
        jitter_s_measured=deviation_s,
        complaints=tuple(complaints),
    )


def _pair_rtt_s(topology: Topology, one: int, other: int) -> float:
    asked_s = topology.rtt_s(one, other)
    both_ways = topology.path(one, other) + topology.path(other, one)
    for _ in range(ATTEMPTS):
        trips = _ping_s(topology, worker_name(one), _pair_pings(topology, one, other))
        measured_s = _typical_s(trips, [queue.pipe for queue in both_ways])
        if abs(measured_s - asked_s) <= pair_tolerance_s(topology, one, other):
            break
    return measured_s


def _typical_s(trips: Sequence[float], pipes: Sequence[Pipe]) -> float:
    """The median where the delay varies; elsewhere the least, for what is above it was spent waiting for a CPU.

    Where some packets overtake others, the least is theirs, and the lower quartile tells. What the rate adds is off.
    """
    passing_s = _passing_s(pipes)
    if any(pipe.jitter_s for pipe in pipes):
        return statistics.median(trips) - passing_s
    return (statistics.quantiles(trips, n=4)[0] if any(pipe.reorder for pipe in pipes) else min(trips)) - passing_s


def _passing_s(pipes: Sequence[Pipe]) -> float:
    """How long a timed datagram itself takes to pass: netem paces it by its length, a token bucket lets it through."""
    return sum(8 * PING_BYTES / pipe.rate_bps for pipe in pipes if pipe.rate_bps and pipe.needs_netem)


def _deviation_s(trips: Sequence[float]) -> float:
    """Half of what holds the middle 68 %: a normal distribution's deviation, which a few late readings do not change.

    It is known to 1.3 times what the deviation itself would be known to.
    """
    marks = statistics.quantiles(trips, n=100)
    return (marks[83] - marks[15]) / 2


class _Work(NamedTuple):
    """What a node is asked to do."""

    request: Mapping[str, Any]
    takes_s: float
    """How long it takes by itself, in real seconds."""


def _link_jitter_s(both: tuple[Queue, Queue]) -> float:
    """The deviation of how long a link there and back takes."""
    return math.hypot(*(queue.pipe.jitter_s for queue in both))


def _link_pings(both: tuple[Queue, Queue]) -> _Work:
    asked_s, jitter_s = both[0].round_trip_s, _link_jitter_s(both)
    pings = JITTER_PINGS if jitter_s else PINGS
    return _pings(both[0].to.address, pings, asked_s, jitter_s, _passing_s([queue.pipe for queue in both]))


def _pair_pings(topology: Topology, one: int, other: int) -> _Work:
    pipes = [queue.pipe for queue in topology.path(one, other) + topology.path(other, one)]
    jitter_s = max(pipe.jitter_s for pipe in pipes)
    return _pings(address(other), PINGS, topology.rtt_s(one, other), jitter_s, _passing_s(pipes))


def _pings(to: str, pings: int, asked_s: float, jitter_s: float, passing_s: float) -> _Work:
    """Round trips, far enough apart that none meets the one before."""
    gap_s = max(PING_GAP_S, 6 * jitter_s, passing_s)
    request = {"op": "ping", "to": to, "pings": pings, "gap_s": gap_s, "wait_s": 1 + 2 * asked_s}
    return _Work(request, pings * gap_s + AGREEING_ROUND_TRIPS * asked_s)


def _ping_s(topology: Topology, node: str, pings: _Work) -> list[float]:
    """Round trips from a node."""
    wanted = pings.request["pings"]
    trips: list[float] = []
    for _ in range(ATTEMPTS):
        trips += _ask(topology, node, pings)
        if 2 * len(trips) >= wanted:
            break
    if len(trips) < 2:
        raise ConnectionError(f"{node} reaches {pings.request['to']} with {len(trips)} of {wanted} datagrams")
    return trips


def _rate_work(topology: Topology, queue: Queue, flow_s: float) -> _Work:
    """What tells the rate of one direction of a link."""
    pipe = queue.pipe
    if pipe.disturbs or (pipe.needs_netem and SETTLE_ROUND_TRIPS * queue.round_trip_s > MOST_SETTLE_S):
        return _burst(topology, queue, flow_s)
    return _flow(topology, queue, flow_s)


def _flow(topology: Topology, queue: Queue, flow_s: float) -> _Work:
    """One TCP flow."""
    pipe, rtt_s = queue.pipe, queue.round_trip_s
    rate_bps = pipe.rate_bps or CONCURRENT_BPS
    bucket = burst_bytes(pipe) if pipe.rate_bps and not pipe.needs_netem else 0
    skip = 2 * bucket + int(rate_bps / 8 * (SETTLE_S + SETTLE_ROUND_TRIPS * rtt_s))
    total = skip + max(int(rate_bps / 8 * flow_s), min(MIN_FLOW_BYTES, int(rate_bps / 8 * MIN_FLOW_S)))
    at_rate_s = 8 * total * wire_share(topology.link) / rate_bps
    request = {"op": "flow", "to": queue.to.address, "skip": skip, "bytes": total}
    return _Work(request, at_rate_s + (SETTLE_ROUND_TRIPS + AGREEING_ROUND_TRIPS) * rtt_s)


def _burst(topology: Topology, queue: Queue, flow_s: float) -> _Work:
    """Datagrams all at once."""
    pipe, payload = queue.pipe, topology.link.mtu_bytes - UDP_IP_HEADER_BYTES
    rate_bps = pipe.rate_bps or CONCURRENT_BPS / PACKET_COST
    packet_s = 8 * _frame_bytes(topology) / rate_bps
    packets = int(flow_s / packet_s / (1 - pipe.mean_loss)) + 50
    wait_s = _grace_s(pipe) + packets * packet_s  # none need have arrived when the last one is sent
    request = {"op": "count", "to": queue.to.address, "bytes": payload, "per_s": None, "packets": packets}
    takes_s = packets * packet_s + wait_s + AGREEING_ROUND_TRIPS * queue.round_trip_s
    return _Work({**request, "wait_s": wait_s}, takes_s)


def _frame_bytes(topology: Topology) -> int:
    """Of a packet of the largest size."""
    return topology.link.mtu_bytes + ETHERNET_HEADER_BYTES


def _rate_bps(topology: Topology, queue: Queue, flow_s: float) -> float:
    """What one direction of a link carries, in bits per second on the wire."""
    work = _rate_work(topology, queue, flow_s)
    found = _ask(topology, queue.node, work)
    if work.request["op"] == "count":
        return 8 * _frame_bytes(topology) * float(found["arrived_per_s"]) / (1 - queue.pipe.corrupt)
    return 8 * float(found) * wire_share(topology.link)


class _Counted(NamedTuple):
    """What became of datagrams."""

    counts: Counts
    pause_s: float
    """The longest between two of them."""


def _count(topology: Topology, queue: Queue, counted: int | None, beside: int) -> _Counted:
    """Numbered datagrams over one direction of a link."""
    for attempt in range(ATTEMPTS):
        per_s = _counted_per_s(queue.pipe, beside) / 2**attempt  # slower, where the receiver could not keep up
        try:
            result = _ask(topology, queue.node, _counting(topology, queue, counted, per_s))
            return _Counted(Counts.model_validate(result["counts"]), max(PACE_S, 1 / per_s))
        except ConnectionError:
            if attempt + 1 == ATTEMPTS:
                raise
    raise AssertionError


def _counting(topology: Topology, queue: Queue, counted: int | None, per_s: float) -> _Work:
    """Numbered datagrams, well below the rate."""
    packets, wait_s = counted or _to_count(queue.pipe, per_s), _grace_s(queue.pipe)
    request = {"op": "count", "to": queue.to.address, "bytes": COUNTED_BYTES, "per_s": per_s, "packets": packets}
    takes_s = packets / per_s + wait_s + AGREEING_ROUND_TRIPS * queue.round_trip_s
    return _Work({**request, "wait_s": wait_s}, takes_s)


def measuring_s(topology: Topology, cpus: int, counted: int | None = None) -> float:
    """For how long a topology's links hold up who measures them, until one that is off was measured again and again.

    Args:
        cpus: of the machine that has the links.
        counted: as ``measure`` is told it.
    """
    turns, pings_s = _turns([*topology.queues()], cpus * CPU_BPS), _pings_s(topology)
    rates_s = [_longest_s(topology, turn, FLOW_S) for turn in turns]
    all_pings_s = sum(pings_s) / cpus + max(pings_s)  # the longest may begin last
    return ATTEMPTS * (all_pings_s + max(rates_s)) + sum(rates_s) + counting_s(topology, counted)


def measured_once_s(topology: Topology, cpus: int) -> float:
    """For how long, where none is off; see ``measuring_s``."""
    turns = _turns([*topology.queues()], cpus * CPU_BPS)
    rates_s = sum(_longest_s(topology, turn, _flow_s(turns)) for turn in turns)
    return sum(_pings_s(topology)) / cpus + rates_s + counting_s(topology) / ATTEMPTS


def _pings_s(topology: Topology) -> list[float]:
    """What round trips of each link, and of each two neighbours, take."""
    of_links = (_link_pings(wire.queues()) for wire in topology.wires)
    of_pairs = (_pair_pings(topology, *pair) for pair in _neighbours(topology))
    return [work.takes_s for work in (*of_links, *of_pairs)]


def _longest_s(topology: Topology, turn: Sequence[Queue], flow_s: float) -> float:
    """What a turn of flows takes."""
    return max(_rate_work(topology, queue, flow_s).takes_s for queue in turn)


def counting_s(topology: Topology, counted: int | None = None) -> float:
    """For how long datagrams may be counted on a topology's links; see ``measuring_s``."""
    disturbed = [queue for queue in topology.queues() if queue.pipe.disturbs]
    paces = [(queue, _counted_per_s(queue.pipe, len(disturbed))) for queue in disturbed]
    return ATTEMPTS * max((_counting(topology, queue, counted, per_s).takes_s for queue, per_s in paces), default=0.0)


def _counted_per_s(pipe: Pipe, beside: int) -> float:
    """How many datagrams leave in a second, where those of so many links are counted together."""
    frame = COUNTED_BYTES + UDP_IP_HEADER_BYTES + ETHERNET_HEADER_BYTES
    at_most = 0.5 * pipe.rate_bps / 8 / frame if pipe.rate_bps else math.inf
    return min(COUNTED_PER_S / beside, at_most)


def _to_count(pipe: Pipe, per_s: float) -> int:
    """How many datagrams to count at such a pace."""
    least, most = COUNTED
    wanted = min(max(math.ceil(MEETINGS / min(pipe.disturbed_shares)), least), most)
    return min(wanted, math.ceil(COUNTING_S * per_s))


def _grace_s(pipe: Pipe) -> float:
    """How long to wait for the last datagram."""
    return 0.3 + 2 * (pipe.delay_s + 4 * pipe.jitter_s)


def _neighbours(topology: Topology) -> list[tuple[int, int]]:
    """The pairs between which round trips are measured."""
    return [(worker, (worker + 1) % topology.workers) for worker in range(topology.workers)]


def _ask(topology: Topology, node: str, work: _Work) -> Any:
    """What a node finds when it is told to measure."""
    return call(topology.address_of(node), work.request, topology.dilation, work.takes_s)


def _quit_all(topology: Topology) -> None:
    """Have all nodes end, at once: each answer takes a round trip."""

    def end(node: str) -> None:
        with suppress(OSError):
            _ask(topology, node, _Work({"op": "quit"}, 0.0))

    with ThreadPoolExecutor(len(topology.nodes)) as pool:
        list(pool.map(end, topology.nodes))
