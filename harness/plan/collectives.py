"""How long a collective takes on a network, as torch's Gloo runs it: messages over queues that they share.

Every message is asked for first: its receiver tells that it is ready, which takes the way back, and only then it comes
(``Pair::recv`` and ``Pair::handleRemotePendingRecv`` in gloo/transport/tcp/pair.cc). ``all_reduce`` and ``all_gather``
pass segments round a ring, two of which are under way at once (``ring`` in gloo/allreduce.cc, ``allgather`` in
gloo/allgather.cc); ``all_to_all`` begins all its messages together, empty ones too (gloo/alltoallv.cc); ``broadcast``
is a binomial tree (gloo/broadcast.cc), and a ``barrier`` tells workers that are farther and farther away
(gloo/barrier.cc). Two collectives may run at once: a process group has two threads for each interface
(``ProcessGroupGloo::Options::create_default`` and ``runLoop`` in ProcessGroupGloo.cpp).

Workers that have alike links at the same switch are one kind, so that 10,000 of them are as few numbers as four. Of
links that change, times are those of their best moment; lost packets and jitter are not in it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from baselines._calls import AllGather, AllReduce, AllToAll, Barrier, Broadcast, Call, Pull, Push, ReduceScatter, Shift
from harness.network.bounds import FRAME_HEADER_BYTES, TCP_IP_HEADER_BYTES, wire_share
from harness.network.flows import Floats, arrivals_s
from harness.network.pipeline import Hop, Lane, pipeline
from harness.network.qdisc import burst_bytes
from harness.network.topology import OFFLOADED_SEGMENTS, SHORTEST_RTO_S, Topology
from harness.network.wires import Queue
from harness.scenario.links import Pipe

MESSAGE_S = 2e-4
"""From one worker's sending to its neighbour's answer, beside bytes and delays: two processes are woken."""

SEGMENT_BYTES = 1 << 20
"""The longest segment of a ring (``kMaxSegmentSize`` in gloo/allreduce.h)."""

ENTRY_BYTES = 4
"""No segment is shorter than a number."""

OWN_BYTES = 3 * 48
"""What Gloo itself sends with a message, each direction, if one comes for each that goes: to links it is payload."""

MESSAGE_BYTES = OWN_BYTES + 3 * FRAME_HEADER_BYTES
"""What a message costs each direction beside its payload, with headers.

Three times ``Op::preamble``, six numbers (gloo/transport/tcp/pair.h): that of the message, the note that it will come,
and the readiness for the other one (``Pair::sendNotifySendReady``, ``sendNotifyRecvReady`` in pair.cc). Each is taken
as a frame, since Gloo sets TCP_NODELAY (``Pair::connectCallback``). On a loopback with an MTU of 1500 two workers'
all-gathers, all-reduces and all-to-alls were found to add 318 to 372 bytes a message, acknowledgements included.
"""

INITIAL_WINDOW_BYTES = 10 * 1448
"""The least that is left of it (RFC 6928)."""


def own_bytes(call: Call, workers: int) -> int:
    """What Gloo itself sends of a worker in a collective, about: its rings pass two segments at once."""
    if isinstance(call, (AllReduce, AllGather, ReduceScatter)):
        return (4 if isinstance(call, AllReduce) else 2) * (workers - 1) * OWN_BYTES
    if isinstance(call, Barrier):
        return (workers - 1).bit_length() * OWN_BYTES
    return (workers - 1) * OWN_BYTES


class Timing(NamedTuple):
    """What a collective takes that has the network to itself."""

    took_s: float
    """From the call to the last worker's having the result."""
    busy_s: float
    """The part of it in which the busiest queue sends."""
    rested_s: float
    """For how long the busiest queue might as well have been silent at its end, by what it saved meanwhile."""


class Kind(NamedTuple):
    """Workers that are alike."""

    members: int
    example: int
    is_server: bool


Passing = tuple[object, Lane, int, float]
"""A queue's name, the queue, a class of flows, and how many bytes of a byte of each of its flows pass there."""


