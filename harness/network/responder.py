"""A node's side of measuring links: it answers, sends and receives what it is asked to, until told to quit."""

from __future__ import annotations

import itertools
import json
import socket
import statistics
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.network.probe_protocol import (
    PING,
    PINGED,
    PORT,
    SO_TIMESTAMPNS,
    TIMEOUT_S,
    asking,
    call,
    hear,
    receive,
    say,
)

CHUNK_BYTES = 1 << 18

SO_RCVBUFFORCE = 33
"""A socket option of <asm-generic/socket.h> that Python does not name."""

ROOM_BYTES = 2048
"""What a counting receiver's buffer has for each datagram that is to come, which the kernel doubles: more than the 2304
that one of a whole frame takes there, so that a receiver may fall behind as far as it likes. What it should miss all
the same is told apart, by the kernel's own count."""

SLICES = 8

RECEIVER_LOOKS_US = 50_000
"""How long a counting receiver waits for a datagram before it looks whether all have been sent."""

PACE_S = 2e-3
"""How often datagrams leave that are counted, a few at a time."""


def answer(address: str = "") -> None:
    """Serve whoever asks at an address, or at all, until told to quit. Runs on every node."""
    with socket.create_server((address, PORT), backlog=256) as flows, socket.socket(type=socket.SOCK_DGRAM) as control:
        control.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        control.bind((address, PORT))
        threading.Thread(target=_accept_flows, args=(flows,), daemon=True).start()
        _Answering(control).serve()


