"""One function a figure. Each is written as a vector file (pdf), an image (png) and the plotted numbers (csv).

Several cases become small multiples, one panel a case. Methods are told apart by colour and marker, which their own
files declare; variants of one method share both, and differ in lightness and line. Nothing here touches pyplot.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from harness.report.figures.drawing import (
    matplotlib,
    style,  # first of all: away from the user's settings
)

# isort: split
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter, NullLocator, PercentFormatter

import baselines
from harness.analysis.byte_model import mean_model, step_models
from harness.analysis.cases import CaseResult, label_to_beat, per_case
from harness.analysis.crossover import RATE_OF_WORKERS_BPS
from harness.analysis.curves import learning_curves, times_to_targets
from harness.analysis.estimates import Estimate
from harness.analysis.judgements import Judgement
from harness.analysis.methods import MethodResult
from harness.analysis.sweeps import Sweep, sweeps
from harness.analysis.trials import CASE_COLUMNS
from harness.report.figures import layout
from harness.report.figures.layout import Key
from harness.scenario.schema import MethodSpec, Scenario
from harness.units import format_rate

STYLE_FILE = Path(__file__).parent / "figures.mplstyle"

WIDTH_IN = 7.2
"""The text width of a page."""

NARROW_IN = 5.2
WIDE_IN = 6.0
"""From which width on two panels stand side by side."""

BAR_IN = 0.3
BAR_SHARE = 0.62
"""Of a row's height."""

BESIDE_PT = 8.0
"""The size of what stands beside the rows."""

LABEL_SHARE, LABEL_LINES = 0.28, 3
"""What the labels beside rows may take at most: of the figure's width, and lines in a row."""

BASELINE_SHARE = 0.2
"""Likewise, where the baseline's label stands within other text."""

AXIS_IN, PERCENT_AXIS_IN = 0.75, 0.85
"""The left edge of a panel with numbers, or percentages, and an axis label of one line."""

LEAST_SPAN = 0.02
"""Of an axis of percentages: with less, its numbers would grow."""

MOST_PIXELS = 60_000
"""In any direction: what matplotlib can render, with some to spare."""

MODEL_RATES_BPS = np.geomspace(1e6, 1e11, 61)

MORE_THAN_MARKERS = 12
TIMES_SHOWN = 200.0
"""Of times to any target, the longest over the shortest that has room: what is reached at once interests nobody."""

FEW_DECADES = 30
INK = "#222222"

PHASES = {"compute": "#332288", "codec": "#AA4499", "comm": "#DDCC77"}
"""Dark, middle and light, so that they differ in grey too; no method has them."""

PHASE_LABELS = {"compute": "compute", "codec": "encode and decode", "comm": "exposed communication"}

VERDICT_LOOKS = {"reproduced": ("#009E73", "o"), "not reproduced": ("#D55E00", "X"), "inconclusive": ("#555555", "s")}
"""Colour and marker."""

CLAIMED_COLOR = "#d4d4d4"
CLAIM_IN, CLAIM_PT, CLAIM_SHARE, CLAIM_LINES = 0.2, 7.0, 0.6, 3
"""A claim's row: its height in one line, the size of its text, and what that may take."""

LEAST_RATIO = 0.1
"""Where the axis of claims begins, if nothing lies below."""

LINE_STYLES = ("-", "--", ":", "-.")
TINTS = (0.0, -0.45, 0.5, -0.7)
"""Of variants, in order: towards white where positive, towards black where negative."""


class Look(NamedTuple):
    """How a method's variant is drawn, in every figure the same."""

    color: tuple[float, float, float]
    line_style: str
    marker: str


@dataclass(frozen=True)
class Drawing:
    """A figure, what it says, and exactly the numbers in it."""

    name: str
    title: str
    caption: str
    figure: Figure
    data: pd.DataFrame
    svg: str = ""
    """The figure as it stands in pages; written by ``write_all``."""


