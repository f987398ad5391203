"""The process that lives inside a cluster and forks a worker for each task, so that torch is imported once.

It speaks the lines of ``harness/messages.py``. Requests come in on stdin; everything a task has to say goes out on
stdout, together with what becomes of it.

It ends when stdin does, so it cannot outlive whoever started it. It stays single-threaded: only then is a fork safe.
"""

from __future__ import annotations

import gc
import importlib
import os
import selectors
import signal
import sys
import tempfile
import traceback
from base64 import b64decode
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any

from harness.errors import PacbenchError
from harness.messages import (
    HANDED,
    Done,
    Exit,
    Failed,
    Hand,
    Lines,
    Log,
    Message,
    Preload,
    ProtocolError,
    Quit,
    Refused,
    Signal,
    Start,
    Stop,
    Task,
    decode,
    encode,
)
from harness.programs import OBJECTS_BETWEEN_COLLECTIONS

TASKS = {
    "probe_hosts": "harness.network.tasks:probe_hosts",
    "probe_links": "harness.network.tasks:probe_links",
    "probe_ceiling": "harness.network.tasks:probe_ceiling",
    "all_reduce": "harness.worker.train:time_all_reduce",
    "train": "harness.worker.train:train",
    "play": "harness.network.player:play",
    "change_links": "harness.network.link_requests:serve",
    "watch_queues": "harness.network.queues:watch_queues",
    "watch_traffic": "harness.network.traffic:watch_traffic",
    "count_traffic": "harness.network.traffic:count_traffic",
    "execute": "harness.worker.command:execute",
}

READ_BYTES = 1 << 16


@dataclass
class Child:
    """A forked worker: its pipes, and what has been read of lines that are not yet whole."""

    node: str
    pid: int
    open_pipes: int = 2
    begun: dict[int, Lines] = field(default_factory=lambda: defaultdict(Lines))


