"""At which rates of the links a method is faster than the baseline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness.report.figures.drawing import matplotlib  # noqa: F401 - first of all: away from the user's settings

# isort: split
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from harness.analysis.byte_model import mean_model
from harness.analysis.cases import CaseResult, per_case
from harness.report.figures import layout
from harness.report.figures.axes import inline, interval, plain_log_ticks
from harness.report.figures.cases import by_all_but_rate, shared_and_own
from harness.report.figures.layout import AXIS_IN, Grid, Key
from harness.report.figures.look import INK, method_keys
from harness.report.figures.registry import Drawing, Results, figure

MODEL_RATES_BPS = np.geomspace(1e6, 1e11, 61)


@figure(order=30)
def when_it_pays(results: Results) -> Iterator[Drawing]:
    """Speedup by the byte model over all rates, and where it falls to 1; points are what was measured."""
    looks, baseline = results.looks, results.reference
    groups = by_all_but_rate(results.cases)
    heading, titles = shared_and_own(list(groups))
    key = Key(looks)
    y_label = f"speedup over {inline(key, baseline)}"
    grid = Grid(
        rows=len(groups),
        columns=1,
        panel_in=2.4,
        legend=[*method_keys(looks, set(looks)), Line2D([], [], color=INK, marker="o", ls="", label="measured")],
        left_in=AXIS_IN,
        right_in=0.2,
        heading=heading,
        titles=titles,
        x_labels=layout.lowest(len(groups), "link rate (bit/s)"),
        key=key,
    )
    drawn, panels = layout.panels(grid)
    for axes, group in zip(panels.flat, groups.values(), strict=True):
        _draw_group(axes, group, results)
        axes.set_ylabel(y_label)

    def plotted(case: CaseResult) -> pd.DataFrame:
        frames = [_modelled([case], label, baseline).assign(label=label) for label in looks]
        return pd.concat(frames, ignore_index=True).rename(columns={"rate_bps": "model_rate_bps"})

    caption = (
        "Lines: the byte model, in which a step's bytes take their time at any rate and all else stays as measured. "
        "Below the line at 1× a method costs more than it saves. Points: measured, with their 95 % t intervals."
    )
    yield Drawing("when-it-pays", "When it pays", caption, drawn, per_case(results.cases, plotted))


def _draw_group(axes: Axes, group: Sequence[CaseResult], results: Results) -> None:
    """The modelled curve of each method, and its measured points."""
    baseline = results.reference
    for label, look in results.looks.items():
        curve = _modelled(group, label, baseline)
        hollow: dict[str, Any] = {"markevery": (3, 9), "ms": 3.5, "mfc": "white"}  # the curve is not measured
        axes.plot(curve["rate_bps"], curve["speedup"], **look.line, lw=1.1, **hollow)
        for case in group:
            if case.rate_bps and label != baseline and (found := case.method(label).over[baseline].throughput):
                axes.plot(case.rate_bps, found.value, **look.point, mew=0.5, ms=6, zorder=3)
                interval(axes, case.rate_bps, found, look)
    axes.axhline(1, color=INK, lw=0.9)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(MODEL_RATES_BPS[0] / 1.3, MODEL_RATES_BPS[-1] * 1.3)  # also where the baseline has no trial
    axes.xaxis.set_major_formatter(EngFormatter(places=0))
    plain_log_ticks(axes.yaxis, "×")


def _modelled(group: Sequence[CaseResult], label: str, baseline: str) -> pd.DataFrame:
    """Speedups of the byte model over ``MODEL_RATES_BPS``, from the trials of all cases of the group; none unknown."""
    method, base = (
        mean_model([model for case in group for model in case.method(each).step_models.values()])
        for each in (label, baseline)
    )
    if method is None or base is None:
        return pd.DataFrame({"rate_bps": [], "speedup": []}, dtype=float)
    speedups = [base.step_s(rate_bps) / method.step_s(rate_bps) for rate_bps in MODEL_RATES_BPS]
    return pd.DataFrame({"rate_bps": MODEL_RATES_BPS, "speedup": speedups})