def write_all(
    folder: Path,
    cases: Sequence[CaseResult],
    events: pd.DataFrame,
    scenario: Scenario,
    changes: Mapping[Any, Any] = {},
    for_paper: bool = False,
) -> list[Drawing]:
    """Draw all figures that the trials give rise to, each into ``folder`` as ``<name>.pdf``, ``.png`` and ``.csv``.

    Args:
        events: of the trials, in the columns of ``EVENT_SCHEMA``.
        scenario: says in which order methods are shown, over which baseline speedups are told (``label_to_beat``),
            and which loss of accuracy is tolerated.
        changes: of settings in the style file, such as ``figure.figsize``, whose width no figure exceeds.
        for_paper: also those that show apart what a report shows beside other things.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with style(STYLE_FILE, changes):
        drawings = list(_draw_all(cases, events, looks(scenario.methods), scenario))
        if for_paper:
            drawings += _draw_for_paper(cases, looks(scenario.methods), label_to_beat(cases, scenario))
        return _write(drawings, folder)


def write_claims(judgements: Sequence[Judgement], folder: Path) -> Drawing:
    """Draw ``claims`` into ``folder``, as pdf, png and csv."""
    with style(STYLE_FILE):
        return _write([claims(judgements)], folder)[0]


def write_turning(found: pd.DataFrame, methods: Sequence[MethodSpec], folder: Path) -> Drawing:
    """Draw ``turning`` into ``folder``, as pdf, png and csv."""
    with style(STYLE_FILE):
        return _write([turning(found, looks(methods))], folder)[0]


def looks(methods: Sequence[MethodSpec]) -> dict[str, Look]:
    """Label -> look. Variants of one method get its tints in the order in which they come."""
    siblings: Counter[str] = Counter()
    found = {}
    for method in methods:
        variant = siblings[method.name] % len(TINTS)
        siblings[method.name] += 1
        declared = baselines.get(method.name)
        found[method.label] = Look(_tinted(declared.color, TINTS[variant]), LINE_STYLES[variant], declared.marker)
    return found


def throughput(cases: Sequence[CaseResult], looks: Mapping[str, Look], baseline: str) -> Drawing:
    """Steady-state samples per second of each method: each round, mean and interval."""
    keys = [Line2D([], [], color=INK, marker="o", ls="", label="a round"), *_mean_keys()]
    parts, axis, key = [case.parts for case in cases], "steady-state samples/s", Key(looks)
    figure, panels = _bar_panels(parts, looks, keys, axis, key, f"over {_inline(key, baseline)}")
    for axes, case in zip(panels, cases, strict=True):
        rows = [(y, result, mean) for y, result in _rows(axes, case) if (mean := result.samples_per_s)]
        heights, colors = [y for y, _, _ in rows], [looks[result.label].color for _, result, _ in rows]
        faces = [_tinted(color, 0.6) for color in colors]
        axes.barh(heights, [mean.value for _, _, mean in rows], BAR_SHARE, color=faces, edgecolor=colors)
        _whiskers(axes, heights, [mean for _, _, mean in rows])
        for y, result, _ in rows:
            look, rounds = looks[result.label], result.done["samples_per_s"]
            axes.plot(
                rounds,
                y + _spread_out(len(rounds)),
                **_point(look),
                mew=0.4,
                ms=4,
            )
            if (gained := result.over[baseline].throughput) and result.label != baseline:
                _beside(axes, y, f"{gained.value:.2f}×")

    def plotted(case: CaseResult) -> pd.DataFrame:
        rows = [
            {
                "label": result.label,
                "round": trial.round,
                "samples_per_s": trial.samples_per_s,
                **_bounds("mean_samples_per_s", result.samples_per_s),
                "baseline": baseline,
                "speedup_over_baseline": getattr(result.over[baseline].throughput, "value", None),
            }
            for result in case.methods
            for trial in result.done.sort_values("round").itertuples()
        ]
        return pd.DataFrame(rows)

    caption = (
        "Training throughput in the steady state, evaluations and warm-up excluded. A point is a round, a bar their "
        "geometric mean, a whisker its 95 % t interval; at the right the speedup, paired within rounds."
    )
    return Drawing("throughput", "Throughput", caption, figure, per_case(cases, plotted))


def speedup(cases: Sequence[CaseResult], looks: Mapping[str, Look], baseline: str) -> Drawing:
    """How many times the baseline's samples per second each method has: mean and interval."""
    keys = [*_mean_keys(), Line2D([], [], color=INK, ls=(0, (4, 3)), lw=0.9, label=baseline)]
    others = {label: look for label, look in looks.items() if label != baseline} or looks
    parts, key = [case.parts for case in cases], Key(looks)
    figure, panels = _bar_panels(parts, others, keys, f"speedup over {_inline(key, baseline)}", key, "times")
    for axes, case in zip(panels, cases, strict=True):
        axes.axvline(1, color=INK, ls=(0, (4, 3)), lw=0.9)
        for y, label in enumerate(others):
            if not (found := case.method(label).over[baseline].throughput):
                _nothing(axes, y)
                continue
            look = looks[label]
            axes.barh(y, found.value, BAR_SHARE, color=_tinted(look.color, 0.6), edgecolor=look.color)
            _whiskers(axes, [y], [found])
            _beside(axes, y, f"{found.value:.2f}×")
    caption = (
        "Ratio of steady-state samples/s to the baseline's, paired within rounds: geometric mean and 95 % t interval."
    )
    return Drawing("speedup", "Speedup", caption, figure, per_case(cases, partial(_speedups, baseline)))


def claims(judgements: Sequence[Judgement]) -> Drawing:
    """What papers claim, and what was found: a row a claim, with its range, the found ratio and its interval."""
    keys: list[Artist] = [Patch(color=CLAIMED_COLOR, label="claimed")]
    keys += [
        Line2D([], [], color=color, marker=marker, ls="", label=verdict)
        for verdict, (color, marker) in VERDICT_LOOKS.items()
    ]
    labels = [
        f"{each.claim.family}: {each.claim.model}, {format_rate(each.claim.rate_bps)}, "
        f"{each.claim.method} over {each.claim.baseline}"
        for each in judgements
    ]
    key, most_in = Key(labels), CLAIM_SHARE * min(WIDTH_IN, layout.style_width_in())
    names = [key.short(label, most_in, CLAIM_LINES, CLAIM_PT) for label in labels]
    figure, grid = layout.grid(
        1,
        1,
        WIDTH_IN,
        _row_in(names, CLAIM_IN, CLAIM_PT) * len(judgements),
        "",
        keys,
        left_in=layout.text_in(names, CLAIM_PT) + 0.2,
        between_in=0,
        right_in=0.2,
        x_labels=["how many times better"],
        key=key,
    )
    axes = grid[0][0]
    axes.set_yticks(range(len(labels)), names, fontsize=CLAIM_PT)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.axvline(1, color=INK, lw=0.9)
    for y, judgement in enumerate(judgements):
        low, high = judgement.claim.claimed
        axes.barh(y, high - max(low, LEAST_RATIO), BAR_SHARE, max(low, LEAST_RATIO), color=CLAIMED_COLOR)
        if judgement.found:
            color, marker = VERDICT_LOOKS[judgement.verdict]
            _whiskers(axes, [y], [judgement.found])
            axes.plot(judgement.found.value, y, marker, color=color, ms=5, mew=0, zorder=4)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    rows = [
        {
            "id": each.claim.id,
            "quantity": each.claim.quantity,
            "claimed_low": each.claim.claimed[0],
            "claimed_high": each.claim.claimed[1],
            "verdict": each.verdict,
            **_bounds("found", each.found),
        }
        for each in judgements
    ]
    caption = (
        "Grey: the claimed range. Points: what was found here, with its 95 % t interval; circle: reproduced, cross: "
        "not reproduced, square: inconclusive. A claim without a point has not been run."
    )
    return Drawing("claims", "Claims", caption, figure, pd.DataFrame(rows))


