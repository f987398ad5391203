"""The side of a path that measures: it tells the server what to send, to take and to count."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator
from typing_extensions import Self

from harness.errors import MeasurementError, UsageError
from harness.network.datagrams import Receiver, Trip, round_trips, send_numbered
from harness.network.path.bulk import send_flow, take_flow
from harness.network.path.protocol import (
    HANDSHAKE_S,
    MOST_ANSWER_BYTES,
    STALL_S,
    answer_challenge,
    datagram_socket,
    new_mark,
)
from harness.network.probe_protocol import hear, say
from harness.network.readings import Counts
from harness.scenario.links import Direction
from harness.scenario.section import Section, SectionT, in_words

TCP_HEADER_BYTES = 20

TIMESTAMP_BYTES = 12
"""Of TCP's option in each segment, where both hosts use it (RFC 7323). The kernel's segment size leaves it out."""

TCP_INFO_BYTES, TCP_INFO_OPTIONS, HAS_TIMESTAMPS = 104, 5, 1
"""Of struct tcp_info (<linux/tcp.h>): its size, the place of its options, and TCPI_OPT_TIMESTAMPS among them."""


class Peer:
    """A server that this host is connected to.

    Args:
        host: a name, or an address of IPv4 or IPv6.

    Raises:
        UsageError: there is no such host, or the token is another.
        MeasurementError: nobody answers there, or not as a server does, or it serves another client.
    """

    def __init__(self, host: str, port: int, token: str) -> None:
        self._name, self._port = host, port
        self._connection = _connect(host, port)
        self._datagrams = datagram_socket(self._connection.family)
        try:
            self._introduce(token)
            self._datagrams.connect(self._connection.getpeername())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            say(self._connection, {"op": "end"})
            self._connection.recv(1)  # it hangs up when it is free for others
        self.close()

    def close(self) -> None:
        """Let go of it without a word."""
        self._connection.close()
        self._datagrams.close()

    @property
    def segment_bytes(self) -> int:
        """Payload bytes of a full segment, as TCP has found them for this path."""
        return self._connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)

    @property
    def ip_version(self) -> int:
        """4 or 6."""
        return 4 if self._connection.family == socket.AF_INET else 6

    @property
    def ip_header_bytes(self) -> int:
        """Of each packet, without extensions."""
        return 20 if self.ip_version == 4 else 40

    @property
    def packet_bytes(self) -> int:
        """The largest packet of the path, its IP header included: its MTU."""
        told = self._connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
        options_bytes = TIMESTAMP_BYTES if told[TCP_INFO_OPTIONS] & HAS_TIMESTAMPS else 0
        return self.segment_bytes + options_bytes + TCP_HEADER_BYTES + self.ip_header_bytes

    def round_trips(self, pings: int, gap_s: float, wait_s: float) -> list[Trip]:
        """Ways there and back of datagrams over an idle path; lost ones are left out.

        Raises:
            OSError: the server is gone.
        """
        mark = new_mark()
        self._ask({"op": "echo", "mark": mark})
        try:
            return [*round_trips(self._datagrams, pings, gap_s, wait_s, bytes.fromhex(mark)).values()]
        except ConnectionError:  # the server's host, or a firewall before it, says that nobody listens
            return []

    def flow(self, way: Direction, seconds: float) -> list[int]:
        """Payload bytes that arrive in each window of a bulk flow, up to the server or down from it.

        Raises:
            OSError: the server is gone.
        """
        if way == "down":
            say(self._connection, {"op": "send", "seconds": seconds})
            return take_flow(self._connection, seconds)
        say(self._connection, {"op": "take", "seconds": seconds})
        send_flow(self._connection, seconds)
        return _checked(_Arrivals, self._heard()).value

    def count(self, way: Direction, packets: int, size_bytes: int, per_s: float, wait_s: float) -> Counted:
        """What becomes of numbered datagrams. Round trips come first: by them the server knows where to send.

        Args:
            wait_s: for the last ones.

        Raises:
            UncountableError: the receiver could not keep up.
            OSError: the server is gone.
        """
        mark = new_mark()
        numbers: dict[str, Any] = {"mark": mark, "packets": packets, "size_bytes": size_bytes, "per_s": per_s}
        if way == "up":
            self._ask({"op": "count", **numbers})
            with suppress(ConnectionRefusedError):
                send_numbered(self._datagrams, packets, size_bytes, per_s, bytes.fromhex(mark))
            time.sleep(wait_s)
            told = self._ask({"op": "counted"})
            if "error" in told:
                raise UncountableError(str(told["error"]))
            found = _checked(_Answer, told).value
        else:
            receiver = Receiver(self._datagrams, packets, bytes.fromhex(mark))
            try:
                self._ask({"op": "number", **numbers})
                time.sleep(wait_s)
            finally:
                receiver.stop()
            try:
                found = Counted.model_validate(receiver.result())
            except ConnectionError as error:
                raise UncountableError(str(error)) from None
        if found.counts.sent != packets:
            raise ConnectionError("it has counted what was never sent")
        return found

    def _introduce(self, token: str) -> None:
        try:
            self._connection.settimeout(HANDSHAKE_S)
            self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            told = answer_challenge(self._connection, token)
            self._connection.settimeout(STALL_S)
        except OSError as error:
            raise _no_server(self._name, self._port, error) from None
        if told.get("refused") == "busy":
            raise MeasurementError(f"{self._name} port {self._port}: it serves another client; try again later")
        if not told.get("welcome"):
            allowed = f"the one that `pacbench link --serve` has printed on {self._name}"
            raise UsageError.at("command line", "--token", "another token", allowed)

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        say(self._connection, request)
        return self._heard()

    def _heard(self) -> dict[str, Any]:
        return hear(self._connection, MOST_ANSWER_BYTES)


class UncountableError(Exception):
    """Datagrams came faster than a host could take them, so that nothing can be said of them."""


class Counted(Section):
    """What became of numbered datagrams."""

    arrived_per_s: float = Field(ge=0, allow_inf_nan=False)
    """How fast they came."""
    counts: Counts

    @model_validator(mode="after")
    def _check(self) -> Self:
        found = self.counts
        if min(found.bursts, found.duplicated, found.overtook) < 0 or not found.bursts <= found.lost <= found.sent:
            raise ValueError("counts that can be")
        if found.lost and not found.bursts:
            raise ValueError("a burst where some are lost")
        return self


class _Answer(Section):
    value: Counted


class _Arrivals(Section):
    value: list[Annotated[int, Field(ge=0)]]


def _checked(model: type[SectionT], told: Mapping[str, Any]) -> SectionT:
    try:
        return model.model_validate(told)
    except ValidationError as error:
        raise ConnectionError(f"its answer makes no sense: {in_words(error)}") from None


def _connect(host: str, port: int) -> socket.socket:
    try:
        return socket.create_connection((host, port), timeout=HANDSHAKE_S)
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no name of a host"
        raise UsageError.at("command line", "HOST", host, f"a name or an address that is known ({reason})") from None
    except OverflowError:
        raise UsageError.at("command line", "--port", port, "1 to 65535") from None
    except OSError as error:
        raise _no_server(host, port, error) from None


def _no_server(host: str, port: int, error: OSError) -> MeasurementError:
    reason = error.strerror or str(error)
    return MeasurementError(f"{host} port {port}: no server answers ({reason}); start `pacbench link --serve` there")
