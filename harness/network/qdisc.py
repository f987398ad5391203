"""The queueing discipline of one direction of a link, as tc(8) is told it and as the kernel shows it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from harness.network.bounds import ETHERNET_HEADER_BYTES
from harness.network.wires import Queue
from harness.scenario.links import PROPERTIES, Pipe
from harness.scenario.properties import MOST_QUEUE_BYTES

LARGEST_SEGMENT_BYTES = 76 * 1024
"""More than the largest segment that offloads build: 64 KiB, and a header for each packet in it (125 at the least MTU).

A smaller bucket has to split such a segment, and never lets one pass that was queued while the bucket was larger: a
link whose rate falls would stand still. So where buckets are small, segments are kept small, too."""

MIN_BURST_BYTES = 10 * 1024
"""One jumbo frame. What a full bucket lets pass takes no time: of a message of 75 kB, which takes 6 ms at 100 Mbit/s, a
bucket of 76 kB made 0.1 ms."""

BURST_S = 0.004
"""Below about 2 ms of the rate, the timer that refills the bucket limits the link instead of the rate."""

QUEUE_S = 0.3
"""Of the rate as it was asked for: a link that is slowed drops what it would drop at its own pace."""

UNSHAPED_BPS = 10_000_000_000
"""More than any machine carries here: what queues of unshaped links are sized for."""

SPARE_PACKETS = 1000


def burst_bytes(pipe: Pipe) -> int:
    """The token bucket of a direction: as asked, or what keeps the rate true without hiding it.

    Raises:
        ValueError: it has no rate.
    """
    if pipe.rate_bps is None:
        raise ValueError("an unshaped link has no bucket")
    return pipe.burst_bytes or _burst_bytes(pipe.rate_bps)


def _burst_bytes(rate_bps: int) -> int:
    least_bytes = LARGEST_SEGMENT_BYTES if _timers_are_late() else MIN_BURST_BYTES
    return max(least_bytes, math.ceil(rate_bps / 8 * BURST_S))


@cache
def _timers_are_late() -> bool:
    """Whether this kernel is user-mode-linux, whose timers refill a bucket late by milliseconds."""
    return "User Mode Linux" in Path("/proc/cpuinfo").read_text()


def packets_in_a_segment(rates_bps: Iterable[int], mtu_bytes: int) -> int | None:
    """How many packets offloads may make one segment of, so that it fits into a bucket of each of these rates.

    None where the largest segments do.
    """
    least_bytes = min((_burst_bytes(rate_bps) for rate_bps in rates_bps), default=LARGEST_SEGMENT_BYTES)
    if least_bytes >= LARGEST_SEGMENT_BYTES:
        return None
    return max(1, MIN_BURST_BYTES // (mtu_bytes + ETHERNET_HEADER_BYTES))


def qdisc(pipe: Pipe, mtu_bytes: int = 1500, dilation: float = 1.0) -> str:
    """The queueing discipline of one direction.

    A rate alone is a token bucket (tc-tbf(8)). Anything more is netem's (tc-netem(8)), which then paces the rate too:
    by the packets' lengths, without bursts, and in order however their delays vary. An unshaped direction gets a plain
    queue, for its counters.

    Args:
        dilation: how many times slower the direction is than it was asked for.
    """
    if pipe.needs_netem:
        return " ".join(["netem", f"limit {netem_limit(pipe, mtu_bytes, dilation)}", *_netem_words(pipe)])
    if pipe.rate_bps is None:
        return "pfifo limit 10000"
    burst = burst_bytes(pipe)
    # A queue that is asked for is as short as that: what waits for tokens is in no bucket.
    limit = pipe.queue_bytes or burst + queue_bytes(pipe, dilation)
    return f"tbf rate {pipe.rate_bps}bit burst {burst} limit {limit}"


def queue_bytes(pipe: Pipe, dilation: float = 1.0) -> int:
    """What may wait for the rate: as asked, or ``QUEUE_S`` of the rate that was asked for."""
    asked_bps = dilation * pipe.rate_bps if pipe.rate_bps else UNSHAPED_BPS
    return pipe.queue_bytes or min(MOST_QUEUE_BYTES, round(asked_bps / 8 * QUEUE_S))


def netem_limit(pipe: Pipe, mtu_bytes: int, dilation: float = 1.0) -> int:
    """Packets that netem may hold: those on their way through the delay, and those that wait for the rate.

    Where no queue is asked for it is never the limit: netem drops what exceeds it, which would look like loss.
    """
    frame_bytes = mtu_bytes + ETHERNET_HEADER_BYTES
    flight_s = pipe.delay_s + 4 * pipe.jitter_s
    flight = math.ceil((pipe.rate_bps or UNSHAPED_BPS) / 8 * flight_s / frame_bytes)
    waiting = math.ceil(queue_bytes(pipe, dilation) / frame_bytes)
    return flight + waiting if pipe.queue_bytes else 2 * flight + max(waiting, SPARE_PACKETS)


def _netem_words(pipe: Pipe) -> Iterator[str]:
    for row in sorted(PROPERTIES, key=lambda row: row.place):
        if words := row.words(pipe):
            yield words


def check_read_back(pipe: Pipe, queue: Queue, shown: Sequence[Mapping[str, Any]]) -> None:
    """Compare what ``tc -j qdisc show`` says of an interface with what was asked.

    Raises:
        ValueError: the kernel has another queue, or other values, than were asked.
    """
    root = next((entry for entry in shown if entry.get("root") and entry.get("dev") == queue.interface), None)
    where = f"{queue.node}/{queue.interface}"
    expected = qdisc(pipe).split()[0]
    if root is None or root["kind"] != expected:
        raise ValueError(f"{where}: asked for {expected}, the kernel has {root and root['kind']}")
    if expected == "netem":
        _check_netem(pipe, where, root["options"])
        return
    if pipe.rate_bps is None:
        return
    rate_bps, burst = 8 * root["options"]["rate"], root["options"]["burst"]
    # tc turns the bucket into time at the rate and back, in ticks: the last bytes may be rounded away.
    if abs(rate_bps - pipe.rate_bps) > 8 or abs(burst - burst_bytes(pipe)) > 0.01 * burst:
        raise ValueError(
            f"{where}: asked for {pipe.rate_bps} bit/s with a bucket of {burst_bytes(pipe)} bytes, "
            f"the kernel has {rate_bps} bit/s and {burst} bytes"
        )


def _check_netem(pipe: Pipe, where: str, options: Mapping[str, Any]) -> None:
    for row in PROPERTIES:
        for each in row.read_back(pipe, options):
            if not each.agrees:
                raise ValueError(f"{where}: asked for {each.name} = {each.asked:g}, the kernel has {each.found:g}")