def turning(found: pd.DataFrame, looks: Mapping[str, Look]) -> Drawing:
    """Predicted speedups over the baseline, a row a profile: by the links' rate, and by the number of workers.

    Args:
        found: ``turning.speedups`` of one scenario or of several.
    """
    replays = list(dict.fromkeys(found["replay"]))
    keys = _method_keys(looks, set(found["label"]))
    own_of = {replay: found[found["replay"] == replay] for replay in replays}
    usual_of = {replay: own["workers"].mode()[0] for replay, own in own_of.items()}
    figure, grid = layout.grid(
        len(replays),
        2,
        WIDTH_IN,
        1.7,
        "",
        keys,
        left_in=AXIS_IN,
        between_in=0.25,
        right_in=0.15,
        titles=[
            f"{replay}, {of}"
            for replay, usual in usual_of.items()
            for of in (f"{usual} workers", format_rate(RATE_OF_WORKERS_BPS))
        ],
        x_labels=[*[""] * (2 * len(replays) - 2), "link rate (bit/s)", "workers"],
        sharey=True,
    )
    for row, replay in zip(grid, replays, strict=True):
        own, usual = own_of[replay], usual_of[replay]
        for axes, x, part in zip(
            row,
            ("rate_bps", "workers"),
            (own[own["workers"] == usual], own[np.isclose(own["rate_bps"], RATE_OF_WORKERS_BPS)]),
            strict=True,
        ):
            for label, curve in part.sort_values(x).groupby("label", sort=False):
                look = looks[str(label)]
                axes.plot(
                    curve[x],
                    curve["speedup"],
                    color=look.color,
                    ls=look.line_style,
                    marker=look.marker,
                    markevery=3,
                    ms=3.5,
                )
            axes.axhline(1, color=INK, lw=0.9)
            axes.set_xscale("log")
        row[0].set_yscale("log")
        row[0].xaxis.set_major_formatter(EngFormatter(places=0))
        row[1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        row[1].set_xticks(sorted(set(own["workers"])))
        row[1].xaxis.set_minor_locator(NullLocator())
        _plain_log_ticks(row[0].yaxis, "×")
        row[0].set_ylabel("predicted speedup")
    caption = (
        "Predicted, not measured: from each profile's computation and codecs, the methods' bytes and the links. Below "
        "the line at 1× a method costs more than it saves."
    )
    return Drawing("turning", "Where it turns", caption, figure, found)


def when_it_pays(cases: Sequence[CaseResult], looks: Mapping[str, Look], baseline: str) -> Drawing:
    """Speedup by the byte model over all rates, and where it falls to 1; points are what was measured."""
    groups = _by_all_but_rate(cases)
    heading, titles = _shared_and_own(list(groups))
    keys = [*_method_keys(looks, set(looks)), Line2D([], [], color=INK, marker="o", ls="", label="measured")]
    key = Key(looks)
    y_label = f"speedup over {_inline(key, baseline)}"
    figure, grid = layout.grid(
        len(groups),
        1,
        WIDTH_IN,
        2.4,
        heading,
        keys,
        left_in=AXIS_IN,
        between_in=0,
        right_in=0.2,
        titles=titles,
        x_labels=[*[""] * (len(groups) - 1), "link rate (bit/s)"],
        key=key,
    )
    for axes, group in zip(grid.flat, groups.values(), strict=True):
        for label, look in looks.items():
            curve = _modelled(group, label, baseline)
            markers = {"marker": look.marker, "markevery": (3, 9), "ms": 3.5, "mfc": "white"}  # hollow: not measured
            axes.plot(curve["rate_bps"], curve["speedup"], color=look.color, ls=look.line_style, lw=1.1, **markers)
            for case in group:
                if case.rate_bps and label != baseline and (found := case.method(label).over[baseline].throughput):
                    _speedup_point(axes, case.rate_bps, found, look)
        axes.axhline(1, color=INK, lw=0.9)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(MODEL_RATES_BPS[0] / 1.3, MODEL_RATES_BPS[-1] * 1.3)  # also where the baseline has no trial
        axes.xaxis.set_major_formatter(EngFormatter(places=0))
        _plain_log_ticks(axes.yaxis, "×")
        axes.set_ylabel(y_label)

    def plotted(case: CaseResult) -> pd.DataFrame:
        frames = [_modelled([case], label, baseline).assign(label=label) for label in looks]
        return pd.concat(frames, ignore_index=True).rename(columns={"rate_bps": "model_rate_bps"})

    caption = (
        "Lines: the byte model, in which a step's bytes take their time at any rate and all else stays as measured. "
        "Below the line at 1× a method costs more than it saves. Points: measured, with their 95 % t intervals."
    )
    return Drawing("when-it-pays", "When it pays", caption, figure, per_case(cases, plotted))


def _modelled(group: Sequence[CaseResult], label: str, baseline: str) -> pd.DataFrame:
    """Speedups of the byte model over ``MODEL_RATES_BPS``, from the trials of all cases of the group; none unknown."""
    method, base = (
        mean_model([model for case in group for model in step_models(case.method(each).done)])
        for each in (label, baseline)
    )
    if method is None or base is None:
        return pd.DataFrame({"rate_bps": [], "speedup": []}, dtype=float)
    speedups = [base.step_s(rate_bps) / method.step_s(rate_bps) for rate_bps in MODEL_RATES_BPS]
    return pd.DataFrame({"rate_bps": MODEL_RATES_BPS, "speedup": speedups})


def time_to_target(cases: Sequence[CaseResult], times: pd.DataFrame, looks: Mapping[str, Look]) -> Drawing:
    """When each method was as good as any value of the metric; a line ends, or has a gap, where a round missed it.

    Args:
        times: of the cases, by ``times_to_targets``.
    """
    heading, titles = _shared_and_own([case.parts for case in cases])
    target = Line2D([], [], color=INK, ls=(0, (4, 3)), lw=0.9, label="target")
    metrics = {case.target.metric if case.target else "accuracy" for case in cases}
    x_label = f"target: test {' or '.join(sorted(metrics))}"
    figure, grid = layout.grid(
        len(cases),
        1,
        WIDTH_IN,
        2.4,
        heading,
        [*_method_keys(looks, set(times["label"])), target],
        left_in=AXIS_IN,
        between_in=0,
        right_in=0.2,
        titles=titles,
        x_labels=[*[""] * (len(cases) - 1), x_label],
        key=Key(list(looks)),
    )
    for axes, case in zip(grid.flat, cases, strict=True):
        own = _of_case(times, case)
        for label, curve in own.groupby("label", sort=False):
            look, every = looks[str(label)], max(1, len(curve) // MORE_THAN_MARKERS)
            marked = {"marker": look.marker, "markevery": every, "ms": 3.5}
            axes.plot(curve["value"], curve["time_s"], color=look.color, ls=look.line_style, **marked)
        metric = own["metric"].iloc[0] if len(own) else "accuracy"
        if case.target:
            axes.axvline(case.target.value, color=INK, ls=(0, (4, 3)), lw=0.9)
        if metric == "accuracy":
            axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        else:
            axes.invert_xaxis()  # better to the right
        axes.set_yscale("log")
        axes.set_ylim(bottom=float(own["time_s"].max()) / TIMES_SHOWN if len(own) else None)
        _plain_log_ticks(axes.yaxis)
        axes.set_ylabel("time to it (s)")
    caption = (
        "Training time, warm-up and pruning included and evaluations excluded, until the test set was first predicted "
        "as well as the x axis says: median of rounds, between evaluations by a line. Where a method has no line, it "
        "missed that in some round. Dashed: the scenario's target."
    )
    return Drawing("time-to-target", "Time to any target", caption, figure, times)


def accuracy(cases: Sequence[CaseResult], curves: pd.DataFrame, looks: Mapping[str, Look]) -> Drawing:
    """Test accuracy against training time, and against steps: mean and extremes over rounds.

    Args:
        curves: of the cases, by ``learning_curves``.
    """
    target = Line2D([], [], color=INK, ls=(0, (4, 3)), lw=0.9, label="target")
    figure, grid = _learning(cases, curves, looks, "accuracy", [target])
    for row, case in zip(grid, cases, strict=True):
        for axes in row:
            if case.target and case.target.metric == "accuracy":
                axes.axhline(case.target.value, color=INK, ls=(0, (4, 3)), lw=0.9)
        _percent_axis(row[0])
    caption = (
        "Test accuracy over training time, warm-up and pruning included, and over steps. A line is the mean over "
        "rounds, its band reaches from the least to the greatest of them; dashed: the target."
    )
    return Drawing("accuracy", "Accuracy", caption, figure, curves)


def perplexity(cases: Sequence[CaseResult], curves: pd.DataFrame, looks: Mapping[str, Look]) -> Drawing:
    """A language's test perplexity, as ``accuracy`` is drawn; ``curves`` are those of this kind."""
    target = Line2D([], [], color=INK, ls=(0, (4, 3)), lw=0.9, label="target")
    figure, grid = _learning(cases, curves, looks, "perplexity", [target])
    for row, case in zip(grid, cases, strict=True):
        for axes in row:
            if case.target and case.target.metric == "perplexity":
                axes.axhline(case.target.value, color=INK, ls=(0, (4, 3)), lw=0.9)
        row[0].set_yscale("log")
        _plain_log_ticks(row[0].yaxis)
    caption = (
        "Test perplexity, the exponential of the mean cross entropy of a token, over training time and over steps. A "
        "line is the mean over rounds, its band reaches from the least to the greatest of them."
    )
    return Drawing("perplexity", "Perplexity", caption, figure, curves)


def _learning(
    cases: Sequence[CaseResult], curves: pd.DataFrame, looks: Mapping[str, Look], kind: str, keys: Sequence[Artist]
) -> tuple[Figure, np.ndarray[Any, Any]]:
    """A figure of what evaluations found, and its panels: a row a case, over training time and over steps."""
    heading, titles = _shared_and_own([case.parts for case in cases])
    keys = [*_method_keys(looks, set(curves["label"])), *keys]
    columns = 2 if layout.style_width_in() >= WIDE_IN else 1
    x_labels = ["training time (s), evaluations excluded", "steps"]
    figure, grid = layout.grid(
        2 * len(cases) // columns,
        columns,
        WIDTH_IN,
        1.6,
        heading,
        keys,
        left_in=PERCENT_AXIS_IN,
        between_in=0.25,
        right_in=0.15,
        titles=[text for title in titles for text in (title, "")],
        x_labels=x_labels * len(cases) if columns == 1 else [*[""] * (2 * len(cases) - 2), *x_labels],
        sharey=True,
    )
    grid = grid.reshape(len(cases), 2)
    for row, case in zip(grid, cases, strict=True):
        own = _of_case(curves, case)
        for axes, x in zip(row, ("time_s", "step"), strict=True):
            for label, curve in own.groupby("label", sort=False):
                _line_with_band(axes, curve, x, kind, looks[str(label)])
            axes.set_xlim(left=0)
        row[1].set_xlim(right=1.02 * curves["step"].max())
        for axes in row[: 3 - columns]:
            axes.set_ylabel(f"test {kind}")
    return figure, grid


def step_time(cases: Sequence[CaseResult], looks: Mapping[str, Look]) -> Drawing:
    """Where a steady step's time goes, beside the least time that its bytes need on the link."""
    keys: list[Artist] = [Patch(color=color, label=PHASE_LABELS[phase]) for phase, color in PHASES.items()]
    keys += [Line2D([], [], color=INK, marker="|", ls="", ms=9, mew=1.8, label="network lower bound")]
    figure, panels = _bar_panels([case.parts for case in cases], looks, keys, "time per step (ms)", Key(looks))
    for axes, case in zip(panels, cases, strict=True):
        rows = _rows(axes, case)
        heights, left_ms = [y for y, _ in rows], np.zeros(len(rows))
        for phase, color in PHASES.items():
            width_ms = np.array([1e3 * result.mean(f"{phase}_s_per_step") for _, result in rows])
            axes.barh(heights, width_ms, BAR_SHARE, left_ms, color=color, edgecolor="white", linewidth=0.4)
            left_ms += width_ms
        bounds_ms = [1e3 * result.mean("lower_bound_s_per_step") for _, result in rows]
        for color, width in (("white", 3.4), (INK, 1.8)):
            axes.plot(bounds_ms, heights, "|", color=color, ms=18, mew=width)
    columns = ["compute_s_per_step", "codec_s_per_step", "comm_s_per_step", "lower_bound_s_per_step"]
    caption = (
        "Mean over ranks and steady steps: computation; encoding and decoding; communication that neither hides. "
        "The black mark is the least time in which the step's payload can cross the link."
    )
    return Drawing("step-time", "Step time", caption, figure, per_case(cases, lambda case: _means(case, columns)))


def bytes_per_step(cases: Sequence[CaseResult], looks: Mapping[str, Look]) -> Drawing:
    """Payload that a worker sends in a steady step: what the kernel counted, and what the method's formula says.

    It does not depend on the links' rate, so that cases which differ in nothing else share a panel.
    """
    groups = _by_all_but_rate(cases)
    measured_key = Line2D([], [], color=INK, marker="o", ls="", ms=7, label="read from the kernel")
    formula_key = Line2D([], [], color=INK, marker="|", ls="", ms=12, mew=1.4, label="the method's formula")
    axis, beside = "payload per worker and step (log scale)", "measured / formula"
    figure, panels = _bar_panels(list(groups), looks, [measured_key, formula_key], axis, Key(looks), beside)
    data = per_case(cases, lambda case: _means(case, ["wire_bytes_per_step", "formula_bytes_per_step"]))
    for axes, group in zip(panels, groups.values(), strict=True):
        for y, label in enumerate(looks):
            results = [result for case in group if len((result := case.method(label)).done)]
            measured = [result.mean("wire_bytes_per_step") for result in results]
            formula = [result.mean("formula_bytes_per_step") for result in results]
            axes.plot(formula, [y] * len(formula), "|", color=INK, ms=17, mew=1.4)
            look = looks[label]
            axes.plot(measured, [y] * len(measured), **_point(look), ms=7)
            _beside(axes, y, _range([m / f for m, f in zip(measured, formula, strict=True) if f > 0]))
            if not results:
                _nothing(axes, y)
        _log_bytes_axis(axes)
    caption = "Payload bytes of a worker's steady step, packet headers apart, against the method's formula."
    return Drawing("bytes-per-step", "Bytes per step", caption, figure, data)


def bandwidth(cases: Sequence[CaseResult], looks: Mapping[str, Look], baseline: str) -> Drawing:
    """Speedup over the baseline against the links' rate; a panel for cases that share all but the rate."""

    def known(result: MethodResult) -> Estimate | None:
        return result.over[baseline].throughput

    key = Key(looks)
    y_label = f"speedup over {_inline(key, baseline)}"
    figure = _against_rate(cases, looks, known, y_label, "×", key, without_interval=baseline)
    caption = (
        "Ratio of steady-state samples/s to the baseline's, paired within rounds: geometric mean and 95 % t interval. "
        "Below 1× a method costs more than it saves."
    )
    return Drawing(
        "bandwidth", "Speedup against bandwidth", caption, figure, per_case(cases, partial(_speedups, baseline))
    )


def throughput_over_bandwidth(cases: Sequence[CaseResult], looks: Mapping[str, Look]) -> Drawing:
    """Samples per second against the links' rate; a panel for cases that share all but the rate."""

    def known(result: MethodResult) -> Estimate | None:
        return result.samples_per_s

    def plotted(case: CaseResult) -> pd.DataFrame:
        return pd.DataFrame(
            [
                {"label": result.label, **_bounds("samples_per_s", found)}
                for result in case.methods
                if (found := known(result))
            ]
        )

    figure = _against_rate(cases, looks, known, "steady-state samples/s", "", Key(looks))
    caption = "Training throughput in the steady state: geometric mean over rounds and 95 % t interval."
    title = "Throughput against bandwidth"
    return Drawing("throughput-bandwidth", title, caption, figure, per_case(cases, plotted))


def _against_rate(
    cases: Sequence[CaseResult],
    looks: Mapping[str, Look],
    known: Callable[[MethodResult], Estimate | None],
    y_label: str,
    unit: str,
    key: Key,
    without_interval: str | None = None,
) -> Figure:
    """What is known of each method, over the rate of the links, both on log scales."""
    groups = _by_all_but_rate(cases)
    heading, titles = _shared_and_own(list(groups))
    figure, grid = layout.grid(
        len(groups),
        1,
        NARROW_IN,
        2.4,
        heading,
        _method_keys(looks, set(looks)),
        left_in=AXIS_IN,
        between_in=0,
        right_in=0.35,
        titles=titles,
        x_labels=[*[""] * (len(groups) - 1), "link rate (bit/s)"],
        key=key,
    )
    for axes, group in zip(grid.flat, groups.values(), strict=True):
        rates = sorted(case.rate_bps for case in group if case.rate_bps)
        unshaped_at = 4 * max(rates, default=1e9)
        for label, look in looks.items():
            points = [(case.rate_bps, found) for case in group if (found := known(case.method(label)))]
            _line_over_rates(axes, points, look, unshaped_at, with_intervals=label != without_interval)
        axes.set_xscale("log")
        axes.set_yscale("log")
        ticks = [*rates, *([unshaped_at] if len(rates) < len(group) else [])]
        name_of = EngFormatter(places=0)
        axes.set_xticks(ticks, [name_of(rate) for rate in rates] + ["unshaped"] * (len(ticks) - len(rates)))
        axes.xaxis.set_minor_locator(NullLocator())
        _plain_log_ticks(axes.yaxis, unit)
        axes.set_ylabel(y_label)
    return figure


def sweep(cases: Sequence[CaseResult], looks: Mapping[str, Look], baseline: str, tolerance: float) -> Drawing:
    """Final accuracy against the share of entries that is kept, with the share where it stops to hold marked."""
    swept = [(case, found) for case in cases if (found := sweeps(case, baseline, tolerance))]
    heading, titles = _shared_and_own([case.parts for case, _ in swept])
    shown = {each.points[0][1].label: each.title for _, found in swept for each in found}
    keys: list[Artist] = [*_method_keys({shown[label]: looks[label] for label in shown}, set(shown.values()))]
    keys += [
        Line2D([], [], color=INK, ls=(0, (4, 3)), lw=0.9, label=f"{baseline}, and {100 * tolerance:g} points less"),
        Line2D([], [], color=INK, marker="o", mfc="none", ls="", ms=9, label="convergence limit"),
    ]
    parameters = sorted({each.parameter for _, found in swept for each in found})
    figure, grid = layout.grid(
        len(swept),
        1,
        NARROW_IN,
        2.4,
        heading,
        keys,
        left_in=PERCENT_AXIS_IN,
        between_in=0,
        right_in=0.15,
        titles=titles,
        x_labels=[*[""] * (len(swept) - 1), " or ".join(parameters)],
    )
    for axes, (case, found) in zip(grid.flat, swept, strict=True):
        if reference := case.method(baseline).final_accuracy:
            axes.axhline(reference.mean, color=INK, ls=(0, (4, 3)), lw=0.9)
            axes.axhspan(reference.mean - tolerance, reference.mean, color=INK, alpha=0.08, lw=0)
        for each in found:
            _sweep_line(axes, each, looks[each.points[0][1].label])
        axes.set_xscale("log")
        axes.invert_xaxis()
        _plain_log_ticks(axes.xaxis)
        _percent_axis(axes)
        axes.set_ylabel("final test accuracy")
    caption = (
        "Final test accuracy against the share of entries that is kept, most pruned at the right: mean over rounds and "
        f"extremes. The circle marks the convergence limit: down to it the mean stays within {100 * tolerance:g} "
        f"points of {baseline}'s."
    )
    return Drawing(
        "sweep", "Accuracy against what is kept", caption, figure, per_case(cases, partial(_swept, baseline, tolerance))
    )


def _sweep_line(axes: Axes, found: Sweep, look: Look) -> None:
    spreads = [(share, spread) for share, result in found.points if (spread := result.final_accuracy)]
    shares = [share for share, _ in spreads]
    axes.plot(shares, [spread.mean for _, spread in spreads], color=look.color, ls=look.line_style, marker=look.marker)
    for share, spread in spreads:
        axes.plot([share] * 2, [spread.low, spread.high], color=look.color, lw=1, alpha=0.8)
        if share == found.limit:
            axes.plot(share, spread.mean, "o", ms=11, mfc="none", mec=INK)
            axes.annotate(f"{share:g}", (share, spread.mean), (0, -16), textcoords="offset points", ha="center")


def _swept(baseline: str, tolerance: float, case: CaseResult) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "sweep": found.title,
                "parameter": found.parameter,
                "share": share,
                "label": result.label,
                "final_accuracy": spread.mean,
                "final_accuracy_min": spread.low,
                "final_accuracy_max": spread.high,
                "rounds": len(result.done),
                "is_limit": share == found.limit,
            }
            for found in sweeps(case, baseline, tolerance)
            for share, result in found.points
            if (spread := result.final_accuracy)
        ]
    )


