"""Measure links by real traffic before anything is believed of them.

Each worker answers (``answer``); the switch asks (``measure``). Both directions of every link carry a bulk TCP flow,
timed by its receiver once the token bucket is spent; round trips are small messages over an idle link. It is the same
in network namespaces and in containers, and needs no clock that two nodes share.
"""

from __future__ import annotations

import json
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from harness.network import Direction, Topology, address, burst_bytes, wire_share
from harness.scenario import Section
from harness.units import format_rate, format_time

PORT = 5201
TIMEOUT_S = 30.0
CHUNK_BYTES = 1 << 18

PINGS = 10
FLOW_S = 0.4
"""How long a timed flow lasts at the rate that was asked."""

MIN_FLOW_BYTES = 64 * 1024

SETTLE_S = 0.1
"""How much of a flow passes before it is timed, after the bucket is spent twice over: TCP's start-up."""

RATE_TOLERANCE = (0.93, 1.04)
"""Measured over asked, on the wire: loosest at the low side, where a busy machine delays the receiver."""

RTT_TOLERANCE_S = 0.5e-3
RTT_TOLERANCE_SHARE = 0.10

CONCURRENT_BPS = 1_000_000_000
"""Links are measured together up to this sum, so that their own traffic never makes the CPU the limit."""

ATTEMPTS = 3
"""A link that reads too slow is asked again: a busy machine explains that. One that stays so is out of tolerance."""


class LinkReading(Section):
    """One direction of one link: rates in bits per second on the wire, headers included."""

    worker: int
    direction: Direction
    rate_bps_asked: int | None
    rate_bps_measured: float


class Readings(Section):
    """What was measured of a whole topology. Round trips are worker to worker, over two links, in seconds."""

    links: tuple[LinkReading, ...]
    rtt_s: tuple[float, ...]
    """The median of each neighbouring pair of workers."""
    took_s: float
    """How long it took to measure all this."""

    @property
    def rtt_median_s(self) -> float:
        """The median over the pairs."""
        return statistics.median(self.rtt_s)

    @property
    def slowest_bps(self) -> float:
        """The rate of the slowest direction of all links."""
        return min(link.rate_bps_measured for link in self.links)

    def complaints(self) -> list[str]:
        """One line for everything that is not what was asked, within the stated tolerances."""
        low, high = RATE_TOLERANCE
        found = [
            f"link w{link.worker} {link.direction}: asked {format_rate(link.rate_bps_asked)}, measured "
            f"{format_rate(link.rate_bps_measured)} (allowed: {low:.2f} to {high:.2f} of what was asked)"
            for link in self.links
            if link.rate_bps_asked and not low <= link.rate_bps_measured / link.rate_bps_asked <= high
        ]
        asked_rtt_s = 0.0
        allowed_s = asked_rtt_s + max(RTT_TOLERANCE_S, RTT_TOLERANCE_SHARE * asked_rtt_s)
        if self.rtt_median_s > allowed_s:
            found.append(f"round trip: measured {format_time(self.rtt_median_s)}, allowed {format_time(allowed_s)}")
        return found


def answer(worker: int) -> None:
    """Serve the switch and the other workers until told to quit. Runs on a worker's node."""
    quit_asked = threading.Event()
    with socket.create_server((address(worker), PORT), backlog=64) as server:
        server.settimeout(0.05)
        while not quit_asked.is_set():
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            threading.Thread(target=_serve, args=(connection, quit_asked), daemon=True).start()


def measure(topology: Topology) -> Readings:
    """Measure every link of a star whose workers answer. Runs on the switch.

    Raises:
        OSError: a worker cannot be reached, or stalls.
    """
    started = time.monotonic()
    try:
        rtt_s = tuple(_peer(worker, topology, {"op": "ping_peer"}) for worker in range(topology.workers))
        links = tuple(_rates(topology, "up") + _rates(topology, "down"))
        return Readings(links=links, rtt_s=rtt_s, took_s=time.monotonic() - started)
    finally:
        _quit_all(topology)


def measure_ceiling(topology: Topology) -> float:
    """Bits per second that each worker of an unshaped star can send to its neighbour while all others do so too.

    Raises:
        OSError: a worker cannot be reached, or stalls.
    """
    request = {"op": "flow_peer", "seconds": FLOW_S}
    try:
        with ThreadPoolExecutor(topology.workers) as pool:
            rates = pool.map(lambda worker: _peer(worker, topology, request), range(topology.workers))
            return float(min(rates)) * wire_share(topology.link)
    finally:
        _quit_all(topology)


