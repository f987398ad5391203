"""A node's side of measuring links: it answers, sends and receives what it is asked to, until told to quit."""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any

from harness.network.datagrams import Receiver, reply, round_trips, send_numbered, stamped
from harness.network.probe_protocol import PING, PORT, SILENCE_S, asking, call, hear, receive, say, silence_s

CHUNK_BYTES = 1 << 18


def answer(address: str = "") -> None:
    """Serve whoever asks at an address, or at all, until told to quit. Runs on every node."""
    with socket.create_server((address, PORT), backlog=256) as flows, socket.socket(type=socket.SOCK_DGRAM) as control:
        stamped(control).bind((address, PORT))
        threading.Thread(target=_accept_flows, args=(flows,), daemon=True).start()
        _Answering(control).serve()


class _Answering:
    """A node's side of ``call``: each request is done once, by a thread of its own, and its answer kept."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._answers: dict[str, bytes | None] = {}
        self._receivers: dict[int, _Counting] = {}

    def serve(self) -> None:
        """Answer until told to quit."""
        while True:
            datagram, arrived_s, sender = receive(self._control)
            if datagram.startswith(PING):
                self._control.sendto(reply(datagram, arrived_s), sender)
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
                return _flood_bps(request)
            case "count":
                return _send_numbered(request)
            case "receive":
                receiver = _Counting(request["packets"])
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
        connection.settimeout(SILENCE_S)
        try:
            request = hear(connection)
        except ConnectionError:
            return  # it only looked whether somebody listens, or has ended; its own side says so
        connection.settimeout(request["silence_s"])
        if request["op"] == "sink":
            say(connection, {"value": _sink(connection, request)})
        else:
            say(connection, {"value": _drain(connection, request["seconds"])})
            while connection.recv(CHUNK_BYTES):  # until the sender has heard it
                pass


def _ping(request: Mapping[str, Any]) -> list[float]:
    """Round trips of datagrams to a peer, in seconds; those that are lost are left out."""
    call(request["to"], {"op": "hello"}, request["dilation"])
    with stamped(socket.socket(type=socket.SOCK_DGRAM)) as datagrams:
        datagrams.connect((request["to"], PORT))
        trips = round_trips(datagrams, request["pings"], request["gap_s"], request["wait_s"])
        return [trip.round_trip_s for trip in trips.values()]


def _flow(request: Mapping[str, Any]) -> float:
    """Send a bulk flow to a peer; payload bytes per second that it saw."""
    chunk, left, most_silence_s = bytes(CHUNK_BYTES), int(request["bytes"]), silence_s(request)
    asked = {"op": "sink", "skip": request["skip"], "bytes": request["bytes"], "silence_s": most_silence_s}
    with asking(request["to"], most_silence_s) as connection:
        say(connection, asked)
        while left > 0:
            left -= connection.send(memoryview(chunk)[:left])
        return float(hear(connection)["value"])


def _sink(connection: socket.socket, flow: Mapping[str, Any]) -> float:
    """Receive the whole flow; payload bytes per second of what came after its first ``skip`` bytes."""
    buffer = bytearray(CHUNK_BYTES)
    received, started, counted_from = 0, 0.0, 0
    while received < flow["bytes"]:
        received += _taken(connection, buffer)
        if not started and received >= flow["skip"]:
            started, counted_from = time.perf_counter(), received
    return (received - counted_from) / (time.perf_counter() - started)


def _flood_bps(request: Mapping[str, Any]) -> float:
    """Payload bits per second that get through to a peer when nothing holds them back, by what it sees.

    Of what was sent megabytes still lie in buffers on the way.
    """
    chunk, most_silence_s = bytes(CHUNK_BYTES), silence_s(request)
    with asking(request["to"], most_silence_s) as connection:
        say(connection, {"op": "drain", "seconds": request["seconds"], "silence_s": most_silence_s})
        while not select.select([connection], [], [], 0)[0]:
            connection.send(chunk)
        return 8 * float(hear(connection)["value"])


def _drain(connection: socket.socket, seconds: float) -> float:
    """Receive for so long, from a flow's first bytes on; payload bytes per second of what came after those."""
    buffer, received = bytearray(CHUNK_BYTES), 0
    _taken(connection, buffer)
    started = time.perf_counter()
    while (passed_s := time.perf_counter() - started) < seconds:
        received += _taken(connection, buffer)
    return received / passed_s


def _taken(connection: socket.socket, buffer: bytearray) -> int:
    """How many bytes of a flow have arrived next."""
    count = connection.recv_into(buffer)
    if not count:
        raise ConnectionError("a flow ended early")
    return count


def _send_numbered(request: Mapping[str, Any]) -> Any:
    """Send numbered datagrams to a peer at a steady pace, or all at once; what it received."""
    packets, dilation = int(request["packets"]), request["dilation"]
    port = call(request["to"], {"op": "receive", "packets": packets}, dilation)
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        datagrams.connect((request["to"], port))
        send_numbered(datagrams, packets, int(request["bytes"]), request["per_s"])
        time.sleep(request["wait_s"])
    return call(request["to"], {"op": "received", "port": port}, dilation)


class _Counting:
    """A socket of its own for numbered datagrams that are to come."""

    def __init__(self, packets: int) -> None:
        self._datagrams = stamped(socket.socket(type=socket.SOCK_DGRAM))
        self._datagrams.bind(("", 0))
        self.port: int = self._datagrams.getsockname()[1]
        self._receiver = Receiver(self._datagrams, packets)

    def result(self) -> dict[str, Any]:
        """See ``Receiver.result``."""
        with self._datagrams:
            return self._receiver.result()
