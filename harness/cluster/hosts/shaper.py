"""Shape a host's own interface, where its user has said so, and put it back whatever happens.

What a host sends passes a token bucket at the interface. What it gets is redirected to a device of ours (ifb) and
passes a bucket there (tc-mirred(8)). A process of its own does both and waits on a pipe: when whoever asked has ended,
by an exit or by SIGKILL, it puts the interface back and ends. Our bucket's handle and our device's name tell what is
ours, so that the next one finds what was left where this process itself was killed. While it lives it holds a name of
the interface's own, and no other process shapes it or puts it back.
"""

from __future__ import annotations

import json
import signal
import socket
import sys
import time
from contextlib import suppress
from subprocess import PIPE
from typing import Any

from harness import programs
from harness.errors import MeasurementError, UsageError
from harness.messages import ShapeLink
from harness.network import qdisc
from harness.network.iproute import run, run_lines
from harness.scenario.links import Pipe

HANDLE = "ac0b:"
"""Of our queue. No other may stand there: what somebody has set is not ours to replace."""

DEFAULT_HANDLE = "0:"
"""Of the queue that the kernel gives an interface by itself, and gives it again when ours goes."""

DEVICES = "pacbench-"
"""What the names of our own devices begin with."""

INGRESS = "ingress"

PREDECESSOR_S, AGAIN_S = 10.0, 0.1
"""How long whoever shaped the interface before may take to put it back, and how often that is looked at."""


class Shaper:
    """Answers ``ShapeLink`` on one host.

    Args:
        interface: the one that may be shaped; None: none may, since nobody has said so here.
    """

    def __init__(self, interface: str | None) -> None:
        self._interface = interface
        self._guard: Any = None
        """The process that shapes, once one was asked for; another one, where that was killed."""

    def __call__(self, request: ShapeLink) -> None:
        """Shape it.

        Raises:
            UsageError: it may not be shaped, or has a queue that somebody else has set.
            MeasurementError: the kernel refuses.
        """
        if self._interface is None:
            found, allowed = "neither", "both, on every host whose link is to be shaped"
            raise UsageError.at("command line", "--shape with --interface", found, allowed)
        if self._guard is None or self._guard.poll() is not None:
            command = programs.python(__name__, self._interface)
            self._guard = programs.start(command, stdin=PIPE, stdout=PIPE, text=True, start_new_session=True)
        try:
            self._guard.stdin.write(json.dumps(vars(request)) + "\n")
            self._guard.stdin.flush()
            answer = json.loads(self._guard.stdout.readline() or '{"kind": "gone"}')
        except OSError:
            answer = {"kind": "gone"}
        match answer["kind"]:
            case "done":
                return
            case "usage":
                raise UsageError(answer["reason"])
            case "gone":
                raise MeasurementError(f"{self._interface}: the process that shapes it has ended")
        raise MeasurementError(answer["reason"])


def ingress_device(interface: str) -> str:
    """Our device through which passes what an interface gets: of its number, since names have at most 15 letters.

    Raises:
        MeasurementError: there is no such interface any more.
    """
    try:
        return f"{DEVICES}{socket.if_nametoindex(interface)}"
    except OSError:
        raise MeasurementError(f"{interface}: there is no such interface any more") from None


def hold(interface: str) -> socket.socket:
    """Be the only one who shapes an interface until the socket is closed, or this process has ended in any way.

    A name in the abstract namespace belongs to one network namespace, as interfaces do, and ends with who took it
    (unix(7)).

    Raises:
        OSError: somebody else holds it.
    """
    name = ingress_device(interface)
    held = socket.socket(socket.AF_UNIX)
    try:
        held.bind(f"\0{name}")
    except OSError:
        held.close()
        raise
    return held


def shape(interface: str, up_bps: int | None, down_bps: int | None) -> None:
    """Give an interface these rates in both directions, on the wire; None leaves a direction as it is.

    Raises:
        UsageError: somebody else has set a queue there.
        MeasurementError: the kernel refuses.
    """
    put_back(interface)
    _check_free(interface)
    if up_bps:
        run_lines("tc", None, [f"qdisc add dev {interface} root handle {HANDLE} {_bucket(up_bps)}"])
    if down_bps:
        device = ingress_device(interface)
        run_lines("ip", None, [f"link add {device} type ifb", f"link set {device} up"])
        redirect = f"u32 match u32 0 0 action mirred egress redirect dev {device}"  # every kernel with filters has u32
        lines = [
            f"qdisc add dev {device} root handle {HANDLE} {_bucket(down_bps)}",
            f"qdisc add dev {interface} handle ffff: {INGRESS}",
            f"filter add dev {interface} parent ffff: protocol all {redirect}",
        ]
        run_lines("tc", None, lines)


