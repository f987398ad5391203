"""A real cluster: each worker is a rank that a scheduler has started on a host of its own, on links as they are."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
from typing_extensions import Self

from harness import programs
from harness.cluster import registry
from harness.cluster.connection import STOP_GRACE_S, AgentConnection, Conversation
from harness.cluster.emulated import found_by, measured_again, preload_request
from harness.cluster.fleet import Fleet
from harness.cluster.hosts import agent, interface, shaper
from harness.cluster.hosts.follower import NEEDED, RETURN_S
from harness.cluster.hosts.greeting import Guest, Reception, stands, turn_away, welcome
from harness.cluster.hosts.launch import Launch
from harness.cluster.netns import ONE_THREAD
from harness.cluster.protocol import ClusterBrokenError
from harness.errors import MeasurementError, UsageError
from harness.messages import (
    GLOO,
    CheckFile,
    Hello,
    LinksMeasured,
    Message,
    Preload,
    ShapeLink,
    Trained,
)
from harness.network.addresses import WORKER_INTERFACE, worker_name, worker_number
from harness.network.readings import Readings
from harness.network.topology import Topology
from harness.plain import visible
from harness.plan.machine import this_machine
from harness.provenance import code_digest, machine
from harness.scenario.links import MTU_BYTES, WAYS, Link, Pipe
from harness.scenario.properties import UNSHAPED
from harness.scenario.schema import NO_LIMITS, Resources, Train

NCCL = "nccl"

AS_THEY_ARE = Link.model_validate({"rate": UNSHAPED})

MOST_CLOCK_S = 1.0
"""By how much clocks of hosts may differ before it is told. No figure depends on them."""

HELLO_TIMEOUT_S, SHAPE_TIMEOUT_S, PRELOAD_TIMEOUT_S, PROBE_TIMEOUT_S = 60.0, 60.0, 300.0, 180.0


class HostConnection(Conversation):
    """A conversation with the agent of another host, over TCP."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._is_cut_off = False
        super().__init__(connection.fileno(), connection.fileno())

    @property
    def alive(self) -> bool:
        """See ``Conversation.alive``: whether the connection stands, as far as the kernel knows."""
        return not self._is_cut_off and stands(self._connection)

    def _cut_off(self) -> None:
        self._is_cut_off = True
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def _hang_up(self) -> None:
        deadline = time.monotonic() + STOP_GRACE_S
        while self.alive and time.monotonic() < deadline:  # what was said last must arrive: it may end
            time.sleep(0.01)
        self._connection.close()

    def _epitaph(self) -> str:
        return "its agent hung up, or its host does not answer any more"


@dataclass(frozen=True)
class Host:
    """A rank that is there."""

    hello: Hello
    conversation: Conversation


