"""What methods get of links whose rate changes while they train."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from harness.report.figures.drawing import matplotlib  # noqa: F401 - first of all: away from the user's settings

# isort: split
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from harness.analysis.cases import CaseResult, per_case
from harness.analysis.methods import MethodResult
from harness.methods import declared
from harness.report.figures import layout
from harness.report.figures.axes import engineering_log_ticks
from harness.report.figures.cases import of_case, shared_and_own
from harness.report.figures.layout import AXIS_IN, Grid
from harness.report.figures.look import INK, Look
from harness.report.figures.registry import Drawing, Results, figure

KINDS = ("adaptive_goodput_bps", "link_rate_bps", "step_s")
"""The kinds of events that are shown."""

COLUMNS = ["label", "step", "link_rate_bps", "goodput_bps", "adaptive_goodput_bps"]


@figure(order=70)
def changing_links(results: Results) -> Iterator[Drawing]:
    """The links' rate against what a method got of it, step by step; a panel a method, of its first finished round."""
    if not (results.events["kind"] == "link_rate_bps").any():
        return
    data = changes_by_step(results.cases, results.events)
    heading, titles = shared_and_own([case.parts for case in results.cases])
    shown = [
        (str(label), title, steps)
        for case, title in zip(results.cases, titles, strict=True)
        for label, steps in of_case(data, case).groupby("label", sort=False)
    ]
    keys: list[Artist] = [
        Line2D([], [], color=INK, lw=1, ls="--", label="rate of the links"),
        Line2D([], [], color="#888888", lw=1, label="payload per step time"),
        Line2D([], [], color=INK, marker="v", ls="", label="adaptive choice, and the goodput it was made for"),
    ]
    grid = Grid(
        rows=len(shown),
        columns=1,
        panel_in=1.1,
        legend=keys,
        left_in=AXIS_IN,
        right_in=0.15,
        heading=heading,
        titles=[f"{label}, {title}" if title else label for label, title, _ in shown],
        x_labels=layout.lowest(len(shown), "steps"),
    )
    drawn, panels = layout.panels(grid)
    for axes, (label, _, steps) in zip(panels.flat, shown, strict=True):
        _draw_steps(axes, steps, results.looks[label])
    caption = (
        "Dashed: the rate that was in force on every worker's links when the step ended, as the player logged it. "
        "Solid: the payload of a worker's mean step over the time that this step took, computation included."
    )
    yield Drawing("changing-links", "Goodput while the links change", caption, drawn, data)


def _draw_steps(axes: Axes, steps: pd.DataFrame, look: Look) -> None:
    axes.step(steps["step"], steps["link_rate_bps"], color=INK, ls="--", lw=1, where="post")
    axes.plot(steps["step"], steps["goodput_bps"], color=look.color, lw=1)
    axes.plot(steps["step"], steps["adaptive_goodput_bps"], color=INK, marker="v", ls="")
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(low / 1.6, high * 1.6)  # so that a tick lies within
    engineering_log_ticks(axes.yaxis, low, high)
    axes.set_ylabel("bit/s")


def changes_by_step(cases: Sequence[CaseResult], events: pd.DataFrame) -> pd.DataFrame:
    """A row a step of each method's first finished trial on changing links: rate in force, goodput, choices."""
    chosen = events[events["rank"] <= 0]

    def of(case: CaseResult) -> pd.DataFrame:
        frames = [steps for result in case.methods if (steps := _steps_of(result, chosen)) is not None]
        return pd.concat(frames)[COLUMNS] if frames else pd.DataFrame(columns=COLUMNS)

    return per_case(cases, of)


def _steps_of(result: MethodResult, events: pd.DataFrame) -> pd.DataFrame | None:
    """The steps of a method's first finished trial; None if its links did not change."""
    first = result.done.sort_values("round").head(1)
    if first.empty:
        return None
    names = {"step_s": "step_s", "link_rate_bps": "link_rate_bps"}
    method = declared(result.method)
    if method and method.State.goodput_note:
        names[method.State.goodput_note] = "adaptive_goodput_bps"
    own = events[(events["trial_id"] == first["trial_id"].iloc[0]) & events["kind"].isin(names)]
    table: pd.DataFrame = own.pivot_table(index="step", columns="kind", values="value", aggfunc="last").sort_index()
    if "link_rate_bps" not in table:
        return None
    table = table.rename(columns=names).reindex(columns=list(KINDS))
    table["link_rate_bps"] = table["link_rate_bps"].ffill().bfill()
    table["goodput_bps"] = 8 * first["wire_bytes_per_step"].iloc[0] / table["step_s"]
    table["label"] = result.label
    return table.reset_index()