def _rates(topology: Topology, direction: Direction) -> list[LinkReading]:
    asked = topology.link.rate_bps
    together = topology.workers if asked is None else max(1, CONCURRENT_BPS // asked)

    def reading(worker: int) -> LinkReading:
        measured = _rate_bps(topology, worker, direction)
        return LinkReading(worker=worker, direction=direction, rate_bps_asked=asked, rate_bps_measured=measured)

    with ThreadPoolExecutor(together) as pool:
        readings = list(pool.map(reading, range(topology.workers)))
    return [_second_opinion(first, reading) for first in readings]


def _second_opinion(first: LinkReading, again: Callable[[int], LinkReading]) -> LinkReading:
    best = first
    for _ in range(ATTEMPTS - 1):
        if not best.rate_bps_asked or best.rate_bps_measured >= RATE_TOLERANCE[0] * best.rate_bps_asked:
            break
        best = max(best, again(first.worker), key=lambda reading: reading.rate_bps_measured)
    return best


def _rate_bps(topology: Topology, worker: int, direction: Direction) -> float:
    """One flow over one direction of a worker's link, in bits per second on the wire."""
    link = topology.link
    rate_bps = link.rate_bps or CONCURRENT_BPS
    skip = 2 * (burst_bytes(link) if link.rate_bps else 0) + int(rate_bps / 8 * SETTLE_S)
    flow = {"skip": skip, "bytes": skip + max(int(rate_bps / 8 * FLOW_S), MIN_FLOW_BYTES)}
    with _asking(worker) as connection:
        if direction == "up":
            _say(connection, {"op": "source", **flow})
            payload_bytes_per_s = _sink(connection, flow)
        else:
            _say(connection, {"op": "sink", **flow})
            _source(connection, flow)
            payload_bytes_per_s = _hear(connection)["value"]
    return 8 * float(payload_bytes_per_s) * wire_share(link)


def _peer(worker: int, topology: Topology, request: Mapping[str, Any]) -> float:
    with _asking(worker) as connection:
        _say(connection, {**request, "peer": (worker + 1) % topology.workers})
        return float(_hear(connection)["value"])


def _quit_all(topology: Topology) -> None:
    for worker in range(topology.workers):
        try:
            with _asking(worker) as connection:
                _say(connection, {"op": "quit"})
        except OSError:
            continue


def _serve(connection: socket.socket, quit_asked: threading.Event) -> None:
    with connection:
        connection.settimeout(TIMEOUT_S)
        request = _hear(connection)
        match request["op"]:
            case "echo":
                while byte := connection.recv(1):
                    connection.sendall(byte)
            case "source":
                _source(connection, request)
            case "sink":
                _say(connection, {"value": _sink(connection, request)})
            case "drain":
                while connection.recv(CHUNK_BYTES):
                    pass
            case "ping_peer":
                _say(connection, {"value": _ping_s(request["peer"])})
            case "flow_peer":
                _say(connection, {"value": _flood_bps(request["peer"], request["seconds"])})
            case "quit":
                quit_asked.set()


def _ping_s(peer: int) -> float:
    """The median round trip to a peer, in seconds, after one that warms caches."""
    with _asking(peer) as connection:
        _say(connection, {"op": "echo"})
        trips = []
        for _ in range(1 + PINGS):
            start = time.perf_counter()
            connection.sendall(b"?")
            connection.recv(1)
            trips.append(time.perf_counter() - start)
    return statistics.median(trips[1:])


def _flood_bps(peer: int, seconds: float) -> float:
    """Payload bits per second that get through to a peer when nothing holds them back."""
    chunk = bytes(CHUNK_BYTES)
    with _asking(peer) as connection:
        _say(connection, {"op": "drain"})
        start = time.perf_counter()
        sent = 0
        while time.perf_counter() - start < seconds:
            sent += connection.send(chunk)
        return 8 * sent / (time.perf_counter() - start)


def _source(connection: socket.socket, flow: Mapping[str, Any]) -> None:
    chunk, left = bytes(CHUNK_BYTES), int(flow["bytes"])
    while left > 0:
        left -= connection.send(memoryview(chunk)[:left])


def _sink(connection: socket.socket, flow: Mapping[str, Any]) -> float:
    """Receive the whole flow; payload bytes per second of what came after its first ``skip`` bytes."""
    buffer = bytearray(CHUNK_BYTES)
    received, started, counted_from = 0, 0.0, 0
    while received < flow["bytes"]:
        count = connection.recv_into(buffer)
        if not count:
            raise ConnectionError("a flow ended early")
        received += count
        if not started and received >= flow["skip"]:
            started, counted_from = time.perf_counter(), received
    return (received - counted_from) / (time.perf_counter() - started)


@contextmanager
def _asking(worker: int) -> Iterator[socket.socket]:
    """A connection to a worker that answers; waits until it listens."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            connection = socket.create_connection((address(worker), PORT), timeout=TIMEOUT_S)
            break
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield connection


def _say(connection: socket.socket, message: Mapping[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _hear(connection: socket.socket) -> dict[str, Any]:
    """One line, byte by byte: what follows it on the connection is not ours to take."""
    line = b""
    while not line.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte:
            raise ConnectionError("a peer hung up")
        line += byte
    message: dict[str, Any] = json.loads(line)
    return message
