"""Process 1 of a private universe: it makes the network inside, then serves as the agent of all its nodes.

Started by ``netns.py`` in namespaces of its own (network, mounts, processes, host name; and users, where that is
allowed, so that no root is needed). The host sees none of it, and when this process ends, however it ends, the kernel
removes everything.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import socket
import statistics
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from harness.cluster.agent import Agent
from harness.errors import MeasurementError, UsageError
from harness.messages import Build, Check, Reset
from harness.network.iproute import check_congestion_control, run, run_lines
from harness.network.player import PLAYER
from harness.network.qdisc import check_read_back
from harness.network.topology import Topology
from harness.network.wires import Command
from harness.programs import NotStartedError
from harness.scenario.links import PROPERTIES, Pipe
from harness.units import format_time

CLONE_NEWNET = 0x40000000
CLONE_NEWUTS = 0x04000000

NAMESPACES = Path("/run/netns")
HOSTS, NSSWITCH = Path("/run/hosts"), Path("/run/nsswitch.conf")

TRIAL = "trial"
"""The node on which queues are tried; it has no neighbours."""

SLEEPS, SLEEP_S = 50, 2e-4

_libc = ctypes.CDLL(None, use_errno=True)


class Universe:
    """The network inside: at most one topology at a time."""

    def __init__(self) -> None:
        self._current: Topology | None = None
        run(["mount", "-t", "tmpfs", "tmpfs", "/run"])
        NAMESPACES.mkdir()
        run_lines("ip", None, ["link set lo up"])
        # Names must resolve without asking anybody: a resolver that cannot answer costs seconds, now and then.
        HOSTS.write_text("")
        NSSWITCH.write_text("hosts: files\n")
        for own, system in ((HOSTS, "/etc/hosts"), (NSSWITCH, "/etc/nsswitch.conf")):
            if Path(system).exists():
                run(["mount", "--bind", str(own), system])

    def build(self, request: Build) -> None:
        """Replace what is there by the topology that is asked for, and read back every queue."""
        topology = Topology.model_validate(request.topology)
        self._current = None
        _delete_nodes()
        _apply(topology.build())
        for node in topology.switches:
            _write_setting(node, "ip_forward", "1")
        _allow_windows(topology)
        HOSTS.write_text(topology.hosts())
        _apply(topology.shape())
        _check_queues(topology)
        self._current = topology

    def reset(self, request: Reset) -> None:
        """Bring every queue back to what it was before a trace was played."""
        assert self._current
        _apply(self._current.shape())

    def check(self, request: Check) -> None:
        """Refuse what this kernel cannot emulate, having tried every queue of the topology on a link of no one's."""
        topology = Topology.model_validate(request.topology)
        check_congestion_control(topology.link.congestion_control)
        run_lines("ip", None, [f"netns add {TRIAL}"])
        try:
            run_lines("ip", TRIAL, ["link add try0 type veth peer name try1"])
            for pipe in dict.fromkeys(queue.pipe for queue in topology.queues()):
                _try_queue(pipe, topology)
        finally:
            run_lines("ip", None, [f"netns delete {TRIAL}"])


def _delete_nodes() -> None:
    """Remove all nodes, and so all links: also those of a build that failed midway. /run is this universe's own."""
    if nodes := sorted(node.name for node in NAMESPACES.iterdir()):
        run_lines("ip", None, [f"netns delete {node}" for node in nodes])


