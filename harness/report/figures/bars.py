"""Panels with a row a method: bars and points, and what stands beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from harness.report.figures.drawing import matplotlib  # noqa: F401 - first of all: away from the user's settings

# isort: split
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.analysis.cases import CaseResult
from harness.analysis.methods import MethodResult
from harness.report.figures import layout
from harness.report.figures.cases import shared_and_own
from harness.report.figures.layout import NARROW_IN, WIDE_IN, WIDTH_IN, Grid, Key
from harness.report.figures.look import Look

BAR_IN = 0.3
"""The least height of a row."""

BAR_SHARE = 0.62
"""The share of a row's height that its bar takes."""

BESIDE_PT = 8.0
"""The size of what stands beside the rows."""

LABEL_SHARE, LABEL_LINES = 0.28, 3
"""What the labels beside rows may take at most: a share of the figure's width, and lines in a row."""


def bar_panels(
    parts: Sequence[Sequence[str]],
    looks: Mapping[str, Look],
    legend: Sequence[Artist],
    x_label: str,
    key: Key,
    beside: str = "",
) -> tuple[Figure, list[Axes]]:
    """A figure with a panel for each of ``parts``, each with a row a method, the first at the top.

    Args:
        parts: what each panel shows, in words.
        key: takes the labels that have no room.
        beside: the heading of what will stand at the right of the rows, if anything will.
    """
    heading, titles = shared_and_own(parts)
    columns = min(2, len(titles)) if layout.style_width_in() >= WIDE_IN else 1
    width_in = min(WIDTH_IN if columns > 1 else NARROW_IN, layout.style_width_in())
    names = [key.short(label, LABEL_SHARE * width_in, LABEL_LINES, "ytick.labelsize") for label in looks]
    beside_in = max(0.5, layout.text_in([beside], BESIDE_PT)) + 0.1 if beside else 0.0
    grid = Grid(
        rows=-(-len(titles) // columns),
        columns=columns,
        panel_in=row_in(names, BAR_IN, "ytick.labelsize") * len(looks),
        legend=legend,
        left_in=layout.text_in(names, "ytick.labelsize") + 0.2,
        right_in=beside_in + 0.15,
        between_in=beside_in + 0.25,
        width_in=width_in,
        heading=heading,
        titles=titles,
        x_labels=layout.lowest(len(titles), *[x_label] * columns),
        titled=bool(beside),
        share_y=True,
        key=key,
    )
    figure, made = layout.panels(grid)
    panels, spare = list(made.flat[: len(titles)]), made.flat[len(titles) :]
    for axes in spare:
        axes.remove()
    _name_rows(panels, names, beside)
    return figure, panels


def _name_rows(panels: Sequence[Axes], names: Sequence[str], beside: str) -> None:
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    for axes in panels:
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
        _heading_beside(axes, beside)


def row_in(names: Sequence[str], least_in: float, size: str | float) -> float:
    """The height of a row that has room for the tallest name."""
    return max(least_in, 0.07 + max(layout.lines_in(name, size) for name in names))


def finished_rows(axes: Axes, case: CaseResult) -> list[tuple[int, MethodResult]]:
    """Height and result of each method that has something to show; the others are said to have nothing."""
    for y, result in enumerate(case.methods):
        if result.done.empty:
            say_nothing_finished(axes, y)
    return [(y, result) for y, result in enumerate(case.methods) if not result.done.empty]


def say_nothing_finished(axes: Axes, y: float) -> None:
    """In place of a row's bar."""
    say_in_place(axes, y, "no trial finished")


def say_in_place(axes: Axes, y: float, text: str) -> None:
    """Why a row has no bar."""
    axes.text(0.02, y, text, transform=axes.get_yaxis_transform(), va="center", color="#777777")


def say_beside(axes: Axes, y: float, text: str) -> None:
    """Text to the right of a row."""
    axes.text(1.02, y, text, transform=axes.get_yaxis_transform(), va="center", fontsize=BESIDE_PT)


def _heading_beside(axes: Axes, text: str) -> None:
    """The heading of what stands beside the rows, on the line of the panel's title."""
    axes.annotate(text, (1.02, 1), (0, 6), xycoords="axes fraction", textcoords="offset points", fontsize=BESIDE_PT)


def spread_out(count: int) -> np.ndarray[Any, Any]:
    """Offsets that keep the points of a row apart."""
    return np.linspace(-0.16, 0.16, count) if count > 1 else np.zeros(count)
