"""Where compression stops to pay, as profiles, bytes and links predict it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from harness.report.figures.drawing import matplotlib, style  # noqa: F401 - first of all: away from the user's settings

# isort: split
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, FuncFormatter, NullLocator

from harness.analysis.crossover import RATE_OF_WORKERS_BPS
from harness.report.figures import layout, render
from harness.report.figures.axes import plain_log_ticks
from harness.report.figures.layout import AXIS_IN, Grid
from harness.report.figures.look import INK, Look, looks, method_keys
from harness.report.figures.registry import Drawing
from harness.scenario.schema import MethodSpec
from harness.units import format_rate


def write_crossover(found: pd.DataFrame, methods: Sequence[MethodSpec], folder: Path) -> Drawing:
    """Draw ``crossover`` into ``folder`` as ``turning.pdf``, png and csv."""
    with style():
        return render.write([crossover(found, looks(methods))], folder)[0]


def crossover(found: pd.DataFrame, looks: Mapping[str, Look]) -> Drawing:
    """Predicted speedups over the baseline, a row a profile: by the links' rate, and by the number of workers.

    Args:
        found: ``crossover.speedups`` of one scenario or of several.
    """
    of_replay = {str(replay): own for replay, own in found.groupby("replay", sort=False)}
    usual = {replay: own["workers"].mode()[0] for replay, own in of_replay.items()}
    by_workers = format_rate(RATE_OF_WORKERS_BPS)
    grid = Grid(
        rows=len(of_replay),
        columns=2,
        panel_in=1.7,
        legend=method_keys(looks, set(found["label"])),
        left_in=AXIS_IN,
        right_in=0.15,
        between_in=0.25,
        titles=[f"{replay}, {of}" for replay in of_replay for of in (f"{usual[replay]} workers", by_workers)],
        x_labels=layout.lowest(2 * len(of_replay), "link rate (bit/s)", "workers"),
        share_y=True,
    )
    drawn, panels = layout.panels(grid)
    for (by_rate, by_count), (replay, own) in zip(panels, of_replay.items(), strict=True):
        _draw_over_rates(by_rate, own[own["workers"] == usual[replay]], looks)
        _draw_over_workers(by_count, own[np.isclose(own["rate_bps"], RATE_OF_WORKERS_BPS)], looks)
        by_count.set_xticks(sorted(set(own["workers"])))
        by_count.xaxis.set_minor_locator(NullLocator())
    caption = (
        "Predicted, not measured: from each profile's computation and codecs, the methods' bytes and the links. Below "
        "the line at 1× a method costs more than it saves."
    )
    return Drawing("turning", "Where it turns", caption, drawn, found)


def _draw_over_rates(axes: Axes, speedups: pd.DataFrame, looks: Mapping[str, Look]) -> None:
    _draw_curves(axes, speedups, "rate_bps", looks)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(EngFormatter(places=0))
    plain_log_ticks(axes.yaxis, "×")
    axes.set_ylabel("predicted speedup")


def _draw_over_workers(axes: Axes, speedups: pd.DataFrame, looks: Mapping[str, Look]) -> None:
    _draw_curves(axes, speedups, "workers", looks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _draw_curves(axes: Axes, speedups: pd.DataFrame, x: str, looks: Mapping[str, Look]) -> None:
    for label, curve in speedups.sort_values(x).groupby("label", sort=False):
        axes.plot(curve[x], curve["speedup"], **looks[str(label)].line, markevery=3, ms=3.5)
    axes.axhline(1, color=INK, lw=0.9)
    axes.set_xscale("log")
