"""How two hosts that measure the path between them speak: lines of JSON and bulk flows over one TCP connection, and
datagrams between the same two addresses.

All connections and datagrams go from the client to one port of the server. Whoever connects must prove that he knows
the server's token, without sending it: he answers a fresh challenge by its HMAC (RFC 2104).
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import socket
from contextlib import suppress
from typing import Any, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from harness.network.datagrams import stamped
from harness.network.probe_protocol import hear, say
from harness.scenario.section import Section

PORT = 5210

NAME = "pacbench link 1"
"""What a server says first; the number changes with the protocol."""

TOKEN_BYTES = 16

HANDSHAKE_S = 10.0
"""How long a stranger may take to prove that he knows the token."""

STALL_S = 60.0
"""How long the other side may say nothing."""

MOST_FLOW_S = 3600.0

MOST_SESSION_S = 2 * MOST_FLOW_S

MOST_DATAGRAMS, MOST_DATAGRAM_BYTES = 60_000, 9000

MOST_PER_S = 50_000
"""Datagrams a second: about what two Pythons can send and take."""

MOST_SENDING_S = 30.0
"""How long a server sends datagrams that are to be counted."""

MOST_LINE_BYTES = 1024
MOST_ANSWER_BYTES = 1 << 20
"""The arrivals of the longest flow are one line."""

MARK_BYTES = 16


class Request(Section):
    """What a client asks of a server. Each value is limited: by it a client makes the server send, to himself alone."""

    op: Literal["echo", "send", "take", "count", "counted", "number", "end"]
    """``echo``: send datagrams back, until the next request. ``send`` a flow. ``take`` the flow that follows.
    ``count`` datagrams that come; ``counted``: what became of them? ``number``: send datagrams that I count."""
    seconds: float = Field(default=0.0, ge=0, le=MOST_FLOW_S)
    mark: str = Field(default="00" * MARK_BYTES, pattern=rf"^[0-9a-f]{{{2 * MARK_BYTES}}}$")
    """What the datagrams begin with."""
    packets: int = Field(default=0, ge=0, le=MOST_DATAGRAMS)
    size_bytes: int = Field(default=100, ge=MARK_BYTES + 4, le=MOST_DATAGRAM_BYTES)
    per_s: float = Field(default=1000.0, gt=0, le=MOST_PER_S)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.packets > MOST_SENDING_S * self.per_s:
            raise ValueError(f"packets that take up to {MOST_SENDING_S:g} s")
        return self


def new_token() -> str:
    """A token that nobody guesses."""
    return secrets.token_hex(TOKEN_BYTES)


def new_mark() -> str:
    """A mark that nobody guesses who does not see the path."""
    return secrets.token_hex(MARK_BYTES)


def challenge(connection: socket.socket, token: str) -> bool:
    """A server's side of the handshake: whether the client knows the token.

    Raises:
        OSError: the client left, said something else, or took too long.
    """
    nonce = secrets.token_hex(TOKEN_BYTES)
    say(connection, {"name": NAME, "nonce": nonce})
    told = hear(connection, MOST_LINE_BYTES).get("proof")
    return isinstance(told, str) and hmac.compare_digest(_encoded(told), _encoded(_proof(token, nonce)))


def answer_challenge(connection: socket.socket, token: str) -> dict[str, Any]:
    """A client's side of the handshake: ``{"welcome": true}``, or ``{"refused": "token" or "busy"}``.

    Raises:
        OSError: the server left, is another program, or took too long.
    """
    told = hear(connection, MOST_LINE_BYTES)
    if told.get("name") != NAME:
        raise ConnectionError(f"it is no server of {NAME!r}")
    say(connection, {"proof": _proof(token, str(told.get("nonce")))})
    return hear(connection, MOST_LINE_BYTES)


def _proof(token: str, nonce: str) -> str:
    return hmac.new(_encoded(token), _encoded(nonce), hashlib.sha256).hexdigest()


def _encoded(told: str) -> bytes:
    """Its bytes, also of what is no text: strangers and command lines say anything."""
    return told.encode(errors="surrogatepass")


def datagram_socket(family: int, address: tuple[Any, ...] = ("", 0)) -> socket.socket:
    """A stamped socket at an address of this host, or on a port of all: of IPv6 for IPv4, too, where the kernel can.

    Raises:
        OSError: somebody has that port, or nobody may have it.
    """
    datagrams = stamped(socket.socket(family, socket.SOCK_DGRAM))
    if family == socket.AF_INET6:
        with suppress(OSError):
            datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    try:
        datagrams.bind(address)
    except OSError:
        datagrams.close()
        raise
    return datagrams
