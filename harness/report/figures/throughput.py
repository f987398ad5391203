"""How fast methods train: samples per second, and how many times the baseline's."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pandas as pd

from harness.report.figures.drawing import matplotlib  # noqa: F401 - first of all: away from the user's settings

# isort: split
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from harness.analysis.cases import CaseResult, per_case
from harness.report.figures.axes import inline, whiskers
from harness.report.figures.bars import (
    BAR_SHARE,
    bar_panels,
    finished_rows,
    say_beside,
    say_in_place,
    say_nothing_finished,
    spread_out,
)
from harness.report.figures.cases import bounds, speedups
from harness.report.figures.layout import Key
from harness.report.figures.look import DASHED, INK, dashed_key, mean_keys
from harness.report.figures.registry import Drawing, Results, figure


@figure(order=20)
def throughput(results: Results) -> Iterator[Drawing]:
    """Steady-state samples per second of each method: each round, mean and interval."""
    keys = [Line2D([], [], color=INK, marker="o", ls="", label="a round"), *mean_keys()]
    parts, key = [case.parts for case in results.cases], Key(results.looks)
    beside = f"over {inline(key, results.reference)}"
    drawn, panels = bar_panels(parts, results.looks, keys, "steady-state samples/s", key, beside)
    for axes, case in zip(panels, results.cases, strict=True):
        _draw_rounds(axes, case, results)
    caption = (
        "Training throughput in the steady state, evaluations and warm-up excluded. A point is a round, a bar their "
        "geometric mean, a whisker its 95 % t interval; at the right the speedup, paired within rounds."
    )
    data = per_case(results.cases, partial(_rounds, results.reference))
    yield Drawing("throughput", "Throughput", caption, drawn, data)


def _draw_rounds(axes: Axes, case: CaseResult, results: Results) -> None:
    looks, baseline = results.looks, results.reference
    rows = [(y, result, mean) for y, result in finished_rows(axes, case) if (mean := result.samples_per_s)]
    heights, colors = [y for y, _, _ in rows], [looks[result.label].color for _, result, _ in rows]
    faces = [looks[result.label].face for _, result, _ in rows]
    axes.barh(heights, [mean.value for _, _, mean in rows], BAR_SHARE, color=faces, edgecolor=colors)
    whiskers(axes, heights, [mean for _, _, mean in rows])
    for y, result, _ in rows:
        rounds = result.done["samples_per_s"]
        axes.plot(rounds, y + spread_out(len(rounds)), **looks[result.label].point, mew=0.4, ms=4)
        if (gained := result.over[baseline].throughput) and result.label != baseline:
            say_beside(axes, y, f"{gained.value:.2f}×")


def _rounds(baseline: str, case: CaseResult) -> pd.DataFrame:
    """A row a finished round of each method."""
    rows = [
        {
            "label": result.label,
            "round": trial.round,
            "samples_per_s": trial.samples_per_s,
            **bounds("mean_samples_per_s", result.samples_per_s),
            "baseline": baseline,
            "speedup_over_baseline": getattr(result.over[baseline].throughput, "value", None),
        }
        for result in case.methods
        for trial in result.done[["round", "samples_per_s"]].sort_values("round").itertuples()
    ]
    return pd.DataFrame(rows)


@figure(order=110, for_paper=True)
def speedup(results: Results) -> Iterator[Drawing]:
    """How many times the baseline's samples per second each method has: mean and interval."""
    looks, baseline = results.looks, results.reference
    others = [label for label in looks if label != baseline] or list(looks)
    parts, key = [case.parts for case in results.cases], Key(looks)
    x_label = f"speedup over {inline(key, baseline)}"
    shown = {label: looks[label] for label in others}
    drawn, panels = bar_panels(parts, shown, [*mean_keys(), dashed_key(baseline)], x_label, key, "times")
    for axes, case in zip(panels, results.cases, strict=True):
        axes.axvline(1, **DASHED)
        for y, label in enumerate(others):
            _draw_speedup(axes, y, case, label, results)
    caption = (
        "Ratio of steady-state samples/s to the baseline's, paired within rounds: geometric mean and 95 % t interval."
    )
    yield Drawing("speedup", "Speedup", caption, drawn, per_case(results.cases, partial(speedups, baseline)))


def _draw_speedup(axes: Axes, y: int, case: CaseResult, label: str, results: Results) -> None:
    result = case.method(label)
    if result.done.empty:
        say_nothing_finished(axes, y)
        return
    if not (found := result.over[results.reference].throughput):
        say_in_place(axes, y, "no ratio")
        return
    look = results.looks[label]
    axes.barh(y, found.value, BAR_SHARE, color=look.face, edgecolor=look.color)
    whiskers(axes, [y], [found])
    say_beside(axes, y, f"{found.value:.2f}×")
