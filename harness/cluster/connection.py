"""The harness's end of the conversation with an agent."""

from __future__ import annotations

import os
import select
import selectors
import subprocess
import tempfile
import threading
import time
import zipfile
from abc import ABC, abstractmethod
from base64 import b64encode
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from harness import programs
from harness.cluster.protocol import ClusterBrokenError, SideTask, TaskTimeoutError
from harness.errors import MeasurementError, UsageError
from harness.files import temporary
from harness.messages import (
    HANDED,
    PART_BYTES,
    Done,
    Exit,
    Hand,
    Lines,
    Message,
    ProtocolError,
    Quit,
    Refused,
    Signal,
    Start,
    Stop,
    Tick,
    decode,
    encode,
)

READ_BYTES = 1 << 20

STOP_GRACE_S = SEND_GRACE_S = 10.0

START_GRACE_S = 60.0
"""How long an agent may take to fork its workers, on a machine that is busy."""

MOST_LAST_WORDS = 500
"""Signs of an agent's last line that are told."""

TICK_S = 1.0


class Conversation(ABC):
    """A conversation with one agent. ``close`` ends the agent and all it started.

    Args:
        requests, replies: file descriptors to write to and to read from; they may be the same.
    """

    def __init__(self, requests: int, replies: int) -> None:
        self._requests, self._replies = requests, replies
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._replies, selectors.EVENT_READ)
        os.set_blocking(self._requests, False)
        self._room = select.poll()
        self._room.register(self._requests, select.POLLOUT)
        self._writing = threading.Lock()
        self._lines = Lines()
        self._waiting: list[Message] = []

    @property
    @abstractmethod
    def alive(self) -> bool:
        """Whether the agent still runs."""

    @abstractmethod
    def _cut_off(self) -> None:
        """End the agent at once."""

    @abstractmethod
    def _epitaph(self) -> str:
        """How it ended, in words."""

    @abstractmethod
    def _hang_up(self) -> None:
        """Close what it was spoken to through, and wait for its end."""

    def request(self, message: Message, timeout_s: float) -> None:
        """Ask for an operation and wait until it is done.

        Raises:
            UsageError, MeasurementError: it was refused.
        """
        self._send(message)
        self.wait_until_done(message.kind, timeout_s)

    def wait_until_done(self, op: str, timeout_s: float) -> None:
        """Wait until an operation that was begun is done; see ``request``."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                reply = self._next(deadline)
            except TaskTimeoutError:
                raise self._broken(f"the cluster's agent did not answer {op!r} within {timeout_s:g} s") from None
            match reply:  # whatever else is read is left of a task that was ended early
                case Done(op=done) if done == op:
                    return
                case Refused(op=refused) if refused == op:
                    kind = UsageError if reply.exit_code == UsageError.exit_code else MeasurementError
                    raise kind(reply.reason)

    def task(
        self,
        task: str,
        nodes: list[str],
        spec: Mapping[str, Any],
        timeout_s: float,
        beside: Sequence[SideTask] = (),
    ) -> Generator[Message]:
        """Run a task on nodes; yields messages until each node's worker has ended. Leaving early ends them all.

        Args:
            spec: what the task must know; under ``HANDED`` files by node, which travel before it.
            beside: further tasks, which are ended when the others have.

        While nothing is said, a ``Tick`` comes every second, so that whoever listens can give up.
        """
        running, deadline = set(nodes), time.monotonic() + timeout_s
        speakers = {*nodes, *(side.node for side in beside)}
        own = dict(spec)
        handed: Mapping[str, zipfile.Path] = own.pop(HANDED, {})
        for node in nodes:
            if node in handed:
                self._hand(node, handed[node])
        for side in beside:
            self.request(Start(task=side.task, nodes=[side.node], spec=side.spec), START_GRACE_S)
            running.add(side.node)
        self.request(Start(task=task, nodes=nodes, spec=own), START_GRACE_S)
        try:
            while running & set(nodes):
                try:
                    message = self._next_or_tick(deadline)
                except TaskTimeoutError:
                    raise TaskTimeoutError(f"{task!r} took longer than {timeout_s:g} s") from None
                if isinstance(message, (Done, Refused)):  # of what another thread has asked for
                    continue
                if message.node not in speakers and not isinstance(message, Tick):
                    raise self._broken(f"the cluster's agent speaks for {message.node!r}, which was asked for nothing")
                if isinstance(message, Exit):
                    running.discard(message.node)
                yield message
        finally:
            if running and self.alive:
                self._end_tasks(running)

    def stop(self) -> None:
        """End the task that runs; its workers' exits are heard by whoever listens to ``task``. For another thread."""
        self._send(Stop())

    def signal(self, nodes: list[str], number: int) -> None:
        """Send a signal to the task that runs on these nodes; see ``stop``."""
        self._send(Signal(nodes=nodes, number=number))

    def close(self) -> None:
        """End the agent and what it started."""
        with suppress(ClusterBrokenError):
            self._send(Quit())
        self._selector.close()
        self._hang_up()

    def _hand(self, node: str, file: zipfile.Path) -> None:
        """Give a node's next task a file."""
        is_first = True
        with file.open("rb") as content:
            while part := content.read(PART_BYTES):
                self.request(Hand(to=node, part=b64encode(part).decode(), is_first=is_first), START_GRACE_S)
                is_first = False

    def _end_tasks(self, running: set[str]) -> None:
        self.stop()
        deadline = time.monotonic() + STOP_GRACE_S
        while running:
            try:
                message = self._next(deadline)
            except TaskTimeoutError:
                raise self._broken(f"the cluster's agent did not end its tasks within {STOP_GRACE_S:g} s") from None
            if isinstance(message, Exit):
                running.discard(message.node)

    def _send(self, message: Message) -> None:
        data = memoryview(encode(message))
        deadline = time.monotonic() + SEND_GRACE_S
        with self._writing:
            while data:
                if not self._room.poll(max(0.0, 1e3 * (deadline - time.monotonic()))):
                    raise self._broken(f"the cluster's agent did not read a request within {SEND_GRACE_S:g} s")
                try:
                    data = data[os.write(self._requests, data) :]
                except BlockingIOError:  # there is room, but for less
                    continue
                except OSError:  # a broken pipe; or what becomes of a connection
                    raise self._broken(self._epitaph()) from None

    def _next_or_tick(self, deadline: float) -> Message:
        soon = time.monotonic() + TICK_S
        try:
            return self._next(min(deadline, soon))
        except TaskTimeoutError:
            if not self.alive:  # and something that it has started holds its end of the pipe
                raise self._broken(self._epitaph()) from None
            if deadline <= soon:
                raise
            return Tick()

    def _next(self, deadline: float) -> Message:
        while not self._waiting:
            if not self._selector.select(max(0.0, deadline - time.monotonic())):
                raise TaskTimeoutError
            try:
                chunk = os.read(self._replies, READ_BYTES)
            except OSError:  # a connection was reset, or its other end does not answer any more
                chunk = b""
            if not chunk:
                raise self._broken(self._epitaph())
            try:  # a kernel may speak first
                self._waiting = [decode(line) for line in self._lines.cut(chunk) if line.startswith(b"{")]
            except ProtocolError as error:
                raise self._broken(f"the cluster's agent: {error}") from None
        return self._waiting.pop(0)

    def _broken(self, reason: str) -> ClusterBrokenError:
        """The error after which nothing more is said or heard: what comes late must answer no other question."""
        self._cut_off()
        return ClusterBrokenError(reason)


class AgentConnection(Conversation):
    """A conversation with an agent that is a process of this one's, over its stdin and stdout.

    Args:
        more: environment variables, beside those that every program gets.
    """

    def __init__(self, command: list[str], more: Mapping[str, str] | None = None) -> None:
        with temporary():
            self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the agent
        self._process = programs.start(
            command,
            more,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            start_new_session=True,  # Ctrl-C reaches the harness alone, which then ends the agent in good order
        )
        assert self._process.stdin
        assert self._process.stdout
        super().__init__(self._process.stdin.fileno(), self._process.stdout.fileno())

    @property
    def alive(self) -> bool:
        """See ``Conversation.alive``."""
        return self._process.poll() is None

    def _cut_off(self) -> None:
        self._process.kill()
        self._process.wait()

    def _hang_up(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                stream.close()
        try:
            self._process.wait(STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            self._cut_off()
        self._stderr.close()

    def _epitaph(self) -> str:
        try:
            self._process.wait(STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            return "the cluster's agent closed its end of the conversation"
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        last_words = lines[-1][:MOST_LAST_WORDS] if lines else "it said nothing"
        return f"the cluster's agent ended with {programs.how_it_ended(self._process.returncode)}: {last_words}"
