"""How methods are told apart, in every figure the same.

A method's own file declares its colour and marker. Variants of one method share both, and differ in lightness and line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from harness.report.figures.drawing import matplotlib  # noqa: F401 - first of all: away from the user's settings

# isort: split
from matplotlib.artist import Artist
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from harness.methods import declared
from harness.scenario.schema import MethodSpec

INK = "#222222"
DASHED: dict[str, Any] = {"color": INK, "ls": (0, (4, 3)), "lw": 0.9}
"""How a line to compare with is drawn, such as a target."""

PHASES = {"compute": "#332288", "codec": "#AA4499", "comm": "#DDCC77"}
"""The colours of a step's phases. They are dark, middle and light, so that they differ in grey; no method has them."""

LINE_STYLES = ("-", "--", ":", "-.")
TINTS = (0.0, -0.45, 0.5, -0.7)
"""The tints of a method's variants, in order: towards white where positive, towards black where negative."""

UNKNOWN = ("#777777", "o")
"""Colour and marker of a method of which nothing is known: a plug-in whose code nobody asked to be run."""


class Look(NamedTuple):
    """How a method's variant is drawn."""

    color: tuple[float, float, float]
    line_style: str
    marker: str

    @property
    def line(self) -> dict[str, Any]:
        """How a line with markers is drawn."""
        return {"color": self.color, "ls": self.line_style, "marker": self.marker}

    @property
    def point(self) -> dict[str, Any]:
        """How a single point is drawn: with a white rim, unless all of its marker is rim."""
        rim = "white" if self.marker in Line2D.filled_markers else self.color
        return {"ls": "", "marker": self.marker, "color": self.color, "mec": rim}

    @property
    def face(self) -> tuple[float, float, float]:
        """The colour within a bar."""
        return tinted(self.color, 0.6)


def looks(methods: Sequence[MethodSpec]) -> dict[str, Look]:
    """Label -> look. Variants of one method get its tints in the order in which they come."""
    siblings: Counter[str] = Counter()
    found = {}
    for method in methods:
        variant = siblings[method.name] % len(TINTS)
        siblings[method.name] += 1
        known = declared(method.name)
        color, marker = (known.color, known.marker) if known else UNKNOWN
        found[method.label] = Look(tinted(color, TINTS[variant]), LINE_STYLES[variant], marker)
    return found


def tinted(color: Any, tint: float) -> tuple[float, float, float]:
    """Towards white by a share ``tint``, or towards black by ``-tint``."""
    red, green, blue = ((1 - abs(tint)) * part + max(tint, 0.0) for part in to_rgb(color))
    return red, green, blue


def method_keys(looks: Mapping[str, Look], labels: Collection[str]) -> list[Artist]:
    """The legend's entries for lines of these labels, in the order of ``looks``."""
    return [Line2D([], [], **look.line, label=label) for label, look in looks.items() if label in labels]


def mean_keys() -> list[Artist]:
    """The legend's entries for a mean and its interval."""
    bar = Patch(facecolor="#cccccc", edgecolor=INK, label="geometric mean")
    return [bar, Line2D([], [], color=INK, lw=1, marker="|", label="95 % t interval")]


def dashed_key(label: str) -> Artist:
    """The legend's entry for a line to compare with."""
    return Line2D([], [], **DASHED, label=label)
