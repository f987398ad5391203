"""What a node's queues carry, drop and hold, and what its TCP sends again, by the kernel's own counters."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from typing_extensions import Self

from harness.messages import QueueCount, Send, Traffic
from harness.network.iproute import TcConsole

TCP_COUNTERS = Path("/proc/net/snmp")
"""Of the reader's own network namespace (proc_net(5))."""


class TrafficWatch:
    """Looks at all queues of the node it is on, through one tc(8) that stays: a look takes part of a millisecond."""

    def __enter__(self) -> Self:
        self._tc = TcConsole(None, "-s", "-j")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tc.__exit__(kind, error, trace)

    def look(self) -> Traffic:
        """What the counters say now.

        Raises:
            OSError: tc has ended.
        """
        shown, now = json.loads(self._tc.ask("qdisc show")), time.monotonic()
        return Traffic(at_s=now, queues=queue_counts(shown), retransmits=retransmits(TCP_COUNTERS.read_text()))


def queue_counts(shown: list[dict[str, Any]]) -> dict[str, QueueCount]:
    """The counters of each interface's queue, of what ``tc -s -j qdisc show`` prints.

    An interface's root counts what leaves. Losses of a queue inside it need not show there, but what both count is the
    same packets.
    """
    counts = {
        queue["dev"]: QueueCount(
            wire_bytes=queue["bytes"], packets=queue["packets"], drops=0, backlog_bytes=queue["backlog"]
        )
        for queue in shown
        if queue.get("root")
    }
    for queue in shown:
        if (interface := queue["dev"]) in counts:
            drops = max(counts[interface].drops, queue["drops"])
            counts[interface] = replace(counts[interface], drops=drops)
    return counts


def retransmits(counters: str) -> int:
    """Segments that were sent again, of the text of /proc/net/snmp."""
    names, values = (line.split() for line in counters.splitlines() if line.startswith("Tcp:"))
    return int(values[names.index("RetransSegs")])


def count_traffic(spec: Mapping[str, Any], node: str, send: Send) -> None:
    """The task of any node: look once."""
    with TrafficWatch() as watch:
        send(watch.look())


def watch_traffic(spec: Mapping[str, Any], node: str, send: Send) -> None:
    """The task of a node that runs no command: look until it is ended, every ``look_every_s`` seconds."""
    with TrafficWatch() as watch:
        while True:
            send(watch.look())
            time.sleep(spec["look_every_s"])
