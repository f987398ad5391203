"""Files of links that change over time: traces of rate (and delay, and loss).

Two formats are read. CSV with a head: ``t_s,rate_bps`` and, if wanted, ``delay_s`` and ``loss``. And mahimahi's
(Netravali et al., ATC 2015): a line for each chance to deliver a packet of 1500 bytes, in milliseconds from the start;
they are counted in slots of ``SLOT_S``, and the trace begins anew when it ends.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

from harness.errors import short_repr
from harness.files import read_given

SLOT_S = 0.2

MAHIMAHI_PACKET_BITS = 8 * 1500

LEAST_BPS = 8_000
"""The rate of a slot in which nothing could be delivered: a queue must have one."""

MOST_ROWS, MOST_LINES = 100_000, 5_000_000
"""Changes of a link, and lines of mahimahi's, which has many to a change."""

MOST_MAHIMAHI_S = MOST_ROWS * SLOT_S

COLUMNS = ("t_s", "rate_bps", "delay_s", "loss")


def read(path: Path) -> dict[str, Any]:
    """A trace as the fields of ``scenario.Trace``.

    Raises:
        ValueError: it cannot be read, or is neither of the two formats; the message says where.
    """
    try:
        lines = read_given(path).decode().splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(f"a file that can be read ({error}: {path})") from None
    lines = [line for line in lines if line.strip() and not line.startswith("#")]
    if not lines:
        raise ValueError(f"a trace with at least one row; {path} is empty")
    if len(lines) > MOST_LINES:
        raise ValueError(f"up to {MOST_LINES} lines; {path} has {len(lines)}")
    return _read_csv(lines, path) if "," in lines[0] else _read_mahimahi(lines, path)


def _read_csv(lines: list[str], path: Path) -> dict[str, Any]:
    head, *lines = lines
    if not lines:
        raise ValueError(f"a trace with at least one row; {path} has a head alone")
    names = [name.strip() for name in _cells(head)]
    if not {"t_s", "rate_bps"} <= set(names) <= set(COLUMNS) or len(names) != len(set(names)):
        raise ValueError(f"columns t_s, rate_bps and maybe delay_s, loss, each once; {path} has {short_repr(head)}")
    if len(lines) > MOST_ROWS:
        raise ValueError(f"up to {MOST_ROWS} rows; {path} has {len(lines)}")
    rows: list[dict[str, float]] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = dict(zip(names, map(_number, _cells(line)), strict=True))
        except (ValueError, csv.Error):
            allowed = f"a number in each column; {path} has {short_repr(line)} in row {number}"
            raise ValueError(allowed) from None
        row["rate_bps"] = round(row["rate_bps"])
        if complaint := _complaint(row, rows[-1]["t_s"] if rows else None):
            raise ValueError(f"{complaint}; {path} has {short_repr(line)} in row {number}")
        rows.append(row)
    return {"rows": rows, "period_s": None}


def _complaint(row: dict[str, float], before_s: float | None) -> str | None:
    """What is allowed, where a row is not; None where it is.

    Args:
        before_s: the time of the row before; None for the first.
    """
    if before_s is None and row["t_s"] != 0:
        return "times from 0 on"
    if before_s is not None and row["t_s"] <= before_s:
        return "times that grow from row to row"
    if row["rate_bps"] <= 0:
        return "a rate above 0"
    if row.get("delay_s", 0) < 0:
        return "a delay of at least 0"
    if not 0 <= row.get("loss", 0) < 1:
        return "a loss from 0 on, below 1"
    return None


def _cells(line: str) -> list[str]:
    return next(csv.reader([line]))


def _number(text: str) -> float:
    """A finite number.

    Raises:
        ValueError: it is none.
    """
    if not math.isfinite(value := float(text)):
        raise ValueError
    return value


def _read_mahimahi(lines: list[str], path: Path) -> dict[str, Any]:
    chances_s: list[float] = []
    for number, line in enumerate(lines, start=1):
        try:
            chance_s = int(line) / 1000
        except (ValueError, OverflowError):
            allowed = f"a millisecond in each line (mahimahi), or CSV with a head; {path} is neither (row {number})"
            raise ValueError(allowed) from None
        if not (chances_s[-1] if chances_s else 0) <= chance_s <= MOST_MAHIMAHI_S:
            allowed = f"milliseconds from the start, which never fall, up to {MOST_MAHIMAHI_S:g} s (mahimahi)"
            raise ValueError(f"{allowed}; {path} has {short_repr(line)} in row {number}")
        chances_s.append(chance_s)
    slots = int(max(chances_s) / SLOT_S) + 1
    packets = [0] * slots
    for chance_s in chances_s:
        packets[int(chance_s / SLOT_S)] += 1
    rates = [max(LEAST_BPS, round(count * MAHIMAHI_PACKET_BITS / SLOT_S)) for count in packets]
    rows = [{"t_s": round(slot * SLOT_S, 6), "rate_bps": rate} for slot, rate in enumerate(rates)]
    return {"rows": rows, "period_s": slots * SLOT_S}
