"""What evaluations found while a model was trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from harness.report.figures.drawing import matplotlib  # noqa: F401 - first of all: away from the user's settings

# isort: split
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.analysis.cases import CaseResult
from harness.analysis.curves import learning_curves
from harness.report.figures import layout
from harness.report.figures.axes import percent_axis, plain_log_ticks
from harness.report.figures.cases import of_case, shared_and_own
from harness.report.figures.layout import PERCENT_AXIS_IN, WIDE_IN, Grid
from harness.report.figures.look import DASHED, Look, dashed_key, method_keys
from harness.report.figures.registry import Drawing, Results, figure

MOST_MARKERS = 12
"""How many markers a curve has at most."""

X_LABELS = ("training time (s), evaluations excluded", "steps")


@figure(order=50)
def accuracy(results: Results) -> Iterator[Drawing]:
    """Test accuracy against training time, and against steps: mean and extremes over rounds."""
    curves = learning_curves(results.cases, results.events)
    if curves.empty:
        return
    drawn, rows = _learning(results, curves, "accuracy")
    for row in rows:
        percent_axis(row[0])
    caption = (
        "Test accuracy over training time, warm-up and pruning included, and over steps. A line is the mean over "
        "rounds, its band reaches from the least to the greatest of them; dashed: the target."
    )
    yield Drawing("accuracy", "Accuracy", caption, drawn, curves)


@figure(order=60)
def perplexity(results: Results) -> Iterator[Drawing]:
    """A language's test perplexity, as ``accuracy`` is drawn."""
    curves = learning_curves(results.cases, results.events, "perplexity")
    if curves.empty:
        return
    drawn, rows = _learning(results, curves, "perplexity")
    for row in rows:
        row[0].set_yscale("log")
        plain_log_ticks(row[0].yaxis)
    caption = (
        "Test perplexity, the exponential of the mean cross entropy of a token, over training time and over steps. A "
        "line is the mean over rounds, its band reaches from the least to the greatest of them."
    )
    yield Drawing("perplexity", "Perplexity", caption, drawn, curves)


def _learning(results: Results, curves: pd.DataFrame, kind: str) -> tuple[Figure, np.ndarray[Any, Any]]:
    """A figure of what evaluations found, and its panels: a row a case, over training time and over steps."""
    cases = results.cases
    heading, titles = shared_and_own([case.parts for case in cases])
    columns = 2 if layout.style_width_in() >= WIDE_IN else 1
    grid = Grid(
        rows=2 * len(cases) // columns,
        columns=columns,
        panel_in=1.6,
        legend=[*method_keys(results.looks, set(curves["label"])), dashed_key("target")],
        left_in=PERCENT_AXIS_IN,
        right_in=0.15,
        between_in=0.25,
        heading=heading,
        titles=[text for title in titles for text in (title, "")],
        x_labels=list(X_LABELS) * len(cases) if columns == 1 else layout.lowest(2 * len(cases), *X_LABELS),
        share_y=True,
    )
    drawn, panels = layout.panels(grid)
    rows = panels.reshape(len(cases), 2)
    for row, case in zip(rows, cases, strict=True):
        _draw_case(row, case, of_case(curves, case), results, kind)
        row[1].set_xlim(right=1.02 * curves["step"].max())
        for axes in row[: 3 - columns]:
            axes.set_ylabel(f"test {kind}")
    return drawn, rows


def _draw_case(row: Iterable[Axes], case: CaseResult, curves: pd.DataFrame, results: Results, kind: str) -> None:
    for axes, x in zip(row, ("time_s", "step"), strict=True):
        for label, curve in curves.groupby("label", sort=False):
            _line_with_band(axes, curve, x, kind, results.looks[str(label)])
        axes.set_xlim(left=0)
        if case.target and case.target.metric == kind:
            axes.axhline(case.target.value, **DASHED)


def _line_with_band(axes: Axes, curve: pd.DataFrame, x: str, kind: str, look: Look) -> None:
    every = -(-len(curve) // MOST_MARKERS)
    there_and_back = np.concatenate([curve[x], curve[x][::-1]])
    edge = np.concatenate([curve[f"{kind}_min"], curve[f"{kind}_max"][::-1]])
    axes.fill(there_and_back, edge, color=look.color, alpha=0.15, lw=0)
    axes.plot(curve[x], curve[kind], **look.line, markevery=every, ms=3.5)
