"""Links and the two queues that make each: where one direction leaves a node for its neighbour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from harness.scenario.links import Direction, Pipe


class Command(NamedTuple):
    """One line for ``ip`` or ``tc`` on a node; None is the place from which nodes are made."""

    program: Literal["ip", "tc"]
    node: str | None
    line: str

    def __str__(self) -> str:
        namespace = f"-n {self.node} " if self.node else ""
        return f"{self.program} {namespace}{self.line}"


class End(NamedTuple):
    """Where a link meets a node."""

    node: str
    interface: str
    address: str

    @property
    def hardware_address(self) -> str:
        """A locally administered one (IEEE 802), made of the address: each end knows the other's without asking.

        ARP gives up after three seconds (arp(7)), which a slowed link may take for the answer alone.
        """
        return ":".join(f"{byte:02x}" for byte in (2, 0, *map(int, self.address.split("."))))


@dataclass(frozen=True)
class Queue:
    """Where one direction of a link is shaped: where it leaves ``node`` for its neighbour ``to``."""

    worker: int | None
    """Whose link it is; None for a trunk."""
    link: str
    """Its name: the worker's, or those of the groups that a trunk joins."""
    direction: Direction
    node: str
    interface: str
    to: End
    pipe: Pipe
    round_trip_s: float
    """Of the idle link, there and back."""


class Wire(NamedTuple):
    """A link: its near end belongs to the worker or to a group's switch."""

    name: str
    worker: int | None
    near: End
    far: End
    up: Pipe
    down: Pipe

    def queues(self) -> tuple[Queue, Queue]:
        """Both directions."""
        trip_s = self.up.delay_s + self.down.delay_s
        return (
            Queue(self.worker, self.name, "up", self.near.node, self.near.interface, self.far, self.up, trip_s),
            Queue(self.worker, self.name, "down", self.far.node, self.far.interface, self.near, self.down, trip_s),
        )
