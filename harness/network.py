"""The emulated network: a routed star of shaped links, as lists of ``ip`` and ``tc`` commands.

Every worker has a link of its own, a /30, to a switch that forwards. Two queues make a link: the worker's egress is
its uplink, the switch's egress towards it is its downlink. Everything here is pure; whoever runs the commands does so
inside a private universe or inside containers, never on the host. Addresses come from 198.18.0.0/15, the range set
aside for benchmarks of networks (RFC 2544, RFC 6890).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from pydantic import Field

from harness.scenario import Link, Section

SWITCH = "switch"
"""The name of the node that forwards between the workers."""

WORKER_INTERFACE = "eth0"
"""The shaped interface, by the name that a worker sees."""

ETHERNET_HEADER_BYTES = 14
TCP_IP_HEADER_BYTES = 52
"""IPv4 20, TCP 20, timestamp option 12: what each full segment carries besides payload."""

FRAME_HEADER_BYTES = ETHERNET_HEADER_BYTES + TCP_IP_HEADER_BYTES

MIN_BURST_BYTES = 64 * 1024
"""The largest segment that offloads build; a smaller bucket would have to split each one."""

BURST_S = 0.004
"""Below about 2 ms of the rate, the timer that refills the bucket limits the link instead of the rate."""

QUEUE_S = 0.3

Direction = Literal["up", "down"]


class Command(NamedTuple):
    """One line for ``ip`` or ``tc`` on a node; None is the place from which nodes are made."""

    program: Literal["ip", "tc"]
    node: str | None
    line: str

    def __str__(self) -> str:
        namespace = f"-n {self.node} " if self.node else ""
        return f"{self.program} {namespace}{self.line}"


@dataclass(frozen=True)
class Queue:
    """Where one direction of a worker's link is shaped."""

    worker: int
    direction: Direction
    node: str
    interface: str


class Topology(Section):
    """A star: ``workers`` nodes, each with the same link to one switch."""

    workers: int = Field(ge=2, le=128)
    link: Link

    @property
    def nodes(self) -> list[str]:
        """Names of all nodes, the switch last."""
        return [worker_name(worker) for worker in range(self.workers)] + [SWITCH]

    def queues(self) -> Iterator[Queue]:
        """Both directions of every link."""
        for worker in range(self.workers):
            yield Queue(worker, "up", worker_name(worker), WORKER_INTERFACE)
            yield Queue(worker, "down", SWITCH, switch_interface(worker))

    def build(self) -> list[Command]:
        """Commands that make the namespaces and links; the switch must forward (``net.ipv4.ip_forward``)."""
        commands = [Command("ip", None, f"netns add {node}") for node in self.nodes]
        for worker in range(self.workers):
            name, port, mtu = worker_name(worker), switch_interface(worker), self.link.mtu_bytes
            commands.append(
                Command(
                    "ip",
                    None,
                    f"link add {port} mtu {mtu} netns {SWITCH} type veth "
                    f"peer name {WORKER_INTERFACE} mtu {mtu} netns {name}",
                )
            )
        for worker in range(self.workers):
            port = switch_interface(worker)
            commands.append(Command("ip", SWITCH, f"addr add {gateway(worker)}/30 dev {port}"))
            commands.append(Command("ip", SWITCH, f"link set {port} up"))
        for worker in range(self.workers):
            name, congestion_control = worker_name(worker), self.link.congestion_control
            commands.append(Command("ip", name, f"addr add {address(worker)}/30 dev {WORKER_INTERFACE}"))
            commands.append(Command("ip", name, f"link set {WORKER_INTERFACE} up"))
            commands.append(Command("ip", name, "link set lo up"))
            commands.append(
                Command("ip", name, f"route add default via {gateway(worker)} congctl {congestion_control}")
            )
        return commands

    def shape(self) -> list[Command]:
        """Commands that give every direction of every link its queue."""
        queues = sorted(self.queues(), key=lambda queue: queue.node == SWITCH)
        return [
            Command("tc", queue.node, f"qdisc replace dev {queue.interface} root {qdisc(self.link)}")
            for queue in queues
        ]

    def destroy(self) -> list[Command]:
        """Commands that remove what ``build`` made; links go with their namespaces."""
        return [Command("ip", None, f"netns delete {node}") for node in self.nodes]

    def hosts(self) -> str:
        """The text of /etc/hosts that names every node: reverse look-ups must never leave the universe."""
        lines = ["127.0.0.1 localhost", *(f"{address(w)} {worker_name(w)}" for w in range(self.workers))]
        return "\n".join(lines) + "\n"


