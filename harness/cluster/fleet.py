"""Several agents, one a node, spoken to as one: for clusters whose nodes share no process: containers, hosts."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from harness.cluster.connection import STOP_GRACE_S, TICK_S, Conversation
from harness.cluster.protocol import ClusterBrokenError, SideTask
from harness.errors import MeasurementError
from harness.messages import Failed, Message, Tick


@dataclass(frozen=True)
class Ending:
    """A node has no more to say of a task; with an error, because its agent was lost or took too long."""

    node: str
    error: Exception | None = None


class Fleet:
    """The agents by their nodes' names. They come and go: a container that was killed takes its agent with it.

    Args:
        gone: what has become of a node whose agent is lost, in words.
    """

    def __init__(self, gone: str = "its container has ended") -> None:
        self._gone = gone
        self._agents: dict[str, Conversation] = {}

    def add(self, node: str, agent: Conversation) -> None:
        """Let an agent serve a node, in place of one that is lost."""
        if lost := self._agents.pop(node, None):
            lost.close()
        self._agents[node] = agent

    def serves(self, node: str) -> bool:
        """Whether the node has an agent that runs."""
        return node in self._agents and self._agents[node].alive

    def request(self, messages: Mapping[str, Message], timeout_s: float) -> None:
        """Ask each node for an operation, all at once, and wait until all are done.

        Raises:
            UsageError, MeasurementError: one was refused, or its node's agent was lost.
        """
        with ThreadPoolExecutor(max(len(messages), 1)) as pool:
            list(pool.map(lambda item: self._ask(item[0], item[1], timeout_s), messages.items()))

    def task(
        self,
        task: str,
        nodes: list[str],
        spec: Mapping[str, Any],
        timeout_s: float,
        beside: Sequence[SideTask] = (),
    ) -> Iterator[Message]:
        """As ``Conversation.task``, on the agents of all these nodes; those beside have other nodes.

        A node whose agent is lost says so as an ``error`` that is marked ``lost``; the others go on.

        Raises:
            TaskTimeoutError: it took too long.
            ClusterBrokenError: the agents of all nodes are lost.
        """
        said: SimpleQueue[Message | Ending] = SimpleQueue()
        over = threading.Event()
        running, lost = set(nodes), set[str]()
        tasks = [*(SideTask(task, node, dict(spec)) for node in nodes), *beside]
        listeners = [
            threading.Thread(target=self._listen, args=(said, over, each, timeout_s), daemon=True) for each in tasks
        ]
        for listener in listeners:
            listener.start()
        try:
            while running:
                heard = self._hear(said, running)
                if not isinstance(heard, Ending):
                    yield heard
                    continue
                running.discard(heard.node)
                if heard.error is None:
                    continue
                if not isinstance(heard.error, ClusterBrokenError):
                    raise heard.error
                lost.add(heard.node)
                if lost.issuperset(nodes):
                    raise heard.error
                yield _lost(heard.node, self._ended(heard.error))
        finally:
            over.set()
            for node in [*running, *(side.node for side in beside)]:
                with contextlib.suppress(ClusterBrokenError, OSError, KeyError):  # lost, or closed meanwhile
                    self._agents[node].stop()
            for listener in listeners:
                listener.join(STOP_GRACE_S)

    def signal(self, nodes: list[str], number: int) -> None:
        """As ``Conversation.signal``; nodes whose agent is lost have no task that could hear it."""
        for node in nodes:
            with contextlib.suppress(ClusterBrokenError, KeyError):
                self._agents[node].signal([node], number)

    def close(self) -> None:
        """End all agents."""
        with ThreadPoolExecutor(max(len(self._agents), 1)) as pool:
            list(pool.map(lambda agent: agent.close(), self._agents.values()))
        self._agents.clear()

    def _ask(self, node: str, message: Message, timeout_s: float) -> None:
        try:
            self._agents[node].request(message, timeout_s)
        except ClusterBrokenError as error:  # of this node's own agent alone; it can be replaced
            raise MeasurementError(f"{node}: {self._ended(error)}") from None

    def _listen(
        self, said: SimpleQueue[Message | Ending], over: threading.Event, asked: SideTask, timeout_s: float
    ) -> None:
        error: Exception | None = None
        messages = self._agents[asked.node].task(asked.task, [asked.node], asked.spec, timeout_s)
        try:
            with contextlib.closing(messages):  # an agent that was told to stop before it had begun is told again
                while not over.is_set() and (message := next(messages, None)):
                    if not isinstance(message, Tick):
                        said.put(message)
        except Exception as caught:  # whatever it is, the one who listens must hear of it
            error = caught
        said.put(Ending(asked.node, error))

    def _hear(self, said: SimpleQueue[Message | Ending], running: set[str]) -> Message | Ending:
        """What is said next, or a tick; or, when all is quiet, that an agent which only stands by was lost."""
        try:
            return said.get(timeout=TICK_S)
        except Empty:
            for node, agent in self._agents.items():
                if node not in running and not agent.alive:
                    return _lost(node, self._gone)
            return Tick()

    def _ended(self, error: ClusterBrokenError) -> str:
        return f"{self._gone} ({error})"


def _lost(node: str, reason: str) -> Failed:
    """An error that explains what other nodes complain of, before or after."""
    return Failed(node=node, reason=reason, lost=True)
