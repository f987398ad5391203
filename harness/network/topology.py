"""The emulated network: workers, switches and shaped links, as lists of ``ip`` and ``tc`` commands.

Every worker has a link of its own, a /30, to a switch that forwards; where workers are grouped, trunks join the
switches. Two queues make a link: each end's egress is one direction. Everything here is pure; whoever runs the commands
does so inside a private universe or inside containers, never on the host.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

from pydantic import Field

from harness.network.addresses import (
    SWITCH,
    WORKER_INTERFACE,
    address,
    gateway,
    switch_interface,
    worker_name,
    worker_number,
)
from harness.network.bounds import seconds_on
from harness.network.qdisc import UNSHAPED_BPS, packets_in_a_segment, qdisc
from harness.network.wires import Command, End, Queue, Wire
from harness.scenario.links import PROPERTIES, WAYS, Fabric, Link, Pipe, PipeChange, Trace, TraceRow, TwoWay
from harness.scenario.properties import NO_UNIT, UNSHAPED
from harness.scenario.schema import MOST_WORKERS
from harness.scenario.section import Section
from harness.units import format_rate, format_time

SEGMENT_S = 0.25e-3
"""The longest that one segment may occupy a link that netem paces: it is passed on whole, so long ones add delay."""

OFFLOADED_SEGMENTS = 44
"""Packets in the largest segment that offloads build, at an MTU of 1500."""

ANY_SEGMENT = 65535
"""Packets in a segment where nothing limits them: the most that the kernel takes. It is said, too, since an interface
that carried another topology before may have been told less."""

SHORTEST_RTO_S = 0.2
"""How long TCP waits at least, beside a round trip, before it sends again what was not acknowledged (tcp(7)). After so
long without a packet it halves its window, too, and again (RFC 2861)."""


class Topology(Section):
    """Workers with a link each, to one switch or to those of the fabric's groups."""

    workers: int = Field(ge=2, le=MOST_WORKERS)
    link: Link
    fabric: Fabric = Fabric.model_validate({})
    most_segments: int | None = None
    """How many packets a worker may hand to its link as one, whatever its queues need; None: as they need it."""
    dilation: float = 1.0
    """How many times slower than it was asked for it is: what TCP waits for at least must be as many times longer."""
    shrink: float = 1.0
    """How many times fewer bytes its links carry than it was asked for."""
    slows_by: float = Field(default=1.0, ge=1)
    """How many times slower its links become while it is used: the smallest of their buckets must take a segment."""

    def __hash__(self) -> int:
        return hash((self.workers, self.link, self.fabric))

    @property
    def nodes(self) -> list[str]:
        """Names of all nodes, workers first."""
        return self.worker_nodes + self.switches

    @property
    def worker_nodes(self) -> list[str]:
        """Names of the workers' nodes, in order."""
        return [worker_name(worker) for worker in range(self.workers)]

    @property
    def switches(self) -> list[str]:
        """Names of the nodes that forward; the one between all groups, or of a star, last."""
        return self.fabric.names + ([] if self.fabric.mesh else [SWITCH])

    def switch_of(self, worker: int) -> str:
        """The switch that a worker's link leads to: its group's."""
        return self.fabric.group_of(worker, self.workers) if self.fabric.groups else SWITCH

    def slowed(self, dilation: float, shrink: float = 1.0) -> Topology:
        """The same with links so many times slower, and as many times longer delays; and as many times thinner."""
        if dilation == shrink == 1:
            return self
        link, fabric = self.link.slowed(dilation, shrink), self.fabric.slowed(dilation, shrink)
        dilation, shrink = self.dilation * dilation, self.shrink * shrink
        return Topology(workers=self.workers, link=link, fabric=fabric, dilation=dilation, shrink=shrink)

    def with_ranks(self, per_node: int) -> Topology:
        """What several ranks on each worker's node see: a network of ranks, a group a node, whose trunk is its link.

        Ranks are numbered node by node, as torchrun does it. What those of a node tell one another passes no link.
        Links that change are as good as they ever become.

        Raises:
            ValueError: the workers are in groups themselves.
        """
        if per_node == 1:
            return self
        if self.fabric.names:
            raise ValueError(f"found groups {self.fabric.groups!r}; allowed: a star, where ranks share links")
        star = self.at_best if self.link.trace else self
        nodes = {worker: f"node{number}" for number, worker in enumerate(self.worker_nodes)}
        inside = {"rate": UNSHAPED, "mtu": self.link.mtu_bytes, "congestion_control": self.link.congestion_control}
        return Topology(
            workers=per_node * self.workers,
            link=Link.model_validate(inside),
            fabric=Fabric.model_validate(
                {
                    "groups": " ".join(nodes.values()),
                    "trunk": star._as_trunk(""),
                    "trunks": {
                        nodes[worker]: star._as_trunk(worker) for worker in nodes if worker in self.link.workers
                    },
                }
            ),
            most_segments=self.segments,
        )

    def _as_trunk(self, worker: str) -> TwoWay:
        up, down = (
            PipeChange.model_construct(
                **{name: getattr(self.link.pipe(worker, way), name) for name in Pipe.model_fields}
            )
            for way in WAYS
        )
        return TwoWay(up=up, down=down)

    @cached_property
    def wires(self) -> tuple[Wire, ...]:
        """All links, those of the workers first."""
        return (*self._worker_wires(), *self._trunks())

    def queues(self) -> Iterator[Queue]:
        """Both directions of every link."""
        for wire in self.wires:
            yield from wire.queues()

    @cached_property
    def pipes(self) -> tuple[Pipe, ...]:
        """What the directions of links are, each once: of 10,000 workers' most are alike."""
        return tuple(dict.fromkeys(pipe for wire in self.wires for pipe in (wire.up, wire.down)))

    @property
    def needs_netem(self) -> bool:
        """Whether any link asks for more than a rate."""
        return any(pipe.needs_netem for pipe in self.pipes)

    @property
    def most_in_flight_bytes(self) -> float:
        """What a flow has on its way at most, by rate and round trip: to a neighbour, or over one link."""
        if self.link.trace and len(self.link.trace.rows) > 1:
            return self._fastest(max).most_in_flight_bytes
        neighbours = [(worker, (worker + 1) % self.workers) for worker in range(self.workers)]
        ways = [(self.path(*pair), self.path(*reversed(pair))) for pair in neighbours]
        ways += [([up], [down]) for up, down in (wire.queues() for wire in self.wires)]
        return max(
            _slowest_bps(way) / 8 * sum(queue.pipe.delay_s for queue in (*there, *back))
            for there, back in ways
            for way in (there, back)
        )

    @property
    def loses_packets(self) -> bool:
        """Whether any link does, on purpose and now or later; who receives a damaged one drops it."""
        later = self.link.trace.rows if self.link.trace else ()
        return any(pipe.mean_loss or pipe.corrupt for pipe in self.pipes) or any(row.loss for row in later)

    @property
    def lost_again(self) -> float:
        """The greatest share, over links with bursts, of lone packets that are lost again when TCP sends them again."""
        return max((pipe.loss_bursts.lost_again for pipe in self.pipes if pipe.loss_bursts), default=0.0)

    @property
    def is_uneven(self) -> bool:
        """Whether the links make single steps long by themselves: they change, lose or disturb packets, or jitter."""
        return self.link.trace is not None or any(pipe.disturbs or pipe.jitter_s for pipe in self.pipes)

    def build(self) -> list[Command]:
        """Commands that make the namespaces and links; every switch must forward (``net.ipv4.ip_forward``)."""
        commands = [Command("ip", None, f"netns add {node}") for node in self.nodes]
        mtu = self.link.mtu_bytes
        for wire in self.wires:
            near, far = wire.near, wire.far
            commands.append(
                Command(
                    "ip",
                    None,
                    f"link add {far.interface} mtu {mtu} netns {far.node} type veth "
                    f"peer name {near.interface} mtu {mtu} netns {near.node}",
                )
            )
        ends = [ways for wire in self.wires for ways in ((wire.near, wire.far), (wire.far, wire.near))]
        most = self.most_segments or min(filter(None, (self.segments, self._packets_in_a_segment)), default=ANY_SEGMENT)
        for node in [*self.switches, *self.worker_nodes]:
            commands.append(Command("ip", node, "link set lo up"))
            for own, other in ends:
                if own.node == node:
                    known = f"{other.address} lladdr {other.hardware_address} nud permanent"
                    lines = (
                        f"addr add {own.address}/30 dev {own.interface}",
                        f"link set {own.interface} gso_max_segs {most} address {own.hardware_address} up",
                        f"neigh replace {known} dev {own.interface}",
                    )
                    commands.extend(Command("ip", node, line) for line in lines)
            commands.extend(Command("ip", node, line) for line in self._routes_of(node))
        return commands

    @property
    def _packets_in_a_segment(self) -> int | None:
        """How many packets may go through a token bucket as one; see ``packets_in_a_segment``."""
        pipes = [queue.pipe for queue in self.queues()]
        if any(pipe.queue_bytes for pipe in pipes):
            return 1  # a queue as short as it was asked for might have no room for a longer one
        rates_bps = {pipe.rate_bps for pipe in pipes if pipe.rate_bps and not pipe.burst_bytes}
        rates_bps |= {row.rate_bps for row in self.link.trace.rows} if self.link.trace else set()
        return packets_in_a_segment((int(rate_bps / self.slows_by) for rate_bps in rates_bps), self.link.mtu_bytes)

    def shape(self) -> list[Command]:
        """Commands that give every direction of every link its queue."""
        order = {node: place for place, node in enumerate(self.nodes)}
        queues = sorted(self.queues(), key=lambda queue: order[queue.node])
        return [
            Command("tc", queue.node, f"qdisc replace dev {queue.interface} root {self.qdisc(queue.pipe)}")
            for queue in queues
        ]

    def reshape(self) -> list[Command]:
        """Commands that change every queue to what it is here, where rates or delays were others; flows go on."""
        return [
            Command("tc", queue.node, f"qdisc change dev {queue.interface} root {self.qdisc(queue.pipe)}")
            for queue in self.queues()
        ]

    def change(self, row: int) -> list[Command]:
        """Commands that bring a row of the links' trace into force; queues and flows go on."""
        assert self.link.trace
        now = self.link.trace.rows[row]
        return [
            Command("tc", queue.node, f"qdisc change dev {queue.interface} root {self.qdisc(now.changed(queue.pipe))}")
            for queue in self.queues()
            if queue.worker is not None
        ]

    def qdisc(self, pipe: Pipe) -> str:
        """The queueing discipline of one direction of one of these links."""
        return qdisc(pipe, self.link.mtu_bytes, self.dilation)

    def script(self) -> str:
        """All of it as lines for a shell, as root, in a network of one's own (``unshare --net --mount``)."""
        forward = [f"ip netns exec {node} sysctl -qw net.ipv4.ip_forward=1" for node in self.switches]
        return "\n".join([*map(str, self.build()), *forward, *map(str, self.shape())])

    def hosts(self) -> str:
        """The text of /etc/hosts that names every node: reverse look-ups must never leave the universe."""
        named = {"localhost": "127.0.0.1", **self.worker_addresses}
        return "".join(f"{found} {name}\n" for name, found in named.items())

    @property
    def worker_addresses(self) -> dict[str, str]:
        """The address of each worker's node, by its name."""
        return {worker_name(worker): address(worker) for worker in range(self.workers)}

    def address_of(self, node: str) -> str:
        """Where the last of the switches, a neighbour of every other one, finds a node."""
        if node in self.worker_nodes:
            return address(worker_number(node))
        seen_from = self.switches[-1]
        return next((queue.to.address for queue in self._between(seen_from, node)), "127.0.0.1")

    def path(self, sender: int, receiver: int) -> list[Queue]:
        """The queues that a packet from one worker to another passes, in order."""
        up, down = self.wires[sender].queues()[0], self.wires[receiver].queues()[1]
        return [up, *self._between(self.switch_of(sender), self.switch_of(receiver)), down]

    def rtt_s(self, one: int, other: int) -> float:
        """What an idle round trip between two workers takes at least: the delays on the way there and back."""
        return sum(queue.pipe.delay_s for queue in self.path(one, other) + self.path(other, one))

    def bound_s(self, wire_bytes: float, busiest_bytes: float) -> float:
        """The least time a step of communication takes; 0 where nothing limits it.

        A cut that parts the workers is crossed by at least what one of them sends, whoever they talk to: for a ring
        exactly by that. So the link of each worker carries ``wire_bytes`` each way, and so do all trunks of each group
        together; then one delays the last of them. And somewhere ``busiest_bytes`` must pass too, at best over
        the fastest link of a worker.

        Args:
            wire_bytes: payload that each worker sends.
            busiest_bytes: payload in the busiest direction of any worker's link.
        """
        if self.link.trace and len(self.link.trace.rows) > 1:
            return self.at_best.bound_s(wire_bytes, busiest_bytes)
        carried = [_seconds_through(wire_bytes, cut) for cut in self._cuts()]
        own = dict.fromkeys(pipe for wire in self.wires[: self.workers] for pipe in (wire.up, wire.down))
        busiest = min(seconds_on(busiest_bytes, pipe) for pipe in own)
        unlike = {(self.switch_of(other), self.wires[other].down): other for other in range(1, self.workers)}
        farthest_s = max(sum(queue.pipe.delay_s for queue in self.path(0, other)) for other in unlike.values())
        return max(*carried, busiest, farthest_s)

    def _cuts(self) -> Iterator[tuple[Pipe, ...]]:
        """Directions of links that are, all together, the only way from or to a worker or a group, each once."""
        ways: dict[str, list[tuple[Pipe, Pipe]]] = {}
        for wire in self.wires[self.workers :]:
            ways.setdefault(wire.near.node, []).append((wire.up, wire.down))
            ways.setdefault(wire.far.node, []).append((wire.down, wire.up))
        own = ((pipe,) for wire in self.wires[: self.workers] for pipe in (wire.up, wire.down))
        trunks = (way for of_group in ways.values() for way in zip(*of_group, strict=True))
        yield from dict.fromkeys(itertools.chain(own, trunks))

    def ring_bound_s(self, payload_bytes: float) -> float:
        """Seconds that a ring all-reduce cannot beat, latency included; 0 where nothing limits it.

        Each worker sends 2 (p - 1) / p of the payload to its neighbour, which the slowest queue on the way must carry,
        and the last byte of it is still to travel there; and the sum of the first element travels round the ring once
        to be made, and all but once to be told. Headers and ACKs are not payload. Where there is netem, offload is
        off, and they add 7 % at an MTU of 1500: 1514 bytes are sent for 1448, and 66 bytes back for every second
        segment.
        """
        if self.link.trace and len(self.link.trace.rows) > 1:
            return self.at_best.ring_bound_s(payload_bytes)
        p = self.workers
        share = 2 * (p - 1) / p
        hops = [[queue.pipe for queue in self.path(worker, (worker + 1) % p)] for worker in range(p)]
        delays_s = [sum(pipe.delay_s for pipe in hop) for hop in hops]
        slowest_s = [max(seconds_on(share * payload_bytes, pipe) for pipe in hop) for hop in hops]
        return max(share * sum(delays_s), *map(sum, zip(slowest_s, delays_s, strict=True)))

    @cached_property
    def at_best(self) -> Topology:
        """The same with links that stay as good as they ever become: what a changing network cannot beat either."""
        return self._fastest(min)

    @cached_property
    def at_mean(self) -> Topology:
        """The same with links that keep what they are in the mean over time; itself, where they do not change."""
        trace = self.link.trace
        return self._keeping(trace.mean) if trace and len(trace.rows) > 1 else self

    def _fastest(self, of_delays: Callable[[list[float]], float]) -> Topology:
        """With the least delay links are as good as they become; with the greatest they hold as much as ever."""
        assert self.link.trace
        rows = self.link.trace.rows
        delays_s = [row.delay_s for row in rows if row.delay_s is not None]
        row = TraceRow(
            t_s=0.0, rate_bps=max(row.rate_bps for row in rows), delay_s=of_delays(delays_s) if delays_s else None
        )
        return self._keeping(row)

    def _keeping(self, row: TraceRow) -> Topology:
        """The same with links that stay as they are in a row of a trace."""
        link = self.link.model_copy(update={"trace": Trace(rows=(row,))})
        # A new one: a copy would have the wires of this one, once these are cached.
        return Topology(**{name: getattr(self, name) for name in Topology.model_fields} | {"link": link})

    def describe(self) -> str:
        """The links in words, such as ``at 100 Mbit/s, 50 ms a way``; with what ``describe_extras`` tells."""
        rate = f"at {format_rate(self.slowest_bps)}" if self.slowest_bps else "unshaped"
        delay = [f"{format_time(self.link.delay_s)} a way"] if self.link.delay_s else []
        loss = [f"{self.link.loss:.2%} lost"] if self.link.loss else []
        return ", ".join(filter(None, [rate, *delay, *loss, self.describe_extras()]))

    def describe_extras(self) -> str:
        """What the links are beyond rate, delay and loss, and how they are joined, in words; empty for a plain star."""
        already_in_title = {"rate_bps", "delay_s", "loss"}
        plain = Link.model_validate({}).model_dump(mode="json", by_alias=True)
        of_the_whole_link = {"mtu_bytes", "congestion_control"}
        own = self.link.model_dump(mode="json", by_alias=True, exclude=already_in_title | of_the_whole_link)
        own |= self.link.model_dump(mode="json", by_alias=True, include=of_the_whole_link)
        links = {key: value for key, value in own.items() if value != plain[key]}
        if self.link.trace:
            rates = [row.rate_bps for row in self.link.trace.rows]
            links["trace"] = f"of {len(rates)} rates, {format_rate(min(rates))} to {format_rate(max(rates))}"
        fabric = self.fabric.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        return ", ".join(_named(name, value) for name, value in {**links, **fabric}.items())

    @property
    def fastest_bps(self) -> int:
        """The greatest rate of any queue; 0 where none has a rate."""
        return max((queue.pipe.rate_bps or 0 for queue in self.queues()), default=0)

    @property
    def at_once_bps(self) -> float:
        """What each worker sends at most while all do, so that a machine must carry it so many times; 0 without rates.

        In a ring those within a group wait for those between groups. By itself any queue must be carried as well.
        """
        if self.link.trace and len(self.link.trace.rows) > 1:
            return self.at_best.at_once_bps
        rates = [(queue.worker is None, queue.pipe.rate_bps) for queue in self.queues()]
        links_bps = max((rate for is_trunk, rate in rates if rate and not is_trunk), default=math.inf)
        trunks_bps = max((rate or math.inf for is_trunk, rate in rates if is_trunk), default=math.inf)
        at_once_bps = min(links_bps, trunks_bps)
        return max(0 if at_once_bps == math.inf else at_once_bps, self.fastest_bps / self.workers)

    @property
    def slowest_bps(self) -> int | None:
        """The rate of the slowest direction of any link; None where all are unshaped."""
        return min((pipe.rate_bps for pipe in self.pipes if pipe.rate_bps), default=None)

    @property
    def segments(self) -> int | None:
        """How many packets a worker may hand to its link as one; None where that does not matter.

        Netem counts, drops and passes on segments whole: where it does so, they must not be long.
        """
        if self.most_segments:
            return self.most_segments
        netem = [pipe for pipe in self.pipes if pipe.needs_netem]
        if not netem:
            return None
        if any(pipe.disturbs or pipe.queue_bytes for pipe in netem):
            return 1
        slowest_bps = min(pipe.rate_bps or UNSHAPED_BPS for pipe in netem)
        return min(max(1, int(slowest_bps / 8 * SEGMENT_S / self.link.mtu_bytes)), OFFLOADED_SEGMENTS)

    def _worker_wires(self) -> Iterator[Wire]:
        plain = self.link.pipe("", "up"), self.link.pipe("", "down")
        for worker, name in enumerate(self.worker_nodes):
            has_own = name in self.link.workers
            up, down = (self.link.pipe(name, "up"), self.link.pipe(name, "down")) if has_own else plain
            near = End(name, WORKER_INTERFACE, address(worker))
            far = End(self.switch_of(worker), switch_interface(worker), gateway(worker))
            yield Wire(name, worker, near, far, up, down)

    def _trunks(self) -> Iterator[Wire]:
        for number, trunk in enumerate(self.fabric.trunk_names):
            near, far = trunk.split() if self.fabric.mesh else (trunk, SWITCH)
            interface, subnet = f"trunk{number}", f"198.19.{number // 64}.{number % 64 * 4}"
            near_end, far_end = (
                End(node, interface, f"{subnet.rpartition('.')[0]}.{number % 64 * 4 + place}")
                for node, place in ((near, 1), (far, 2))
            )
            shared_bps = {way: self.fabric.shared_bps(near, way, self.link, self.workers) for way in WAYS}
            up, down = (self.fabric.pipe(trunk, way, shared_bps[way]) for way in WAYS)
            yield Wire(trunk, None, near_end, far_end, up, down)

    def _between(self, one: str, other: str) -> list[Queue]:
        """The trunks' queues on the way from one switch to another."""
        if one == other:
            return []
        ways = {(queue.node, queue.to.node): queue for wire in self.wires[self.workers :] for queue in wire.queues()}
        stops = [one, other] if (one, other) in ways else [one, SWITCH, other]
        return [ways[hop] for hop in itertools.pairwise(stops)]

    def _routes_of(self, node: str) -> list[str]:
        """How a node reaches workers that are not its neighbours."""
        if node in self.worker_nodes:
            gateway_address = gateway(worker_number(node))
            patience = f" rto_min {math.ceil(1e3 * SHORTEST_RTO_S * self.dilation)}ms" if self.dilation > 1 else ""
            return [f"route add default via {gateway_address} congctl {self.link.congestion_control}{patience}"]
        far = {worker: self._between(node, self.switch_of(worker)) for worker in range(self.workers)}
        return [f"route add {address(worker)}/32 via {way[0].to.address}" for worker, way in far.items() if way]