def _try_queue(pipe: Pipe, topology: Topology) -> None:
    asked = pipe.slowed(1 / topology.dilation, 1 / topology.shrink)  # by the user, who is told of it
    try:
        run_lines("tc", TRIAL, [f"qdisc replace dev try0 root {topology.qdisc(pipe)}"])
    except NotStartedError:
        raise  # it is no fault of what was asked
    except MeasurementError as error:
        field, found = next(_asked_of(asked))
        fix = "this kernel has no netem (modprobe sch_netem, or use --on uml)" if pipe.needs_netem else str(error)
        raise UsageError.at("scenario", f"link.{field}", found, f"nothing, since {fix}") from None
    finest_s = timer_resolution_s() if pipe.jitter_s else 0.0
    if 0 < pipe.jitter_s < finest_s:
        least_s = finest_s / topology.dilation
        allowed = f"0, or at least {format_time(least_s)}, to which this kernel's timers are true"
        raise UsageError.at("scenario", "link.jitter", format_time(asked.jitter_s), allowed)


def _asked_of(pipe: Pipe) -> Iterator[tuple[str, object]]:
    """What a queue is to do, netem's part first."""
    for row in sorted(PROPERTIES, key=lambda row: not row.needs_netem):
        if row.is_netems(pipe) or row.name == "rate_bps":
            yield row.key, row.unit.said(getattr(pipe, row.name))


def timer_resolution_s() -> float:
    """How late this kernel's timers are: the median of short sleeps."""
    late_s = []
    for _ in range(SLEEPS):
        start = time.perf_counter()
        time.sleep(SLEEP_S)
        late_s.append(time.perf_counter() - start - SLEEP_S)
    return statistics.median(late_s)


def enter(node: str) -> None:
    """Take this process into a node's network, under the node's name; the player stays beside all of them."""
    if node == PLAYER:
        return
    _enter_network(NAMESPACES / node)
    if _libc.unshare(CLONE_NEWUTS):
        raise OSError(ctypes.get_errno(), "cannot have a host name of its own")
    socket.sethostname(node)


def _enter_network(namespace: Path) -> None:
    descriptor = os.open(namespace, os.O_RDONLY)
    if _libc.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
    os.close(descriptor)


def _allow_windows(topology: Topology) -> None:
    """Let one flow fill the longest way: whoever has links that long has hosts tuned for them (tcp(7), tcp_rmem).

    Of a socket's buffer a half is for the window. What this kernel allows already stays.
    """
    needed = WINDOWS * round(topology.most_in_flight_bytes)
    for name in ("tcp_rmem", "tcp_wmem"):
        least, usual, most = map(int, (SETTINGS / name).read_text().split())
        for node in topology.nodes if needed > most else ():
            _write_setting(node, name, f"{least} {usual} {needed}")


WINDOWS = 4
"""So many windows fit into a socket's buffer: what is on its way, what waits for a lost packet, and their overhead."""

SETTINGS = Path("/proc/sys/net/ipv4")


def _write_setting(node: str, name: str, value: str) -> None:
    """Writes to /proc/sys/net reach the namespace of the writer, so it is a child that goes there and writes."""
    pid = os.fork()
    if pid == 0:
        try:
            _enter_network(NAMESPACES / node)
            (SETTINGS / name).write_text(value)
            os._exit(0)
        except OSError:
            os._exit(1)
    if os.waitpid(pid, 0)[1]:
        raise MeasurementError(f"{node}: {SETTINGS / name} cannot be written here")


def _check_queues(topology: Topology) -> None:
    queues = list(topology.queues())
    for node in topology.nodes:
        shown = json.loads(run(["tc", "-n", node, "-j", "qdisc", "show"]))
        for queue in queues:
            if queue.node == node:
                try:
                    check_read_back(queue.pipe, queue, shown)
                except ValueError as error:
                    raise MeasurementError(str(error)) from None


def _apply(commands: Iterable[Command]) -> None:
    """Run commands in order, those that follow one another on one node by a single process."""
    for (program, node), group in itertools.groupby(commands, key=lambda command: (command.program, command.node)):
        run_lines(program, node, [command.line for command in group])


def main() -> None:
    """Serve until the harness hangs up."""
    universe = Universe()
    Agent(enter, {Build: universe.build, Check: universe.check, Reset: universe.reset}).serve()
    os._exit(0)  # the harness may have been killed: nobody would end what waits for something at Python's own exit
