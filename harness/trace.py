"""Links that change over time: traces of rate (and delay, and loss), and the process that plays them.

Two formats are read. CSV with a head: ``t_s,rate_bps`` and, if wanted, ``delay_s`` and ``loss``. And mahimahi's
(Netravali et al., ATC 2015): a line for each chance to deliver a packet of 1500 bytes, in milliseconds from the start;
they are counted in slots of ``SLOT_S``, and the trace begins anew when it ends.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cluster.iproute import TcConsole

if TYPE_CHECKING:
    from harness.agent import Send
    from harness.network import Topology

PLAYER = "player"
"""The node that changes the links: it stands beside all others and has no network of its own."""

SLOT_S = 0.2
MAHIMAHI_PACKET_BITS = 8 * 1500
LEAST_BPS = 8_000
"""The rate of a slot in which nothing could be delivered: a queue must have one."""

COLUMNS = ("t_s", "rate_bps", "delay_s", "loss")

START_PATIENCE_S = 120.0
POLL_S = 1e-3


def read(path: Path) -> dict[str, Any]:
    """A trace as the fields of ``scenario.Trace``.

    Raises:
        ValueError: it cannot be read, or is neither of the two formats; the message says where.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"a file that can be read ({error})") from None
    lines = [line for line in lines if line.strip() and not line.startswith("#")]
    if not lines:
        raise ValueError(f"a trace with at least one row; {path} is empty")
    return _read_csv(lines, path) if "," in lines[0] else _read_mahimahi(lines, path)


def _read_csv(lines: list[str], path: Path) -> dict[str, Any]:
    reader = csv.DictReader(lines)
    if not {"t_s", "rate_bps"} <= set(reader.fieldnames or ()) <= set(COLUMNS):
        raise ValueError(
            f"columns t_s, rate_bps and maybe delay_s, loss; {path} has {', '.join(reader.fieldnames or ())}"
        )
    rows = []
    for number, row in enumerate(reader, start=1):
        try:
            rows.append({name: float(text) for name, text in row.items()})
        except (TypeError, ValueError):
            raise ValueError(f"a number in each column; {path} has {list(row.values())} in row {number}") from None
    return {"rows": [{**row, "rate_bps": round(row["rate_bps"])} for row in rows], "period_s": None}


def _read_mahimahi(lines: list[str], path: Path) -> dict[str, Any]:
    try:
        chances_s = [int(line) / 1000 for line in lines]
    except ValueError:
        raise ValueError(f"a millisecond in each line (mahimahi), or CSV with a head; {path} is neither") from None
    slots = int(max(chances_s) / SLOT_S) + 1
    packets = [0] * slots
    for chance_s in chances_s:
        packets[int(chance_s / SLOT_S)] += 1
    rates = [max(LEAST_BPS, round(count * MAHIMAHI_PACKET_BITS / SLOT_S)) for count in packets]
    rows = [{"t_s": round(slot * SLOT_S, 6), "rate_bps": rate} for slot, rate in enumerate(rates)]
    return {"rows": rows, "period_s": slots * SLOT_S}


def play(spec: Mapping[str, Any], node: str, send: Send) -> None:
    """Change the links of ``topology`` as its trace says, from the moment ``start_file`` is there. Runs in a universe.

    Each change is applied on every link, and reported with the time (``time.monotonic()``) at which the last was.
    """
    from harness.network import Topology

    topology = Topology.model_validate(spec["topology"])
    with ExitStack() as stack:
        consoles = {node: stack.enter_context(TcConsole(node)) for node in topology.nodes}
        _wait_for(Path(spec["start_file"]))
        started = time.monotonic()
        for due_s, row in schedule(topology):
            time.sleep(max(0.0, started + due_s - time.monotonic()))
            _apply(topology, row, consoles)
            applied = time.monotonic()
            rate_bps = topology.link.trace.rows[row].rate_bps if topology.link.trace else None
            change = {"row": row, "rate_bps": rate_bps, "at_s": applied, "late_s": applied - started - due_s}
            send({"kind": "change", **change})
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


def _apply(topology: Topology, row: int, consoles: Mapping[str, TcConsole]) -> None:
    """Change all queues, and wait until tc has done so: it answers an empty question when it comes to it."""
    asked = set()
    for command in topology.change(row):
        consoles[command.node or ""].tell(command.line)
        asked.add(command.node or "")
    for node in asked:
        consoles[node].ask("qdisc show dev lo")


def _wait_for(start_file: Path) -> None:
    deadline = time.monotonic() + START_PATIENCE_S
    while not start_file.exists():
        if time.monotonic() > deadline:
            raise TimeoutError("the workers never began to train")
        time.sleep(POLL_S)
