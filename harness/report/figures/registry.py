"""What a figure is, what it is drawn from, and which figures there are.

A figure is one file of this package. Its function yields what it has to show of a run, which may be nothing::

    @figure(order=95)
    def rounds(results: Results) -> Iterator[Drawing]:
        \"""How many trials of each method finished.\"""
        ...
        yield Drawing("rounds", "Finished trials", "A bar is a method.", made, table)

Every such file is found by itself; nothing is registered by hand. A function from outside the package becomes a figure
by the same decorator.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import pandas as pd

from harness.report.figures.drawing import matplotlib  # noqa: F401 - first of all: away from the user's settings

# isort: split
from matplotlib.figure import Figure

from harness.analysis.cases import CaseResult, label_to_beat
from harness.report.figures.look import Look, looks
from harness.scenario.schema import Scenario

PACKAGE = "harness.report.figures"


@dataclass(frozen=True)
class Results:
    """All that a figure may need to know of a run."""

    cases: Sequence[CaseResult]
    """The results of each case: its trials, and of each method its finished trials, means and ratios."""
    events: pd.DataFrame
    """What was noted while the trials ran, such as evaluations and step times, in the columns of ``EVENT_SCHEMA``."""
    scenario: Scenario
    """What was asked for. It gives the order of the methods, the baseline and the tolerated loss of accuracy."""
    looks: Mapping[str, Look]
    """The look of every method by its label, in the scenario's order."""
    reference: str
    """The label of the method that others must beat: speedups are told over it."""

    @classmethod
    def of(cls, cases: Sequence[CaseResult], events: pd.DataFrame, scenario: Scenario) -> Results:
        """The results of a run, with the looks and the reference that its scenario gives."""
        return cls(cases, events, scenario, looks(scenario.methods), label_to_beat(cases, scenario))


@dataclass(frozen=True)
class Drawing:
    """A figure, what it says, and exactly the numbers in it."""

    name: str
    """The name of its files."""
    title: str
    caption: str
    figure: Figure
    data: pd.DataFrame
    """The numbers in it, as a table for programs."""
    svg: str = ""
    """The figure as it stands in pages. ``render.write`` adds it for them."""


Draws = Callable[[Results], Iterator[Drawing]]
"""Yields the drawings of a run that one figure gives rise to."""

AnyDraws = TypeVar("AnyDraws", bound=Draws)


class _Entry(NamedTuple):
    order: float
    name: str
    for_paper: bool
    draws: Draws


_entries: dict[str, _Entry] = {}
"""By the function's full name, so that a module that is loaded again replaces its own."""


def figure(order: float, for_paper: bool = False) -> Callable[[AnyDraws], AnyDraws]:
    """Make a function a figure of every report.

    Args:
        order: where it stands among the others, the lowest first.
        for_paper: whether only ``pacbench report --paper`` draws it, since a report shows the same beside other things.
    """

    def enter(draws: AnyDraws) -> AnyDraws:
        name = f"{draws.__module__}.{draws.__qualname__}"
        _entries[name] = _Entry(order, name, for_paper, draws)
        return draws

    return enter


def figures(for_paper: bool = False) -> list[Draws]:
    """The figures of a report in their order, or those of a paper, which are more."""
    for module in pkgutil.iter_modules(importlib.import_module(PACKAGE).__path__):
        importlib.import_module(f"{PACKAGE}.{module.name}")
    wanted = [entry for entry in _entries.values() if for_paper or not entry.for_paper]
    return [entry.draws for entry in sorted(wanted, key=lambda each: (each.order, each.name))]
