"""What a steady step takes: time by its phases, and bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from harness.report.figures.drawing import matplotlib  # noqa: F401 - first of all: away from the user's settings

# isort: split
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from harness.analysis.cases import CaseResult, per_case
from harness.report.figures.axes import engineering_log_ticks
from harness.report.figures.bars import BAR_SHARE, bar_panels, finished_rows, say_beside, say_nothing_finished
from harness.report.figures.cases import by_all_but_rate, means
from harness.report.figures.layout import Key
from harness.report.figures.look import INK, PHASES, Look
from harness.report.figures.registry import Drawing, Results, figure

PHASE_LABELS = {"compute": "compute", "codec": "encode and decode", "comm": "exposed communication"}
TIME_COLUMNS = ("compute_s_per_step", "codec_s_per_step", "comm_s_per_step", "lower_bound_s_per_step")
BYTES_COLUMNS = ("wire_bytes_per_step", "formula_bytes_per_step")


@figure(order=90)
def step_time(results: Results) -> Iterator[Drawing]:
    """Where a steady step's time goes, beside the least time that its bytes need on the link."""
    cases, looks = results.cases, results.looks
    keys: list[Artist] = [Patch(color=color, label=PHASE_LABELS[phase]) for phase, color in PHASES.items()]
    keys += [Line2D([], [], color=INK, marker="|", ls="", ms=9, mew=1.8, label="network lower bound")]
    drawn, panels = bar_panels([case.parts for case in cases], looks, keys, "time per step (ms)", Key(looks))
    for axes, case in zip(panels, cases, strict=True):
        _draw_phases(axes, case)
    caption = (
        "Mean over ranks and steady steps: computation; encoding and decoding; communication that neither hides. "
        "The black mark is the least time in which the step's payload can cross the link."
    )
    data = per_case(cases, lambda case: means(case, TIME_COLUMNS))
    yield Drawing("step-time", "Step time", caption, drawn, data)


def _draw_phases(axes: Axes, case: CaseResult) -> None:
    """The phases one behind the other, and the lower bound across them."""
    rows = finished_rows(axes, case)
    heights, left_ms = [y for y, _ in rows], np.zeros(len(rows))
    for phase, color in PHASES.items():
        width_ms = np.array([1e3 * result.mean(f"{phase}_s_per_step") for _, result in rows])
        axes.barh(heights, width_ms, BAR_SHARE, left_ms, color=color, edgecolor="white", linewidth=0.4)
        left_ms += width_ms
    bounds_ms = [1e3 * result.mean("lower_bound_s_per_step") for _, result in rows]
    for color, width in (("white", 3.4), (INK, 1.8)):
        axes.plot(bounds_ms, heights, "|", color=color, ms=18, mew=width)


@figure(order=100)
def bytes_per_step(results: Results) -> Iterator[Drawing]:
    """Payload that a worker sends in a steady step: what the kernel counted, and what the method's formula says.

    It does not depend on the links' rate, so that cases which differ in nothing else share a panel.
    """
    groups, looks = by_all_but_rate(results.cases), results.looks
    measured_key = Line2D([], [], color=INK, marker="o", ls="", ms=7, label="read from the kernel")
    formula_key = Line2D([], [], color=INK, marker="|", ls="", ms=12, mew=1.4, label="the method's formula")
    x_label, beside = "payload per worker and step (log scale)", "measured / formula"
    drawn, panels = bar_panels(list(groups), looks, [measured_key, formula_key], x_label, Key(looks), beside)
    for axes, group in zip(panels, groups.values(), strict=True):
        for y, (label, look) in enumerate(looks.items()):
            _draw_bytes(axes, y, group, label, look)
        _log_bytes_axis(axes)
    caption = "Payload bytes of a worker's steady step, packet headers apart, against the method's formula."
    data = per_case(results.cases, lambda case: means(case, BYTES_COLUMNS))
    yield Drawing("bytes-per-step", "Bytes per step", caption, drawn, data)


def _draw_bytes(axes: Axes, y: int, group: Sequence[CaseResult], label: str, look: Look) -> None:
    """A point and a mark a case, and their ratio beside them."""
    results = [result for case in group if len((result := case.method(label)).done)]
    measured, formula = ([result.mean(column) for result in results] for column in BYTES_COLUMNS)
    axes.plot(formula, [y] * len(formula), "|", color=INK, ms=17, mew=1.4)
    axes.plot(measured, [y] * len(measured), **look.point, ms=7)
    say_beside(axes, y, _range([m / f for m, f in zip(measured, formula, strict=True) if f > 0]))
    if not results:
        say_nothing_finished(axes, y)


def _log_bytes_axis(axes: Axes) -> None:
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    low, high = low / 1.5, high * 1.5
    axes.set_xlim(low, high)
    engineering_log_ticks(axes.xaxis, low, high, "B")


def _range(values: Sequence[float]) -> str:
    """Least to greatest; one number where they agree, nothing where there are none."""
    ends = dict.fromkeys(f"{end:.3f}" for end in (min(values), max(values))) if values else {}
    return "–".join(ends)