def changing_links(cases: Sequence[CaseResult], events: pd.DataFrame, looks: Mapping[str, Look]) -> Drawing:
    """The links' rate against what a method got of it, step by step; a panel a method, of its first finished round."""
    data = changes_by_step(cases, events)
    panels = list(data.groupby([*CASE_COLUMNS, "label"], sort=False, dropna=False))
    keys: list[Artist] = [
        Line2D([], [], color=INK, lw=1, ls="--", label="rate of the links"),
        Line2D([], [], color="#888888", lw=1, label="payload per step time"),
        Line2D([], [], color=INK, marker="v", ls="", label="adaptive choice, and the goodput it was made for"),
    ]
    figure, grid = layout.grid(
        len(panels),
        1,
        WIDTH_IN,
        1.1,
        "Changing links",
        keys,
        left_in=AXIS_IN,
        between_in=0,
        right_in=0.15,
        titles=[str(of[-1]) for of, _ in panels],
        x_labels=[*[""] * (len(panels) - 1), "steps"],
    )
    for axes, (key, own) in zip(grid.flat, panels, strict=True):
        look = looks[str(key[-1])]
        axes.step(own["step"], own["link_rate_bps"], color=INK, ls="--", lw=1, where="post")
        axes.plot(own["step"], own["goodput_bps"], color=look.color, lw=1)
        axes.plot(own["step"], own["adaptive_goodput_bps"], color=INK, marker="v", ls="")
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.set_ylim(low / 1.6, high * 1.6)  # so that a tick lies within
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < FEW_DECADES else (1,)))
        axes.yaxis.set_major_formatter(EngFormatter(places=0))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylabel("bit/s")
    caption = (
        "Dashed: the rate that was in force on every worker's links when the step ended, as the player logged it. "
        "Solid: the payload of a worker's mean step over the time that this step took, computation included."
    )
    return Drawing("changing-links", "Goodput while the links change", caption, figure, data)


