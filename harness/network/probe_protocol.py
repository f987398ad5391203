"""How nodes that measure links speak to one another: requests by datagrams, flows by TCP."""

from __future__ import annotations

import json
import socket
import struct
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

PORT = 5201

SO_TIMESTAMPNS = 35
"""A socket option of <asm-generic/socket.h> that Python does not name."""

TIMEOUT_S = 30.0

PATIENCE_S = 90.0
"""How long a node may take for what it is asked to do, on a network that is not slowed."""

AGAIN_S = 0.1
"""How often a node is asked until it answers."""

MOST_BYTES = 1 << 16

PING = b"?"
"""What datagrams begin with that are to be sent back, or counted; requests are JSON."""

PINGED = struct.Struct("!Idd")
"""What follows in one that is to be sent back: its number; and on its way back when it had come (``time.time()`` of who
sends it back), and for how long it was held; before that 0 and 0."""


def call(to: str, request: Mapping[str, Any], dilation: float = 1.0, takes_s: float = 0.0) -> Any:
    """Have a node do something. It is asked again and again until it has answered, and does it once.

    Not by TCP, which waits twice as long each time that a packet is lost: on links that lose many, for minutes.

    Args:
        dilation: how many times slower the network is.
        takes_s: what it is asked to wait for itself, in real seconds; it has this time beside ``PATIENCE_S``.

    Raises:
        ConnectionError: it does not answer, or could not do it.
    """
    message = json.dumps({**request, "id": uuid.uuid4().hex}).encode()
    deadline = time.monotonic() + PATIENCE_S * max(1.0, dilation) + takes_s
    with socket.socket(type=socket.SOCK_DGRAM) as control:
        control.connect((to, PORT))
        control.settimeout(AGAIN_S)
        while time.monotonic() < deadline:
            try:
                control.send(message)
                reply = json.loads(control.recv(MOST_BYTES))
            except ConnectionRefusedError:  # it does not listen yet; or no longer, which is all that was wanted
                if request["op"] == "quit":
                    return None
                time.sleep(AGAIN_S / 10)
            except (TimeoutError, ValueError):
                continue
            else:
                if "error" in reply:
                    raise ConnectionError(reply["error"])
                return reply["value"]
    raise ConnectionError(f"{to} does not answer")


def receive(datagrams: socket.socket) -> tuple[bytes, float, Any]:
    """A datagram, when the kernel had it, whenever this process came to look (``time.time()``), and its sender."""
    datagram, ancillary, _, sender = datagrams.recvmsg(MOST_BYTES, 64)
    seconds, nanoseconds = struct.unpack("@qq", ancillary[0][2])
    return datagram, seconds + 1e-9 * nanoseconds, sender


@contextmanager
def asking(to: str) -> Iterator[socket.socket]:
    """A connection to a node that answers; waits until it listens."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            connection = socket.create_connection((to, PORT), timeout=2 * TIMEOUT_S)
            break
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield connection


def say(connection: socket.socket, message: Mapping[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def read_line(connection: socket.socket, most_bytes: int) -> bytes:
    """One line, byte by byte: what follows it on the connection is not ours to take.

    Returns:
        The line; of a longer one its beginning, which has more than ``most_bytes``.

    Raises:
        ConnectionError: the peer hung up.
    """
    line = bytearray()
    while not line.endswith(b"\n") and len(line) <= most_bytes:
        byte = connection.recv(1)
        if not byte:
            raise ConnectionError("a peer hung up")
        line += byte
    return bytes(line)


def hear(connection: socket.socket, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """One message, a line of JSON.

    Raises:
        ConnectionError: the peer hung up, or said something else.
    """
    line = read_line(connection, most_bytes)
    if len(line) > most_bytes:
        raise ConnectionError(f"a peer said more than {most_bytes} bytes in one line")
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise ConnectionError("a peer said what is no message")
    return message
