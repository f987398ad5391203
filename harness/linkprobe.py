"""Measure links by real traffic before anything is believed of them, and again when they have served.

Every node answers (``answer``); one of them asks (``measure``). Each direction of every link carries a bulk flow, timed
by its receiver once the token bucket is spent; where packets are lost or disturbed on purpose, numbered datagrams are
counted. Round trips are small datagrams over an idle link. It is the same in network namespaces and in containers, and
needs no clock that two nodes share: of a round trip, the time for which the answering process held the datagram is
taken off, as NTP does (RFC 5905, section 8), since it is that machine's and not the link's.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import socket
import statistics
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from harness.network import (
    ETHERNET_HEADER_BYTES,
    Direction,
    Queue,
    Topology,
    address,
    burst_bytes,
    wire_share,
    worker_name,
)
from harness.scenario import GilbertElliott, Pipe, Section
from harness.units import format_rate, format_time

PORT = 5201
TIMEOUT_S = 30.0
PATIENCE_S = 90.0
AGAIN_S = 0.1
"""How often a node is asked until it answers."""
CHUNK_BYTES = 1 << 18
MOST_BYTES = 1 << 16

PING = b"?"
"""What datagrams begin with that are to be sent back, or counted; requests are JSON."""
PINGED = struct.Struct("!Id")
"""What follows in one that is to be sent back: its number, and for how long it was held before (0 on its way there)."""

ROOM_BYTES = 2048
"""What a counting receiver's buffer has for each datagram that is to come, which the kernel doubles: more than the 2304
that one of a whole frame takes there, so that a receiver may fall behind as far as it likes. What it should miss all
the same is told apart, by the kernel's own count."""

SO_RCVBUFFORCE, SO_TIMESTAMPNS = 33, 35
"""Of <asm-generic/socket.h>; Python does not name them."""

PINGS = 10
JITTER_PINGS = 60
"""The deviation of so many round trips is known to 12 %."""
PING_GAP_S = 1e-3

FLOW_S = 0.4
"""How long a timed flow lasts at the rate that was asked; less where many must take turns."""

TURNS_S = 1.6
"""The time for all flows that must take turns."""

MIN_FLOW_BYTES = 64 * 1024

SETTLE_S = 0.05
SETTLE_ROUND_TRIPS = 12
"""How much of a flow passes before it is timed, after the bucket is spent twice over: TCP's start-up."""

COUNTED_BYTES = 100
UDP_IP_HEADER_BYTES = 28
SLICES = 8

RECEIVER_LOOKS_US = 50_000
"""How long a counting receiver waits for a datagram before it looks whether all have been sent."""

PACE_S = 2e-3
"""How often datagrams leave that are counted, a few at a time."""
COUNTED_PER_S = 10_000
"""Datagrams a second, over all links that are counted together."""
COUNTED = (2_000, 10_000)
"""Datagrams to count: enough to meet 30 of what is rare, and no more than takes a second."""
MEETINGS = 30

RATE_TOLERANCE = (0.93, 1.04)
"""Measured over asked, on the wire: loosest at the low side, where a busy machine delays the receiver."""

RTT_TOLERANCE_S = 0.5e-3
"""A link's; between workers there are at least two links."""
RTT_TOLERANCE_SHARE = 0.05

CONFIDENCE = 0.999
"""Of the interval in which a share must lie that was counted, if the kernel does what it was asked."""
DEVIATIONS = 3.29
"""Standard deviations that hold the same share of a normal distribution."""

CONCURRENT_BPS = 250_000_000 * (os.cpu_count() or 1)
"""Links are measured together up to this sum, so that their own traffic never makes the CPU the limit."""

PACKET_COST = 4
"""How much more a byte costs that goes packet by packet: in datagrams, or through netem, which has a timer for each.
Two links of 50 Mbit/s with a delay, measured together in user-mode-linux, came up to 7 % short; in turn, up to 1 %."""

ATTEMPTS = 3
"""A link that is not what was asked is measured again: a busy machine explains a slow or late reading, and chance
explains one count in a thousand. One that stays so is out of tolerance."""

HARMLESS_CORRUPTION = 6 / (ETHERNET_HEADER_BYTES + UDP_IP_HEADER_BYTES + COUNTED_BYTES)
"""A wrong bit in the sender's hardware address harms nobody; any other is seen, and the packet dropped."""


