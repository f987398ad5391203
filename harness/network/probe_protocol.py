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
"""How long a node may take to listen."""

PATIENCE_S = 90.0
"""How long a node may take for what it is asked to do, on a network that is not slowed, beside what it takes by itself.
"""

SILENCE_S = 60.0
"""How long its peer may say nothing meanwhile, likewise: less, so that the node can still say who it was."""

AGAIN_S, LONGER, MOST_AGAIN_S = 0.1, 3.0, 1.0
"""After how long a node is asked again that does not answer, how many times longer it is waited for each time, and for
how long at most, on a network that is not slowed: the slowest links must carry more than the questions."""

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
        takes_s: what it is asked for takes by itself, in real seconds; it has this time beside ``PATIENCE_S``.

    It is told both, since it may have to wait for others as long.

    Raises:
        ConnectionError: it does not answer, or could not do it.
    """
    message = json.dumps({"dilation": dilation, "takes_s": takes_s, **request, "id": uuid.uuid4().hex}).encode()
    slowness, again_s = max(1.0, dilation), AGAIN_S
    deadline = time.monotonic() + PATIENCE_S * slowness + takes_s
    with socket.socket(type=socket.SOCK_DGRAM) as control:
        control.connect((to, PORT))
        while time.monotonic() < deadline:
            control.settimeout(again_s)
            try:
                control.send(message)
                reply = json.loads(control.recv(MOST_BYTES))
            except ConnectionRefusedError:  # it does not listen yet; or no longer, which is all that was wanted
                if request["op"] == "quit":
                    return None
                time.sleep(AGAIN_S / 10)
            except (TimeoutError, ValueError):
                again_s = min(LONGER * again_s, MOST_AGAIN_S * slowness)
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


def silence_s(request: Mapping[str, Any]) -> float:
    """How long a node's peer may say nothing while the node does what ``call`` has asked it for."""
    return SILENCE_S * max(1.0, float(request["dilation"])) + float(request["takes_s"])


@contextmanager
def asking(to: str, most_silence_s: float) -> Iterator[socket.socket]:
    """A connection to a node that answers; waits until it listens."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            connection = socket.create_connection((to, PORT), timeout=most_silence_s)
            break
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield connection


def say(connection: socket.socket, message: Mapping[str, Any]) -> None:
    """Send a message, a line of JSON.

    Raises:
        OSError: the other side is gone, or takes too long to read.
    """
    connection.sendall(json.dumps(message).encode() + b"\n")


def read_line(connection: socket.socket, most_bytes: int, within_s: float | None = None) -> bytes:
    """One line, byte by byte: what follows it on the connection is not ours to take.

    Args:
        within_s: for the whole of it, in place of the connection's own timeout, which is for each byte.

    Returns:
        The line; of a longer one its beginning, which has more than ``most_bytes``.

    Raises:
        ConnectionError: the peer hung up.
        TimeoutError: it took too long.
    """
    line = bytearray()
    deadline = None if within_s is None else time.monotonic() + within_s
    while not line.endswith(b"\n") and len(line) <= most_bytes:
        if deadline is not None:
            connection.settimeout(_left_s(deadline))
        byte = connection.recv(1)
        if not byte:
            raise ConnectionError("a peer hung up")
        line += byte
    return bytes(line)


def _left_s(deadline: float) -> float:
    if (left_s := deadline - time.monotonic()) <= 0:
        raise TimeoutError("a peer takes too long")
    return left_s


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
