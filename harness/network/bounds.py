"""What no step of communication can beat, and what packets cost beside their payload."""

from __future__ import annotations

from harness.scenario.limits import ETHERNET_HEADER_BYTES as ETHERNET_HEADER_BYTES
from harness.scenario.links import Link, Pipe

TCP_IP_HEADER_BYTES = 52
"""IPv4 20, TCP 20, timestamp option 12: what each full segment carries besides payload."""

FRAME_HEADER_BYTES = ETHERNET_HEADER_BYTES + TCP_IP_HEADER_BYTES


def wire_share(link: Link) -> float:
    """Bytes on the wire for each byte of payload in full TCP segments: 1514 / 1448 at an MTU of 1500."""
    return (link.mtu_bytes + ETHERNET_HEADER_BYTES) / (link.mtu_bytes - TCP_IP_HEADER_BYTES)


def ring_transfer_s(payload_bytes: float, workers: int, rate_bps: float) -> float:
    """Seconds that a ring all-reduce sends: each worker passes 2 (p - 1) / p of the payload through its uplink."""
    return 2 * (workers - 1) / workers * payload_bytes * 8 / rate_bps


def seconds_on(size_bytes: float, pipe: Pipe) -> float:
    """Seconds that so many bytes on the wire take at a pipe's rate; 0 where it has none."""
    return 8 * size_bytes / pipe.rate_bps if pipe.rate_bps else 0.0
