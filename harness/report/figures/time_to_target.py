"""How soon a model is as good as any target says."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from harness.report.figures.drawing import matplotlib  # noqa: F401 - first of all: away from the user's settings

# isort: split
from matplotlib.axes import Axes

from harness.analysis.cases import CaseResult
from harness.analysis.curves import times_to_targets
from harness.report.figures import layout
from harness.report.figures.axes import percent_ticks, plain_log_ticks
from harness.report.figures.cases import of_case, shared_and_own
from harness.report.figures.layout import AXIS_IN, Grid, Key
from harness.report.figures.look import DASHED, dashed_key, method_keys
from harness.report.figures.registry import Drawing, Results, figure

MARKERS = 12
"""About how many markers a curve has."""

TIMES_SHOWN = 200.0
"""The longest time to any target, over the shortest that has room. What is reached at once interests nobody."""


@figure(order=10)
def time_to_target(results: Results) -> Iterator[Drawing]:
    """When each method was as good as any value of the metric; a line ends, or has a gap, where a round missed it."""
    cases, times = results.cases, times_to_targets(results.cases, results.events)
    if times.empty:
        return
    heading, titles = shared_and_own([case.parts for case in cases])
    metrics = {case.target.metric if case.target else "accuracy" for case in cases}
    grid = Grid(
        rows=len(cases),
        columns=1,
        panel_in=2.4,
        legend=[*method_keys(results.looks, set(times["label"])), dashed_key("target")],
        left_in=AXIS_IN,
        right_in=0.2,
        heading=heading,
        titles=titles,
        x_labels=layout.lowest(len(cases), f"target: test {' or '.join(sorted(metrics))}"),
        key=Key(list(results.looks)),
    )
    drawn, panels = layout.panels(grid)
    for axes, case in zip(panels.flat, cases, strict=True):
        _draw_times(axes, case, of_case(times, case), results)
    caption = (
        "Training time, warm-up and pruning included and evaluations excluded, until the test set was first predicted "
        "as well as the x axis says: median of rounds, between evaluations by a line. Where a method has no line, it "
        "missed that in some round. Dashed: the scenario's target."
    )
    yield Drawing("time-to-target", "Time to any target", caption, drawn, times)


def _draw_times(axes: Axes, case: CaseResult, times: pd.DataFrame, results: Results) -> None:
    for label, curve in times.groupby("label", sort=False):
        every = max(1, len(curve) // MARKERS)
        axes.plot(curve["value"], curve["time_s"], **results.looks[str(label)].line, markevery=every, ms=3.5)
    if case.target:
        axes.axvline(case.target.value, **DASHED)
    metric = times["metric"].iloc[0] if len(times) else "accuracy"
    if metric == "accuracy":
        percent_ticks(axes.xaxis)
    else:
        axes.invert_xaxis()  # better to the right
    axes.set_yscale("log")
    axes.set_ylim(bottom=float(times["time_s"].max()) / TIMES_SHOWN if len(times) else None)
    plain_log_ticks(axes.yaxis)
    axes.set_ylabel("time to it (s)")
