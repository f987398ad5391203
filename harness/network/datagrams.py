"""Datagrams by which a path is measured: some are sent back and timed, others are numbered and counted.

A mark at its beginning says what a datagram belongs to; whatever has another one is passed over. What comes from a
socket must be stamped by the kernel: see ``stamped``.
"""

from __future__ import annotations

import itertools
import socket
import statistics
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from harness.network.probe_protocol import PING, PINGED, SO_TIMESTAMPNS, receive

SO_RCVBUFFORCE = 33
"""A socket option of <asm-generic/socket.h> that Python does not name."""

ROOM_BYTES = 2048
"""What a counting receiver's buffer has for each datagram that is to come, which the kernel doubles: more than the 2304
that one of a whole frame takes there, so that a receiver may fall behind as far as it likes. What it should miss all
the same is told apart, by the kernel's own count."""

SLICES = 8

RECEIVER_LOOKS_US = 50_000
"""How long a counting receiver waits for a datagram before it looks whether all have been sent."""

MOST_COPIES = 4
"""Of each datagram that is to come: who sends more takes no more memory."""

PACE_S = 2e-3
"""How often datagrams leave that are counted, a few at a time."""

WARM_S = 0.02
"""After the first datagram of several round trips, which warms caches."""


class Trip(NamedTuple):
    """A datagram's way to a peer and back, in seconds."""

    round_trip_s: float
    """From when it was given to the kernel to when the kernel had the reply, less what the peer held it for."""
    there_s: float
    """By the clocks of both hosts, which need not agree: only differences between two of them say anything."""
    back_s: float
    """Likewise."""


def stamped(datagrams: socket.socket) -> socket.socket:
    """The socket, having asked the kernel for the times at which datagrams arrive.

    It begins to stamp some time after it was asked: until then a datagram gets its stamp when it is read.
    """
    datagrams.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    return datagrams


def reply(datagram: bytes, arrived_s: float, mark: bytes = PING) -> bytes:
    """What is sent back for a datagram that is to be timed, at once.

    Raises:
        struct.error: it is too short to be one.
    """
    number, _, _ = PINGED.unpack_from(datagram, len(mark))
    return mark + PINGED.pack(number, arrived_s, time.time() - arrived_s)


def round_trips(
    datagrams: socket.socket, pings: int, gap_s: float, wait_s: float, mark: bytes = PING
) -> dict[int, Trip]:
    """Ways of datagrams to the peer of a connected and stamped socket and back, by number; lost ones are left out.

    Args:
        gap_s: between two of them.
        wait_s: for the last ones.

    Of the first one nothing is told: it warms caches.
    """
    sent: dict[int, float] = {}
    trips: dict[int, Trip] = {}
    due = time.perf_counter()
    for number in range(1 + pings):
        collect(datagrams, sent, trips, until=due, mark=mark)
        sent[number] = time.time()
        datagrams.send(mark + PINGED.pack(number, 0.0, 0.0))
        due = time.perf_counter() + (WARM_S if number == 0 else gap_s)
    collect(datagrams, sent, trips, until=time.perf_counter() + wait_s, enough=len(sent), mark=mark)
    return {number: trip for number, trip in trips.items() if number > 0}


def collect(
    datagrams: socket.socket,
    sent: Mapping[int, float],
    trips: dict[int, Trip],
    until: float,
    enough: int | None = None,
    mark: bytes = PING,
) -> None:
    """Take replies until it is time to go on (``time.perf_counter()``), or until there are enough."""
    while (left_s := until - time.perf_counter()) > 0 and (enough is None or len(trips) < enough):
        datagrams.settimeout(left_s)
        try:
            datagram, back_at_s, _ = receive(datagrams)
        except TimeoutError:
            continue
        if not datagram.startswith(mark) or len(datagram) != len(mark) + PINGED.size:
            continue
        number, there_at_s, held_s = PINGED.unpack_from(datagram, len(mark))
        if number in sent:
            sent_s = sent[number]
            trip = Trip(back_at_s - sent_s - held_s, there_at_s - sent_s, back_at_s - there_at_s - held_s)
            trips.setdefault(number, trip)


def send_numbered(
    datagrams: socket.socket, packets: int, size_bytes: int, per_s: float | None, mark: bytes = PING
) -> None:
    """Send datagrams 0 to ``packets`` - 1 to a connected socket's peer, at a steady pace; without one, all at once."""
    padding = bytes(size_bytes - 4 - len(mark))
    batch = max(1, int(per_s * PACE_S)) if per_s else packets
    pause_s = batch / per_s if per_s else 0.0
    datagrams.settimeout(None)
    due = time.perf_counter()
    for first in range(0, packets, batch):
        time.sleep(max(0.0, due - time.perf_counter()))
        due += pause_s
        for number in range(first, min(first + batch, packets)):
            datagrams.send(mark + struct.pack("!I", number) + padding)


class Receiver:
    """Takes numbered datagrams of a stamped socket, beside everything else, until it is asked what became of them."""

    def __init__(self, datagrams: socket.socket, packets: int, mark: bytes = PING) -> None:
        self._datagrams, self._packets, self._mark = datagrams, packets, mark
        self._arrivals: list[tuple[int, float]] = []
        self._missed_before = _overflows()
        self._enough = threading.Event()
        _enlarge(datagrams, packets * ROOM_BYTES)
        # Python's own timeout would ask the kernel twice for each datagram, and that is what this takes.
        datagrams.settimeout(None)
        datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, RECEIVER_LOOKS_US))
        self._thread = threading.Thread(target=self._take, daemon=True)
        self._thread.start()

    def result(self) -> dict[str, Any]:
        """How fast they came, and ``counts_of`` them.

        Raises:
            ConnectionError: the kernel had no more room for some of them, so that nothing can be said.
        """
        self.stop()
        if missed := _overflows() - self._missed_before:
            raise ConnectionError(f"the receiver was too slow for {missed} datagrams")
        counts = counts_of([number for number, _ in self._arrivals], self._packets)
        return {"arrived_per_s": _arrived_per_s(self._arrivals), "counts": counts}

    def stop(self) -> None:
        """Take no more of them."""
        self._enough.set()
        self._thread.join()

    def _take(self) -> None:
        place = len(self._mark)
        while True:
            try:
                datagram, arrived_s, _ = receive(self._datagrams)
            except BlockingIOError:
                if self._enough.is_set():
                    return
                continue
            except ConnectionError:  # the peer's host says that nobody listens any more
                continue
            is_ours = datagram.startswith(self._mark) and len(datagram) >= place + 4
            if is_ours and len(self._arrivals) < MOST_COPIES * self._packets:
                self._arrivals.append((struct.unpack_from("!I", datagram, place)[0], arrived_s))


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
    return statistics.median(each / max(after - before, 1e-9) for before, after in itertools.pairwise(marks))


def _enlarge(datagrams: socket.socket, size_bytes: int) -> None:
    """Have the kernel hold what arrives while this process waits for its CPU."""
    try:
        datagrams.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, size_bytes)
    except PermissionError:
        datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size_bytes)


def _overflows() -> int:
    """Datagrams that came to this node and found a socket's buffer full (RFC 4113's errors, told apart by Linux)."""
    lines = Path("/proc/net/snmp").read_text().splitlines()
    names, values = (line.split() for line in lines if line.startswith("Udp:"))
    missed = int(values[names.index("RcvbufErrors")])
    with suppress(FileNotFoundError):  # a kernel without IPv6
        counters = dict(line.split() for line in Path("/proc/net/snmp6").read_text().splitlines())
        missed += int(counters["Udp6RcvbufErrors"])
    return missed
