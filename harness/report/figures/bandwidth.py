"""What methods gain at each rate of the links."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import pandas as pd

from harness.report.figures.drawing import matplotlib  # noqa: F401 - first of all: away from the user's settings

# isort: split
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullLocator

from harness.analysis.cases import CaseResult, per_case
from harness.analysis.estimates import Estimate
from harness.analysis.methods import MethodResult
from harness.report.figures import layout
from harness.report.figures.axes import inline, interval, plain_log_ticks
from harness.report.figures.cases import bounds, by_all_but_rate, have_several_rates, shared_and_own, speedups
from harness.report.figures.layout import AXIS_IN, NARROW_IN, Grid, Key
from harness.report.figures.look import Look, method_keys
from harness.report.figures.registry import Drawing, Results, figure

Known = Callable[[MethodResult], Estimate | None]
"""What is known of a method in one case."""


@figure(order=40)
def bandwidth(results: Results) -> Iterator[Drawing]:
    """Speedup over the baseline against the links' rate; a panel for cases that share all but the rate."""
    if not have_several_rates(results.cases):
        return
    key, baseline = Key(results.looks), results.reference

    def known(result: MethodResult) -> Estimate | None:
        return result.over[baseline].throughput

    y_label = f"speedup over {inline(key, baseline)}"
    drawn = _against_rate(results, known, y_label, "×", key, without_interval=baseline)
    caption = (
        "Ratio of steady-state samples/s to the baseline's, paired within rounds: geometric mean and 95 % t interval. "
        "Below 1× a method costs more than it saves."
    )
    data = per_case(results.cases, partial(speedups, baseline))
    yield Drawing("bandwidth", "Speedup against bandwidth", caption, drawn, data)


@figure(order=120, for_paper=True)
def throughput_over_bandwidth(results: Results) -> Iterator[Drawing]:
    """Samples per second against the links' rate; a panel for cases that share all but the rate."""
    if not have_several_rates(results.cases):
        return
    drawn = _against_rate(results, _samples_per_s, "steady-state samples/s", "", Key(results.looks))
    caption = "Training throughput in the steady state: geometric mean over rounds and 95 % t interval."
    title = "Throughput against bandwidth"
    yield Drawing("throughput-bandwidth", title, caption, drawn, per_case(results.cases, _throughputs))


def _samples_per_s(result: MethodResult) -> Estimate | None:
    return result.samples_per_s


def _throughputs(case: CaseResult) -> pd.DataFrame:
    known = [(result.label, found) for result in case.methods if (found := result.samples_per_s)]
    return pd.DataFrame([{"label": label, **bounds("samples_per_s", found)} for label, found in known])


def _against_rate(
    results: Results, known: Known, y_label: str, unit: str, key: Key, without_interval: str | None = None
) -> Figure:
    """What is known of each method, over the rate of the links, both on log scales."""
    groups = by_all_but_rate(results.cases)
    heading, titles = shared_and_own(list(groups))
    grid = Grid(
        rows=len(groups),
        columns=1,
        panel_in=2.4,
        legend=method_keys(results.looks, set(results.looks)),
        left_in=AXIS_IN,
        right_in=0.35,
        width_in=NARROW_IN,
        heading=heading,
        titles=titles,
        x_labels=layout.lowest(len(groups), "link rate (bit/s)"),
        key=key,
    )
    drawn, panels = layout.panels(grid)
    for axes, group in zip(panels.flat, groups.values(), strict=True):
        unshaped_at = _rate_axis(axes, group)
        for label, look in results.looks.items():
            points = [(case.rate_bps, found) for case in group if (found := known(case.method(label)))]
            _line_over_rates(axes, points, look, unshaped_at, with_intervals=label != without_interval)
        axes.set_yscale("log")
        plain_log_ticks(axes.yaxis, unit)
        axes.set_ylabel(y_label)
    return drawn


def _rate_axis(axes: Axes, group: Sequence[CaseResult]) -> float:
    """An x axis with a tick a rate; returns where on it the unshaped link stands."""
    rates = sorted(case.rate_bps for case in group if case.rate_bps)
    unshaped_at = 4 * max(rates, default=1e9)
    ticks = [*rates, *([unshaped_at] if len(rates) < len(group) else [])]
    name_of = EngFormatter(places=0)
    axes.set_xscale("log")
    axes.set_xticks(ticks, [name_of(rate) for rate in rates] + ["unshaped"] * (len(ticks) - len(rates)))
    axes.xaxis.set_minor_locator(NullLocator())
    return unshaped_at


def _line_over_rates(
    axes: Axes,
    known: Sequence[tuple[float | None, Estimate]],
    look: Look,
    unshaped_at: float,
    with_intervals: bool,
) -> None:
    """Estimates over the rates; the unshaped link, which has no place on the axis, is not joined."""
    for shaped in (True, False):
        points = [(rate or unshaped_at, found) for rate, found in known if bool(rate) == shaped]
        if not points:
            continue
        axes.plot([rate for rate, _ in points], [found.value for _, found in points], **look.line)
        for rate, found in points:
            if with_intervals:
                interval(axes, rate, found, look, alpha=0.8)
