"""Names and addresses of nodes and interfaces.

Addresses come from 198.18.0.0/15, the range set aside for benchmarks of networks (RFC 2544, RFC 6890).
"""

from __future__ import annotations

SWITCH = "switch"
"""The name of the node that forwards between the workers of a star, or between the groups of racks."""

WORKER_INTERFACE = "eth0"
"""The shaped interface, by the name that a worker sees."""


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
