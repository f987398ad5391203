"""What papers claim, and what was found: by paper and claim a row a case, a column a kind of baseline."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from harness.report.figures.drawing import matplotlib, style  # noqa: F401 - first of all: away from the user's settings

# isort: split
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from harness import plain
from harness.analysis.claims.judgements import Judgement, families
from harness.analysis.claims.schema import Quantity
from harness.analysis.claims.summary import is_sixteen_bit, papers
from harness.report.claims import claimed, links, quantity
from harness.report.figures import layout, render
from harness.report.figures.cases import bounds
from harness.report.figures.layout import EDGE_IN, WIDTH_IN, Grid, Key
from harness.report.figures.look import INK
from harness.report.figures.registry import Drawing

VERDICT_LOOKS = {
    "reproduced": ("#009E73", "o"),
    "exceeded": ("#0072B2", "^"),
    "not reproduced": ("#D55E00", "X"),
    "inconclusive": ("#555555", "s"),
}
"""The colour and the marker of each verdict that comes from a measurement."""

CLAIMED_COLOR = "#d9d9d9"
QUIET = "#6a6a6a"
ROW_PT, SMALL_PT, HEADING_PT, PAPER_PT = 6.5, 5.5, 6.5, 8.0
ROW_IN, GROUP_IN, HEADING_IN, PAPER_IN = 0.115, 0.06, 0.2, 0.3
"""Heights of a case, of what parts two groups of them, of a claim's heading, and of a paper's."""

LABEL_SHARE, LABEL_LINES = 0.3, 2
MARK_PT = 4.6

LOW_RATIO, HIGH_RATIO = 0.3, 20.0
"""The ends of the axis, if nothing lies beyond."""

FEW_DECADES = 300
"""The greatest over the least value, up to which there are two ticks a decade."""

BEYOND = 1.3
"""How much further than all that is drawn an axis of ratios reaches."""


class Picture(NamedTuple):
    """Claims that share an axis."""

    name: str
    title: str
    quantities: tuple[Quantity, ...]
    x_label: str
    is_log: bool
    unit: str


PICTURES = (
    Picture(
        "claims", "Claimed and found", ("throughput", "communication time", "time to accuracy", "trend"),
        "times better", True, "×",
    ),
    Picture("claims-bytes", "Bytes, claimed and found", ("bytes",), "times fewer bytes", True, "×"),
    Picture("claims-accuracy", "Accuracy that is lost", ("accuracy",), "points lost", False, ""),
    Picture("claims-shares", "Shares", ("share", "ablation"), "share", False, ""),
)  # fmt: skip


@dataclass
class Line:
    """A line of a picture: a heading, or a case with its claims by column."""

    height_in: float
    paper: str = ""
    heading: str = ""
    label: str = ""
    """Model and method, beside the first case of a group."""
    link: str = ""
    nothing: str = ""
    """Why there is no point in it."""
    claims: dict[int, Judgement] = field(default_factory=dict)


def write_claims(judgements: Sequence[Judgement], folder: Path) -> list[Drawing]:
    """Draw the pictures that the claims give rise to into ``folder``, as pdf, png and csv."""
    with style():
        return render.write(draw_all(judgements), folder)


def draw_all(judgements: Sequence[Judgement]) -> Iterator[Drawing]:
    """A drawing for each axis that some claim needs."""
    for picture in PICTURES:
        if drawn := [each for each in judgements if each.claim.quantity in picture.quantities]:
            yield claims(drawn, picture)


def claims(judgements: Sequence[Judgement], picture: Picture = PICTURES[0]) -> Drawing:
    """Each claim's range in grey, and on it the interval that was found, marked by its verdict."""
    kinds = sorted(set(map(_column, judgements)))
    lines = list(_lines(judgements))
    key = Key([line.label for line in lines])
    width_in = min(WIDTH_IN, layout.style_width_in())
    most_in = LABEL_SHARE * width_in
    names = [key.short(line.label, most_in, LABEL_LINES, ROW_PT) if line.label else "" for line in lines]
    for line, name in zip(lines, names, strict=True):
        line.height_in = max(line.height_in, layout.lines_in(name, ROW_PT))
    links_in = layout.text_in([line.link for line in lines], SMALL_PT)
    grid = Grid(
        rows=1,
        columns=len(kinds),
        panel_in=sum(line.height_in for line in lines),
        legend=_legend(),
        left_in=layout.text_in(names, ROW_PT) + links_in + 0.3,
        right_in=0.15,
        between_in=0.1,
        titles=[_title(kind, judgements, key) for kind in kinds],
        x_labels=[picture.x_label] * len(kinds),
        share_y=True,
        key=key,
    )
    drawn, (panels,) = layout.panels(grid)
    span, nothing_at = _span(judgements, picture), 1.0 if picture.is_log else 0.0
    for axes in panels:
        _style_axes(axes, picture, span, grid.panel_in)
    _draw_lines(panels, lines, kinds, nothing_at)
    _name_lines(panels, lines, names, links_in)
    caption = (
        "Grey: the claimed range. Line: from the lowest to the highest end of all intervals found, one for each share "
        "of the device. Mark: the verdict. Circle: reproduced; triangle: exceeded; cross: not reproduced; square: "
        "inconclusive."
    )
    return Drawing(picture.name, picture.title, caption, drawn, pd.DataFrame([_row(each) for each in judgements]))