class Network:
    """A topology as collectives see it.

    Args:
        message_s: what waking processes costs a message.
        slowed: how many times slower than it is told everything runs. TCP is made to wait as many times longer, but
            never less than it does.
    """

    def __init__(self, topology: Topology, message_s: float = MESSAGE_S, slowed: float = 1.0) -> None:
        changes = topology.link.trace is not None and len(topology.link.trace.rows) > 1
        self.topology = topology.at_best if changes else topology
        self.workers = topology.workers
        self._message_s, self._shortest_rto_s = message_s, SHORTEST_RTO_S / min(1.0, slowed)
        self._header = wire_share(topology.link)
        mss_bytes = topology.link.mtu_bytes - TCP_IP_HEADER_BYTES
        self._acks = FRAME_HEADER_BYTES / (max(2, topology.segments or OFFLOADED_SEGMENTS) * mss_bytes)
        self._trunks: dict[tuple[str, str], list[Queue]] = {}
        self._known: dict[tuple[type, Call, float], Timing] = {}
        self._slowed = slowed

    def _lane(self, pipe: Pipe) -> Lane:
        """One direction of a link, as bytes see it. Its bucket is that of the link as it is built: slowed."""
        if pipe.rate_bps is None:
            return Lane(math.inf, 0.0, pipe.delay_s)
        built = pipe.slowed(self._slowed)
        saved_s = 0.0 if pipe.needs_netem else 8 * burst_bytes(built) / pipe.rate_bps
        return Lane(pipe.rate_bps / 8, saved_s, pipe.delay_s)

    def timing(self, call: Call, idle_s: float = math.inf) -> Timing:
        """What a collective takes.

        Args:
            idle_s: for how long the links have been silent before.
        """
        idle_s = self._least_alike_s(idle_s)
        key = type(call), call, idle_s  # tuples of two types may be equal
        if key not in self._known:
            self._known[key] = self._timings[type(call)](call, idle_s)
        return self._known[key]

    def _least_alike_s(self, idle_s: float) -> float:
        """The least silence that changes nothing else: every bucket is full, and no window has been halved."""
        return min(idle_s, self._longest_saved_s) if idle_s < self._shortest_rto_s else idle_s

    @cached_property
    def _longest_saved_s(self) -> float:
        return max(self._lane(pipe).saved_s for pipe in self.topology.pipes)

    @cached_property
    def _timings(self) -> dict[type, Callable[..., Timing]]:
        return {
            AllReduce: lambda call, idle_s: self._all_reduce(call.payload_bytes, idle_s, rounds=2),
            ReduceScatter: lambda call, idle_s: self._all_reduce(call.payload_bytes, idle_s, rounds=1),
            AllGather: lambda call, idle_s: self._ring(call.payload_bytes / 2, 2 * (self.workers - 1), 1, idle_s),
            Broadcast: self._broadcast,
            AllToAll: lambda call, idle_s: self._exchange(call.payload_bytes / self.workers, idle_s),
            Push: lambda call, idle_s: self._exchange(call.payload_bytes / call.servers, idle_s, to=call.servers),
            Pull: lambda call, idle_s: self._exchange(call.payload_bytes / call.servers, idle_s, by=call.servers),
            Barrier: lambda call, idle_s: self._barrier(idle_s),
            Shift: self._shift,
        }

    def _all_reduce(self, payload_bytes: float, idle_s: float, rounds: int) -> Timing:
        p = self.workers
        if payload_bytes <= ENTRY_BYTES * p:
            return self._walk(payload_bytes, rounds)
        of_each = math.ceil(max(2 * p, math.ceil(payload_bytes / SEGMENT_BYTES)) / p)
        return self._ring(payload_bytes / (of_each * p), of_each * (p - 1), rounds, idle_s)

    def _walk(self, payload_bytes: float, rounds: int) -> Timing:
        """So few numbers that the other segments are empty, and nobody waits for them: one after the other goes on."""
        counts = self._hop_counts
        passing_s = [self._message_s + hop.there_s + hop.longest_s(self._on_the_wire(payload_bytes)) for hop in counts]
        once_s = sum(count * each_s for count, each_s in zip(counts.values(), passing_s, strict=True))
        return Timing(rounds * once_s * (self.workers - 1) / self.workers, 0.0, math.inf)

    def _ring(self, segment_bytes: float, segments: int, rounds: int, idle_s: float) -> Timing:
        """A ring goes at the pace of its slowest hop.

        Workers are dealt to groups in order, so that no two hops share a trunk. Beside its own segments a worker's link
        carries acknowledgements of those which it receives.
        """
        size = self._on_the_wire(segment_bytes)
        return max(self._passed_on(hop, size, segments, rounds, idle_s) for hop in self._hop_counts)

    def _passed_on(self, hop: Hop, size: float, segments: int, rounds: int, idle_s: float) -> Timing:
        ended_s, rested_s = pipeline(hop, size, segments, rounds, idle_s, self._message_s)
        busy_s = max(0.0, rounds * segments * hop.longest_s(size) - min(hop.saved_s, idle_s))
        ended_s += self._restart_s(hop, 2 * size, rounds * segments * size, idle_s)
        return Timing(ended_s, min(busy_s, ended_s), rested_s)

    def _exchange(self, size: float, idle_s: float, to: int | None = None, by: int | None = None) -> Timing:
        """Every worker sends every other one so many bytes, or only to the first ones, or only these to all."""
        kinds = self._kinds(to or by or 0)
        classes = [
            (one, other)
            for one, other in itertools.product(range(len(kinds)), repeat=2)
            if one != other or kinds[one].members > 1
        ]
        entries: list[Passing] = []
        sizes = np.full(len(classes), self._header * size + MESSAGE_BYTES)
        for number, (one, other) in enumerate(classes):
            sender, receiver = kinds[one], kinds[other]
            if (to and not receiver.is_server) or (by and not sender.is_server):
                sizes[number] = MESSAGE_BYTES
            out, into = receiver.members - (one == other), sender.members - (one == other)
            entries += self._passes(number, (one, sender), (other, receiver), (out, into, sender.members * out))
        return self._shared(entries, sizes, self._ways(kinds, classes), idle_s)

    def _passes(
        self, number: int, one: tuple[int, Kind], other: tuple[int, Kind], counts: tuple[int, int, int]
    ) -> list[Passing]:
        """Which queues the flows of a class pass, and how many pass each: up, down and on each trunk."""
        (sending, sender), (receiving, receiver) = one, other
        out, into, between = counts
        ahead, back = (self._trunk_queues(a.example, b.example) for a, b in ((sender, receiver), (receiver, sender)))
        acks = self._acks / self._header
        found: list[Passing] = [
            (("up", sending), self._up(sender.example), number, float(out)),
            (("down", receiving), self._down(receiver.example), number, float(into)),
            (("up", receiving), self._up(receiver.example), number, acks * into),
            (("down", sending), self._down(sender.example), number, acks * out),
        ]
        found += [(_name(queue), self._lane(queue.pipe), number, float(between)) for queue in ahead]
        return found + [(_name(queue), self._lane(queue.pipe), number, acks * between) for queue in back]

    def _shift(self, call: Shift, idle_s: float) -> Timing:
        senders = np.arange(self.workers)
        return self._pairs(senders, (senders + call.distance) % self.workers, call.payload_bytes, idle_s)

    def _barrier(self, idle_s: float) -> Timing:
        """After as many messages as p - 1 has binary digits each has heard, by others, of all: no link is busy."""
        distances = [1 << number for number in range((self.workers - 1).bit_length())]
        took_s = sum(self._shift(Shift(0.0, distance), idle_s).took_s for distance in distances)
        return Timing(took_s, 0.0, idle_s + took_s)

    def _broadcast(self, call: Broadcast, idle_s: float) -> Timing:
        """As many workers as have it send it on, round by round."""
        timings: list[Timing] = []
        have = 1
        while have < self.workers:
            senders = np.arange(min(have, self.workers - have))
            timings.append(self._pairs(senders, senders + have, call.payload_bytes, 0.0 if timings else idle_s))
            have *= 2
        return Timing(sum(each.took_s for each in timings), sum(each.busy_s for each in timings), timings[-1].rested_s)

    def _pairs(self, senders: NDArray[np.int64], receivers: NDArray[np.int64], size: float, idle_s: float) -> Timing:
        """So many bytes from each sender to its own receiver: only trunks are shared."""
        kinds, kind_of = self._kinds(0), self._kind_of
        pairs, counts = np.unique(np.stack((kind_of[senders], kind_of[receivers])), axis=1, return_counts=True)
        classes = [(int(one), int(other)) for one, other in pairs.T]
        entries: list[Passing] = []
        both_ways = 1 + self._acks / self._header
        for number, ((one, other), count) in enumerate(zip(classes, counts, strict=True)):
            sender, receiver = kinds[one].example, kinds[other].example
            entries.append((("up", number), self._up(sender), number, both_ways))
            entries.append((("down", number), self._down(receiver), number, both_ways))
            for queue in self._trunk_queues(sender, receiver):
                entries.append((_name(queue), self._lane(queue.pipe), number, float(count)))
        sizes = np.full(len(classes), self._header * size + MESSAGE_BYTES)
        return self._shared(entries, sizes, self._ways(kinds, classes), idle_s)

    def _shared(self, entries: list[Passing], sizes: Floats, ways: list[Hop], idle_s: float) -> Timing:
        """Flows that begin together, each as soon as its receiver's readiness is known."""
        rows = {row: place for place, row in enumerate(dict.fromkeys(row for row, *_ in entries))}
        use, rates, saved = np.zeros((len(rows), len(sizes))), np.full(len(rows), np.inf), np.zeros(len(rows))
        for row, queue, number, passing in entries:
            place = rows[row]
            use[place, number] += passing
            rates[place] = queue.bytes_per_s
            saved[place] = queue.bytes_saved(idle_s)
        arrived_s = arrivals_s(use, rates, saved, sizes)
        late_s = [
            way.there_s + way.back_s + self._restart_s(way, size, size, idle_s)
            for way, size in zip(ways, sizes, strict=True)
        ]
        took_s = self._message_s + max(each + late for each, late in zip(arrived_s, late_s, strict=True))
        busy_s = float(np.max((use @ sizes - saved) / rates, initial=0.0))
        return Timing(took_s, max(0.0, busy_s), took_s - busy_s)

    def _restart_s(self, way: Hop, needed_bytes: float, sent_bytes: float, idle_s: float) -> float:
        """What slow start costs after a long silence, where a round trip carries more than the window that is left.

        The window has grown to what is needed at once; a connection halves it for each timeout that it is silent.
        """
        rtt_s, rate = way.there_s + way.back_s, way.bytes_per_s
        if rtt_s == 0 or math.isinf(rate) or math.isinf(idle_s):
            return 0.0
        in_flight = min(needed_bytes, rate * rtt_s)
        halvings = min(60, int(idle_s / (self._shortest_rto_s + rtt_s)))
        window, lost_s = max(INITIAL_WINDOW_BYTES, in_flight / 2**halvings), 0.0
        while window < min(in_flight, sent_bytes):
            lost_s += rtt_s - window / rate
            sent_bytes -= window
            window *= 2
        return lost_s

    def _on_the_wire(self, payload_bytes: float) -> float:
        """Bytes in each direction of a link for a message that a worker sends and one that it receives."""
        return (self._header + self._acks) * payload_bytes + MESSAGE_BYTES

    @cached_property
    def _hop_counts(self) -> dict[Hop, int]:
        """The hops of a ring that differ, and how many there are of each."""
        kinds, kind_of = self._kinds(0), self._kind_of
        pairs, counts = np.unique(np.stack((kind_of, np.roll(kind_of, -1))), axis=1, return_counts=True)
        ways = self._ways(kinds, [(int(one), int(other)) for one, other in pairs.T])
        found: dict[Hop, int] = {}
        for way, count in zip(ways, counts, strict=True):
            found[way] = found.get(way, 0) + int(count)
        return found

    def _ways(self, kinds: list[Kind], classes: list[tuple[int, int]]) -> list[Hop]:
        """The way of a message of each class."""
        return [self._way(kinds[one].example, kinds[other].example) for one, other in classes]

    def _way(self, sender: int, receiver: int) -> Hop:
        ahead, back = (
            [self._up(one), *(self._lane(queue.pipe) for queue in self._trunk_queues(one, other)), self._down(other)]
            for one, other in ((sender, receiver), (receiver, sender))
        )
        return Hop(tuple(ahead), sum(each.delay_s for each in ahead), sum(each.delay_s for each in back))

    def _up(self, worker: int) -> Lane:
        return self._lanes[worker][0]

    def _down(self, worker: int) -> Lane:
        return self._lanes[worker][1]

    @cached_property
    def _lanes(self) -> list[tuple[Lane, Lane]]:
        """Both directions of each worker's link."""
        lanes = {pipe: self._lane(pipe) for pipe in self.topology.pipes}
        return [(lanes[wire.up], lanes[wire.down]) for wire in self.topology.wires[: self.workers]]

    @cached_property
    def _kind_of(self) -> NDArray[np.int64]:
        """(workers,): the number of each worker's kind."""
        keys = [(self.topology.switch_of(worker), *self._lanes[worker]) for worker in range(self.workers)]
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        return np.array([numbers[key] for key in keys])

    def _kinds(self, servers: int) -> list[Kind]:
        """The kinds of workers, numbered as in ``_kind_of`` where there are no servers: these are the first workers."""
        is_server = np.arange(self.workers) < servers
        together = 2 * self._kind_of + is_server
        found, first, counts = np.unique(together, return_index=True, return_counts=True)
        return [
            Kind(int(count), int(example), bool(number % 2))
            for number, example, count in zip(found, first, counts, strict=True)
        ]

    def _trunk_queues(self, sender: int, receiver: int) -> list[Queue]:
        ends = self.topology.switch_of(sender), self.topology.switch_of(receiver)
        if ends not in self._trunks:
            self._trunks[ends] = self.topology.path(sender, receiver)[1:-1]
        return self._trunks[ends]


def _name(queue: Queue) -> tuple[str, str]:
    return queue.node, queue.interface
