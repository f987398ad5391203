"""What a terminal, a pipe or a file is shown: tables whose numbers are whole at any width, and sentences.

Where there is too little room, words give way: labels are wrapped, then shortened; an interval goes below its value.
Where that does not do, a table goes on in a second one, below, with the same labels.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Literal, TextIO

from harness import plain

if TYPE_CHECKING:
    from rich.table import Table

FILE_WIDTH = 160
"""Width of tables that go into a file or a pipe, in characters."""

LEAST_WORDS = 16
"""Characters that a column of words keeps, if it has as many."""

LABEL_LINES, HEADING_LINES = 3, 4
HEADING_WORD = 12
"""Characters from which on a word in a column's heading may be broken."""

BESIDE, EDGE = 3, 1
"""Characters around each column, and around them all."""


def accept_any_text() -> None:
    """Let stdout and stderr take any text, whatever their encoding: what they cannot write they show otherwise.

    One that is closed takes all and shows nothing. It is opened before any file, which would else get its number.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - until the end
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="pacbench")


def width() -> int:
    """The width of stdout in characters: ``COLUMNS`` or the terminal's own, ``FILE_WIDTH`` where it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else FILE_WIDTH


def say(line: str) -> None:
    """A sentence on a line of its own, however long; at once, also into a pipe."""
    print(plain.visible(line), flush=True)


def tell(line: str) -> None:
    """Likewise on stderr, for whoever looks on while stdout is what was asked for."""
    print(f"pacbench: {plain.visible(line)}", file=sys.stderr, flush=True)


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    words: Collection[str] = (),
    room: int | None = None,
    file: TextIO | None = None,
) -> None:
    """Print a table under its title.

    Args:
        columns: their headings. The first column holds labels, the others numbers, at the right.
        words: headings of other columns that hold words, which may be wrapped.
        room: characters in a line; default: ``width()``.
        file: where it goes; default: stdout.
    """
    from rich.console import Console
    from rich.text import Text

    room, rows = room or width(), list(rows)
    columns_of_words = {columns[0], *words}
    table = [_Column(name, [row[n] for row in rows], name in columns_of_words) for n, name in enumerate(columns)]
    parts = [(part, _widths(part, room)) for part in _parts(table, room)]
    console = Console(file=file, width=max(room, *(_total(widths) for _, widths in parts)), highlight=False)
    console.print(Text(plain.visible(title), "bold"))
    for part, widths in parts:
        console.print(_drawn(part, widths))


class _Column:
    """A column, and how wide it may be."""

    def __init__(self, heading: str, cells: Sequence[str], holds_words: bool) -> None:
        self.heading, self.holds_words = plain.visible(heading), holds_words
        self.cells = [plain.visible(cell) for cell in cells]
        word = min(HEADING_WORD, max(map(_length, self.heading.split()), default=1))
        self.whole = max([word, *map(_length, self.cells)])
        """Characters that its cells take on one line each."""
        self.wanted = max(self.whole, _length(self.heading))
        """Likewise with its heading."""
        parts = [_length(part) for cell in self.cells for part in _folded(cell)]
        self.least = min(self.whole, LEAST_WORDS) if holds_words else max([word, *parts])
        """Characters below which a number would be broken, or nothing be left of words."""

    def shown(self, width: int, is_label: bool) -> list[str]:
        """Its cells, in lines of this width."""
        fits = _fitting(width)
        if is_label:
            return _distinct(self.cells, width)
        if self.holds_words:
            return ["\n".join(plain.wrapped(cell, fits)) for cell in self.cells]
        return [cell if fits(cell) else "\n".join(_folded(cell)) for cell in self.cells]


def _parts(columns: Sequence[_Column], room: int) -> list[list[_Column]]:
    """The columns in as many tables as they need, each with the labels first."""
    label, *others = columns
    parts = [[label]]
    for column in others:
        if len(parts[-1]) > 1 and _total([each.least for each in [*parts[-1], column]]) > room:
            parts.append([label])
        parts[-1].append(column)
    return parts


def _widths(columns: Sequence[_Column], room: int) -> list[int]:
    """What each column gets: headings give way first, then words, then intervals."""
    if _total([column.wanted for column in columns]) <= room:
        return [column.wanted for column in columns]
    least = [column.least if column.holds_words else column.whole for column in columns]
    if _total(least) > room:
        least = [column.least for column in columns]
    wanted = [column.whole - got for column, got in zip(columns, least, strict=True)]
    more = _dealt(max(room - _total(least), 0), wanted)
    return [got + each for got, each in zip(least, more, strict=True)]


def _dealt(room: int, wanted: Sequence[int]) -> list[int]:
    """Characters dealt out: to each what it wants, or an equal share of what the more modest leave."""
    dealt = [0] * len(wanted)
    for rank, number in enumerate(sorted(range(len(wanted)), key=wanted.__getitem__)):
        dealt[number] = min(wanted[number], room // (len(wanted) - rank))
        room -= dealt[number]
    return dealt


def _total(widths: Sequence[int]) -> int:
    """Characters that columns of these widths take, with what is around them."""
    return sum(widths) + BESIDE * len(widths) + EDGE


def _distinct(labels: Sequence[str], width: int) -> list[str]:
    """Labels in a few lines; in more, where otherwise two would look alike."""
    longest = max((len(plain.wrapped(label, _fitting(width))) for label in labels), default=0)
    for lines in range(LABEL_LINES, max(LABEL_LINES, longest) + 1):
        short = ["\n".join(plain.shortened(label, lines, _fitting(width))) for label in labels]
        if len(set(short)) == len(set(labels)):
            break
    return short


def _folded(cell: str) -> list[str]:
    """A number, and below it what stands in brackets."""
    return re.split(r" (?=[\[(])", cell)


def _length(text: str) -> int:
    """In characters of a terminal, of which some signs take two."""
    from rich.cells import cell_len

    return cell_len(text)


def _fitting(width: int) -> Callable[[str], bool]:
    return lambda text: _length(text) <= width


def _drawn(columns: Sequence[_Column], widths: Sequence[int]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for number, (column, width) in enumerate(zip(columns, widths, strict=True)):
        heading = "\n".join(plain.shortened(column.heading, HEADING_LINES, _fitting(width)))
        side: Literal["left", "right"] = "left" if number == 0 else "right"
        table.add_column(Text(heading), width=width, justify=side, no_wrap=True)
    cells = [column.shown(width, column is columns[0]) for column, width in zip(columns, widths, strict=True)]
    for row in zip(*cells, strict=True):
        table.add_row(*map(Text, row))
    return table
