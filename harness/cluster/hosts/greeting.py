"""How ranks come to rank 0: a TCP connection, on which both sides show that they know the job's token (RFC 2104).

Nothing is encrypted: the network between hosts is trusted.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import time

from harness.errors import MeasurementError, UsageError
from harness.messages import Challenge, Hello, Message, ProtocolError, Refused, Welcome, decode, encode
from harness.network.probe_protocol import read_line

GREETING_S = 20.0
"""How long each side may take over a line of the greeting."""

AGAIN_S = 0.2
"""How often a rank that finds nobody tries again."""

MOST_BYTES = 1 << 16
"""Of a line from somebody who has not shown anything yet."""

KEEPALIVE = {socket.TCP_KEEPIDLE: 5, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3, socket.TCP_USER_TIMEOUT: 20_000}
"""By which a host that vanishes without a word is missed within 20 s (tcp(7)); seconds, but for the last, in ms."""


def proof(token: bytes, nonce: str, who: str) -> str:
    """What only who knows the token can answer to a nonce."""
    return hmac.new(token, f"{who} {nonce}".encode(), "sha256").hexdigest()


def nonce() -> str:
    """Something that nobody has answered before."""
    return secrets.token_hex(16)


def watch_over(connection: socket.socket) -> None:
    """Have the kernel find out that the other host has vanished."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for option, value in KEEPALIVE.items():
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


def hear(connection: socket.socket) -> Message:
    """One message.

    Raises:
        OSError: the other side hung up, or says nothing.
        ProtocolError: it is none of this version's.
    """
    line = read_line(connection, MOST_BYTES)
    if len(line) > MOST_BYTES:
        raise ProtocolError(f"a greeting of more than {MOST_BYTES} bytes")
    return decode(line)


def receive(connection: socket.socket, token: bytes) -> Hello:
    """Rank 0's side, up to who comes; ``welcome`` or ``turn_away`` is the answer.

    Raises:
        OSError, ProtocolError: whoever comes does not speak this, or does not know the token.
    """
    watch_over(connection)
    connection.settimeout(GREETING_S)
    own = nonce()
    connection.sendall(encode(Challenge(nonce=own)))
    hello = hear(connection)
    if not isinstance(hello, Hello):
        raise ProtocolError("not a greeting")
    if not hmac.compare_digest(hello.proof, proof(token, own, "rank")):
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


def come(connection: socket.socket, token: bytes, hello: Hello) -> None:
    """A rank's side; afterwards the connection is an agent's stdin and stdout.

    Args:
        hello: without its proof.

    Raises:
        OSError: rank 0 hung up.
        UsageError, MeasurementError: rank 0 says why this one cannot take part, or is another job's.
    """
    watch_over(connection)
    challenge = hear(connection)  # however long rank 0 is at something else
    if not isinstance(challenge, Challenge):
        raise ProtocolError("rank 0 does not speak this version's language")
    connection.settimeout(GREETING_S)
    said = {**vars(hello), "proof": proof(token, challenge.nonce, "rank"), "clock_s": time.time()}
    connection.sendall(encode(Hello(**said)))
    match hear(connection):
        case Welcome(proof=shown) if hmac.compare_digest(shown, proof(token, hello.nonce, "leader")):
            connection.settimeout(None)
        case Refused() as refused:
            kind = UsageError if refused.exit_code == UsageError.exit_code else MeasurementError
            raise kind(refused.reason)
        case _:
            raise MeasurementError("rank 0 does not know this job's token: somebody else answers there")