class HostsCluster:
    """See the module. It is rank 0's: the others run ``follower.follow``.

    Args:
        asked_interface, asked_address: of rank 0; by default those by which the others reach it.
        shape: whether links are shaped as the scenario asks, on hosts whose users have said so.
        backend: of the collectives; default: NCCL on GPUs, else Gloo.
        patience_s: how long ranks may take to come.
    """

    name = registry.HOSTS
    machine = this_machine()._replace(slows_time=False, is_here=False)

    def __init__(
        self,
        launch: Launch,
        asked_interface: str | None = None,
        asked_address: str | None = None,
        backend: str | None = None,
        patience_s: float = 300.0,
        shape: bool = False,
    ) -> None:
        self._names_interface = asked_interface is not None
        self._launch, self._asked, self._backend = launch, (asked_interface, asked_address), backend
        self._patience_s, self._shape = patience_s, shape
        self._hosts: dict[int, Host] = {}
        self._reception: Reception | None = None
        self._is_over = False
        self._current: tuple[Topology, Resources, Readings] | None = None
        self._used: list[Host] = []
        self._fleet = Fleet("its host is gone")
        self._preloads: list[Preload] = []

    def gather(self) -> None:
        """Wait for all ranks, once.

        Raises:
            UsageError: they are not alike, or one cannot take part.
            ClusterBrokenError: one does not come.
        """
        if self._reception is None and not self._is_over:
            interface.check(*self._asked)
            programs.require(*NEEDED)
            try:
                listening = socket.create_server(("", self._launch.port), backlog=self._launch.world_size)
            except OSError as error:
                allowed = f"a port whose next one is free on {machine()} ({error.strerror})"
                raise UsageError.at("environment", "MASTER_PORT", self._launch.port - 1, allowed) from None
            self._reception = Reception(listening, self._launch.token)
            self._await(self._launch.world_size, self._patience_s)

    def close(self) -> None:
        """Let all ranks end."""
        for host in self._hosts.values():
            host.conversation.close()
        self._hosts = {}
        if self._reception:
            for guest in self._reception.close():  # ranks that came back, and were not needed any more, may end too
                with suppress(OSError):
                    welcome(guest.connection, self._launch.token, guest.hello)
                    HostConnection(guest.connection).close()
            self._reception = None
            self._is_over = True

    def __enter__(self) -> Self:
        try:
            self.gather()
        except BaseException:
            self.close()  # who has come already need not look for this one again
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def check_kind(self, topology: Topology, resources: Resources = NO_LIMITS) -> None:
        """See ``Cluster.check_kind``: links are as they are, and only rates may be asked of them, of shaped ones."""
        if topology.workers > self._launch.world_size:
            allowed = f"up to {self._launch.world_size}, the ranks that were started"
            raise UsageError.at("scenario", "cluster.workers", topology.workers, allowed)
        if topology.fabric.groups:
            raise UsageError.at("scenario", "fabric.groups", topology.fabric.groups, "none: hosts are joined already")
        if topology.dilation != 1:
            allowed = "1, or auto, which is 1 on hosts: nothing slows the delays of their links"
            raise UsageError.at("scenario", "train.dilation", topology.dilation, allowed)
        if self._shape:
            self._check_rates(topology)
        elif topology.link != AS_THEY_ARE:
            found = topology.link.model_dump(mode="json", by_alias=True, exclude_defaults=True)
            allowed = "unshaped and nothing else, since links of hosts stay as they are: --set link.rate=unshaped"
            raise UsageError.at("scenario", "link", found, allowed)
        limits = resources.model_dump(by_alias=True, exclude_defaults=True, exclude={"device"})
        for field, value in limits.items():
            raise UsageError.at("scenario", f"cluster.{field}", value, "nothing on hosts: the scheduler sets limits")

    def check(self, topology: Topology, resources: Resources = NO_LIMITS) -> None:
        """See ``Cluster.check``: what hosts carry is only measured."""
        self.check_kind(topology, resources)

    def _check_rates(self, topology: Topology) -> None:
        """Hosts' links have delays and losses of their own, beside which none that was asked for would be told."""
        rates_only = all(each == Pipe.model_construct(rate_bps=each.rate_bps) for each in _pipes(topology))
        if topology.link.trace or not rates_only:
            found = topology.link.model_dump(mode="json", by_alias=True, exclude_defaults=True)
            raise UsageError.at("scenario", "link", found, "rates alone, with --shape: link.rate, link.up, link.down")

    def use(self, topology: Topology, resources: Resources = NO_LIMITS) -> Readings:
        """See ``Cluster.use``; where ranks were lost others take their places, and links are measured anew.

        Raises:
            ClusterBrokenError: fewer ranks are left than are needed, and none comes back.
        """
        if self._current and self._current[:2] == (topology, resources) and self._all_are_there():
            return self._current[2]
        self._current = None
        self.check(topology, resources)
        self._await(topology.workers, RETURN_S)
        self._used = [self._hosts[rank] for rank in sorted(self._hosts)][: topology.workers]
        self._fleet = Fleet("its host is gone")
        for worker, host in enumerate(self._used):
            self._fleet.add(worker_name(worker), host.conversation)
            if self._shape:
                up, down = (topology.link.pipe(worker_name(worker), way).rate_bps for way in WAYS)
                _ask(host, ShapeLink(up_bps=up, down_bps=down), SHAPE_TIMEOUT_S)
        readings = measured_again(lambda: self._measured(topology))
        if complaints := readings.complaints():
            raise MeasurementError("; ".join(complaints))
        self._current = (topology, resources, readings)
        return readings

    def verify(self) -> Readings:
        """See ``Cluster.verify``; where ranks were lost, before or meanwhile, others take their places."""
        if self._current is None:
            raise MeasurementError("the links cannot be measured again: a host is gone")
        topology, resources, _ = self._current
        try:
            if self._all_are_there():
                return measured_again(lambda: self._measured(topology))
        except MeasurementError:
            if self._all_are_there():
                raise
        return self.use(topology, resources)

    def share_file(self, file: Path) -> None:
        """See ``Cluster.share_file``: every host must have it already.

        Raises:
            UsageError: one has not.
        """
        request = CheckFile(path=str(file), digest=agent.digest(file))
        for host in self._hosts.values():
            _ask(host, request, HELLO_TIMEOUT_S)

    def preload(self, train: Train | None = None) -> None:
        """See ``Cluster.preload``."""
        request = preload_request(train)
        self._preloads.append(request)
        self._everywhere(request)

    def run(self, task: str, spec: Mapping[str, Any], timeout_s: float) -> Iterator[Message]:
        """See ``Cluster.run``. Ranks meet on rank 0's host, at a port that is free there."""
        assert self._current, "a topology must be in use"
        topology, resources, _ = self._current
        backend = self._backend or (NCCL if resources.device == "cuda" else GLOO)
        address = self._used[0].hello.address
        own = {**spec, "meeting_address": address, "port": _free_port(address), "backend": backend}
        for message in self._fleet.task(task, topology.worker_nodes, own, timeout_s):
            yield self._as_named(message) if isinstance(message, Trained) else message

    def signal(self, number: int) -> None:
        """See ``Cluster.signal``."""
        assert self._current, "a topology must be in use"
        self._fleet.signal(self._current[0].worker_nodes, number)

    def image_digest(self) -> str:
        """No image: what runs is what lies on the hosts, and it is the same on all."""
        return ""

    def provenance(self) -> dict[str, Any]:
        """See ``Cluster.provenance``: who is where."""
        self.gather()
        told = ("rank", "host", "address", "interface", "torch")
        return {"hosts": [{name: getattr(host.hello, name) for name in told} for host in self._hosts.values()]}

    def _all_are_there(self) -> bool:
        return all(map(_is_there, self._used))

    def _as_named(self, message: Trained) -> Trained:
        """What a host calls its interface, all others call the worker's."""
        own = self._used[worker_number(message.node)].hello.interface
        queues = {WORKER_INTERFACE: message.queues[own]} if own in message.queues else {}
        return replace(message, queues=queues)

    def _measured(self, topology: Topology) -> Readings:
        mtu_bytes = psutil.net_if_stats()[self._used[0].hello.interface].mtu
        spec = {
            "addresses": [host.hello.address for host in self._used],
            "mtu_bytes": min(mtu_bytes, MTU_BYTES[1]),
            "up_bps": [topology.link.pipe(node, "up").rate_bps for node in topology.worker_nodes],
            "down_bps": [topology.link.pipe(node, "down").rate_bps for node in topology.worker_nodes],
        }
        found = found_by("w0", self._fleet.task("probe_hosts", topology.worker_nodes, spec, PROBE_TIMEOUT_S))
        assert isinstance(found, LinksMeasured)
        return Readings.model_validate_json(found.readings)

    def _everywhere(self, request: Message) -> None:
        everyone = Fleet("its host is gone")
        for host in self._hosts.values():
            everyone.add(worker_name(host.hello.rank), host.conversation)
        try:
            everyone.request(dict.fromkeys(map(worker_name, self._hosts), request), PRELOAD_TIMEOUT_S)
        except MeasurementError:
            if all(map(_is_there, self._hosts.values())):
                raise  # else whoever comes back is asked then

    def _await(self, needed: int, patience_s: float) -> None:
        """Have so many ranks there, rank 0 among them.

        Raises:
            ClusterBrokenError: they do not come.
        """
        deadline = time.monotonic() + patience_s
        while self._count() < needed:
            self._accept(deadline, needed)
        if 0 not in self._hosts:
            self._begin_here()

    def _count(self) -> int:
        """How many ranks are there, rank 0 among them. Those that are lost are forgotten."""
        for rank in [rank for rank, host in self._hosts.items() if not _is_there(host)]:
            self._hosts.pop(rank).conversation.close()
        return len({0, *self._hosts})

    def _accept(self, deadline: float, needed: int) -> None:
        assert self._reception
        guest = self._reception.next(deadline - time.monotonic())
        if guest is None:
            absent = [rank for rank in range(1, self._launch.world_size) if rank not in self._hosts]
            named = ", ".join(map(str, absent))
            raise ClusterBrokenError(f"rank {named} of {self._launch.world_size} is not there, and {needed} are needed")
        connection, hello = guest.connection, guest.hello
        if not stands(connection):  # it has gone again
            connection.close()
            return
        try:
            own = connection.getsockname()[0]
            if complaint := self._complaint(hello):
                turn_away(connection, complaint)
                raise complaint
            welcome(connection, self._launch.token, hello)
        except OSError:
            connection.close()
            return
        if self._asked == (None, None):
            self._asked = (None, own)
        self._tell_of_clock(guest)
        self._add(Host(hello, HostConnection(connection)))

    def _begin_here(self) -> None:
        """Start rank 0's own agent."""
        name, address = interface.chosen(*self._asked, "")
        if not self._shape:
            shaper.check_unshaped(name)
        hello = Hello(
            rank=0,
            world_size=self._launch.world_size,
            host=machine(),
            address=address,
            interface=name,
            code=code_digest(),
            torch=version("torch"),
            clock_s=time.time(),
            problem=None,
            nonce="",
            proof="",
        )
        shapes = self._shape and self._names_interface
        self._add(Host(hello, AgentConnection(agent.command(name, address, shapes), ONE_THREAD)))

    def _add(self, host: Host) -> None:
        if before := self._hosts.pop(host.hello.rank, None):
            before.conversation.close()
        self._hosts[host.hello.rank] = host
        for request in self._preloads:
            _ask(host, request, PRELOAD_TIMEOUT_S)

    def _complaint(self, hello: Hello) -> UsageError | None:
        """Why a rank cannot take part."""
        who, here = f"rank {hello.rank} on {hello.host}", f"rank 0 on {machine()}"
        if hello.problem:
            return UsageError(f"{who}: {hello.problem}")
        if not 0 < hello.rank < self._launch.world_size or hello.world_size != self._launch.world_size:
            return UsageError(f"{who} is one of {hello.world_size}, and {here} one of {self._launch.world_size}")
        for what, theirs, ours in (("torch", hello.torch, version("torch")), ("code", hello.code, code_digest())):
            if theirs != ours:
                return UsageError(f"{who} has {what} {theirs}, and {here} has {ours}; all must have the same")
        return None

    def _tell_of_clock(self, guest: Guest) -> None:
        hello, off_s = guest.hello, guest.clock_off_s
        if abs(off_s) > MOST_CLOCK_S:
            ahead = "ahead of" if off_s > 0 else "behind"
            line = f"rank {hello.rank} on {hello.host}: its clock is {abs(off_s):.0f} s {ahead} rank 0's; "
            print(f"pacbench: {visible(line)}no figure depends on it", file=sys.stderr, flush=True)


def _pipes(topology: Topology) -> list[Pipe]:
    """Both directions of every link."""
    return [topology.link.pipe(node, way) for node in topology.worker_nodes for way in WAYS]


def _is_there(host: Host) -> bool:
    return host.conversation.alive


def _ask(host: Host, request: Message, timeout_s: float) -> None:
    """Raises:
    UsageError, MeasurementError: it was refused, or the host is gone.
    """
    try:
        host.conversation.request(request, timeout_s)
    except ClusterBrokenError as error:
        raise MeasurementError(f"rank {host.hello.rank} on {host.hello.host}: {error}") from None


def _free_port(address: str) -> int:
    with socket.socket() as tried:
        tried.bind((address, 0))
        return int(tried.getsockname()[1])