UNITS_BY_KEY = {row.key: row.unit for row in PROPERTIES}


def _slowest_bps(way: Sequence[Queue]) -> float:
    return min((queue.pipe.rate_bps for queue in way if queue.pipe.rate_bps), default=0.0)


def _named(name: str, value: object) -> str:
    """A field in words: ``up 25 Mbit/s``, ``delay 5 ms``, ``workers w2 (10 Mbit/s, delay 1 ms)``."""
    if value is True:
        return name
    if isinstance(value, dict):
        parts = [_named(key, inner) for key, inner in value.items() if inner is not None]
        return f"{name} {parts[0]}" if len(parts) == 1 else f"{name} ({', '.join(parts)})"
    if name == "mtu":
        return f"{name} {value} B"
    unit = UNITS_BY_KEY.get(name, NO_UNIT)
    said = unit.said(unit.read(value))
    return str(said) if name == "rate" else f"{name} {said}"


def _seconds_through(size_bytes: float, pipes: Sequence[Pipe]) -> float:
    """The least time in which so many bytes pass several links that share them."""
    rates = [pipe.rate_bps for pipe in pipes if pipe.rate_bps]
    took_s = 8 * size_bytes / sum(rates) if len(rates) == len(pipes) else 0.0
    return took_s + min(pipe.delay_s for pipe in pipes)
