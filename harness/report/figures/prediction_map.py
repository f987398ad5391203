"""On which networks a method's step is predicted to be shorter: a heat map a method, a panel a round trip."""

from __future__ import annotations

import itertools

import pandas as pd

from harness.report.figures.drawing import matplotlib  # noqa: F401 - first of all: away from the user's settings

# isort: split
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter

from harness.report.figures import layout
from harness.report.figures.bars import LABEL_LINES, LABEL_SHARE
from harness.report.figures.layout import WIDTH_IN, Grid, Key
from harness.report.figures.look import INK
from harness.report.figures.registry import Drawing
from harness.units import format_time

SHADES = ("#f4f4f4", "#cfe3ee", "#92c5de", "#4393c3", "#14558f", "#062f58")
"""From no case to all. They darken evenly, so that they differ in grey, too."""

SHADE_NAMES = ("none", "up to a quarter", "up to a half", "up to three quarters", "nearly all", "all")

METHOD_IN, METHOD_PT, WORKERS_PT = 0.42, 7.0, 5.5
"""Height of a method's heat map, the size of its name, and that of the numbers of workers beside it."""


def prediction_map(cells: pd.DataFrame) -> Drawing:
    """The share of profiles and devices in which a method is faster, by round trip, number of workers and rate.

    Args:
        cells: ``label``, ``rtt_s``, ``workers``, ``rate_bps``, ``share``; the labels from the top to the bottom.
    """
    labels = list(dict.fromkeys(cells["label"]))
    rtts_s = list(dict.fromkeys(cells["rtt_s"]))
    key = Key(labels)
    most_in = LABEL_SHARE * min(WIDTH_IN, layout.style_width_in())
    names = [key.short(label, most_in, LABEL_LINES, METHOD_PT) for label in labels]
    grid = Grid(
        rows=1,
        columns=len(rtts_s),
        panel_in=METHOD_IN * len(labels),
        legend=_legend(),
        left_in=layout.text_in(names, METHOD_PT) + 0.25,
        right_in=0.45,
        between_in=0.12,
        heading="In what share of profiles and device speeds a step is shorter than with the 16-bit all-reduce",
        titles=[f"round trip {format_time(rtt_s)}" for rtt_s in rtts_s],
        x_labels=["link rate (bit/s)"] * len(rtts_s),
        share_y=True,
        key=key,
    )
    drawn, (panels,) = layout.panels(grid)
    for axes, rtt_s in zip(panels, rtts_s, strict=True):
        _draw_panel(axes, cells[cells["rtt_s"] == rtt_s], labels)
    panels[0].set_yticks([place + 0.5 for place in range(len(labels))], names, fontsize=METHOD_PT)
    _name_workers(panels[-1], sorted(set(cells["workers"])), len(labels))
    caption = (
        "Predicted, not measured. Colour: in what share of profiles and device speeds a step is shorter than that of "
        "the 16-bit all-reduce. A block a method; in it, workers from above, by powers of two."
    )
    return Drawing("map", "Where compression is faster", caption, drawn, cells)


def shade(share: float) -> int:
    """The place of a share's colour: none and all have one of their own."""
    if share in (0.0, 1.0):
        return 0 if share == 0 else len(SHADES) - 1
    return 1 + min(3, int(4 * share))


def _legend() -> list[Artist]:
    return [
        Patch(facecolor=color, edgecolor=INK, lw=0.4, label=name)
        for color, name in zip(SHADES, SHADE_NAMES, strict=True)
    ]


def _name_workers(axes: Axes, workers: list[int], blocks: int) -> None:
    """At the right of each block its first and its last row's number of workers."""
    for block, (place, number) in itertools.product(range(blocks), ((0.0, workers[0]), (1.0, workers[-1]))):
        where, align = (1.04, block + place), "top" if place == 0 else "bottom"
        axes.text(*where, f"{number:,}", transform=axes.get_yaxis_transform(), va=align, fontsize=WORKERS_PT)
    axes.text(1.04, -0.08, "workers", transform=axes.get_yaxis_transform(), va="bottom", fontsize=WORKERS_PT)


def _draw_panel(axes: Axes, cells: pd.DataFrame, labels: list[str]) -> None:
    """Methods from above, each a block of as many rows as there are numbers of workers."""
    rates_bps = sorted(set(cells["rate_bps"]))
    of_methods = cells.pivot_table(index=["label", "workers"], columns="rate_bps", values="share").loc[labels]
    axes.imshow(
        of_methods.map(shade).to_numpy(),
        cmap=ListedColormap(SHADES),
        vmin=0,
        vmax=len(SHADES) - 1,
        extent=(-0.5, len(rates_bps) - 0.5, len(labels), 0),
        aspect="auto",
        interpolation="nearest",
    )
    for place in range(1, len(labels)):
        axes.axhline(place, color="white", lw=2)
    shown = [place for place, rate_bps in enumerate(rates_bps) if len(rates_bps) < 6 or place % 2 == 0]
    name = EngFormatter(places=0, sep="")
    axes.set_xticks(shown, [name(rates_bps[place]) for place in shown], fontsize=METHOD_PT)
    axes.grid(False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
