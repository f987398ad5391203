"""Figures as files: a vector file (pdf), an image (png) and the plotted numbers (csv). Pages get them as SVG."""

from __future__ import annotations

import io
import multiprocessing
import os
import re
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.report.figures.drawing import matplotlib, style  # first of all: away from the user's settings

# isort: split
from matplotlib.figure import Figure

from harness.errors import MeasurementError
from harness.files import make_folder, write_whole
from harness.programs import ending_children_if_it_fails, leave_signals_to_parent, signals_held_back, starting
from harness.report.figures.registry import Drawing, Draws, Results

MOST_PIXELS = 60_000
"""The most pixels in any direction. matplotlib can render a few more."""

ARTIST = "a process that draws figures"


def write_all(
    folder: Path,
    results: Results,
    figures: Iterable[Draws],
    changes: Mapping[Any, Any] = {},
    for_page: bool = True,
) -> list[Drawing]:
    """Draw the figures that the results give rise to, each into ``folder`` as ``<name>.pdf``, ``.png`` and ``.csv``.

    Args:
        figures: those to draw, in order; ``registry.figures`` knows all.
        changes: settings that differ from the style file, such as ``figure.figsize``, whose width no figure exceeds.
        for_page: whether those that are returned have their SVG.
    """
    with style(changes):
        return write((drawing for draws in figures for drawing in draws(results)), folder, for_page)


def write(drawings: Iterable[Drawing], folder: Path, for_page: bool = True) -> list[Drawing]:
    """Write each figure, in the style that is in force; returns them, for a page with their SVG."""
    drawings = list(drawings)
    make_folder(folder)
    for drawing in drawings:
        write_whole(folder / f"{drawing.name}.csv", drawing.data.to_csv(index=False), sync=False)
    svgs = render_all(drawings, folder, for_page)
    return [replace(drawing, svg=svg) for drawing, svg in zip(drawings, svgs, strict=True)]


def render_all(drawings: Sequence[Drawing], folder: Path, for_page: bool) -> list[str]:
    """Write each figure as pdf and png, on all CPUs at once where processes can be forked.

    Returns:
        Each as SVG, which takes a third of the time; where that is not for a page, nothing.

    Raises:
        MeasurementError: a process cannot be started, or was killed.
    """
    processes = min(len(drawings), os.cpu_count() or 1)
    if processes < 2 or sys.platform != "linux" or threading.active_count() > 1:
        return [_render(drawing, folder, for_page) for drawing in drawings]
    shared = drawings, folder, for_page
    # The largest first: whichever comes last, the other processes wait for it.
    order = sorted(range(len(drawings)), key=lambda number: -len(drawings[number].figure.axes))
    # multiprocessing's own pool ends its processes by SIGTERM, which here is Python's to handle, and may be lost.
    with ending_children_if_it_fails():
        with starting(ARTIST):
            pool = ProcessPoolExecutor(processes, multiprocessing.get_context("fork"), _inherit, shared)
        try:
            with pool:
                with starting(ARTIST), signals_held_back():
                    rendered = pool.map(_render_inherited, order)
                svgs = dict(zip(order, rendered, strict=True))
        except BrokenProcessPool:
            reason = f"{ARTIST} was killed, as the kernel does for want of memory"
            raise MeasurementError(f"{folder}: {reason}; what had been drawn is kept") from None
    return [svgs[number] for number in range(len(drawings))]


_inherited: tuple[Sequence[Drawing], Path, bool]
"""What a forked process has of its parent: figures take longer to pickle than to draw."""


def _inherit(drawings: Sequence[Drawing], folder: Path, for_page: bool) -> None:
    global _inherited
    _inherited = drawings, folder, for_page
    leave_signals_to_parent()


def _render_inherited(number: int) -> str:
    drawings, folder, for_page = _inherited
    return _render(drawings[number], folder, for_page)


def _render(drawing: Drawing, folder: Path, for_page: bool) -> str:
    stem = folder / drawing.name
    pdf, png = io.BytesIO(), io.BytesIO()
    drawing.figure.savefig(pdf, format="pdf", metadata={"CreationDate": None, "Title": drawing.title})
    drawing.figure.savefig(png, format="png", dpi=_dpi(drawing.figure))
    for ending, content in ((".pdf", pdf), (".png", png)):
        write_whole(stem.with_suffix(ending), content.getvalue(), sync=False)
    if not for_page:
        return ""
    svg = io.StringIO()
    drawing.figure.savefig(svg, format="svg", metadata={"Date": None})
    return compact(svg.getvalue())


def _dpi(figure: Figure) -> float:
    """As the style asks, unless the figure is too long for it."""
    asked = matplotlib.rcParams["savefig.dpi"]
    return min(float(figure.dpi if asked == "figure" else asked), MOST_PIXELS / float(max(figure.get_size_inches())))


def compact(svg: str) -> str:
    """The same picture in fewer bytes: to a hundredth of a point, not indented, markers of a line styled together."""
    flat = re.sub(r"\n +", "\n", svg)
    rounded = PLACES.sub(lambda places: re.sub(r"(\.\d\d)\d+", r"\1", places[0]), flat)
    return MARKERS.sub(_styled_together, rounded)


PLACES = re.compile(r' (?:d|x|y)="[^"]*"')
MARKERS = re.compile(r'(<g clip-path="[^"]*")>((?:\n<use [^>]*/>)+)')


def _styled_together(markers: re.Match[str]) -> str:
    """Markers of a group with the style of each, if they have one, told once."""
    group, uses = markers.groups()
    styles = re.findall(r' style="[^"]*"', uses)
    if len(set(styles)) != 1 or len(styles) != uses.count("<use "):
        return markers[0]
    return f"{group}{styles[0]}>{uses.replace(styles[0], '')}"
