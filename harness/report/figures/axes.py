"""Axes, ticks, points and lines that several figures share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from harness.report.figures.drawing import matplotlib  # noqa: F401 - first of all: away from the user's settings

# isort: split
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from harness.analysis.estimates import Estimate
from harness.report.figures import layout
from harness.report.figures.layout import Key
from harness.report.figures.look import INK, Look

LEAST_SPAN = 0.02
"""The least span of an axis of percentages. With less, its numbers would grow."""

FEW_DECADES = 30
"""The greatest over the least value of a log axis, up to which there are three ticks a decade."""

BASELINE_SHARE = 0.2
"""The share of the figure's width that the baseline's label may take within other text."""


def inline(key: Key, baseline: str) -> str:
    """The baseline's label within other text."""
    return key.inline(baseline, BASELINE_SHARE * layout.style_width_in(), "axes.labelsize")


def plain_log_ticks(axis: Axis, unit: str = "") -> None:
    """Ticks at 1, 2 and 5 of each decade, written out."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}{unit}"))
    axis.set_minor_formatter(NullFormatter())


def engineering_log_ticks(axis: Axis, low: float, high: float, unit: str = "") -> None:
    """Ticks with prefixes, such as 10 M; three a decade where there are few decades."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < FEW_DECADES else (1,)))
    axis.set_major_formatter(EngFormatter(unit=unit, places=0))
    axis.set_minor_formatter(NullFormatter())


def percent_ticks(axis: Axis) -> None:
    """Shares as percentages."""
    axis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))


def percent_axis(axes: Axes) -> None:
    """A y axis of percentages that spans enough for its numbers to stay short."""
    low, high = axes.get_ylim()
    more = max(0.0, LEAST_SPAN - (high - low)) / 2
    axes.set_ylim(low - more, high + more)
    percent_ticks(axes.yaxis)


def interval(axes: Axes, x: float, found: Estimate, look: Look, alpha: float | None = None) -> None:
    """A vertical line from the lower to the upper end of an interval, where there is one."""
    if found.low is not None and found.high is not None:
        axes.plot([x] * 2, [found.low, found.high], color=look.color, lw=1, alpha=alpha)


def whiskers(axes: Axes, heights: Sequence[float], estimates: Sequence[Estimate]) -> None:
    """Horizontal intervals, where there are any: matplotlib passes over NaN."""
    middles = np.array([estimate.value for estimate in estimates])
    ends = np.array([(estimate.low, estimate.high) for estimate in estimates], dtype=float).reshape(-1, 2)
    errors = np.abs(ends.T - middles)
    axes.errorbar(middles, heights, xerr=errors, fmt="none", ecolor=INK, elinewidth=1, zorder=3)
