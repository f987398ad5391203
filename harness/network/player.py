"""The process that plays a trace: it changes the links while workers train."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from harness.messages import LinksChanged, Send
from harness.network.iproute import TcConsole, apply
from harness.network.link_requests import wait_for
from harness.network.topology import Topology

PLAYER = "player"
"""The node that changes the links: it stands beside all others and has no network of its own."""


def play(spec: Mapping[str, Any], node: str, send: Send) -> None:
    """Change the links of ``topology`` as its trace says, from the moment ``start_file`` is there. Runs in a universe.

    Each change is applied on every link, and reported with the time (``time.monotonic()``) at which the last was.
    """
    topology = Topology.model_validate(spec["topology"])
    with ExitStack() as stack:
        consoles = {node: stack.enter_context(TcConsole(node)) for node in topology.nodes}
        wait_for(Path(spec["start_file"]))  # before their first step workers may evaluate for long
        started = time.monotonic()
        for due_s, row in schedule(topology):
            time.sleep(max(0.0, started + due_s - time.monotonic()))
            apply(topology.change(row), consoles)
            applied = time.monotonic()
            rate_bps = topology.link.trace.rows[row].rate_bps if topology.link.trace else None
            send(LinksChanged(row=row, rate_bps=rate_bps, at_s=applied, late_s=applied - started - due_s))
        while True:  # the last row stays in force until the workers have ended, and this process with them
            time.sleep(1.0)


def schedule(topology: Topology) -> Iterator[tuple[float, int]]:
    """When each row comes into force, in seconds from the start; without an end where the trace has a period."""
    trace = topology.link.trace
    if trace is None:
        return
    lap = 0
    while lap == 0 or trace.period_s:
        for number, row in enumerate(trace.rows):
            yield lap * (trace.period_s or 0.0) + row.t_s, number
        lap += 1
