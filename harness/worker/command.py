"""A user's command on a node: its ranks are started, heard, watched and ended, down to the last process they leave.

One thread waits for all of it: what ranks print, their ends, signals, and the time to look at the link again.
"""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from harness import programs
from harness.messages import CommandEnded, Failed, Output, RankEnded, Send
from harness.network.addresses import worker_number
from harness.network.traffic import TrafficWatch
from harness.worker import processes
from harness.worker.torchrun import DEFAULTS, Place, filled, variables

READ_BYTES = 1 << 16

LINE_END = re.compile(rb"\r\n|\n|\r(?=[^\n])")
"""Progress bars end what they print by a carriage return; one at the very end may be half of an end of line."""

NEVER = float("inf")

PYTHONPATH = "PYTHONPATH"


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be run on every node, and where."""

    command: list[str]
    folder: str
    environment: dict[str, str]
    """The user's own. Nothing of the agent's is added, but what ``inherited`` names."""
    more: dict[str, str]
    """Variables over the user's, such as those that put a method into his script; their PYTHONPATH comes before his."""
    workers: int
    per_node: int
    port: int
    look_every_s: float
    grace_s: float
    """How long processes may take to end when they are told to, and what ranks leave behind may live on."""
    interface: str
    meeting_address: str
    inherited: list[str] = field(default_factory=list)
    covered: list[str] = field(default_factory=list)
    """See ``processes.uncover``; a cluster of containers covers nothing."""
    start_file: str | None = None
    """To be made when ranks start."""
    as_owner: bool = False
    """Whether the command runs as whoever owns the folder, where this process is another: a container's root."""

    def variables(self, place: Place) -> dict[str, str]:
        """The whole environment of a rank."""
        inherited = {name: os.environ[name] for name in self.inherited if name in os.environ}
        own = variables(place, self.interface, self.meeting_address, self.port)
        more, users = dict(self.more), self.environment.get(PYTHONPATH)
        if PYTHONPATH in more and users:
            more[PYTHONPATH] += os.pathsep + users
        return {**DEFAULTS, **inherited, **self.environment, **more, **own}


def execute(spec: Mapping[str, Any], node: str, send: Send) -> None:
    """Run a command on this node until no process of it is left; SIGTERM and SIGINT are passed on to it.

    Args:
        spec: an ``Order``.
    """
    order = Order(**spec)
    with TrafficWatch() as watch:
        if order.start_file and worker_number(node) == 0:
            Path(order.start_file).touch()
        if order.covered:
            processes.uncover(order.covered)
        _Node(order, worker_number(node), send, watch).run()


@dataclass
class Printed:
    """What a rank prints to one of its two streams."""

    rank: int
    to_stderr: bool
    rest: bytes = b""

    def lines(self, chunk: bytes) -> list[str]:
        """The lines that a chunk completes. An empty chunk is the end; what grows very long is a line, too."""
        *lines, self.rest = LINE_END.split(self.rest + chunk)
        if self.rest and (not chunk or len(self.rest) > READ_BYTES):
            lines.append(self.rest.removesuffix(b"\r"))
            self.rest = b""
        return [line.decode(errors="replace") for line in lines]