def worker_name(worker: int) -> str:
    """The node of a worker: its namespace or container."""
    return f"w{worker}"


def worker_number(node: str) -> int:
    """The worker whose node this is."""
    return int(node.removeprefix("w"))


def switch_interface(worker: int) -> str:
    """The switch's interface towards a worker."""
    return f"to{worker}"


def gateway(worker: int) -> str:
    """The switch's address on a worker's link."""
    return f"198.18.{128 + worker // 64}.{worker % 64 * 4 + 1}"


def address(worker: int) -> str:
    """A worker's address."""
    return f"198.18.{128 + worker // 64}.{worker % 64 * 4 + 2}"


def burst_bytes(link: Link) -> int:
    """The token bucket of a link: as asked, or what keeps the rate true without hiding it.

    Raises:
        ValueError: the link has no rate.
    """
    if link.rate_bps is None:
        raise ValueError("an unshaped link has no bucket")
    return link.burst_bytes or max(MIN_BURST_BYTES, math.ceil(link.rate_bps / 8 * BURST_S))


def qdisc(link: Link) -> str:
    """The queueing discipline of one direction (tc-tbf(8)); an unshaped link gets a plain queue, for its counters."""
    if link.rate_bps is None:
        return "pfifo limit 10000"
    burst = burst_bytes(link)
    limit = burst + math.ceil(link.rate_bps / 8 * QUEUE_S)
    return f"tbf rate {link.rate_bps}bit burst {burst} limit {limit}"


def check_read_back(link: Link, queue: Queue, shown: Sequence[Mapping[str, Any]]) -> None:
    """Compare what ``tc -j qdisc show`` says of an interface with what was asked.

    Raises:
        ValueError: the kernel has another queue, or other values, than were asked.
    """
    root = next((entry for entry in shown if entry.get("root") and entry.get("dev") == queue.interface), None)
    where = f"{queue.node}/{queue.interface}"
    expected = qdisc(link).split()[0]
    if root is None or root["kind"] != expected:
        raise ValueError(f"{where}: asked for {expected}, the kernel has {root and root['kind']}")
    if link.rate_bps is None:
        return
    rate_bps, burst = 8 * root["options"]["rate"], root["options"]["burst"]
    # tc turns the bucket into time at the rate and back, in ticks: the last bytes may be rounded away.
    if abs(rate_bps - link.rate_bps) > 8 or abs(burst - burst_bytes(link)) > 0.01 * burst:
        raise ValueError(
            f"{where}: asked for {link.rate_bps} bit/s with a bucket of {burst_bytes(link)} bytes, "
            f"the kernel has {rate_bps} bit/s and {burst} bytes"
        )


def wire_share(link: Link) -> float:
    """Bytes on the wire for each byte of payload in full TCP segments: 1514 / 1448 at an MTU of 1500."""
    return (link.mtu_bytes + ETHERNET_HEADER_BYTES) / (link.mtu_bytes - TCP_IP_HEADER_BYTES)


def ring_bound_s(payload_bytes: float, workers: int, rate_bps: float) -> float:
    """Seconds a ring all-reduce cannot beat: each worker sends 2 (p - 1) / p of the payload through its uplink."""
    return 2 * (workers - 1) / workers * payload_bytes * 8 / rate_bps
