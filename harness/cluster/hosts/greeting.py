"""How ranks come to rank 0: a TCP connection, on which both sides show that they know the job's token (RFC 2104).

Nothing is encrypted: the network between hosts is trusted.
"""

from __future__ import annotations

import hmac
import secrets
import select
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import NamedTuple

from harness.errors import MeasurementError, UsageError
from harness.messages import Challenge, Hello, Message, ProtocolError, Refused, Welcome, decode, encode
from harness.network.probe_protocol import read_line

GREETING_S = 20.0
"""How long whoever comes may take to show that he knows the token."""

MOST_MET = 64
"""How many are met at once; more wait for their turn."""

AGAIN_S = 0.2
"""How often a rank that finds nobody tries again."""

MOST_BYTES = 1 << 16
"""Of a line from somebody who has not shown anything yet."""

KEEPALIVE = {socket.TCP_KEEPIDLE: 5, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3, socket.TCP_USER_TIMEOUT: 20_000}
"""By which a host that vanishes without a word is missed within 20 s (tcp(7)); seconds, but for the last, in ms."""


def proof(token: bytes, nonce: str, who: str) -> str:
    """What only who knows the token can answer to a nonce."""
    return hmac.new(token, f"{who} {nonce}".encode(), "sha256").hexdigest()


def _is_proof(shown: str, token: bytes, nonce: str, who: str) -> bool:
    """Whether it was shown; in constant time, whatever was."""
    return hmac.compare_digest(shown.encode(), proof(token, nonce, who).encode())


def nonce() -> str:
    """Something that nobody has answered before."""
    return secrets.token_hex(16)


def watch_over(connection: socket.socket) -> None:
    """Have the kernel find out that the other host has vanished."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for option, value in KEEPALIVE.items():
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


def stands(connection: socket.socket) -> bool:
    """Whether the other side is there, as far as the kernel knows."""
    look = select.poll()
    look.register(connection, select.POLLRDHUP)
    return not look.poll(0)


def hear(connection: socket.socket, within_s: float | None = None) -> Message:
    """One message.

    Args:
        within_s: for the whole of it; None: however long it takes.

    Raises:
        OSError: the other side hung up, or takes too long.
        ProtocolError: it is none of this version's.
    """
    line = read_line(connection, MOST_BYTES, within_s)
    if len(line) > MOST_BYTES:
        raise ProtocolError(f"a greeting of more than {MOST_BYTES} bytes")
    return decode(line)


def receive(connection: socket.socket, token: bytes) -> Hello:
    """Rank 0's side, up to who comes; ``welcome`` or ``turn_away`` is the answer.

    Raises:
        OSError, ProtocolError: whoever comes does not speak this, or does not know the token.
    """
    watch_over(connection)
    own = nonce()
    connection.sendall(encode(Challenge(nonce=own)))
    hello = hear(connection, GREETING_S)
    connection.settimeout(GREETING_S)
    if not isinstance(hello, Hello):
        raise ProtocolError("not a greeting")
    if not _is_proof(hello.proof, token, own, "rank"):
        turn_away(connection, UsageError("the token of this process is another job's (PACBENCH_TOKEN)"))
        raise ProtocolError("another job's token")
    return hello


def welcome(connection: socket.socket, token: bytes, hello: Hello) -> None:
    """Let the one who came be an agent from now on."""
    connection.sendall(encode(Welcome(proof=proof(token, hello.nonce, "leader"))))
    connection.settimeout(None)


def turn_away(connection: socket.socket, error: UsageError | MeasurementError) -> None:
    """Say why one cannot take part, and hang up."""
    connection.sendall(encode(Refused(op="hello", reason=str(error), exit_code=error.exit_code)))
    connection.close()


class Guest(NamedTuple):
    """A rank that has shown that it knows the token; ``welcome`` or ``turn_away`` is the answer."""

    connection: socket.socket
    hello: Hello
    clock_off_s: float
    """By how much its clock is ahead of this host's."""


class Reception:
    """Where ranks come to: they are met at once, whatever rank 0 is at, and wait until it has an answer for them.

    Args:
        listening: closed with it.
    """

    def __init__(self, listening: socket.socket, token: bytes) -> None:
        self._listening, self._token = listening, token
        self._guests: SimpleQueue[Guest] = SimpleQueue()
        self._meetings = ThreadPoolExecutor(MOST_MET)
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def next(self, within_s: float) -> Guest | None:
        """The one who has waited longest, once anybody is there."""
        with suppress(Empty):
            return self._guests.get(timeout=max(0.0, within_s))
        return None

    def close(self) -> list[Guest]:
        """Let nobody come any more; those who still wait."""
        self._listening.shutdown(socket.SHUT_RDWR)  # else it would wait in accept for one more
        self._accepting.join()
        self._listening.close()
        self._meetings.shutdown()
        return [self._guests.get() for _ in range(self._guests.qsize())]

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self._meetings.submit(self._meet, connection)

    def _meet(self, connection: socket.socket) -> None:
        try:
            hello = receive(connection, self._token)
        except (OSError, ProtocolError):  # whoever it was, it is none of us, or has gone again
            connection.close()
        else:
            self._guests.put(Guest(connection, hello, hello.clock_s - time.time()))


def come(connection: socket.socket, token: bytes, hello: Hello, patience_s: float) -> None:
    """A rank's side; afterwards the connection is an agent's stdin and stdout.

    Args:
        hello: without its proof.
        patience_s: how long rank 0 may take to say a word. Then it may be at something else for however long.

    Raises:
        OSError: rank 0 hung up, or it is somebody else who says nothing.
        UsageError, MeasurementError: rank 0 says why this one cannot take part, or is another job's.
    """
    watch_over(connection)
    challenge = hear(connection, patience_s)
    if not isinstance(challenge, Challenge):
        raise ProtocolError("rank 0 does not speak this version's language")
    connection.settimeout(None)
    said = {**vars(hello), "proof": proof(token, challenge.nonce, "rank"), "clock_s": time.time()}
    connection.sendall(encode(Hello(**said)))
    match hear(connection):
        case Welcome(proof=shown) if _is_proof(shown, token, hello.nonce, "leader"):
            pass
        case Refused() as refused:
            kind = UsageError if refused.exit_code == UsageError.exit_code else MeasurementError
            raise kind(refused.reason)
        case _:
            raise MeasurementError("rank 0 does not know this job's token: somebody else answers there")
