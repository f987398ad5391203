"""A bulk flow over a connection that is used for more: it lasts a given time, and its last byte says that it ends."""

from __future__ import annotations

import os
import socket
import time

BLOCK_BYTES = 1 << 16

END = b"\xff"

DATA = bytes(byte & 0x7F for byte in os.urandom(BLOCK_BYTES))
"""Random, since links may compress what they carry; and never ``END``."""

UNSENT_BYTES = 1 << 17
"""How much may wait in the sender's socket, beside what is on its way: it must still go when the time is over."""

WINDOW_S = 0.25
"""What arrives is counted by windows of this length."""

LATE_S = 60.0
"""How much later than asked a flow may end."""


def send_flow(connection: socket.socket, seconds: float) -> None:
    """Send for so long.

    Raises:
        OSError: the peer left, or takes nothing any more.
    """
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        connection.sendall(DATA)
    connection.sendall(END)


def take_flow(connection: socket.socket, seconds: float) -> list[int]:
    """Payload bytes that arrive in each window of a flow of so many seconds, from its first bytes on.

    Raises:
        OSError: the peer left, or does not come to an end.
    """
    buffer = bytearray(BLOCK_BYTES)
    arrivals: list[int] = []
    begun_s = 0.0
    while True:
        count = connection.recv_into(buffer)
        now_s = time.perf_counter()
        if not count:
            raise ConnectionError("the flow ended early")
        begun_s = begun_s or now_s
        if now_s - begun_s > seconds + LATE_S:
            raise ConnectionError("the flow does not end")
        window = int((now_s - begun_s) / WINDOW_S)
        arrivals += [0] * (window + 1 - len(arrivals))
        arrivals[window] += count
        if buffer[count - 1] == END[0]:
            return arrivals[: int(seconds / WINDOW_S)]
