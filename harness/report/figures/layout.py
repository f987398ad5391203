"""Where things stand in a figure, by arithmetic in inches, and what becomes of text that has no room.

matplotlib's own engines take seconds where there are many panels, and know no text that is wider than its place. Here
headings, titles and legends are wrapped, and their room grows. A label beside a row, where wrapping alone does not do,
is shortened; a key below the figure then says it whole. No text is too long for this, and no figure is wider than the
style allows.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from harness.report.figures.drawing import matplotlib  # first of all: away from the user's settings

# isort: split
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from harness import plain

WIDTH_IN = 7.2
"""The text width of a page."""

NARROW_IN = 5.2
WIDE_IN = 6.0
"""From which width on two panels stand side by side."""

AXIS_IN, PERCENT_AXIS_IN = 0.75, 0.85
"""The left edge of a panel with numbers, or percentages, and an axis label of one line."""

EDGE_IN = 0.1
LEAST_PANEL_IN = 0.5
TITLE_IN = 0.3
"""What a panel's title takes in one line."""

TICKS_IN = 0.3
AXIS_LABEL_IN = 0.2
LEGEND_KEY_IN = 0.55
"""What a legend's entry takes beside its text."""

LINE_EM = 1.25
"""From a line of text to the next, in the text's size."""

LEGEND_GAP_EM = 0.55
"""Between two entries of a legend."""

KEY_GAP_IN = 0.15
KEY_SIZE = "xtick.labelsize"

REFERENCE_PT, REFERENCE_DPI = 100.0, 720.0
"""At which letters are measured, so that no pixel decides."""

ROUNDED_UP = 1.02
"""What a renderer, which places letters on pixels, may take beyond the letters' own widths."""


class Key:
    """Short forms of one figure's labels, and what stands below the figure to explain them."""

    def __init__(self, labels: Collection[str] = ()) -> None:
        """For a figure of these labels: no sign in the key is one of them."""
        letters = itertools.chain.from_iterable(
            map("".join, itertools.product(string.ascii_uppercase, repeat=n)) for n in itertools.count(1)
        )
        self._free: Iterator[str] = (letter for letter in letters if letter not in labels)
        self._signs: dict[str, str] = {}

    def short(self, label: str, width_in: float, most_lines: int, size: str | float) -> str:
        """The label in a few lines of this width; if that is not all of it, behind a letter that the key explains."""
        whole, fits = shown(label), _fits(width_in, size)
        if len(lines := plain.wrapped(whole, fits)) > most_lines:
            lines = plain.shortened(f"{self._sign(label)}: {whole}", most_lines, fits)
        return "\n".join(lines)

    def inline(self, label: str, width_in: float, size: str | float) -> str:
        """The label within other text; where it has no room, a letter that the key explains."""
        return shown(label) if _fits(width_in, size)(shown(label)) else self._sign(label)

    def text(self, width_in: float) -> str:
        """What stands below the figure: nothing, if every label had room."""
        return "\n".join(wrapped(f"{sign}: {label}", width_in, KEY_SIZE) for label, sign in self._signs.items())

    def _sign(self, label: str) -> str:
        if label not in self._signs:
            self._signs[label] = next(self._free)
        return self._signs[label]


@dataclass(frozen=True)
class Grid:
    """A figure of panels in rows and columns, under a heading and a legend that hides no data."""

    rows: int
    columns: int
    panel_in: float
    """The height of each panel."""
    legend: Sequence[Artist]
    """The entries of the legend."""
    left_in: float
    """The room at the left of all panels, for the numbers and the label of the y axis."""
    right_in: float
    between_in: float = 0.0
    """The room between two columns."""
    width_in: float = WIDTH_IN
    """The figure is no wider than the style allows, if that leaves any room for panels."""
    heading: str = ""
    titles: Sequence[str] = ()
    """The panels' titles, row by row. Panels beyond them have none."""
    x_labels: Sequence[str] = ()
    """The labels of the panels' x axes, row by row. Panels beyond them have none."""
    titled: bool = False
    """Whether something else stands in the line of the titles."""
    share_y: bool = False
    key: Key | None = None
    """Explains the labels that were shortened for this figure."""

    @property
    def around_in(self) -> float:
        """The width that no panel has."""
        return self.left_in + self.right_in + (self.columns - 1) * self.between_in

    @property
    def text_in(self) -> float:
        """The width of the heading, the legend and the key."""
        return self.width_in - 2 * EDGE_IN

    @property
    def own_in(self) -> float:
        """The width of a panel."""
        return (self.width_in - self.around_in) / self.columns