def _column(judgement: Judgement) -> int:
    """The 16-bit all-reduce stands first, then dense, then all else."""
    baseline = judgement.claim.baseline
    return 0 if is_sixteen_bit(baseline) else 1 if baseline == "dense" else 2


def _title(kind: int, judgements: Sequence[Judgement], key: Key) -> str:
    labels = list(dict.fromkeys(each.claim.baseline for each in judgements if _column(each) == kind))
    if kind == 0:
        return "over the 16-bit all-reduce"
    return "over another method" if len(labels) > 1 else f"over {key.inline(labels[0], 1.2, 'axes.titlesize')}"


def _lines(judgements: Sequence[Judgement]) -> Iterator[Line]:
    """Paper by paper, claim by claim, case by case; a model of which nothing was run takes one line."""
    for source, own in papers(judgements).items():
        yield Line(PAPER_IN, paper=source)
        for family, of_family in families(own).items():
            claim = of_family[0].claim
            over = ", ".join(dict.fromkeys(each.claim.baseline for each in of_family))
            said = quantity(claim) if claim.quantity == "trend" else f"{quantity(claim)}, {claimed(claim)} claimed"
            yield Line(HEADING_IN, heading=f"{family}: {said}, over {over}")
            yield from _of_family(of_family)


def _of_family(own: Sequence[Judgement]) -> Iterator[Line]:
    if nothing := _nothing(own):
        yield Line(ROW_IN + GROUP_IN, nothing=nothing)
        return
    groups: dict[str, list[Judgement]] = {}
    for judgement in own:
        groups.setdefault(", ".join(judgement.claim.model), []).append(judgement)
    for model, of_model in groups.items():
        if nothing := _nothing(of_model):
            yield Line(ROW_IN + GROUP_IN, label=model, nothing=nothing)
        else:
            yield from _of_model(model, of_model)


def _of_model(model: str, own: Sequence[Judgement]) -> Iterator[Line]:
    rows: dict[str, dict[str, dict[int, Judgement]]] = {}
    baselines: dict[int, set[str]] = {}
    for judgement in own:
        baselines.setdefault(_column(judgement), set()).add(judgement.claim.baseline)
    for judgement in own:
        counted = " of a gradient" if judgement.claim.counted == "gradient" else ""
        # Two baselines that share a column have rows of their own.
        over = f" over {judgement.claim.baseline}" if len(baselines[_column(judgement)]) > 1 else ""
        label = f"{model}, {', '.join(judgement.claim.method)}{counted}{over}"
        rows.setdefault(label, {}).setdefault(_link(judgement), {})[_column(judgement)] = judgement
    for label, of_links in rows.items():
        for number, (link, found) in enumerate(of_links.items()):
            single = GROUP_IN if len(of_links) == 1 else 0.0
            yield Line(ROW_IN + single, label=label if number == 0 else "", link=link, claims=found)
        yield Line(GROUP_IN)


def _link(judgement: Judgement) -> str:
    rates = links(judgement.claim).split(", ")
    return rates[0] if len(rates) == 1 else f"{rates[0]} … {rates[-1]}"


def _nothing(own: Sequence[Judgement]) -> str:
    """Why none of these has a point, if none has."""
    if any(each.estimates or each.verdict == "not reproduced" for each in own):
        return ""
    return ", ".join(dict.fromkeys(each.parts[0].reason if each.parts else each.verdict for each in own))


def _ends(judgement: Judgement) -> tuple[float, float] | None:
    """All that it may be, by the intervals of all shares of the device."""
    ends = [end for each in judgement.estimates for end in (each.low, each.high, each.value) if end is not None]
    return (min(ends), max(ends)) if ends else None


def _span(judgements: Sequence[Judgement], picture: Picture) -> tuple[float, float]:
    """The ends of the axis: all that was found lies within them, and every end that is claimed."""
    values = [end for each in judgements for end in each.claim.claimed if math.isfinite(end)]
    values += [end for each in judgements for end in _ends(each) or ()]
    if picture.is_log:
        positive = [value for value in values if value > 0]
        return min([LOW_RATIO, *(value / BEYOND for value in positive)]), max(
            [HIGH_RATIO, *(value * BEYOND for value in positive)]
        )
    room = 0.08 * max(max(values) - min(values), 0.1)
    return min(0.0, *values) - room, max(values) + room


