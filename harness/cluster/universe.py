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
from collections.abc import Iterable
from pathlib import Path

from harness.agent import Agent, Message
from harness.cluster.iproute import run, run_lines
from harness.errors import MeasurementError
from harness.network import SWITCH, Command, Topology, check_read_back

CLONE_NEWNET = 0x40000000
CLONE_NEWUTS = 0x04000000

NAMESPACES = Path("/run/netns")
HOSTS, NSSWITCH = Path("/run/hosts"), Path("/run/nsswitch.conf")

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

    def build(self, request: Message) -> None:
        """Replace what is there by the topology that is asked for, and read back every queue."""
        topology = Topology.model_validate(request["topology"])
        if self._current:
            _apply(self._current.destroy())
            self._current = None
        _apply(topology.build())
        self._current = topology
        _allow_forwarding()
        HOSTS.write_text(topology.hosts())
        _apply(topology.shape())
        _check_queues(topology)


def enter(node: str) -> None:
    """Take this process into a node's network, under the node's name."""
    _enter_network(NAMESPACES / node)
    if _libc.unshare(CLONE_NEWUTS):
        raise OSError(ctypes.get_errno(), "cannot have a host name of its own")
    socket.sethostname(node)


def _enter_network(namespace: Path) -> None:
    descriptor = os.open(namespace, os.O_RDONLY)
    if _libc.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
    os.close(descriptor)


def _allow_forwarding() -> None:
    """Writes to /proc/sys/net reach the namespace of the writer, so it is a child that goes there and writes."""
    pid = os.fork()
    if pid == 0:
        try:
            _enter_network(NAMESPACES / SWITCH)
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
            os._exit(0)
        except OSError:
            os._exit(1)
    if os.waitpid(pid, 0)[1]:
        raise MeasurementError("the switch cannot forward: /proc/sys/net/ipv4/ip_forward cannot be written here")


def _check_queues(topology: Topology) -> None:
    queues = list(topology.queues())
    for node in topology.nodes:
        shown = json.loads(run(["tc", "-n", node, "-j", "qdisc", "show"]))
        for queue in queues:
            if queue.node == node:
                try:
                    check_read_back(topology.link, queue, shown)
                except ValueError as error:
                    raise MeasurementError(str(error)) from None


def _apply(commands: Iterable[Command]) -> None:
    """Run commands in order, those that follow one another on one node by a single process."""
    for (program, node), group in itertools.groupby(commands, key=lambda command: (command.program, command.node)):
        run_lines(program, node, [command.line for command in group])


def main() -> None:
    """Serve until the harness hangs up."""
    universe = Universe()
    Agent(enter, {"build": universe.build}).serve()


if __name__ == "__main__":
    main()