class _Node:
    """The ranks of this node, and all that they start."""

    def __init__(self, order: Order, node: int, send: Send, watch: TrafficWatch) -> None:
        self._order, self._send, self._watch = order, send, watch
        self._places = [Place(node, local, order.workers, order.per_node) for local in range(order.per_node)]
        self._running: dict[int, int] = {}
        """Rank by process."""
        self._started: list[object] = []
        """Popens. Kept, since one that is let go reaps its process if that has ended, whose end would never be told."""
        self._selector = selectors.DefaultSelector()
        self._open_pipes = 0
        self._signals: list[int] = []
        """Those to be passed on."""
        self._kill_at_s = NEVER
        self._cpu_s, self._peak_memory_bytes = 0.0, 0

    def run(self) -> None:
        """Everything, from the first rank's start to the last process's end."""
        processes.adopt_orphans()
        own = processes.descendants()
        self._hear_signals()
        with ExitStack() as stack:
            try:
                for place in self._places:
                    self._start(place, stack)
            except OSError as error:
                self._give_up(f"{self._order.command[0]}: it cannot be run: {error.strerror}")
            except subprocess.SubprocessError:
                self._give_up(f"{self._order.folder}: the command cannot be run there: its folder cannot be entered")
            self._attend(own)
        self._send(self._watch.look())
        self._send(CommandEnded(cpu_s=self._cpu_s, peak_memory_bytes=self._peak_memory_bytes))

    def _give_up(self, reason: str) -> None:
        self._send(Failed(reason=reason))
        self._kill_at_s = time.monotonic()

    def _start(self, place: Place, stack: ExitStack) -> None:
        environment = self._order.variables(place)
        process = programs.start_for_user(
            filled(self._order.command, environment),
            environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=partial(_enter, self._order.folder),  # safe: this process has one thread
            **(_owner(self._order.folder) if self._order.as_owner else {}),
        )
        self._running[process.pid] = place.rank
        self._started.append(process)
        for stream, to_stderr in ((process.stdout, False), (process.stderr, True)):
            assert stream
            stack.callback(stream.close)
            read = partial(self._read, stream.fileno(), Printed(place.rank, to_stderr))
            self._selector.register(stream.fileno(), selectors.EVENT_READ, read)
            self._open_pipes += 1

    def _attend(self, own: set[int]) -> None:
        """Serve the ranks until nothing of them is left, or what is left cannot even be killed."""
        look_at_s = time.monotonic()
        while self._running or self._open_pipes or processes.descendants() - own:
            now = time.monotonic()
            if now >= look_at_s:
                look_at_s = now + self._order.look_every_s
                self._look(processes.descendants() - own)
            if now >= self._kill_at_s + self._order.grace_s:
                break
            if now >= self._kill_at_s:
                self._kill(processes.descendants() - own)
            for key, _ in self._selector.select(max(0.0, look_at_s - now)):
                key.data()
            self._pass_signals_on()
            self._reap()

    def _look(self, started: set[int]) -> None:
        self._send(self._watch.look())
        self._peak_memory_bytes = max(self._peak_memory_bytes, processes.resident_bytes(started))

    def _read(self, descriptor: int, pipe: Printed) -> None:
        chunk = os.read(descriptor, READ_BYTES)
        if lines := pipe.lines(chunk):
            self._send(Output(rank=pipe.rank, lines=lines, to_stderr=pipe.to_stderr))
        if not chunk:
            self._selector.unregister(descriptor)
            self._open_pipes -= 1

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while (ended := os.wait4(-1, os.WNOHANG))[0]:
                pid, status, use = ended
                self._cpu_s += use.ru_utime + use.ru_stime
                self._peak_memory_bytes = max(self._peak_memory_bytes, 1024 * use.ru_maxrss)
                if (rank := self._running.pop(pid, None)) is not None:
                    self._send(RankEnded(rank=rank, code=os.waitstatus_to_exitcode(status)))
        if not self._running:
            self._kill_soon()

    def _hear_signals(self) -> None:
        """Have the loop woken by signals (signal(7)); the agent ignores SIGINT, which must not reach the command."""
        heard, woken = os.pipe()
        for descriptor in (heard, woken):
            os.set_blocking(descriptor, False)
        self._selector.register(heard, selectors.EVENT_READ, partial(os.read, heard, READ_BYTES))
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: self._signals.append(number))
        signal.signal(signal.SIGCHLD, lambda number, _: None)

    def _pass_signals_on(self) -> None:
        while self._signals:
            number = self._signals.pop(0)
            for group in self._running:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(group, number)
            self._kill_soon()

    def _kill_soon(self) -> None:
        self._kill_at_s = min(self._kill_at_s, time.monotonic() + self._order.grace_s)

    def _kill(self, started: set[int]) -> None:
        for group in self._running:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)
        processes.kill(started)


def _enter(folder: str) -> None:
    """In the child, which is the folder's owner by now: a container's root may not enter what others may not."""
    processes.end_with_parent()
    os.chdir(folder)


def _owner(folder: str) -> dict[str, Any]:
    """Options of Popen by which a command runs as the owner of its folder."""
    found = os.stat(folder)
    return {"user": found.st_uid, "group": found.st_gid, "extra_groups": []} if found.st_uid != os.getuid() else {}