def panels(grid: Grid) -> tuple[Figure, np.ndarray[Any, Any]]:
    """The figure, and its panels by row and column."""
    grid = _wrapped(grid)
    names = [wrapped(str(entry.get_label()), grid.text_in - LEGEND_KEY_IN, "legend.fontsize") for entry in grid.legend]
    columns = _legend_columns(grid.legend, grid.text_in)
    explained = grid.key.text(grid.text_in) if grid.key else ""
    room = _room(grid, _legend_in(names, columns), explained)
    figure = Figure(figsize=(grid.width_in, room.height_in))
    FigureCanvasAgg(figure)
    left, top = EDGE_IN / grid.width_in, 1 - EDGE_IN / room.height_in
    figure.text(left, top, grid.heading, va="top", fontsize=size_pt("figure.titlesize"))
    key_top = (room.key_in - KEY_GAP_IN + EDGE_IN / 2) / room.height_in
    figure.text(left, key_top, explained, va="top", fontsize=size_pt(KEY_SIZE))
    _add_legend(figure, grid.legend, names, (left, 1 - room.legend_top_in / room.height_in), columns)
    return figure, _add_panels(figure, grid, room)


def lowest(count: int, *x_labels: str) -> list[str]:
    """The x labels of so many panels, of which only the last ones have any."""
    return [*[""] * (count - len(x_labels)), *x_labels]


class _Room(NamedTuple):
    """Heights within a figure, in inches."""

    legend_top_in: float
    """From the figure's top to its legend."""
    above_in: float
    """From the figure's top to its first panels."""
    gap_in: float
    """From a panel to the next one below."""
    below_in: float
    """From the last panels to the figure's bottom."""
    key_in: float
    """What the key below the figure takes of that."""
    height_in: float


def _wrapped(grid: Grid) -> Grid:
    """As wide as the style allows, with all text in lines that have room."""
    least_in = grid.around_in + grid.columns * LEAST_PANEL_IN
    grid = replace(grid, width_in=max(min(grid.width_in, style_width_in()), least_in))
    label_in = grid.own_in + min(grid.right_in, grid.left_in)
    return replace(
        grid,
        heading=wrapped(grid.heading, grid.text_in, "figure.titlesize"),
        titles=[wrapped(title, grid.own_in, "axes.titlesize") for title in grid.titles],
        x_labels=[wrapped(label, label_in, "axes.labelsize") for label in grid.x_labels],
    )


def _room(grid: Grid, legend_in: float, explained: str) -> _Room:
    """What the texts of a wrapped grid take around its panels."""
    titled = grid.titled or any(grid.titles)
    title_in = TITLE_IN + _more_lines_in(grid.titles, "axes.titlesize") if titled else EDGE_IN
    labels_in = AXIS_LABEL_IN + _more_lines_in(grid.x_labels, "axes.labelsize")
    labelled_between = any(grid.x_labels[: max(0, len(grid.x_labels) - grid.columns)])
    key_in = KEY_GAP_IN + lines_in(explained, KEY_SIZE) if explained else 0.0
    legend_top_in = EDGE_IN + lines_in(grid.heading, "figure.titlesize")
    above_in, below_in = legend_top_in + legend_in + title_in, TICKS_IN + labels_in + key_in
    gap_in = TICKS_IN + title_in + (labels_in if labelled_between else 0.0)
    height_in = above_in + grid.rows * grid.panel_in + (grid.rows - 1) * gap_in + below_in
    return _Room(legend_top_in, above_in, gap_in, below_in, key_in, height_in)


