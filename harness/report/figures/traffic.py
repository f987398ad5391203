"""What links carried while a command ran, over time. A record of a command shows it; reports of trials do not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from harness.report.figures.drawing import matplotlib  # noqa: F401 - first of all: away from the user's settings

# isort: split
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from harness.record.execution import LinkTraffic
from harness.report.figures import layout
from harness.report.figures.layout import AXIS_IN, Grid
from harness.report.figures.look import DASHED, PHASES
from harness.report.figures.registry import Drawing

COLORS = {"up": PHASES["compute"], "down": PHASES["comm"]}

MOST_PANELS = 8
"""Links that get a panel each; of more, all are drawn into one panel a direction."""

MOST_POINTS = 2000
"""Of a line: a page of figures must stay small."""


def traffic(links: Sequence[LinkTraffic]) -> Iterator[Drawing]:
    """The rate of each direction of each link, between every two looks at its counters."""
    names = list(dict.fromkeys(link.link for link in links))
    by_link = {name: [link for link in links if link.link == name] for name in names}
    by_direction = {f"all links, {way}": [link for link in links if link.direction == way] for way in COLORS}
    panels = by_link if len(names) <= MOST_PANELS else by_direction
    keys: list[Artist] = [Line2D([], [], color=color, lw=1, label=way) for way, color in COLORS.items()]
    grid = Grid(
        rows=len(panels),
        columns=1,
        panel_in=1.0 if panels is by_link else 2.0,
        legend=[*keys, Line2D([], [], **DASHED, label="rate that was asked for")],
        left_in=AXIS_IN,
        right_in=0.15,
        titles=list(panels),
        x_labels=layout.lowest(len(panels), "seconds"),
    )
    drawn, made = layout.panels(grid)
    for axes, together in zip(made.flat, panels.values(), strict=True):
        _draw(axes, together, alpha=1.0 if panels is by_link else 0.4)
    caption = (
        "Bits a second on the wire, headers included, by the counters of each direction's queue: the mean between two "
        "looks. Up leaves the worker."
    )
    yield Drawing("traffic", "What the links carried", caption, drawn, _table(links))


def _draw(axes: Axes, links: Sequence[LinkTraffic], alpha: float) -> None:
    for link in links:
        rates = link.rates_bps()
        shown = rates[:: max(1, len(rates) // MOST_POINTS)]
        axes.plot(
            [time_s for time_s, _ in shown], [bps for _, bps in shown], color=COLORS[link.direction], lw=1, alpha=alpha
        )
    for asked in {link.rate_bps_asked for link in links if link.rate_bps_asked}:
        axes.axhline(asked, **DASHED)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(EngFormatter())
    axes.set_ylabel("bit/s")


def _table(links: Sequence[LinkTraffic]) -> pd.DataFrame:
    rows = [(link.link, link.direction, time_s, rate_bps) for link in links for time_s, rate_bps in link.rates_bps()]
    return pd.DataFrame(rows, columns=["link", "direction", "time_s", "rate_bps"])
