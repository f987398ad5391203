"""Measure the links between hosts, which are as they are: what each sends to its neighbours in a ring, and round trips.

The same flows and datagrams as in ``measure.py``, answered by ``responder.py``. There is no switch of ours, so a
flow goes from host to host: ``up`` is what a host sends to the next one while all do so, ``down`` what it gets from the
next one while all do. Where interfaces were shaped, the slower end of each way is what was asked of it; a way that is
off is measured again by itself, as emulated ones are.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from harness.network.addresses import worker_name
from harness.network.bounds import wire_share
from harness.network.measure import FLOW_S, PING_GAP_S, SETTLE_ROUND_TRIPS, SETTLE_S, again_where_off
from harness.network.probe_protocol import call
from harness.network.readings import LinkReading, Readings
from harness.network.tolerances import PINGS, complaints_of_rate
from harness.scenario.links import WAYS, Direction, Link

FIRST_BYTES = 1 << 18
"""Of the first flow, which says how long the next one must be."""

STEADY = 1.5
"""A flow that is faster by more than this than the one before was too short to tell."""

MOST_FLOWS = 8

Rates = Sequence[int | None]


def measure(addresses: Sequence[str], mtu_bytes: int, up_bps: Rates, down_bps: Rates) -> Readings:
    """Measure what hosts at these addresses, all of which answer, send to and get from the next one.

    Args:
        addresses: IPv4, in the order of ranks.
        mtu_bytes: of their interfaces, by which payload becomes bytes on the wire.
        up_bps, down_bps: what each host's interface was given; None: it is as it was.

    Raises:
        OSError: a host cannot be reached, or stalls.
    """
    started = time.monotonic()
    share = wire_share(Link.model_validate({"mtu": mtu_bytes}))
    pairs = [(host, (host + 1) % len(addresses)) for host in range(len(addresses))]
    try:
        with ThreadPoolExecutor(len(pairs)) as pool:
            rtt_s = list(pool.map(lambda pair: _rtt_s(addresses[pair[0]], addresses[pair[1]]), pairs))

            def read(way: tuple[int, Direction]) -> LinkReading:
                host, direction = way
                sender, receiver = pairs[host] if direction == "up" else pairs[host][::-1]
                bps = _flow_bps(addresses[sender], addresses[receiver], rtt_s[host])
                return _reading(host, direction, share * bps, _slower(up_bps[sender], down_bps[receiver]))

            readings: dict[tuple[int, Direction], LinkReading] = {}
            for direction in WAYS:
                ways = [(host, direction) for host in range(len(pairs))]
                readings |= dict(zip(ways, pool.map(read, ways), strict=True))
        links = again_where_off(readings, read)
        return Readings(links=tuple(links.values()), rtt_s=tuple(rtt_s), took_s=time.monotonic() - started)
    finally:
        for address in addresses:
            with suppress(OSError):
                call(address, {"op": "quit"})


def _slower(sender_bps: int | None, receiver_bps: int | None) -> int | None:
    return min((rate for rate in (sender_bps, receiver_bps) if rate), default=None)


def _reading(host: int, direction: Direction, rate_bps: float, asked_bps: int | None) -> LinkReading:
    name = worker_name(host)
    return LinkReading(
        worker=host,
        link=name,
        direction=direction,
        rate_bps_asked=asked_bps,
        rate_bps_measured=rate_bps,
        complaints=tuple(complaints_of_rate(f"link {name} {direction}", asked_bps, rate_bps)),
    )


def _rtt_s(sender: str, receiver: str) -> float:
    """The least round trip: what is above it was spent waiting."""
    request = {"op": "ping", "to": receiver, "pings": PINGS, "gap_s": PING_GAP_S, "wait_s": 2.0}
    trips: list[float] = call(sender, request)
    if not trips:
        raise ConnectionError(f"{sender} does not reach {receiver} with datagrams")
    return min(trips)


def _flow_bps(sender: str, receiver: str, rtt_s: float) -> float:
    """Payload bits per second of a flow that lasts ``FLOW_S``, by flows that grow until they say the same."""
    skip, total, last_bps = 0, FIRST_BYTES, 0.0
    for _ in range(MOST_FLOWS):
        found_bps = 8 * float(call(sender, {"op": "flow", "to": receiver, "skip": skip, "bytes": total}))
        if last_bps and found_bps < STEADY * last_bps:
            return found_bps
        last_bps = found_bps
        skip = int(found_bps / 8 * (SETTLE_S + SETTLE_ROUND_TRIPS * rtt_s))
        total = skip + max(FIRST_BYTES, int(found_bps / 8 * FLOW_S))
    return found_bps
