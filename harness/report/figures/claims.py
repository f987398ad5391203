"""What papers claim, and what was found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from harness.report.figures.drawing import matplotlib, style  # noqa: F401 - first of all: away from the user's settings

# isort: split
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullFormatter

from harness.analysis.claims.judgements import Judgement
from harness.report.claims import links
from harness.report.figures import layout, render
from harness.report.figures.axes import whiskers
from harness.report.figures.bars import BAR_SHARE, row_in
from harness.report.figures.cases import bounds
from harness.report.figures.layout import WIDTH_IN, Grid, Key
from harness.report.figures.look import INK
from harness.report.figures.registry import Drawing

VERDICT_LOOKS = {
    "reproduced": ("#009E73", "o"),
    "exceeded": ("#0072B2", "^"),
    "not reproduced": ("#D55E00", "X"),
    "inconclusive": ("#555555", "s"),
}
"""The colour and the marker of each verdict that comes from a measurement."""

RATIOS = ("throughput", "bytes", "communication time", "time to accuracy", "trend")
"""Quantities that are told as times better, and so share an axis."""

CLAIMED_COLOR = "#d4d4d4"
CLAIM_IN, CLAIM_PT, CLAIM_SHARE, CLAIM_LINES = 0.2, 7.0, 0.6, 3
"""A claim's row: its height in one line, the size of its text, and what that may take."""

LEAST_RATIO = 0.1
"""Where the axis begins, if nothing lies below."""

BEYOND = 1.5
"""How far beyond all that is drawn a range without an upper end reaches."""

BESIDE = 0.22
"""How far the points of two shares of a device lie apart, in rows."""


def write_claims(judgements: Sequence[Judgement], folder: Path) -> list[Drawing]:
    """Draw ``claims`` into ``folder``, as pdf, png and csv; nothing where no claim is a ratio."""
    drawn = [each for each in judgements if each.claim.quantity in RATIOS]
    if not drawn:
        return []
    with style():
        return render.write([claims(drawn)], folder)


def claims(judgements: Sequence[Judgement]) -> Drawing:
    """A row a claim, with its range, the found ratio and its interval."""
    labels = [_label(each) for each in judgements]
    key, most_in = Key(labels), CLAIM_SHARE * min(WIDTH_IN, layout.style_width_in())
    names = [key.short(label, most_in, CLAIM_LINES, CLAIM_PT) for label in labels]
    grid = Grid(
        rows=1,
        columns=1,
        panel_in=row_in(names, CLAIM_IN, CLAIM_PT) * len(judgements),
        legend=_legend(),
        left_in=layout.text_in(names, CLAIM_PT) + 0.2,
        right_in=0.2,
        x_labels=["how many times better"],
        key=key,
    )
    drawn, ((axes,),) = layout.panels(grid)
    _claims_axes(axes, names)
    most = BEYOND * max(_greatest(each) for each in judgements)
    for y, judgement in enumerate(judgements):
        _draw_claim(axes, y, judgement, most)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    caption = (
        "Grey: the claimed range. Points: what was found here, with the interval that its verdict was read from; "
        "circle: reproduced, triangle: exceeded, cross: not reproduced, square: inconclusive. Points in one row: "
        "ever smaller shares of the device. A claim without a point has not been run."
    )
    return Drawing("claims", "Claims", caption, drawn, pd.DataFrame([_row(each) for each in judgements]))


def _label(judgement: Judgement) -> str:
    claim = judgement.claim
    return f"{claim.family}: {', '.join(claim.model)}, {links(claim)}, {', '.join(claim.method)} over {claim.baseline}"


def _legend() -> list[Artist]:
    verdicts = [
        Line2D([], [], color=color, marker=marker, ls="", label=verdict)
        for verdict, (color, marker) in VERDICT_LOOKS.items()
    ]
    return [Patch(color=CLAIMED_COLOR, label="claimed"), *verdicts]


def _claims_axes(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names, fontsize=CLAIM_PT)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.axvline(1, color=INK, lw=0.9)


def _greatest(judgement: Judgement) -> float:
    """The greatest ratio of a row, ranges without an end apart."""
    found = [part.found.high or part.found.value for part in judgement.parts if part.found]
    return max([1.0, *filter(math.isfinite, judgement.claim.claimed), *filter(math.isfinite, found)])


def _draw_claim(axes: Axes, y: int, judgement: Judgement, most: float) -> None:
    low, high = judgement.claim.claimed
    start, end = max(low, LEAST_RATIO), min(high, most)
    axes.barh(y, end - start, BAR_SHARE, start, color=CLAIMED_COLOR)
    middle = (len(judgement.parts) - 1) / 2
    for number, part in enumerate(judgement.parts):
        if part.found:
            height, (color, marker) = y + BESIDE * (number - middle), VERDICT_LOOKS[part.verdict]
            whiskers(axes, [height], [part.found])
            axes.plot(part.found.value, height, marker, color=color, ms=5, mew=0, zorder=4)


def _row(judgement: Judgement) -> dict[str, str | float | None]:
    return {
        "id": judgement.claim.id,
        "quantity": judgement.claim.quantity,
        "claimed_low": judgement.claim.claimed[0],
        "claimed_high": judgement.claim.claimed[1],
        "verdict": judgement.verdict,
        **bounds("found", judgement.found),
    }
