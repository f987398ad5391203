"""What a node's queues hold and drop, looked at while workers train: when they have ended, all queues are empty."""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from typing_extensions import Self

from harness.messages import QueuesSeen, QueueUse, Send
from harness.network.iproute import TcConsole

LOOK_EVERY_S = 0.25


class QueueWatch:
    """Looks at all queues of the node it is on, through one tc(8) that stays: a look takes part of a millisecond."""

    uses: dict[str, QueueUse]
    """By interface, as of the last look."""

    def __enter__(self) -> Self:
        self._tc = TcConsole(None, "-s", "-j")
        self._drops_before: dict[str, int] = defaultdict(int)
        self._most_backlog_bytes: dict[str, int] = defaultdict(int)
        self.look()
        self._drops_before |= {interface: use.drops for interface, use in self.uses.items()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tc.__exit__(kind, error, trace)

    def look(self) -> None:
        """Look once more.

        Raises:
            OSError: tc has ended.
        """
        drops: dict[str, int] = defaultdict(int)
        for queue in json.loads(self._tc.ask("qdisc show")):
            # An inner queue's losses need not show in the outer one, but what both count is the same packets.
            interface = queue["dev"]
            drops[interface] = max(drops[interface], queue["drops"])
            self._most_backlog_bytes[interface] = max(self._most_backlog_bytes[interface], queue["backlog"])
        self.uses = {
            interface: QueueUse(
                drops=count - self._drops_before[interface], most_backlog_bytes=self._most_backlog_bytes[interface]
            )
            for interface, count in drops.items()
        }


@contextmanager
def watched_queues() -> Iterator[QueueWatch]:
    """A watch that looks by itself, from a thread of its own, while the body runs, and once more at its end."""
    done = threading.Event()

    def look_until_done() -> None:
        while not done.wait(LOOK_EVERY_S):
            watch.look()

    with QueueWatch() as watch:
        looking = threading.Thread(target=look_until_done, daemon=True)
        looking.start()
        try:
            yield watch
        finally:
            done.set()
            looking.join()
            watch.look()


def watch_queues(spec: Mapping[str, Any], node: str, send: Send) -> None:
    """The task of a node that does not train: watch its queues until it is ended, and tell when they change."""
    told: dict[str, QueueUse] | None = None
    with QueueWatch() as watch:
        while True:
            watch.look()
            if watch.uses != told:
                told = watch.uses
                send(QueuesSeen(queues=told))
            time.sleep(LOOK_EVERY_S)