class Agent:
    """Serves requests until they end.

    Args:
        enter: takes the calling process to a node (into its namespace); called in each forked worker.
        operations: further requests that this kind of cluster knows, by their kind.
        own: what this agent alone knows, and adds to every task's spec.
    """

    def __init__(
        self,
        enter: Callable[[str], None],
        operations: Mapping[type[Message], Callable[[Any], None]],
        own: Mapping[str, Any] | None = None,
    ) -> None:
        self._enter, self._own = enter, own or {}
        self._operations: dict[type[Message], Callable[[Any], None]] = {
            Preload: _preload,
            Hand: self._hand,
            Start: self._start,
            Stop: self._stop,
            Signal: self._signal,
            Quit: self._quit,
            **operations,
        }
        self._replies = os.dup(sys.stdout.fileno())
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a stray print must not look like a message
        self._selector = selectors.DefaultSelector()
        self._children: dict[int, Child] = {}
        self._pythons_own = gc.get_threshold()
        self._handed: dict[str, IO[bytes]] = {}

    def serve(self) -> None:
        """Answer requests and pass on what workers say, until stdin ends."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the harness, which then closes stdin
        gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
        stdin, begun = sys.stdin.fileno(), Lines()
        self._selector.register(stdin, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.fd != stdin:
                    self._forward(key.fd, key.data[0], key.data[1])
                    continue
                chunk = _read(stdin)
                if not chunk:
                    self._stop(Stop())
                    return
                try:
                    requests = [decode(line) for line in begun.cut(chunk)]
                except ProtocolError as error:
                    self._stop(Stop())
                    sys.exit(str(error))
                for request in requests:
                    self._handle(request)

    def _handle(self, request: Message) -> None:
        op = request.kind
        self._reap_orphans()
        try:
            self._operations[type(request)](request)
        except PacbenchError as error:
            self._say(Refused(op=op, reason=str(error), exit_code=error.exit_code))
        except Exception as error:
            traceback.print_exc()
            reason = f"{type(error).__name__}: {error}"
            self._say(Refused(op=op, reason=reason, exit_code=PacbenchError.exit_code))
        else:
            self._say(Done(op=op))

    def _start(self, request: Start) -> None:
        task = _resolve(request.task)
        gc.collect()
        gc.freeze()  # what exists now stays shared between the workers
        for node in request.nodes:
            handed = self._handed.pop(node, None)
            own = {HANDED: handed} if handed else {}
            self._fork(node, task, {**request.spec, **self._own, **own})
            if handed:
                handed.close()  # the worker has it

    def _hand(self, request: Hand) -> None:
        """Keep what is for a node's next task, in a file that has no name."""
        if request.is_first:
            self._handed[request.to] = tempfile.TemporaryFile()  # noqa: SIM115 - the task takes it over
        self._handed[request.to].write(b64decode(request.part))
        self._handed[request.to].flush()

    def _fork(self, node: str, task: Task, spec: Mapping[str, Any]) -> None:
        messages, messages_end = os.pipe()
        logs, logs_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(self._replies)
            gc.set_threshold(*self._pythons_own)  # a worker is to train as any program does
            _run(task, spec, node, self._enter, messages_end, logs_end)
        os.close(messages_end)
        os.close(logs_end)
        child = Child(node, pid)
        self._children[pid] = child
        for descriptor, is_log in ((messages, False), (logs, True)):
            self._selector.register(descriptor, selectors.EVENT_READ, (child, is_log))

    def _forward(self, descriptor: int, child: Child, is_log: bool) -> None:
        chunk = os.read(descriptor, READ_BYTES)
        try:
            lines = child.begun[descriptor].cut(chunk)
        except ProtocolError as error:
            self._say(Failed(node=child.node, reason=str(error)))
            os.kill(child.pid, signal.SIGKILL)
            lines, child.begun[descriptor] = [], Lines()
        if not chunk and (rest := child.begun[descriptor].rest) and is_log:
            lines = [rest]
        for line in lines:
            if is_log:
                self._say(Log(node=child.node, text=line.decode(errors="replace")))
            else:
                self._write(line + b"\n")
        if not chunk:
            self._selector.unregister(descriptor)
            os.close(descriptor)
            child.open_pipes -= 1
            if not child.open_pipes:
                self._reap(child)

    def _reap(self, child: Child) -> None:
        _, status = os.waitpid(child.pid, 0)
        del self._children[child.pid]
        self._say(Exit(node=child.node, code=os.waitstatus_to_exitcode(status)))

    def _reap_orphans(self) -> None:
        """Let go of what workers had started and left behind: where this is process 1, it has become its child."""
        with suppress(ChildProcessError):
            while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if ended.si_pid in self._children:
                    break  # it is reaped when its pipes have been read
                os.waitpid(ended.si_pid, 0)

    def _stop(self, request: Stop | Quit) -> None:
        """End all workers at once; their exits are reported as any others."""
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)

    def _signal(self, request: Signal) -> None:
        for pid, child in self._children.items():
            if child.node in request.nodes:
                os.kill(pid, request.number)

    def _quit(self, request: Quit) -> None:
        """End; for who cannot rely on the end of stdin being seen: a console's is not, always."""
        self._stop(request)
        raise SystemExit

    def _say(self, message: Message) -> None:
        self._write(encode(message))

    def _write(self, line: bytes) -> None:
        data = memoryview(line)
        with suppress(OSError):  # nobody listens any more, and the end of stdin says the same
            while data:
                data = data[os.write(self._replies, data) :]


def _read(stdin: int) -> bytes:
    """What has come. Where stdin is a connection that broke, it has come to its end."""
    try:
        return os.read(stdin, READ_BYTES)
    except OSError:
        return b""


def _resolve(name: str) -> Task:
    module, _, function = TASKS[name].partition(":")
    task: Task = getattr(importlib.import_module(module), function)
    return task


def _preload(request: Preload) -> None:
    from harness.scenario.schema import Train
    from harness.worker import train

    if request.train is not None:
        train.preload(Train.model_validate(request.train))


def _run(
    task: Task, spec: Mapping[str, Any], node: str, enter: Callable[[str], None], messages_end: int, logs_end: int
) -> None:
    """The life of a forked worker. It leaves without Python's long goodbye: its memory is the agent's."""
    code = 1
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(logs_end, 1)
    os.dup2(logs_end, 2)
    os.close(logs_end)

    def send(message: Message) -> None:
        data = memoryview(encode(message, node))
        while data:
            data = data[os.write(messages_end, data) :]

    try:
        enter(node)
        task(spec, node, send)
        code = 0
    except BaseException as error:
        traceback.print_exc()
        send(Failed(reason=f"{type(error).__name__}: {error}".splitlines()[0]))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
