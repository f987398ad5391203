"""The loss and the time of each step of a script that was observed. A record of a command shows it."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from harness.report.figures.drawing import matplotlib  # noqa: F401 - first of all: away from the user's settings

# isort: split
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from harness.record.observed import ObservedStep, Training
from harness.report.figures import layout
from harness.report.figures.layout import AXIS_IN, Grid
from harness.report.figures.look import PHASES
from harness.report.figures.registry import Drawing

COLOR = PHASES["compute"]


def observed(training: Training | None) -> Iterator[Drawing]:
    """Loss and step time over steps; nothing where no step was observed."""
    if training is None or not training.curve:
        return
    table = pd.DataFrame([step.model_dump() for step in training.curve], columns=list(ObservedStep.model_fields))
    grid = Grid(
        rows=2,
        columns=1,
        panel_in=1.6,
        legend=[Line2D([], [], color=COLOR, lw=1, label=training.method or "DDP as the script has it")],
        left_in=AXIS_IN,
        right_in=0.15,
        x_labels=layout.lowest(2, "step"),
    )
    drawn, panels = layout.panels(grid)
    loss, time = panels.flat
    _draw(loss, table, "loss", "loss")
    _draw(time, table, "step_s", "time of a step")
    time.set_ylim(bottom=0)
    time.yaxis.set_major_formatter(EngFormatter("s"))
    caption = "The loss, as the script scales it, and the time of each step: means over all ranks."
    yield Drawing("training", "Loss and time of steps", caption, drawn, table)


def _draw(axes: Axes, table: pd.DataFrame, column: str, label: str) -> None:
    axes.plot(table["step"], table[column].astype(float), color=COLOR, lw=1)
    axes.set_ylabel(label)