def _style_axes(axes: Axes, picture: Picture, span: tuple[float, float], height_in: float) -> None:
    if picture.is_log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3) if span[1] / span[0] < FEW_DECADES else (1,)))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}{picture.unit}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(*span)
    axes.set_ylim(height_in, 0)
    axes.set_yticks([])
    axes.tick_params(axis="x", labelsize=ROW_PT)
    axes.spines["left"].set_visible(False)
    axes.patch.set_visible(False)  # headings run across all panels
    axes.grid(False)


def _draw_lines(panels: Sequence[Axes], lines: Sequence[Line], kinds: Sequence[int], nothing_at: float) -> None:
    """The claims of each line, from above, and where there is neither gain nor loss."""
    top_in = 0.0
    for line in lines:
        for axes, kind in zip(panels, kinds, strict=True):
            if kind in line.claims:
                _draw_claim(axes, top_in + line.height_in / 2, line.height_in, line.claims[kind])
                axes.plot([nothing_at] * 2, [top_in, top_in + line.height_in], color=INK, lw=0.8, zorder=2)
        top_in += line.height_in


def _name_lines(panels: Sequence[Axes], lines: Sequence[Line], names: Sequence[str], links_in: float) -> None:
    """Headings across the figure; beside each case its model, method and link."""
    first, top_in = panels[0], 0.0
    width_in = float(first.get_figure(root=True).get_figwidth())  # type: ignore[union-attr]
    left_in = float(first.get_position().x0) * width_in
    for line, name in zip(lines, names, strict=True):
        middle_in, bottom_in = top_in + line.height_in / 2, top_in + line.height_in - 0.03
        for text, size, color, x_in in (
            (line.paper, PAPER_PT, INK, EDGE_IN),
            (line.heading, HEADING_PT, QUIET, EDGE_IN + 0.08),
        ):
            shown = _in_one_line(text, size, width_in - x_in - EDGE_IN)
            _say(first, x_in - left_in, bottom_in, shown, size=size, color=color, va="bottom")
        _say(first, -links_in - 0.16, middle_in, name, size=ROW_PT, color=INK, ha="right")
        _say(first, -0.06, middle_in, line.link, size=SMALL_PT, color=QUIET, ha="right")
        nothing = _in_one_line(line.nothing, SMALL_PT, width_in - left_in - EDGE_IN)
        _say(first, 0.06, middle_in, nothing, size=SMALL_PT, color=QUIET)
        top_in += line.height_in


def _in_one_line(text: str, size: float, width_in: float) -> str:
    """As much of it as has room."""
    (line,) = plain.shortened(layout.shown(text), 1, lambda part: layout.text_in([part], size) <= width_in)
    return line


def _say(axes: Axes, x_in: float, y_in: float, text: str, *, size: float, color: str, **aligned: str) -> None:
    """Text so many inches to the right of a panel's left edge; centred on its line, unless it is aligned otherwise."""
    if text:
        place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        look: dict[str, Any] = {"fontsize": size, "color": color, "va": "center", **aligned}
        axes.annotate(text, (0, y_in), (72 * x_in, 0), **place, **look, annotation_clip=False, zorder=5)


def _draw_claim(axes: Axes, y_in: float, height_in: float, judgement: Judgement) -> None:
    least, most = axes.get_xlim()
    low, high = judgement.claim.claimed
    start, end = max(low, least), min(high, most)
    axes.barh(y_in, end - start, height_in, start, color=CLAIMED_COLOR, zorder=1)
    ends, found = _ends(judgement), next(iter(judgement.estimates), None)
    color, marker = VERDICT_LOOKS.get(judgement.verdict, (QUIET, ""))
    if ends is None or found is None:
        if judgement.verdict == "not reproduced":  # it missed the target for good: no number is bad enough
            axes.plot(least, y_in, marker, color=color, ms=MARK_PT, mew=0, zorder=4, clip_on=False)
        else:
            _say(axes, 0.02, y_in, "no figure", size=SMALL_PT, color=QUIET)
        return
    axes.plot(ends, [y_in, y_in], color=color, lw=1.1, zorder=3, solid_capstyle="butt")
    axes.plot(found.value, y_in, marker, color=color, ms=MARK_PT, mew=0, zorder=4)


def _legend() -> list[Artist]:
    verdicts = [
        Line2D([], [], color=color, marker=marker, lw=1.1, ms=MARK_PT, mew=0, label=verdict)
        for verdict, (color, marker) in VERDICT_LOOKS.items()
    ]
    return [Patch(color=CLAIMED_COLOR, label="claimed"), *verdicts]


def _row(judgement: Judgement) -> dict[str, str | float | None]:
    return {
        "id": judgement.claim.id,
        "quantity": judgement.claim.quantity,
        "baseline": judgement.claim.baseline,
        "claimed_low": judgement.claim.claimed[0],
        "claimed_high": judgement.claim.claimed[1],
        "verdict": judgement.verdict,
        **bounds("found", judgement.found),
    }