class _Answering:
    """A node's side of ``call``: each request is done once, by a thread of its own, and its answer kept."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._answers: dict[str, bytes | None] = {}
        self._receivers: dict[int, _Receiver] = {}

    def serve(self) -> None:
        """Answer until told to quit."""
        while True:
            datagram, arrived_s, sender = receive(self._control)
            if datagram.startswith(PING):
                number, _ = PINGED.unpack_from(datagram, len(PING))
                self._control.sendto(PING + PINGED.pack(number, time.time() - arrived_s), sender)
                continue
            try:
                request = json.loads(datagram)
            except ValueError:
                continue
            if request["op"] == "quit":
                self._control.sendto(b'{"value": null}', sender)
                return
            if request["id"] not in self._answers:
                self._answers[request["id"]] = None
                threading.Thread(target=self._work, args=(request, sender), daemon=True).start()
            elif answer := self._answers[request["id"]]:
                self._control.sendto(answer, sender)

    def _work(self, request: Mapping[str, Any], sender: tuple[str, int]) -> None:
        try:
            answer = {"value": self._do(request)}
        except OSError as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        self._answers[request["id"]] = encoded = json.dumps(answer).encode()
        self._control.sendto(encoded, sender)

    def _do(self, request: Mapping[str, Any]) -> Any:
        match request["op"]:
            case "ping":
                return _ping(request)
            case "flow":
                return _flow(request)
            case "flood":
                return _flood_bps(request["to"], request["seconds"])
            case "count":
                return _send_numbered(request)
            case "receive":
                receiver = _Receiver(request["packets"])
                self._receivers[receiver.port] = receiver
                return receiver.port
            case "received":
                return self._receivers.pop(request["port"]).result()
            case _:
                return None


def _accept_flows(server: socket.socket) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        threading.Thread(target=_take_flow, args=(connection,), daemon=True).start()


def _take_flow(connection: socket.socket) -> None:
    with connection:
        connection.settimeout(2 * TIMEOUT_S)
        try:
            request = hear(connection)
        except ConnectionError:
            return  # it only looked whether somebody listens, or has ended; its own side says so
        if request["op"] == "sink":
            say(connection, {"value": _sink(connection, request)})
        else:
            while connection.recv(CHUNK_BYTES):
                pass


def _ping(request: Mapping[str, Any]) -> list[float]:
    """Round trips of datagrams to a peer, in seconds; those that are lost are left out.

    Each is from when it is given to the kernel to when the kernel has the reply, less what the peer held it for. The
    first one is not told: it warms caches, and until the kernel has begun to stamp, stamps are late.
    """
    call(request["to"], {"op": "hello"})
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        datagrams.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        datagrams.connect((request["to"], PORT))
        sent: dict[int, float] = {}
        trips: dict[int, float] = {}
        due = time.perf_counter()
        for number in range(1 + request["pings"]):
            _collect(datagrams, sent, trips, until=due)
            sent[number] = time.time()
            datagrams.send(PING + PINGED.pack(number, 0.0))
            due = time.perf_counter() + (0.02 if number == 0 else request["gap_s"])
        _collect(datagrams, sent, trips, until=time.perf_counter() + request["wait_s"], enough=len(sent))
        return [seconds for number, seconds in trips.items() if number > 0]


def _collect(
    datagrams: socket.socket,
    sent: Mapping[int, float],
    trips: dict[int, float],
    until: float,
    enough: int | None = None,
) -> None:
    """Take replies until it is time to go on, or until there are enough."""
    while (left_s := until - time.perf_counter()) > 0 and (enough is None or len(trips) < enough):
        datagrams.settimeout(left_s)
        try:
            datagram, arrived_s, _ = receive(datagrams)
        except TimeoutError:
            continue
        number, held_s = PINGED.unpack_from(datagram, len(PING))
        if number in sent:
            trips.setdefault(number, arrived_s - sent[number] - held_s)


def _flow(request: Mapping[str, Any]) -> float:
    """Send a bulk flow to a peer; payload bytes per second that it saw."""
    chunk, left = bytes(CHUNK_BYTES), int(request["bytes"])
    with asking(request["to"]) as connection:
        say(connection, {"op": "sink", "skip": request["skip"], "bytes": request["bytes"]})
        while left > 0:
            left -= connection.send(memoryview(chunk)[:left])
        return float(hear(connection)["value"])


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


def _flood_bps(to: str, seconds: float) -> float:
    """Payload bits per second that get through to a peer when nothing holds them back."""
    chunk = bytes(CHUNK_BYTES)
    with asking(to) as connection:
        say(connection, {"op": "drain"})
        start = time.perf_counter()
        sent = 0
        while time.perf_counter() - start < seconds:
            sent += connection.send(chunk)
        return 8 * sent / (time.perf_counter() - start)


def _send_numbered(request: Mapping[str, Any]) -> Any:
    """Send numbered datagrams to a peer at a steady pace, or all at once; what it received."""
    packets, padding = int(request["packets"]), bytes(int(request["bytes"]) - 4 - len(PING))
    port = call(request["to"], {"op": "receive", "packets": packets})
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        datagrams.connect((request["to"], port))
        batch = max(1, int(request["per_s"] * PACE_S)) if request["per_s"] else packets
        due = time.perf_counter()
        for first in range(0, packets, batch):
            time.sleep(max(0.0, due - time.perf_counter()))
            due += PACE_S
            for number in range(first, min(first + batch, packets)):
                datagrams.send(PING + struct.pack("!I", number) + padding)
        time.sleep(request["wait_s"])
    return call(request["to"], {"op": "received", "port": port})


class _Receiver:
    """Takes numbered datagrams, beside everything else, until it is asked what became of them."""

    def __init__(self, packets: int) -> None:
        self._packets = packets
        self._arrivals: list[tuple[int, float]] = []
        self._missed_before = _overflows()
        self._enough = threading.Event()
        self._datagrams = socket.socket(type=socket.SOCK_DGRAM)
        _enlarge(self._datagrams, packets * ROOM_BYTES)
        self._datagrams.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        # Python's own timeout would ask the kernel twice for each datagram, and that is what this takes.
        self._datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, RECEIVER_LOOKS_US))
        self._datagrams.bind(("", 0))
        self.port: int = self._datagrams.getsockname()[1]
        self._thread = threading.Thread(target=self._take, daemon=True)
        self._thread.start()

    def result(self) -> dict[str, Any]:
        """How fast they came, and ``counts_of`` them.

        Raises:
            ConnectionError: the kernel had no more room for some of them, so that nothing can be said.
        """
        self._enough.set()
        self._thread.join()
        if missed := _overflows() - self._missed_before:
            raise ConnectionError(f"the receiver was too slow for {missed} datagrams")
        counts = counts_of([number for number, _ in self._arrivals], self._packets)
        return {"arrived_per_s": _arrived_per_s(self._arrivals), "counts": counts}

    def _take(self) -> None:
        with self._datagrams:
            while True:
                try:
                    datagram, arrived_s, _ = receive(self._datagrams)
                    self._arrivals.append((struct.unpack_from("!I", datagram, len(PING))[0], arrived_s))
                except BlockingIOError:
                    if self._enough.is_set():
                        return


def counts_of(numbers: Sequence[int], sent: int) -> dict[str, int]:
    """What became of datagrams 0 to ``sent`` - 1, from the numbers in the order in which they arrived."""
    first: dict[int, int] = {}
    for place, number in enumerate(numbers):
        first.setdefault(number, place)
    lost = [number not in first for number in range(sent)]
    bursts = sum(now and not before for before, now in zip([False, *lost], lost, strict=False))
    overtook, least_later = 0, sent
    for number in sorted(first, key=first.__getitem__, reverse=True):
        overtook += number > least_later
        least_later = min(least_later, number)
    return {
        "sent": sent,
        "lost": sum(lost),
        "bursts": bursts,
        "duplicated": len(numbers) - len(first),
        "overtook": overtook,
    }


def _arrived_per_s(arrivals: Sequence[tuple[int, float]]) -> float:
    """Datagrams per second, once the first fifth has filled the queue: the median over slices, since a sender that
    had to wait for its CPU leaves a gap that is not the link's."""
    timed = [seconds for _, seconds in arrivals[len(arrivals) // 5 :]]
    each = len(timed) // SLICES
    if not each:
        return 0.0
    marks = timed[::each][: SLICES + 1]
    return statistics.median(each / (after - before) for before, after in itertools.pairwise(marks))


def _enlarge(datagrams: socket.socket, size_bytes: int) -> None:
    """Have the kernel hold what arrives while this process waits for its CPU."""
    try:
        datagrams.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, size_bytes)
    except PermissionError:
        datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size_bytes)


def _overflows() -> int:
    """Datagrams that came to this node and found a socket's buffer full (RFC 4113's errors, told apart by Linux)."""
    names, values = (
        line.split() for line in Path("/proc/net/snmp").read_text().splitlines() if line.startswith("Udp:")
    )
    return int(values[names.index("RcvbufErrors")])
