"""What a pilot has learnt by which time, and what a step would take on other links. A pilot's page shows both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from harness.report.figures.drawing import matplotlib  # noqa: F401 - first of all: away from the user's settings

# isort: split
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from harness.analysis.pilot.forecast import Forecast
from harness.record.pilot import Outcome, Pilot
from harness.report.figures import layout
from harness.report.figures.layout import AXIS_IN, Grid
from harness.report.figures.look import Look, looks
from harness.report.figures.registry import Drawing

RATES_BPS = [10 ** (6 + step / 8) for step in range(41)]
"""1 Mbit/s to 100 Gbit/s, eight a decade."""


def pilot(found: Pilot) -> Iterator[Drawing]:
    """Loss over time, and paces over rates."""
    styles = looks([outcome.method for outcome in found.outcomes])
    yield _losses(found, styles)
    yield _paces(found, styles)


def _losses(found: Pilot, styles: dict[str, Look]) -> Drawing:
    rows = [
        {"label": own.label, "seed": own.seed, "step": step, "time_s": (step + 1) * own.pace_s, "loss": loss}
        for own in found.trainings
        for step, loss in enumerate(own.losses)
        if loss is not None
    ]
    table = pd.DataFrame(rows, columns=["label", "seed", "step", "time_s", "loss"])
    means = table.groupby(["label", "step"], as_index=False, sort=False)[["time_s", "loss"]].mean()
    drawn, panels = layout.panels(_grid(found.outcomes, styles, 2.4, "time, by the mean step"))
    (axes,) = panels.flat
    for label, own in means.groupby("label", sort=False):
        axes.plot(own["time_s"], own["loss"], **_line(styles[str(label)]))
    axes.set_ylabel("loss")
    axes.xaxis.set_major_formatter(EngFormatter("s"))
    caption = "The loss, as the script scales it: means over ranks and seeds, on the emulated network."
    return Drawing("learning", "Loss over time", caption, drawn, table)


def _paces(found: Pilot, styles: dict[str, Look]) -> Drawing:
    forecast = Forecast(found.job, found.network, found.per_node, found.beyond_s)
    rows = [
        {"label": own.label, "rate_bps": rate_bps, "pace_s": forecast.pace_s(own.method, rate_bps)}
        for own in found.outcomes
        for rate_bps in RATES_BPS
    ]
    table = pd.DataFrame(rows, columns=["label", "rate_bps", "pace_s"])
    drawn, panels = layout.panels(_grid(found.outcomes, styles, 2.4, "rate of each link"))
    (axes,) = panels.flat
    for label, own in table.groupby("label", sort=False):
        axes.plot(own["rate_bps"], own["pace_s"], **_line(styles[str(label)]))
    own_bps = found.network.at_mean.slowest_bps
    for outcome in found.outcomes if own_bps else ():
        axes.plot([own_bps], [outcome.pace_s], **styles[outcome.label].point)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(EngFormatter("bit/s"))
    axes.yaxis.set_major_formatter(EngFormatter("s"))
    axes.set_ylabel("from step to step")
    caption = (
        "Lines are predicted by the step model, with what steps with all-reduces took beyond it here, for links that "
        "are all alike; points were measured by this pilot."
    )
    return Drawing("bandwidth", "A step on other links", caption, drawn, table)


def _line(look: Look) -> dict[str, Any]:
    """A line without markers."""
    return {"color": look.color, "ls": look.line_style, "lw": 1}


def _grid(outcomes: Sequence[Outcome], styles: dict[str, Look], panel_in: float, x_label: str) -> Grid:
    legend = [Line2D([], [], **_line(styles[each.label]), label=each.label) for each in outcomes]
    return Grid(rows=1, columns=1, panel_in=panel_in, legend=legend, left_in=AXIS_IN, right_in=0.15, x_labels=[x_label])