def changes_by_step(cases: Sequence[CaseResult], events: pd.DataFrame) -> pd.DataFrame:
    """A row a step of each method's first finished trial on changing links: rate in force, goodput, choices."""
    chosen = events[events["rank"] <= 0]

    def of(case: CaseResult) -> pd.DataFrame:
        frames = []
        for result in case.methods:
            first = result.done.sort_values("round").head(1)
            if first.empty:
                continue
            names = {"step_s": "step_s", "link_rate_bps": "link_rate_bps"}
            if note := baselines.get(result.method).State.goodput_note:
                names[note] = "adaptive_goodput_bps"
            own = chosen[chosen["trial_id"] == first["trial_id"].iloc[0]]
            own = own[own["kind"].isin(names)]
            table = own.pivot_table(index="step", columns="kind", values="value", aggfunc="last").sort_index()
            if "link_rate_bps" not in table:
                continue
            table = table.rename(columns=names).reindex(columns=["adaptive_goodput_bps", "link_rate_bps", "step_s"])
            table["link_rate_bps"] = table["link_rate_bps"].ffill().bfill()
            table["goodput_bps"] = 8 * first["wire_bytes_per_step"].iloc[0] / table["step_s"]
            frames.append(table.reset_index().assign(label=result.label))
        columns = ["label", "step", "link_rate_bps", "goodput_bps", "adaptive_goodput_bps"]
        return pd.concat(frames)[columns] if frames else pd.DataFrame(columns=columns)

    return per_case(cases, of)


