"""What pages in Markdown are made of."""

from __future__ import annotations

from collections.abc import Iterable

UNKNOWN = "–"
"""A cell in which there is nothing to say."""


def table(head: list[str], rows: Iterable[list[str]], right_from: int = -1, right_to: int = -1) -> str:
    """A table; the columns from ``right_from`` to ``right_to`` hold numbers."""
    rule = "|".join("--:" if right_from <= column <= right_to else "---" for column in range(len(head)))
    return "\n".join([f"| {' | '.join(head)} |", f"|{rule}|", *(f"| {' | '.join(row)} |" for row in rows)])