def _add_panels(figure: Figure, grid: Grid, room: _Room) -> np.ndarray[Any, Any]:
    made: np.ndarray[Any, Any] = figure.add_gridspec(
        grid.rows,
        grid.columns,
        left=grid.left_in / grid.width_in,
        right=1 - grid.right_in / grid.width_in,
        top=1 - room.above_in / room.height_in,
        bottom=room.below_in / room.height_in,
        wspace=grid.between_in / grid.own_in,
        hspace=room.gap_in / grid.panel_in,
    ).subplots(squeeze=False, sharey=grid.share_y)
    for axes, title in zip(made.flat, grid.titles):  # noqa: B905 - panels without titles come last
        axes.set_title(title)
    for axes, label in zip(made.flat, grid.x_labels):  # noqa: B905
        axes.set_xlabel(label)
    return made


def style_width_in() -> float:
    """The width that the style allows, in inches."""
    return float(matplotlib.rcParams["figure.figsize"][0])


def size_pt(size: str | float) -> float:
    """A size of text in points: as it is, or what the style has under this name."""
    settings: Any = matplotlib.rcParams
    given = settings[size] if isinstance(size, str) else size
    return float(FontProperties(size=given).get_size_in_points())


def shown(text: str) -> str:
    """Text as a figure can show it: what its font lacks by the number of the character, such as U+4E2D."""
    has = get_font(findfont(FontProperties())).get_char_index
    parts = itertools.groupby(plain.visible(text), lambda sign: bool(has(ord(sign))))
    return "".join("".join(run) if known else " ".join(f"U+{ord(sign):04X}" for sign in run) for known, run in parts)


def text_in(texts: Iterable[str], size: str | float = "font.size") -> float:
    """The width of the widest line of any text, in inches."""
    lines = (line for text in texts for line in text.split("\n"))
    widest_em = max((sum(map(_advance_em, line)) for line in lines), default=0.0)
    return ROUNDED_UP * widest_em * size_pt(size) / 72


def lines_in(text: str, size: str | float) -> float:
    """The height of a text's lines, in inches; of nothing, none."""
    return (text.count("\n") + 1) * LINE_EM * size_pt(size) / 72 if text else 0.0


def wrapped(text: str, width_in: float, size: str | float) -> str:
    """Text as a figure can show it, in as many lines of this width as it needs."""
    return "\n".join(plain.wrapped(shown(text), _fits(width_in, size)))


def _fits(width_in: float, size: str | float) -> Callable[[str], bool]:
    return lambda text: text_in([text], size) <= width_in


def _more_lines_in(texts: Sequence[str], size: str) -> float:
    """What the tallest text takes beyond its first line."""
    return max((text.count("\n") for text in texts), default=0) * LINE_EM * size_pt(size) / 72


def _legend_columns(entries: Sequence[Artist], room_in: float) -> int:
    widest_in = LEGEND_KEY_IN + text_in((shown(str(entry.get_label())) for entry in entries), "legend.fontsize")
    return min(len(entries), max(1, int(room_in / widest_in)))


def _legend_in(names: Sequence[str], columns: int) -> float:
    """Its height: that of the tallest column."""
    gap_in = LEGEND_GAP_EM * size_pt("legend.fontsize") / 72
    heights = [lines_in(name, "legend.fontsize") + gap_in for name in names]
    return max(float(column.sum()) for column in np.array_split(heights, columns))


def _add_legend(
    figure: Figure, entries: Sequence[Artist], names: Sequence[str], at: tuple[float, float], columns: int
) -> None:
    """Its texts are set afterwards: matplotlib leaves out entries whose label begins with an underscore."""
    numbers = list(map(str, range(len(entries))))
    legend = figure.legend(entries, numbers, loc="upper left", bbox_to_anchor=at, ncols=columns)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)


@cache
def _advance_em(sign: str) -> float:
    """From this letter to the next: between two others, since the width of a text alone is that of its ink."""
    return _ink_em(f"n{sign}n") - _ink_em("nn")


def _ink_em(text: str) -> float:
    font = FontProperties(size=REFERENCE_PT)
    width_px, _, _ = RendererAgg(1, 1, REFERENCE_DPI).get_text_width_height_descent(text, font, ismath=False)
    return float(width_px) / (REFERENCE_PT * REFERENCE_DPI / 72)
