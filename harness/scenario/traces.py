"""Files of links that change over time: traces of rate (and delay, and loss).

Two formats are read. CSV with a head: ``t_s,rate_bps`` and, if wanted, ``delay_s`` and ``loss``. And mahimahi's
(Netravali et al., ATC 2015): a line for each chance to deliver a packet of 1500 bytes, in milliseconds from the start;
they are counted in slots of ``SLOT_S``, and the trace begins anew when it ends.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

SLOT_S = 0.2

MAHIMAHI_PACKET_BITS = 8 * 1500

LEAST_BPS = 8_000
"""The rate of a slot in which nothing could be delivered: a queue must have one."""

COLUMNS = ("t_s", "rate_bps", "delay_s", "loss")


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
