"""What a user's command is told of its place among the others: the variables of torchrun, and some of our own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PLACEHOLDERS = (
    *("PACBENCH_NODE", "RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT"),
)
"""Variables that a command may also name in braces, where no shell puts in their values: ``{PACBENCH_NODE}``."""


@dataclass(frozen=True)
class Place:
    """A rank among all ranks: so many nodes, each of which has as many ranks behind one link."""

    node: int
    local_rank: int
    nodes: int
    per_node: int

    @property
    def rank(self) -> int:
        """Ranks are dealt to the nodes in order, as torchrun does."""
        return self.node * self.per_node + self.local_rank


def variables(place: Place, interface: str, address: str, port: int) -> dict[str, str]:
    """What says to a rank who it is, where all meet, and over which interface they talk.

    NCCL may use nothing but that interface between nodes: Infiniband would pass the shaped link by.

    Args:
        address: of the first node.
    """
    return {
        "RANK": str(place.rank),
        "LOCAL_RANK": str(place.local_rank),
        "GROUP_RANK": str(place.node),
        "WORLD_SIZE": str(place.nodes * place.per_node),
        "LOCAL_WORLD_SIZE": str(place.per_node),
        "GROUP_WORLD_SIZE": str(place.nodes),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": interface,
        "NCCL_SOCKET_IFNAME": interface,
        "TP_SOCKET_IFNAME": interface,
        "NCCL_IB_DISABLE": "1",
        "PACBENCH_NODE": str(place.node),
    }


DEFAULTS = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
"""What a rank gets where the user says nothing else: one thread, since all share this machine, as torchrun has it; and
lines that come out when they are printed, though no terminal is there."""


def filled(command: Sequence[str], known: Mapping[str, str]) -> list[str]:
    """The command with values for its placeholders. ``${RANK}`` is left to the shell that it is for."""
    pattern = re.compile(r"(?<!\$)\{(" + "|".join(PLACEHOLDERS) + r")\}")
    return [pattern.sub(lambda found: known[found[1]], part) for part in command]
