"""Drawings of how it works, by code: an emulated network, dilated time, and verdicts by intervals."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, SOFT, GOOD, BAD = "#1c1c1e", "#6a6a70", "#00795a", "#b04a00"
FORWARD, BACKWARD, LINK = "#7cc4f5", "#00609b", "#d7c763"


def write(folder: Path) -> None:
    """Write all drawings as SVG."""
    folder.mkdir(parents=True, exist_ok=True)
    plt.rcParams.update({"svg.hashsalt": "pacbench", "svg.fonttype": "path", "font.size": 10})
    for name, draw in (("star", star), ("time", dilated_time), ("verdicts", verdicts)):
        figure = draw()
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight")
        plt.close(figure)


def star() -> Figure:
    """Workers in namespaces around a switch, with a queue in each direction of each link."""
    figure, axes = _empty(7, 4.2)
    _box(axes, 0, 0, "switch", 1.5)
    for worker in range(4):
        angle = math.pi / 2 + worker * math.pi / 2
        x, y = 3.4 * math.cos(angle), 1.75 * math.sin(angle)
        axes.plot([0, x], [0, y], color=SOFT, linewidth=1, zorder=0)
        _box(axes, x, y, f"w{worker}", 1.1)
        for share, label in ((0.68, "up"), (0.34, "down")):
            axes.plot(x * share, y * share, "s", color=LINK, markersize=9, markeredgecolor=INK)
            axes.annotate(label, (x * share, y * share), (8, 6), textcoords="offset points", color=SOFT, fontsize=8)
    axes.text(0, -2.6, "squares: a queue of the kernel's, set by tc, read back and measured", ha="center", color=SOFT)
    axes.set_xlim(-4.4, 4.4)
    axes.set_ylim(-2.9, 2.4)
    return figure


def dilated_time() -> Figure:
    """A step in the seconds that are told, and the same step where everything is slowed by 3."""
    figure, axes = plt.subplots(figsize=(7, 2.4))
    parts = (("forward", 1.0, FORWARD), ("backward", 1.5, BACKWARD), ("on the link", 2.5, LINK))
    for row, (dilation, label) in enumerate([(3, "what this machine does,\nat a dilation of 3"), (1, "what is told")]):
        begin = 0.0
        for name, seconds, colour in parts:
            axes.barh(row, dilation * seconds, left=begin, color=colour, edgecolor=INK, height=0.5)
            if dilation == 1:
                axes.annotate(name, (begin + seconds / 2, row + 0.3), ha="center", va="bottom", fontsize=8)
            begin += dilation * seconds
        axes.text(-0.2, row, label, ha="right", va="center")
    axes.text(15.2, 0, "÷ 3", va="center", fontsize=13)
    axes.set_ylim(-0.5, 1.9)
    axes.set_axis_off()
    return figure


def verdicts() -> Figure:
    """Intervals beside a claimed range, and what is said of each."""
    figure, axes = plt.subplots(figsize=(7, 2.8))
    low, high = 1.25, 8.72
    axes.axvspan(low, high, color="#eeeeee", zorder=0)
    found = [
        ("reproduced", 2.1, 3.0, GOOD),
        ("exceeded", 9.0, 10.5, GOOD),
        ("not reproduced", 0.7, 1.0, BAD),
        ("inconclusive", 0.9, 1.7, SOFT),
    ]
    for row, (verdict, least, most, colour) in enumerate(reversed(found)):
        axes.plot([least, most], [row, row], color=colour, linewidth=3)
        axes.plot(math.sqrt(least * most), row, "o", color=colour)
        axes.text(0.45, row, verdict, ha="right", va="center", color=INK)
    axes.set_xscale("log")
    axes.set_xlim(0.5, 14)
    axes.set_ylim(-0.6, len(found) - 0.4)
    axes.set_xticks([0.5, 1, low, 2, 4, high], ["0.5x", "1x", "1.25x", "2x", "4x", "8.72x"])
    axes.minorticks_off()
    axes.set_yticks([])
    axes.set_xlabel("speedup; shaded: the claimed range; lines: the 95 % intervals that were found")
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    return figure


def _empty(width: float, height: float) -> tuple[Figure, Axes]:
    figure, axes = plt.subplots(figsize=(width, height))
    axes.set_axis_off()
    return figure, axes


def _box(axes: Axes, x: float, y: float, text: str, width: float) -> None:
    style = {"boxstyle": "round,pad=0.5", "facecolor": "white", "edgecolor": INK}
    axes.text(x, y, f"{text:^{round(6 * width)}}", ha="center", va="center", bbox=style)
