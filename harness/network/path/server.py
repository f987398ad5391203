"""The side of a path that serves: it answers one client at a time, who must know its token, and does nothing else.

What it sends goes to that client alone, and is limited: see ``protocol.Request``.
"""

from __future__ import annotations

import queue
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, NamedTuple

from pydantic import ValidationError
from typing_extensions import Self

from harness.errors import MeasurementError, UsageError
from harness.network.datagrams import Receiver, reply, send_numbered
from harness.network.path.bulk import send_flow, take_flow
from harness.network.path.protocol import (
    HANDSHAKE_S,
    MOST_LINE_BYTES,
    MOST_SESSION_S,
    STALL_S,
    Request,
    challenge,
    datagram_socket,
    new_token,
)
from harness.network.probe_protocol import hear, receive, say
from harness.scenario.section import in_words

MOST_STRANGERS = 8
"""Who may be about to prove that he knows the token; more are sent away."""

ACCEPTS_AGAIN_AFTER_S = 0.1


class _Told(NamedTuple):
    """What a server says of who came."""

    line: str
    has_ended: bool = False
    """Whether it is the end of a client who knew the token."""
    has_failed: bool = False


class Server:
    """Listens for TCP from the moment it is made; for datagrams only while a client is served.

    Args:
        port: of all addresses, IPv6 and IPv4; 0 takes a free one.

    Raises:
        UsageError: nobody may listen there.
    """

    def __init__(self, port: int) -> None:
        has_both = socket.has_dualstack_ipv6()
        self._family = socket.AF_INET6 if has_both else socket.AF_INET
        protocol = "TCP"
        try:
            self._listening = socket.create_server(("", port), family=self._family, dualstack_ipv6=has_both)
            protocol = "UDP"
            datagram_socket(self._family, ("", self._listening.getsockname()[1])).close()
        except OSError as error:
            if protocol == "UDP":
                self._listening.close()
            allowed = f"one that is free, and that you may listen on ({protocol}: {error.strerror})"
            raise UsageError.at("command line", "--port", port, allowed) from None
        self.port: int = self._listening.getsockname()[1]
        self.token = new_token()
        self._strangers = threading.BoundedSemaphore(MOST_STRANGERS)
        self._one_client = threading.Lock()
        self._is_closed = threading.Event()
        self._told: queue.Queue[_Told] = queue.Queue()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_closed.set()
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)  # else whoever waits in accept would still take a client
        self._listening.close()

    def serve(self, once: bool, tell: Callable[[str], None]) -> None:
        """Serve until interrupted.

        Args:
            once: end after the first client who knew the token.
            tell: hears who came, and how it ended, a line each.

        Raises:
            MeasurementError: with ``once``, the client left before it had what it wanted.
        """
        while True:
            told = self._told.get()
            if once and told.has_failed:
                raise MeasurementError(told.line)
            tell(told.line)
            if once and told.has_ended:
                return

    def _accept(self) -> None:
        while True:
            try:
                connection, address = self._listening.accept()
            except OSError:
                # Of a stranger who has left again, or for want of descriptors: others may come yet.
                if self._is_closed.wait(ACCEPTS_AGAIN_AFTER_S):
                    return
                continue
            if self._strangers.acquire(blocking=False):
                threading.Thread(target=self._meet, args=(connection, address), daemon=True).start()
            else:
                connection.close()

    def _meet(self, connection: socket.socket, address: tuple[Any, ...]) -> None:
        host = str(address[0]).removeprefix("::ffff:")  # an IPv4 address, as a socket of IPv6 shows it
        with connection:
            connection.settimeout(HANDSHAKE_S)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                knows_token = self._knows_token(connection)
            except OSError:
                return  # whoever it was has not asked for anything
            finally:
                self._strangers.release()
            if not knows_token:
                self._told.put(_Told(f"{host}: refused: it has another token"))
            elif self._one_client.acquire(blocking=False):
                try:
                    self._serve_and_tell(connection, address, host)
                finally:
                    self._one_client.release()
            else:
                self._told.put(_Told(f"{host}: refused: another one is served"))
                with suppress(OSError):
                    say(connection, {"refused": "busy"})

    def _knows_token(self, connection: socket.socket) -> bool:
        """Whether a stranger does; who does not is told.

        Raises:
            OSError: it left, or took too long.
        """
        with _hanging_up_after(HANDSHAKE_S, connection):  # whoever says a byte now and then, too
            knows_token = challenge(connection, self.token)
        if not knows_token:
            say(connection, {"refused": "token"})
        return knows_token

    def _serve_and_tell(self, connection: socket.socket, address: tuple[Any, ...], host: str) -> None:
        self._told.put(_Told(f"{host}: measures"))
        try:
            self._serve(connection, address)
            self._told.put(_Told(f"{host}: has measured", has_ended=True))
        except (OSError, ValidationError, struct.error) as error:
            why = in_words(error) if isinstance(error, ValidationError) else error
            self._told.put(_Told(f"{host}: ended early: {why}", has_ended=True, has_failed=True))

    def _serve(self, connection: socket.socket, address: tuple[Any, ...]) -> None:
        """Serve a client who knows the token to its end.

        He takes datagrams from the address that he has connected to, and from no other one that a route may choose.
        """
        own = connection.getsockname()
        with datagram_socket(self._family, own) as datagrams, _hanging_up_after(MOST_SESSION_S, connection):
            say(connection, {"welcome": True})
            connection.settimeout(STALL_S)
            _Session(connection, datagrams, address).serve()