class Counts(Section):
    """What became of numbered datagrams."""

    sent: int
    lost: int
    bursts: int
    """Runs of one or more that are lost."""
    duplicated: int
    overtook: int

    @property
    def loss(self) -> float:
        """The share that was lost."""
        return self.lost / self.sent


class LinkReading(Section):
    """One direction of one link: rates in bits per second on the wire, headers included; shares of packets."""

    worker: int | None
    """Whose link it is; None for a trunk."""
    link: str
    direction: Direction
    rate_bps_asked: int | None
    rate_bps_measured: float
    loss_asked: float = 0.0
    counts: Counts | None = None
    """Only where packets are lost or disturbed on purpose."""
    complaints: tuple[str, ...] = ()
    """One line for everything that is not what was asked, within the stated tolerances."""


class RoundTrip(Section):
    """An idle link, there and back: the least round trip, or their median where they vary on purpose; in seconds."""

    link: str
    rtt_s_asked: float
    rtt_s_measured: float
    jitter_s_asked: float = 0.0
    jitter_s_measured: float = 0.0
    complaints: tuple[str, ...] = ()


class Readings(Section):
    """What was measured of a whole topology."""

    links: tuple[LinkReading, ...]
    round_trips: tuple[RoundTrip, ...] = ()
    """Of each link."""
    rtt_s: tuple[float, ...]
    """Of each neighbouring pair of workers, over all links between them: the least, or the median where they vary."""
    rtt_s_asked: tuple[float, ...] = ()
    rtt_s_allowed: tuple[float, ...] = ()
    """How far from what was asked each may be."""
    took_s: float
    """How long it took to measure all this."""

    @property
    def rtt_median_s(self) -> float:
        """The median over the pairs."""
        return statistics.median(self.rtt_s)

    def undilated(self, dilation: float) -> Readings:
        """What the links stand for that were made so many times slower."""
        links = tuple(
            link.model_copy(
                update={
                    "rate_bps_asked": link.rate_bps_asked and round(link.rate_bps_asked * dilation),
                    "rate_bps_measured": link.rate_bps_measured * dilation,
                }
            )
            for link in self.links
        )
        trips = tuple(
            trip.model_copy(
                update={
                    name: getattr(trip, name) / dilation
                    for name in ("rtt_s_asked", "rtt_s_measured", "jitter_s_asked", "jitter_s_measured")
                }
            )
            for trip in self.round_trips
        )
        times = {
            name: tuple(seconds / dilation for seconds in getattr(self, name))
            for name in ("rtt_s", "rtt_s_asked", "rtt_s_allowed")
        }
        return self.model_copy(update={"links": links, "round_trips": trips, **times})

    @property
    def slowest_bps(self) -> float:
        """The rate of the slowest direction of all links."""
        return min(link.rate_bps_measured for link in self.links)

    def complaints(self) -> list[str]:
        """One line for everything that is not what was asked, within the stated tolerances."""
        found = [complaint for link in self.links for complaint in link.complaints]
        found += [complaint for trip in self.round_trips for complaint in trip.complaints]
        workers = len(self.rtt_s)
        pairs = zip(self.rtt_s_asked, self.rtt_s, self.rtt_s_allowed, strict=False)
        for worker, (asked_s, measured_s, allowed_s) in enumerate(pairs):
            if abs(measured_s - asked_s) > allowed_s:
                allowed = f"within {format_time(allowed_s)}"
                found.append(
                    f"round trip w{worker} to w{(worker + 1) % workers}: "
                    f"{_off(asked_s, measured_s, format_time, allowed)}"
                )
        return found


def rtt_tolerance_s(asked_s: float) -> float:
    """How far from what was asked the round trip over an idle link without jitter may be."""
    return max(RTT_TOLERANCE_S, RTT_TOLERANCE_SHARE * asked_s)


def answer() -> None:
    """Serve whoever asks until told to quit. Runs on every node."""
    with socket.create_server(("", PORT), backlog=256) as flows, socket.socket(type=socket.SOCK_DGRAM) as control:
        control.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        control.bind(("", PORT))
        threading.Thread(target=_accept_flows, args=(flows,), daemon=True).start()
        _Answering(control).serve()


