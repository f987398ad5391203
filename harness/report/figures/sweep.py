"""How far a method can compress before it loses accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import pandas as pd

from harness.report.figures.drawing import matplotlib  # noqa: F401 - first of all: away from the user's settings

# isort: split
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from harness.analysis.cases import CaseResult, per_case
from harness.analysis.sweeps import Sweep, sweeps
from harness.report.figures import layout
from harness.report.figures.axes import percent_axis, plain_log_ticks
from harness.report.figures.cases import shared_and_own
from harness.report.figures.layout import NARROW_IN, PERCENT_AXIS_IN, Grid
from harness.report.figures.look import DASHED, INK, Look, dashed_key, method_keys
from harness.report.figures.registry import Drawing, Results, figure


@figure(order=80)
def sweep(results: Results) -> Iterator[Drawing]:
    """Final accuracy against the share of entries that is kept, with the share where it stops to hold marked."""
    baseline, tolerance = results.scenario.baseline, results.scenario.tolerance
    swept = [(case, found) for case in results.cases if (found := sweeps(case, baseline, tolerance))]
    if not swept:
        return
    heading, titles = shared_and_own([case.parts for case, _ in swept])
    every_sweep = [each for _, found in swept for each in found]
    grid = Grid(
        rows=len(swept),
        columns=1,
        panel_in=2.4,
        legend=_legend(every_sweep, results.looks, f"{baseline}, and {100 * tolerance:g} points less"),
        left_in=PERCENT_AXIS_IN,
        right_in=0.15,
        width_in=NARROW_IN,
        heading=heading,
        titles=titles,
        x_labels=layout.lowest(len(swept), " or ".join(sorted({each.parameter for each in every_sweep}))),
    )
    drawn, panels = layout.panels(grid)
    for axes, (case, found) in zip(panels.flat, swept, strict=True):
        _draw_tolerated(axes, case, baseline, tolerance)
        _draw_sweeps(axes, found, results.looks)
    caption = (
        "Final test accuracy against the share of entries that is kept, most pruned at the right: mean over rounds and "
        f"extremes. The circle marks the convergence limit: down to it the mean stays within {100 * tolerance:g} "
        f"points of {baseline}'s."
    )
    data = per_case(results.cases, partial(_swept, baseline, tolerance))
    yield Drawing("sweep", "Accuracy against what is kept", caption, drawn, data)


def _legend(every_sweep: Sequence[Sweep], looks: Mapping[str, Look], tolerated: str) -> list[Artist]:
    titles = {each.title: looks[_label(each)] for each in every_sweep}
    limit = Line2D([], [], color=INK, marker="o", mfc="none", ls="", ms=9, label="convergence limit")
    return [*method_keys(titles, titles), dashed_key(tolerated), limit]


def _label(found: Sweep) -> str:
    """The label of a sweep's first method, whose look is that of the sweep."""
    return found.points[0][1].label


def _draw_tolerated(axes: Axes, case: CaseResult, baseline: str, tolerance: float) -> None:
    """The baseline's accuracy, and what may be lost of it."""
    if reference := case.method(baseline).final_accuracy:
        axes.axhline(reference.mean, **DASHED)
        axes.axhspan(reference.mean - tolerance, reference.mean, color=INK, alpha=0.08, lw=0)


def _draw_sweeps(axes: Axes, found: Sequence[Sweep], looks: Mapping[str, Look]) -> None:
    for each in found:
        _sweep_line(axes, each, looks[_label(each)])
    axes.set_xscale("log")
    axes.invert_xaxis()
    plain_log_ticks(axes.xaxis)
    percent_axis(axes)
    axes.set_ylabel("final test accuracy")


def _sweep_line(axes: Axes, found: Sweep, look: Look) -> None:
    spreads = [(share, spread) for share, result in found.points if (spread := result.final_accuracy)]
    axes.plot([share for share, _ in spreads], [spread.mean for _, spread in spreads], **look.line)
    for share, spread in spreads:
        axes.plot([share] * 2, [spread.low, spread.high], color=look.color, lw=1, alpha=0.8)
        if share == found.limit:
            axes.plot(share, spread.mean, "o", ms=11, mfc="none", mec=INK)
            axes.annotate(f"{share:g}", (share, spread.mean), (0, -16), textcoords="offset points", ha="center")


def _swept(baseline: str, tolerance: float, case: CaseResult) -> pd.DataFrame:
    """A row a method of each sweep."""
    return pd.DataFrame(
        [
            {
                "sweep": found.title,
                "parameter": found.parameter,
                "share": share,
                "label": result.label,
                "final_accuracy": spread.mean,
                "final_accuracy_min": spread.low,
                "final_accuracy_max": spread.high,
                "rounds": len(result.done),
                "is_limit": share == found.limit,
            }
            for found in sweeps(case, baseline, tolerance)
            for share, result in found.points
            if (spread := result.final_accuracy)
        ]
    )