@contextmanager
def _hanging_up_after(seconds: float, connection: socket.socket) -> Iterator[None]:
    """Within it the connection lasts so long at most."""

    def hang_up() -> None:
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, hang_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _Session:
    """What one client asks for, one thing after another."""

    def __init__(self, connection: socket.socket, datagrams: socket.socket, client: tuple[Any, ...]) -> None:
        self._connection, self._datagrams, self._client_host = connection, datagrams, client[0]
        self._receiver: Receiver | None = None

    def serve(self) -> None:
        """Answer until the client ends it.

        Raises:
            OSError: the client left, or took too long.
            ValidationError: it asked for what nobody may ask for.
        """
        try:
            while True:
                asked = Request.model_validate(hear(self._connection, MOST_LINE_BYTES))
                if asked.op == "end":
                    return
                if (answer := self._do(asked)) is not None:
                    say(self._connection, answer)
        finally:
            if self._receiver:
                self._receiver.stop()

    def _do(self, asked: Request) -> dict[str, Any] | None:
        mark = bytes.fromhex(asked.mark)
        match asked.op:
            case "echo":
                self._echo(mark)
            case "send":
                send_flow(self._connection, asked.seconds)
            case "take":
                return {"value": take_flow(self._connection, asked.seconds)}
            case "count":
                if self._receiver:
                    self._receiver.stop()
                self._receiver = Receiver(self._datagrams, asked.packets, mark)
                return {"value": None}
            case "counted":
                return self._counted()
            case "number":
                send_numbered(self._datagrams, asked.packets, asked.size_bytes, asked.per_s, mark)
                return {"value": None}
        return None

    def _echo(self, mark: bytes) -> None:
        """Send back what has this mark, until the client asks for something else.

        The first such datagram from the client's host says from which port of it they all come.
        """
        say(self._connection, {"value": None})
        self._datagrams.settimeout(0.0)
        is_known = False
        while True:
            readable, _, _ = select.select([self._connection, self._datagrams], [], [], STALL_S)
            if not readable:
                raise TimeoutError("it says nothing any more")
            if self._datagrams in readable:
                try:
                    datagram, arrived_s, sender = receive(self._datagrams)
                except BlockingIOError:  # its checksum was wrong
                    continue
                if not datagram.startswith(mark) or sender[0] != self._client_host:
                    continue
                if not is_known:
                    self._datagrams.connect(sender)
                    is_known = True
                self._datagrams.send(reply(datagram, arrived_s, mark))
            else:
                return

    def _counted(self) -> dict[str, Any]:
        receiver, self._receiver = self._receiver, None
        if receiver is None:
            return {"error": "nothing is counted"}
        try:
            return {"value": receiver.result()}
        except ConnectionError as error:
            return {"error": str(error)}