def shaped() -> list[str]:
    """The interfaces of this host that have a queue or a device of ours."""
    every: list[dict[str, Any]] = json.loads(run(["tc", "-j", "qdisc", "show"]))
    queued = {each["dev"] for each in every if each["handle"] == HANDLE}
    numbers = {name: number for number, name in socket.if_nameindex()}
    ours = {name for name in numbers if name.startswith(DEVICES)}
    return [
        name
        for name, number in numbers.items()
        if name not in ours and (name in queued or f"{DEVICES}{number}" in ours)
    ]


def check_unshaped(interface: str) -> None:
    """Refuse an interface that is to be used as it is, and is not: it has a queue of ours.

    Raises:
        UsageError: another run shapes it, or one that was killed has left it so.
    """
    if interface in shaped():
        allowed = "one as it is; what a run that was killed has left there, `pacbench clean` puts back"
        raise UsageError.at("command line", "--interface", f"{interface}, shaped by pacbench", allowed)


def put_back(interface: str) -> None:
    """Remove what is ours of an interface, and nothing else."""
    kinds = {each["kind"]: each["handle"] for each in _queues(interface)}
    device = ingress_device(interface)
    has_device = device in (name for _, name in socket.if_nameindex())
    lines = [f"qdisc del dev {interface} root"] if HANDLE in kinds.values() else []
    lines += [f"qdisc del dev {interface} {INGRESS}"] if has_device and INGRESS in kinds else []
    if lines:
        run_lines("tc", None, lines)
    if has_device:  # after what was redirected to it
        run_lines("ip", None, [f"link del {device}"])


def _check_free(interface: str) -> None:
    for queue in _queues(interface):
        if (queue.get("root") and queue["handle"] != DEFAULT_HANDLE) or queue["kind"] in (INGRESS, "clsact"):
            allowed = "an interface with the kernel's own queue: what somebody has set cannot surely be put back"
            raise UsageError.at("command line", "--interface", f"{interface} with {queue['kind']}", allowed)


def _queues(interface: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run(["tc", "-j", "qdisc", "show", "dev", interface]))
    return found


def _bucket(rate_bps: int) -> str:
    """A queue that keeps a rate with segments of any size: a host's offloads stay as they are."""
    plain = Pipe.model_construct(rate_bps=rate_bps)
    burst_bytes = max(qdisc.LARGEST_SEGMENT_BYTES, qdisc.burst_bytes(plain))
    return qdisc.qdisc(plain.model_copy(update={"burst_bytes": burst_bytes}))


def main() -> None:
    """Shape as asked on stdin, a line of JSON each time, until it ends; then put the interface back."""
    (interface,) = sys.argv[1:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # only the end of who asked ends this
    try:
        held = _hold_soon(interface)
    except (UsageError, MeasurementError) as error:
        sys.stdin.readline()
        _say("usage" if isinstance(error, UsageError) else "failed", str(error))
        return
    with held:
        try:
            for line in sys.stdin:
                _answer(interface, json.loads(line))
        finally:
            put_back(interface)


def _hold_soon(interface: str) -> socket.socket:
    """``hold``, once whoever shaped it before has ended.

    Raises:
        UsageError: that does not end.
    """
    deadline = time.monotonic() + PREDECESSOR_S
    while True:
        try:
            return hold(interface)
        except OSError:
            if time.monotonic() > deadline:
                allowed = "one that no other run shapes"
                raise UsageError.at("command line", "--interface", interface, allowed) from None
            time.sleep(AGAIN_S)


def _answer(interface: str, asked: dict[str, Any]) -> None:
    try:
        shape(interface, asked["up_bps"], asked["down_bps"])
    except UsageError as error:
        _say("usage", str(error))
    except MeasurementError as error:
        with suppress(MeasurementError):
            put_back(interface)
        _say("failed", str(error))
    else:
        _say("done")


def _say(kind: str, reason: str = "") -> None:
    print(json.dumps({"kind": kind, "reason": reason}), flush=True)


if __name__ == "__main__":
    main()