def _draw_all(
    cases: Sequence[CaseResult], events: pd.DataFrame, looks: Mapping[str, Look], scenario: Scenario
) -> Iterator[Drawing]:
    over, baseline, tolerance = label_to_beat(cases, scenario), scenario.baseline, scenario.tolerance
    if len(times := times_to_targets(cases, events)):
        yield time_to_target(cases, times, looks)
    yield throughput(cases, looks, over)
    yield when_it_pays(cases, looks, over)
    if any(len(group) > 1 for group in _by_all_but_rate(cases).values()):
        yield bandwidth(cases, looks, over)
    if len(curves := learning_curves(cases, events)):
        yield accuracy(cases, curves, looks)
    if len(curves := learning_curves(cases, events, "perplexity")):
        yield perplexity(cases, curves, looks)
    if (events["kind"] == "link_rate_bps").any():
        yield changing_links(cases, events, looks)
    if any(sweeps(case, baseline, tolerance) for case in cases):
        yield sweep(cases, looks, baseline, tolerance)
    yield step_time(cases, looks)
    yield bytes_per_step(cases, looks)


def _draw_for_paper(cases: Sequence[CaseResult], looks: Mapping[str, Look], baseline: str) -> Iterator[Drawing]:
    yield speedup(cases, looks, baseline)
    if any(len(group) > 1 for group in _by_all_but_rate(cases).values()):
        yield throughput_over_bandwidth(cases, looks)


