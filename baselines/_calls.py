"""What a method asks of the network for a bucket: the collectives that its hook calls, one after the other.

Sizes are bytes of payload, of the mean worker in the steady state. ``harness`` predicts by them what a step takes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class AllReduce(NamedTuple):
    """``all_reduce``, a ring: of so many bytes, which every worker has."""

    payload_bytes: float

    def sent_bytes(self, world_size: int) -> float:
        """Payload that each worker sends (Patarasuk and Yuan, 2009)."""
        return 2 * (world_size - 1) / world_size * self.payload_bytes


class AllGather(NamedTuple):
    """``all_gather``, a ring: so many bytes of each worker reach all others."""

    payload_bytes: float

    def sent_bytes(self, world_size: int) -> float:
        """Payload that each worker sends, others' that it passes on included."""
        return (world_size - 1) * self.payload_bytes


class ReduceScatter(NamedTuple):
    """A ring's first half: of so many bytes that every worker has, each gets a share, summed."""

    payload_bytes: float

    def sent_bytes(self, world_size: int) -> float:
        """Payload that each worker sends."""
        return (world_size - 1) / world_size * self.payload_bytes


class Broadcast(NamedTuple):
    """``broadcast``, a binomial tree: so many bytes of rank 0 reach all others."""

    payload_bytes: float

    def sent_bytes(self, world_size: int) -> float:
        """Payload that the mean worker sends."""
        return (world_size - 1) / world_size * self.payload_bytes


class AllToAll(NamedTuple):
    """``all_to_all_single``: of so many bytes each worker sends each of all workers, itself included, as much."""

    payload_bytes: float

    def sent_bytes(self, world_size: int) -> float:
        """Payload that each worker sends."""
        return (world_size - 1) / world_size * self.payload_bytes


class Push(NamedTuple):
    """``all_to_all_single`` to the first ``servers`` workers alone: each gets an equal share of so many bytes."""

    payload_bytes: float
    servers: int

    def sent_bytes(self, world_size: int) -> float:
        """Payload that the mean worker sends."""
        return (world_size - 1) / world_size * self.payload_bytes


class Pull(NamedTuple):
    """Likewise, from them to all workers."""

    payload_bytes: float
    servers: int

    def sent_bytes(self, world_size: int) -> float:
        """Payload that the mean worker sends."""
        return (world_size - 1) / world_size * self.payload_bytes


class Barrier(NamedTuple):
    """``barrier``: nobody goes on before all have come."""

    payload_bytes: float = 0.0

    def sent_bytes(self, world_size: int) -> float:
        """Payload that each worker sends."""
        return self.payload_bytes


class Shift(NamedTuple):
    """``isend`` and ``irecv``: so many bytes of each worker go to the one ``distance`` ranks on."""

    payload_bytes: float
    distance: int

    def sent_bytes(self, world_size: int) -> float:
        """Payload that each worker sends."""
        return self.payload_bytes


Call = AllReduce | AllGather | ReduceScatter | Broadcast | AllToAll | Push | Pull | Barrier | Shift


def sent_bytes(calls: Iterable[Call], world_size: int) -> float:
    """Payload that each worker sends in all of them."""
    return sum(call.sent_bytes(world_size) for call in calls)