def measure(topology: Topology, counted: int | None = None) -> Readings:
    """Measure every link of a topology whose nodes answer. Runs on the last of its switches.

    Args:
        counted: datagrams to count on each link that loses or disturbs some; None chooses by its shares.

    Raises:
        OSError: a node cannot be reached, or stalls.
    """
    started = time.monotonic()
    try:
        wires, workers = topology.wires, topology.workers
        pairs = [(worker, (worker + 1) % workers) for worker in range(workers)]
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
        return float(_ask(topology, worker_name(worker), request))

    try:
        with ThreadPoolExecutor(topology.workers) as pool:
            return min(pool.map(flood_bps, range(topology.workers))) * wire_share(topology.link)
    finally:
        _quit_all(topology)


def loss_interval(pipe: Pipe, counts: Counts, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The least and the greatest loss that the confidence allows in so many packets: binomial, or wider for bursts.

    A chain's states last, so that its losses come together and their share varies more: by 2 lambda / (1 - lambda)
    times what the state explains of the variance, lambda = 1 - p - r being its correlation from packet to packet.
    """
    seen = 1 - (1 - pipe.mean_loss) * (1 - pipe.corrupt * (1 - HARMLESS_CORRUPTION))
    if pipe.loss_bursts is None:
        return share_interval(seen, counts.sent, confidence)
    from scipy.special import ndtri

    chain = pipe.loss_bursts
    stays = 1 - chain.p - chain.r
    by_state = (chain.loss_bad - chain.loss_good) ** 2 * chain.bad_share * (1 - chain.bad_share)
    variance = (seen * (1 - seen) + 2 * by_state * stays / (1 - stays)) / counts.sent
    half = float(ndtri((1 + confidence) / 2)) * math.sqrt(max(variance, 0.0))
    return max(0.0, seen - half), seen + half


def share_interval(share: float, trials: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Between which shares a binomial count of so many trials lies with that confidence."""
    from scipy.stats import binom  # takes most of a second to import, and only this needs it

    low, high = binom.interval(confidence, trials, share)
    return float(low) / trials, float(high) / trials


def mean_burst(chain: GilbertElliott) -> float:
    """Packets in a run of losses: P(lost) / P(lost, and the next one not).

    Netem draws each loss by the state in which the packet finds the chain, and steps it at the same time.
    """
    good, bad = chain.loss_good, chain.loss_bad
    then_lost = (1 - chain.bad_share) * good * (chain.p * bad + (1 - chain.p) * good) + chain.bad_share * bad * (
        chain.r * good + (1 - chain.r) * bad
    )
    return chain.mean_loss / (chain.mean_loss - then_lost)


def _readings(topology: Topology, counted: int | None) -> list[LinkReading]:
    """Every direction of every link, again where it is off."""
    queues = list(topology.queues())
    disturbed = [queue for queue in queues if queue.pipe.disturbs]
    counts: dict[Queue, Counts] = {}
    if disturbed:
        with ThreadPoolExecutor(len(disturbed)) as pool:
            found = pool.map(lambda queue: _count(topology, queue, counted, len(disturbed)), disturbed)
            counts = dict(zip(disturbed, found, strict=True))
    turns = _turns(queues)
    flow_s = min(FLOW_S, TURNS_S / len(turns))
    readings: dict[Queue, LinkReading] = {}
    for turn in turns:
        with ThreadPoolExecutor(len(turn)) as pool:
            rates = pool.map(lambda queue: _rate_bps(topology, queue, flow_s), turn)
            readings |= {
                queue: _reading(queue, rate, counts.get(queue)) for queue, rate in zip(turn, rates, strict=True)
            }
    for queue in queues:
        for _ in range(ATTEMPTS - 1):
            if not readings[queue].complaints:
                break
            again = _count(topology, queue, counted, 1) if queue.pipe.disturbs else None
            readings[queue] = _reading(queue, _rate_bps(topology, queue, FLOW_S), again)
    return [readings[queue] for way in ("up", "down") for queue in queues if queue.direction == way]


def _turns(queues: Sequence[Queue]) -> list[list[Queue]]:
    """Directions to measure together, one of each link in a turn."""
    turns: list[list[Queue]] = []
    for direction in ("up", "down"):
        left_bps = 0
        for queue in (queue for queue in queues if queue.direction == direction):
            cost = PACKET_COST if queue.pipe.needs_netem else 1
            needs_bps = cost * (queue.pipe.rate_bps or CONCURRENT_BPS)
            if left_bps < needs_bps:
                turns.append([])
                left_bps = CONCURRENT_BPS
            turns[-1].append(queue)
            left_bps -= needs_bps
    return turns


def _rate_bps(topology: Topology, queue: Queue, flow_s: float) -> float:
    """What one direction of a link carries, in bits per second on the wire."""
    return _burst_bps(topology, queue, flow_s) if queue.pipe.disturbs else _flow_bps(topology, queue, flow_s)


def _reading(queue: Queue, rate_bps: float, counts: Counts | None) -> LinkReading:
    return LinkReading(
        worker=queue.worker,
        link=queue.link,
        direction=queue.direction,
        rate_bps_asked=queue.pipe.rate_bps,
        rate_bps_measured=rate_bps,
        loss_asked=queue.pipe.mean_loss,
        counts=counts,
        complaints=tuple(_complaints(queue, rate_bps, counts)),
    )


def _complaints(queue: Queue, measured_bps: float, counts: Counts | None) -> Iterator[str]:
    pipe, where, (low, high) = queue.pipe, f"link {queue.link} {queue.direction}", RATE_TOLERANCE
    if pipe.rate_bps and not low <= measured_bps / pipe.rate_bps <= high:
        allowed = f"{low:.2f} to {high:.2f} of what was asked"
        yield f"{where}: {_off(pipe.rate_bps, measured_bps, format_rate, allowed)}"
    if counts is None:
        return
    shares = [
        ("lost", pipe.mean_loss, counts.loss, loss_interval(pipe, counts)),
        ("duplicated", pipe.duplicate, counts.duplicated / counts.sent, share_interval(pipe.duplicate, counts.sent)),
    ]
    if pipe.rate_bps or not pipe.jitter_s:  # jitter alone lets packets overtake one another
        shares.append(
            ("overtaking", pipe.reorder, counts.overtook / counts.sent, share_interval(pipe.reorder, counts.sent))
        )
    for name, asked, measured, (least, most) in shares:
        if not least <= measured <= most:
            allowed = f"{least:.3%} to {most:.3%}, in which {CONFIDENCE:.1%} of counts of {counts.sent} lie"
            yield f"{where}: packets {name}: {_off(asked, measured, '{:.3%}'.format, allowed)}"
    if pipe.loss_bursts and counts.bursts:
        asked, measured = mean_burst(pipe.loss_bursts), counts.lost / counts.bursts
        half = DEVIATIONS * math.sqrt(asked * max(asked - 1, 0.05) / counts.bursts)
        if abs(measured - asked) > half:
            yield f"{where}: packets in a burst: {_off(asked, measured, '{:.2f}'.format, f'within {half:.2f}')}"


def _off(asked: float, measured: float, form: Callable[[float], str], allowed: str) -> str:
    return f"asked {form(asked)}, measured {form(measured)} (allowed: {allowed})"


def _round_trip(topology: Topology, both: tuple[Queue, Queue]) -> RoundTrip:
    """An idle link, there and back, measured again where it is off."""
    up, down = both
    asked_s = up.pipe.delay_s + down.pipe.delay_s
    jitter_s = math.hypot(up.pipe.jitter_s, down.pipe.jitter_s)
    normal = {pipe.jitter_distribution for pipe in (up.pipe, down.pipe) if pipe.jitter_s} == {"normal"}
    pings = JITTER_PINGS if jitter_s else PINGS
    for _ in range(ATTEMPTS):
        trips = _ping_s(topology, up.node, up.to.address, pings, asked_s, jitter_s)
        typical_s, deviation_s = _typical_s(trips, [up.pipe, down.pipe]), _deviation_s(trips)
        complaints = []
        allowed_s = rtt_tolerance_s(asked_s) + _median_spread_s(jitter_s, len(trips))
        if abs(typical_s - asked_s) > allowed_s:
            allowed = f"within {format_time(allowed_s)}"
            complaints.append(f"link {up.link}: round trip: {_off(asked_s, typical_s, format_time, allowed)}")
        spread_s = DEVIATIONS * 1.3 * jitter_s / math.sqrt(2 * len(trips)) + RTT_TOLERANCE_S / 2
        correlated = up.pipe.jitter_correlation + down.pipe.jitter_correlation > 0
        if normal and not correlated and abs(deviation_s - jitter_s) > spread_s:
            allowed = f"within {format_time(spread_s)}"
            complaints.append(f"link {up.link}: jitter: {_off(jitter_s, deviation_s, format_time, allowed)}")
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
    jitter_s = max(queue.pipe.jitter_s for queue in both_ways)
    for _ in range(ATTEMPTS):
        trips = _ping_s(topology, worker_name(one), address(other), PINGS, asked_s, jitter_s)
        measured_s = _typical_s(trips, [queue.pipe for queue in both_ways])
        if abs(measured_s - asked_s) <= pair_tolerance_s(topology, one, other):
            break
    return measured_s


def pair_tolerance_s(topology: Topology, one: int, other: int) -> float:
    """How far from what was asked the round trip between two workers may be."""
    both_ways = topology.path(one, other) + topology.path(other, one)
    jitter_s = math.hypot(*(queue.pipe.jitter_s for queue in both_ways))
    return len(both_ways) / 2 * rtt_tolerance_s(topology.rtt_s(one, other)) + _median_spread_s(jitter_s, PINGS)


def _typical_s(trips: Sequence[float], pipes: Sequence[Pipe]) -> float:
    """The median where the delay varies; elsewhere the least, for what is above it was spent waiting for a CPU.

    Where some packets overtake others, the least is theirs, and the lower quartile tells.
    """
    if any(pipe.jitter_s for pipe in pipes):
        return statistics.median(trips)
    return statistics.quantiles(trips, n=4)[0] if any(pipe.reorder for pipe in pipes) else min(trips)


def _deviation_s(trips: Sequence[float]) -> float:
    """Half of what holds the middle 68 %: a normal distribution's deviation, which a few late readings do not change.

    It is known to 1.3 times what the deviation itself would be known to.
    """
    marks = statistics.quantiles(trips, n=100)
    return (marks[83] - marks[15]) / 2


def _median_spread_s(jitter_s: float, pings: int) -> float:
    """How far the median of so many round trips may be from the delay, their deviation being the jitter's."""
    return DEVIATIONS * 1.25 * jitter_s / math.sqrt(pings)


def _ping_s(topology: Topology, node: str, to: str, pings: int, asked_s: float, jitter_s: float) -> list[float]:
    """Round trips from a node, far enough apart that none meets the one before."""
    request = {
        "op": "ping",
        "to": to,
        "pings": pings,
        "gap_s": max(PING_GAP_S, 6 * jitter_s),
        "wait_s": 1 + 2 * asked_s,
    }
    trips: list[float] = []
    for _ in range(ATTEMPTS):
        trips += _ask(topology, node, request)
        if 2 * len(trips) >= pings:
            break
    if len(trips) < 2:
        raise ConnectionError(f"{node} reaches {to} with {len(trips)} of {pings} datagrams")
    return trips


def _flow_bps(topology: Topology, queue: Queue, flow_s: float) -> float:
    """One TCP flow over one direction of a link, in bits per second on the wire."""
    pipe = queue.pipe
    back = next(other for other in topology.queues() if other.link == queue.link and other.node != queue.node)
    rtt_s = pipe.delay_s + back.pipe.delay_s
    rate_bps = pipe.rate_bps or CONCURRENT_BPS
    bucket = burst_bytes(pipe) if pipe.rate_bps and not pipe.needs_netem else 0
    skip = 2 * bucket + int(rate_bps / 8 * (SETTLE_S + SETTLE_ROUND_TRIPS * rtt_s))
    total = skip + max(int(rate_bps / 8 * flow_s), MIN_FLOW_BYTES)
    value = _ask(topology, queue.node, {"op": "flow", "to": queue.to.address, "skip": skip, "bytes": total})
    return 8 * float(value) * wire_share(topology.link)


def _burst_bps(topology: Topology, queue: Queue, flow_s: float) -> float:
    """Datagrams all at once, over one direction of a link: bits per second on the wire that arrive."""
    pipe = queue.pipe
    payload, frame = topology.link.mtu_bytes - UDP_IP_HEADER_BYTES, topology.link.mtu_bytes + ETHERNET_HEADER_BYTES
    rate_bps = pipe.rate_bps or CONCURRENT_BPS / PACKET_COST
    packets = int(flow_s * rate_bps / 8 / frame / (1 - pipe.mean_loss)) + 50
    request = {"op": "count", "to": queue.to.address, "bytes": payload, "per_s": None, "packets": packets}
    result = _ask(topology, queue.node, {**request, "wait_s": _grace_s(pipe) + flow_s})
    return 8 * frame * float(result["arrived_per_s"]) / (1 - pipe.corrupt)


def _count(topology: Topology, queue: Queue, counted: int | None, beside: int) -> Counts:
    """Numbered datagrams, well below the rate, over one direction of a link."""
    pipe = queue.pipe
    frame = COUNTED_BYTES + UDP_IP_HEADER_BYTES + ETHERNET_HEADER_BYTES
    per_s = COUNTED_PER_S / beside
    if pipe.rate_bps:
        per_s = min(per_s, 0.5 * pipe.rate_bps / 8 / frame)
    rarest = min(share for share in (pipe.mean_loss, pipe.duplicate, pipe.corrupt, pipe.reorder) if share)
    least, most = COUNTED
    packets = counted or min(max(math.ceil(MEETINGS / rarest), least), most)
    request = {"op": "count", "to": queue.to.address, "bytes": COUNTED_BYTES, "per_s": per_s, "packets": packets}
    for attempt in range(ATTEMPTS):
        request["per_s"] = per_s / 2**attempt  # slower, where the receiver could not keep up
        try:
            result = _ask(topology, queue.node, {**request, "wait_s": _grace_s(pipe)})
            return Counts.model_validate(result["counts"])
        except ConnectionError:
            if attempt + 1 == ATTEMPTS:
                raise
    raise AssertionError


def _grace_s(pipe: Pipe) -> float:
    """How long to wait for the last datagram."""
    return 0.3 + 2 * (pipe.delay_s + 4 * pipe.jitter_s)


def _ask(topology: Topology, node: str, request: Mapping[str, Any]) -> Any:
    """What a node finds when it is told to measure."""
    return _call(topology.address_of(node), request)


def _quit_all(topology: Topology) -> None:
    for node in topology.nodes:
        with suppress(OSError):
            _call(topology.address_of(node), {"op": "quit"})


def _call(to: str, request: Mapping[str, Any]) -> Any:
    """Have a node do something. It is asked again and again until it has answered, and does it once.

    Not by TCP, which waits twice as long each time that a packet is lost: on links that lose many, for minutes.

    Raises:
        ConnectionError: it does not answer, or could not do it.
    """
    message = json.dumps({**request, "id": uuid.uuid4().hex}).encode()
    deadline = time.monotonic() + PATIENCE_S
    with socket.socket(type=socket.SOCK_DGRAM) as control:
        control.connect((to, PORT))
        control.settimeout(AGAIN_S)
        while time.monotonic() < deadline:
            try:
                control.send(message)
                reply = json.loads(control.recv(MOST_BYTES))
            except ConnectionRefusedError:  # it does not listen yet; or no longer, which is all that was wanted
                if request["op"] == "quit":
                    return None
                time.sleep(AGAIN_S / 10)
            except (TimeoutError, ValueError):
                continue
            else:
                if "error" in reply:
                    raise ConnectionError(reply["error"])
                return reply["value"]
    raise ConnectionError(f"{to} does not answer")


class _Answering:
    """A node's side of ``_call``: each request is done once, by a thread of its own, and its answer kept."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._answers: dict[str, bytes | None] = {}
        self._receivers: dict[int, _Receiver] = {}

    def serve(self) -> None:
        """Answer until told to quit."""
        while True:
            datagram, arrived_s, sender = _receive(self._control)
            if datagram.startswith(PING):
                number, _ = PINGED.unpack_from(datagram, len(PING))
                self._control.sendto(PING + PINGED.pack(number, time.time() - arrived_s), sender)
                continue
            try:
                request = json.loads(datagram)
            except ValueError:
                continue
            if request["op"] == "quit":
                self._control.sendto(b'{"value": null}', sender)
                return
            if request["id"] not in self._answers:
                self._answers[request["id"]] = None
                threading.Thread(target=self._work, args=(request, sender), daemon=True).start()
            elif answer := self._answers[request["id"]]:
                self._control.sendto(answer, sender)

    def _work(self, request: Mapping[str, Any], sender: tuple[str, int]) -> None:
        try:
            answer = {"value": self._do(request)}
        except OSError as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        self._answers[request["id"]] = encoded = json.dumps(answer).encode()
        self._control.sendto(encoded, sender)

    def _do(self, request: Mapping[str, Any]) -> Any:
        match request["op"]:
            case "ping":
                return _ping(request)
            case "flow":
                return _flow(request)
            case "flood":
                return _flood_bps(request["to"], request["seconds"])
            case "count":
                return _send_numbered(request)
            case "receive":
                receiver = _Receiver(request["packets"])
                self._receivers[receiver.port] = receiver
                return receiver.port
            case "received":
                return self._receivers.pop(request["port"]).result()
            case _:
                return None


def _accept_flows(server: socket.socket) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        threading.Thread(target=_take_flow, args=(connection,), daemon=True).start()


def _take_flow(connection: socket.socket) -> None:
    with connection:
        connection.settimeout(2 * TIMEOUT_S)
        try:
            request = _hear(connection)
        except ConnectionError:
            return  # it only looked whether somebody listens, or has ended; its own side says so
        if request["op"] == "sink":
            _say(connection, {"value": _sink(connection, request)})
        else:
            while connection.recv(CHUNK_BYTES):
                pass


def _ping(request: Mapping[str, Any]) -> list[float]:
    """Round trips of datagrams to a peer, in seconds, after one that warms caches; those that are lost are left out.

    Each from when it is given to the kernel to when the kernel has the reply, less what the peer held it for.
    """
    _call(request["to"], {"op": "hello"})
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        datagrams.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        datagrams.connect((request["to"], PORT))
        sent: dict[int, float] = {}
        trips: dict[int, float] = {}
        due = time.perf_counter()
        for number in range(1 + request["pings"]):
            _collect(datagrams, sent, trips, until=due)
            sent[number] = time.time()
            datagrams.send(PING + PINGED.pack(number, 0.0))
            due = time.perf_counter() + (0.02 if number == 0 else request["gap_s"])
        _collect(datagrams, sent, trips, until=time.perf_counter() + request["wait_s"], enough=len(sent))
        return [seconds for number, seconds in trips.items() if number > 0]


def _collect(
    datagrams: socket.socket,
    sent: Mapping[int, float],
    trips: dict[int, float],
    until: float,
    enough: int | None = None,
) -> None:
    """Take replies until it is time to go on, or until there are enough."""
    while (left_s := until - time.perf_counter()) > 0 and (enough is None or len(trips) < enough):
        datagrams.settimeout(left_s)
        try:
            datagram, arrived_s, _ = _receive(datagrams)
        except TimeoutError:
            continue
        number, held_s = PINGED.unpack_from(datagram, len(PING))
        if number in sent:
            trips.setdefault(number, arrived_s - sent[number] - held_s)


def _receive(datagrams: socket.socket) -> tuple[bytes, float, Any]:
    """A datagram, when the kernel had it, whenever this process came to look (``time.time()``), and its sender."""
    datagram, ancillary, _, sender = datagrams.recvmsg(MOST_BYTES, 64)
    seconds, nanoseconds = struct.unpack("@qq", ancillary[0][2])
    return datagram, seconds + 1e-9 * nanoseconds, sender


def _flow(request: Mapping[str, Any]) -> float:
    """Send a bulk flow to a peer; payload bytes per second that it saw."""
    chunk, left = bytes(CHUNK_BYTES), int(request["bytes"])
    with _asking(request["to"]) as connection:
        _say(connection, {"op": "sink", "skip": request["skip"], "bytes": request["bytes"]})
        while left > 0:
            left -= connection.send(memoryview(chunk)[:left])
        return float(_hear(connection)["value"])


def _sink(connection: socket.socket, flow: Mapping[str, Any]) -> float:
    """Receive the whole flow; payload bytes per second of what came after its first ``skip`` bytes."""
    buffer = bytearray(CHUNK_BYTES)
    received, started, counted_from = 0, 0.0, 0
    while received < flow["bytes"]:
        count = connection.recv_into(buffer)
        if not count:
            raise ConnectionError("a flow ended early")
        received += count
        if not started and received >= flow["skip"]:
            started, counted_from = time.perf_counter(), received
    return (received - counted_from) / (time.perf_counter() - started)


def _flood_bps(to: str, seconds: float) -> float:
    """Payload bits per second that get through to a peer when nothing holds them back."""
    chunk = bytes(CHUNK_BYTES)
    with _asking(to) as connection:
        _say(connection, {"op": "drain"})
        start = time.perf_counter()
        sent = 0
        while time.perf_counter() - start < seconds:
            sent += connection.send(chunk)
        return 8 * sent / (time.perf_counter() - start)


def _send_numbered(request: Mapping[str, Any]) -> Any:
    """Send numbered datagrams to a peer at a steady pace, or all at once; what it received."""
    packets, padding = int(request["packets"]), bytes(int(request["bytes"]) - 4 - len(PING))
    port = _call(request["to"], {"op": "receive", "packets": packets})
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        datagrams.connect((request["to"], port))
        batch = max(1, int(request["per_s"] * PACE_S)) if request["per_s"] else packets
        due = time.perf_counter()
        for first in range(0, packets, batch):
            time.sleep(max(0.0, due - time.perf_counter()))
            due += PACE_S
            for number in range(first, min(first + batch, packets)):
                datagrams.send(PING + struct.pack("!I", number) + padding)
        time.sleep(request["wait_s"])
    return _call(request["to"], {"op": "received", "port": port})


class _Receiver:
    """Takes numbered datagrams, beside everything else, until it is asked what became of them."""

    def __init__(self, packets: int) -> None:
        self._packets = packets
        self._arrivals: list[tuple[int, float]] = []
        self._missed_before = _overflows()
        self._enough = threading.Event()
        self._datagrams = socket.socket(type=socket.SOCK_DGRAM)
        _enlarge(self._datagrams, packets * ROOM_BYTES)
        self._datagrams.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        # Python's own timeout would ask the kernel twice for each datagram, and that is what this takes.
        self._datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, RECEIVER_LOOKS_US))
        self._datagrams.bind(("", 0))
        self.port: int = self._datagrams.getsockname()[1]
        self._thread = threading.Thread(target=self._take, daemon=True)
        self._thread.start()

    def result(self) -> dict[str, Any]:
        """How fast they came, and ``counts_of`` them.

        Raises:
            ConnectionError: the kernel had no more room for some of them, so that nothing can be said.
        """
        self._enough.set()
        self._thread.join()
        if missed := _overflows() - self._missed_before:
            raise ConnectionError(f"the receiver was too slow for {missed} datagrams")
        counts = counts_of([number for number, _ in self._arrivals], self._packets)
        return {"arrived_per_s": _arrived_per_s(self._arrivals), "counts": counts}

    def _take(self) -> None:
        with self._datagrams:
            while True:
                try:
                    datagram, arrived_s, _ = _receive(self._datagrams)
                    self._arrivals.append((struct.unpack_from("!I", datagram, len(PING))[0], arrived_s))
                except BlockingIOError:
                    if self._enough.is_set():
                        return


def counts_of(numbers: Sequence[int], sent: int) -> dict[str, int]:
    """What became of datagrams 0 to ``sent`` - 1, from the numbers in the order in which they arrived."""
    first: dict[int, int] = {}
    for place, number in enumerate(numbers):
        first.setdefault(number, place)
    lost = [number not in first for number in range(sent)]
    bursts = sum(now and not before for before, now in zip([False, *lost], lost, strict=False))
    overtook, least_later = 0, sent
    for number in sorted(first, key=first.__getitem__, reverse=True):
        overtook += number > least_later
        least_later = min(least_later, number)
    return {
        "sent": sent,
        "lost": sum(lost),
        "bursts": bursts,
        "duplicated": len(numbers) - len(first),
        "overtook": overtook,
    }


def _arrived_per_s(arrivals: Sequence[tuple[int, float]]) -> float:
    """Datagrams per second, once the first fifth has filled the queue: the median over slices, since a sender that
    had to wait for its CPU leaves a gap that is not the link's."""
    timed = [seconds for _, seconds in arrivals[len(arrivals) // 5 :]]
    each = len(timed) // SLICES
    if not each:
        return 0.0
    marks = timed[::each][: SLICES + 1]
    return statistics.median(each / (after - before) for before, after in itertools.pairwise(marks))


def _enlarge(datagrams: socket.socket, size_bytes: int) -> None:
    """Have the kernel hold what arrives while this process waits for its CPU."""
    try:
        datagrams.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, size_bytes)
    except PermissionError:
        datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size_bytes)


def _overflows() -> int:
    """Datagrams that came to this node and found a socket's buffer full (RFC 4113's errors, told apart by Linux)."""
    names, values = (
        line.split() for line in Path("/proc/net/snmp").read_text().splitlines() if line.startswith("Udp:")
    )
    return int(values[names.index("RcvbufErrors")])


@contextmanager
def _asking(to: str) -> Iterator[socket.socket]:
    """A connection to a node that answers; waits until it listens."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            connection = socket.create_connection((to, PORT), timeout=2 * TIMEOUT_S)
            break
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield connection


def _say(connection: socket.socket, message: Mapping[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _hear(connection: socket.socket) -> dict[str, Any]:
    """One line, byte by byte: what follows it on the connection is not ours to take."""
    line = b""
    while not line.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte:
            raise ConnectionError("a peer hung up")
        line += byte
    message: dict[str, Any] = json.loads(line)
    return message