def _write(drawings: Sequence[Drawing], folder: Path) -> list[Drawing]:
    for drawing in drawings:
        drawing.data.to_csv(folder / f"{drawing.name}.csv", index=False)
    return [replace(drawing, svg=svg) for drawing, svg in zip(drawings, _render_all(drawings, folder), strict=True)]


def _render_all(drawings: Sequence[Drawing], folder: Path) -> list[str]:
    """Write each figure as pdf and png; returns all as SVG. On all CPUs at once, where processes can be forked."""
    if sys.platform != "linux" or threading.active_count() > 1:
        return [_render(drawing, folder) for drawing in drawings]
    processes = min(len(drawings), os.cpu_count() or 1)
    # multiprocessing's own pool ends its processes by SIGTERM, which here is Python's to handle, and may be lost.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("fork"), _inherit, (drawings, folder)) as pool:
        return list(pool.map(_render_inherited, range(len(drawings))))


_inherited: tuple[Sequence[Drawing], Path]
"""Of a forked process: figures take longer to pickle than to draw."""


def _inherit(drawings: Sequence[Drawing], folder: Path) -> None:
    global _inherited
    _inherited = drawings, folder


def _render_inherited(number: int) -> str:
    drawings, folder = _inherited
    return _render(drawings[number], folder)


def _render(drawing: Drawing, folder: Path) -> str:
    stem = folder / drawing.name
    drawing.figure.savefig(stem.with_suffix(".pdf"), metadata={"CreationDate": None, "Title": drawing.title})
    drawing.figure.savefig(stem.with_suffix(".png"), dpi=_dpi(drawing.figure))
    svg = io.StringIO()
    drawing.figure.savefig(svg, format="svg", metadata={"Date": None})
    return _rounded(svg.getvalue())


def _dpi(figure: Figure) -> float:
    """As the style asks, unless the figure is too long for it."""
    asked = matplotlib.rcParams["savefig.dpi"]
    return min(float(figure.dpi if asked == "figure" else asked), MOST_PIXELS / float(max(figure.get_size_inches())))


def _rounded(svg: str) -> str:
    """Paths to a hundredth of a point: nobody sees more, and pages become a third smaller."""
    return re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg)


