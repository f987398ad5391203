"""A container's side of a cluster: it becomes a node of a topology, then serves as the agent of that one node.

The engine made a network for each wire and gave the interfaces addresses and names of its own. Here they get the
topology's, by the very commands that make it out of network namespaces; NET_ADMIN is all that takes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping

from harness.cluster.agent import Agent
from harness.errors import MeasurementError
from harness.messages import Build, CheckCode
from harness.network.iproute import check_congestion_control, run, run_lines
from harness.network.qdisc import check_read_back
from harness.network.topology import Topology
from harness.network.wires import Command
from harness.provenance import code_digest


class Node:
    """This container, as a node.

    Args:
        name: of the node.
        interfaces: for each address that the engine gave this container, the name that the topology has for its
            interface.
    """

    def __init__(self, name: str, interfaces: Mapping[str, str]) -> None:
        self.name = name
        _name_interfaces(interfaces)

    def build(self, request: Build) -> None:
        """Take the node's part in the topology that is asked for, and read back every queue."""
        topology = Topology.model_validate(request.topology)
        check_congestion_control(topology.link.congestion_control)
        _clear_interfaces()
        self._apply(topology.build())
        self._apply(topology.shape())
        shown = json.loads(run(["tc", "-j", "qdisc", "show"]))
        for queue in topology.queues():
            if queue.node == self.name:
                try:
                    check_read_back(queue.pipe, queue, shown)
                except ValueError as error:
                    raise MeasurementError(str(error)) from None

    def check_code(self, request: CheckCode) -> None:
        """Refuse to run other code than the harness has."""
        if code_digest() != request.digest:
            raise MeasurementError(
                f"{self.name}: the container's code is {code_digest()}, the harness's {request.digest}: it was "
                "edited while the run started; run it again"
            )

    def _apply(self, commands: Iterable[Command]) -> None:
        for command in commands:
            if command.node == self.name:
                run_lines(command.program, None, [command.line])


def _clear_interfaces() -> None:
    """Take back what an earlier topology gave them: a queue replaced by one of its kind keeps what is not said anew."""
    for entry in json.loads(run(["ip", "-j", "link", "show"])):
        if entry["ifname"] != "lo":
            run_lines("ip", None, [f"addr flush dev {entry['ifname']}"])  # routes go with the addresses
    for queue in json.loads(run(["tc", "-j", "qdisc", "show"])):
        if queue.get("root") and queue["handle"] != "0:":  # the kernel's own
            run_lines("tc", None, [f"qdisc del dev {queue['dev']} root"])


def _name_interfaces(wanted: Mapping[str, str]) -> None:
    """Rename interfaces that still have the engine's name; in two goes, as one's old name may be another's new."""
    entries = json.loads(run(["ip", "-j", "addr", "show"]))
    found = {address["local"]: entry["ifname"] for entry in entries for address in entry["addr_info"]}
    renamed = {
        f"tmp{number}": (found[address], name)
        for number, (address, name) in enumerate(wanted.items())
        if address in found and found[address] != name
    }
    for temporary, (old, _) in renamed.items():
        run_lines("ip", None, [f"link set {old} down", f"link set {old} name {temporary}"])
    for temporary, (_, new) in renamed.items():
        run_lines("ip", None, [f"link set {temporary} name {new}"])


def main() -> None:
    """Serve until the harness hangs up. Arguments: the node's name, and its interfaces as JSON."""
    node = Node(sys.argv[1], json.loads(sys.argv[2]))
    Agent(lambda _: None, {Build: node.build, CheckCode: node.check_code}).serve()