def _bar_panels(
    parts: Sequence[Sequence[str]],
    looks: Mapping[str, Look],
    entries: Sequence[Artist],
    x_label: str,
    key: Key,
    beside: str = "",
) -> tuple[Figure, list[Axes]]:
    """A figure with a panel for each of ``parts``, each with a row a method, the first at the top.

    Args:
        parts: of each panel: what it shows, in words.
        entries: of the legend.
        key: takes the labels that have no room.
        beside: the heading of what will stand at the right of the rows, if anything will.
    """
    heading, titles = _shared_and_own(parts)
    columns = min(2, len(titles)) if layout.style_width_in() >= WIDE_IN else 1
    width_in = min(WIDTH_IN if columns > 1 else NARROW_IN, layout.style_width_in())
    names = [key.short(label, LABEL_SHARE * width_in, LABEL_LINES, "ytick.labelsize") for label in looks]
    beside_in = max(0.5, layout.text_in([beside], BESIDE_PT)) + 0.1 if beside else 0.0
    figure, grid = layout.grid(
        -(-len(titles) // columns),
        columns,
        width_in,
        _row_in(names, BAR_IN, "ytick.labelsize") * len(looks),
        heading,
        entries,
        left_in=layout.text_in(names, "ytick.labelsize") + 0.2,
        between_in=beside_in + 0.25,
        right_in=beside_in + 0.15,
        titles=titles,
        x_labels=[*[""] * (len(titles) - columns), *[x_label] * columns],
        titled=bool(beside),
        sharey=True,
        key=key,
    )
    panels: list[Axes] = list(grid.flat)
    for spare in panels[len(titles) :]:
        spare.remove()
    panels = panels[: len(titles)]
    panels[0].set_yticks(range(len(looks)), names)
    panels[0].set_ylim(len(looks) - 0.5, -0.5)
    for axes in panels:
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
        _heading_beside(axes, beside)
    return figure, panels


def _row_in(names: Sequence[str], least_in: float, size: str | float) -> float:
    """The height of a row that has room for the tallest name."""
    return max(least_in, 0.07 + max(layout.lines_in(name, size) for name in names))


def _inline(key: Key, baseline: str) -> str:
    """The baseline's label within other text."""
    return key.inline(baseline, BASELINE_SHARE * layout.style_width_in(), "axes.labelsize")


def _shared_and_own(parts: Sequence[Sequence[str]]) -> tuple[str, list[str]]:
    """In words what all panels have in common, and what each has of its own."""
    shared = set.intersection(*map(set, parts))
    own = [", ".join(part for part in panel if part not in shared) for panel in parts]
    return ", ".join(part for part in parts[0] if part in shared), own


def _rows(axes: Axes, case: CaseResult) -> list[tuple[int, MethodResult]]:
    """Height and result of each method that has something to show; the others are said to have nothing."""
    for y, result in enumerate(case.methods):
        if result.done.empty:
            _nothing(axes, y)
    return [(y, result) for y, result in enumerate(case.methods) if not result.done.empty]


def _nothing(axes: Axes, y: float) -> None:
    axes.text(0.02, y, "no trial finished", transform=axes.get_yaxis_transform(), va="center", color="#777777")


def _beside(axes: Axes, y: float, text: str) -> None:
    """Text to the right of a row."""
    axes.text(1.02, y, text, transform=axes.get_yaxis_transform(), va="center", fontsize=BESIDE_PT)


def _heading_beside(axes: Axes, text: str) -> None:
    """The heading of what stands beside the rows, on the line of the panel's title."""
    axes.annotate(text, (1.02, 1), (0, 6), xycoords="axes fraction", textcoords="offset points", fontsize=BESIDE_PT)


def _point(look: Look) -> dict[str, Any]:
    """How a single point is drawn: with a white rim, unless all of its marker is rim."""
    rim = "white" if look.marker in Line2D.filled_markers else look.color
    return {"ls": "", "marker": look.marker, "color": look.color, "mec": rim}


def _range(values: Sequence[float]) -> str:
    """Least to greatest; one number where they agree, nothing where there are none."""
    ends = dict.fromkeys(f"{end:.3f}" for end in (min(values), max(values))) if values else {}
    return "–".join(ends)


def _plain_log_ticks(axis: Axis, unit: str = "") -> None:
    """At 1, 2 and 5 of each decade, written out."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}{unit}"))
    axis.set_minor_formatter(NullFormatter())


def _percent_axis(axes: Axes) -> None:
    low, high = axes.get_ylim()
    more = max(0.0, LEAST_SPAN - (high - low)) / 2
    axes.set_ylim(low - more, high + more)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))


def _log_bytes_axis(axes: Axes) -> None:
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    low, high = low / 1.5, high * 1.5
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < FEW_DECADES else (1,)))
    axes.xaxis.set_major_formatter(EngFormatter(unit="B", places=0))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _whiskers(axes: Axes, heights: Sequence[int], estimates: Sequence[Estimate]) -> None:
    """Intervals, where there are any: matplotlib passes over NaN."""
    middles = np.array([estimate.value for estimate in estimates])
    ends = np.array([(estimate.low, estimate.high) for estimate in estimates], dtype=float).reshape(-1, 2)
    errors = np.abs(ends.T - middles)
    axes.errorbar(middles, heights, xerr=errors, fmt="none", ecolor=INK, elinewidth=1, zorder=3)


def _line_with_band(axes: Axes, curve: pd.DataFrame, x: str, kind: str, look: Look) -> None:
    every = -(-len(curve) // MORE_THAN_MARKERS)
    there_and_back = np.concatenate([curve[x], curve[x][::-1]])
    edge = np.concatenate([curve[f"{kind}_min"], curve[f"{kind}_max"][::-1]])
    axes.fill(there_and_back, edge, color=look.color, alpha=0.15, lw=0)
    axes.plot(curve[x], curve[kind], color=look.color, ls=look.line_style, marker=look.marker, markevery=every, ms=3.5)


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
        y = [found.value for _, found in points]
        axes.plot([rate for rate, _ in points], y, color=look.color, ls=look.line_style, marker=look.marker)
        for rate, found in points:
            if found.low is not None and found.high is not None and with_intervals:
                axes.plot([rate] * 2, [found.low, found.high], color=look.color, lw=1, alpha=0.8)


def _speedup_point(axes: Axes, rate_bps: float, found: Estimate, look: Look) -> None:
    axes.plot(rate_bps, found.value, **_point(look), mew=0.5, ms=6, zorder=3)
    if found.low is not None and found.high is not None:
        axes.plot([rate_bps] * 2, [found.low, found.high], color=look.color, lw=1)


def _speedups(baseline: str, case: CaseResult) -> pd.DataFrame:
    known = [(result.label, found) for result in case.methods if (found := result.over[baseline].throughput)]
    return pd.DataFrame([{"label": label, "baseline": baseline, **_bounds("speedup", found)} for label, found in known])


def _means(case: CaseResult, columns: Sequence[str]) -> pd.DataFrame:
    finished = [result for result in case.methods if len(result.done)]
    return pd.DataFrame(
        [{"label": result.label, **{column: result.mean(column) for column in columns}} for result in finished]
    )


def _bounds(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    value, low, high, rounds = estimate or (None, None, None, 0)
    return {name: value, f"{name}_low": low, f"{name}_high": high, "rounds": rounds}


def _by_all_but_rate(cases: Sequence[CaseResult]) -> dict[tuple[str, ...], list[CaseResult]]:
    """Parts -> the cases that differ in their links' rate alone."""
    groups: dict[tuple[str, ...], list[CaseResult]] = {}
    for case in cases:
        groups.setdefault(case.parts[1:], []).append(case)
    return groups


def _of_case(frame: pd.DataFrame, case: CaseResult) -> pd.DataFrame:
    same = [frame[column].isna() if pd.isna(value) else frame[column] == value for column, value in case.key.items()]
    return frame[np.logical_and.reduce(same)]


def _method_keys(looks: Mapping[str, Look], labels: set[str]) -> list[Artist]:
    return [
        Line2D([], [], color=look.color, ls=look.line_style, marker=look.marker, label=label)
        for label, look in looks.items()
        if label in labels
    ]


def _mean_keys() -> list[Artist]:
    bar = Patch(facecolor="#cccccc", edgecolor=INK, label="geometric mean")
    return [bar, Line2D([], [], color=INK, lw=1, marker="|", label="95 % t interval")]


def _spread_out(count: int) -> np.ndarray[Any, Any]:
    """Offsets that keep the points of a row apart."""
    return np.linspace(-0.16, 0.16, count) if count > 1 else np.zeros(count)


def _tinted(color: Any, tint: float) -> tuple[float, float, float]:
    """Towards white by a share ``tint``, or towards black by ``-tint``."""
    red, green, blue = ((1 - abs(tint)) * part + max(tint, 0.0) for part in to_rgb(color))
    return red, green, blue
