"""When a run has measured enough: intervals that are narrow, accuracies that are decided."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from harness.analysis.cases import CaseResult, case_results
from harness.analysis.trials import on_links, workload_of
from harness.plan.status import DONE
from harness.scenario.schema import Scenario

FEWEST_ROUNDS = 5
"""Before which rounds are not ended because an interval looks narrow: after three, that is chance too often."""


def undecided_accuracies(trials: pd.DataFrame, scenario: Scenario) -> set[tuple[tuple[Any, ...], str]]:
    """The workloads and methods of which more seeds are to tell whether accuracy is kept: the rounds leave it unknown.

    What some of these seeds have told is not looked at before the last one: see ``quality``.
    """
    of_rounds = on_links(trials)
    if not (of_rounds["status"] == DONE).any():
        return set()
    return {
        (workload_of(case.key), result.label)
        for case in case_results(of_rounds, scenario)
        for result in case.methods
        if result.quality.keeps == "unknown" and result.quality.difference
    }


def widest(cases: Sequence[CaseResult]) -> float | None:
    """The widest of all speedups' intervals, as the share by which its ends lie beside its middle.

    None where a method that has finished trials has no interval yet.
    """
    speedups = [result.speedup for case in cases for result in case.methods if len(result.done)]
    if not speedups or any(each is None or each.low is None for each in speedups):
        return None
    return max(math.sqrt(each.high / each.low) - 1 for each in speedups if each and each.low and each.high)


def narrow_enough(trials: pd.DataFrame, scenario: Scenario, share: float) -> bool:
    """Whether there are at least ``FEWEST_ROUNDS`` and every speedup's interval reaches no further than ``share``."""
    done = on_links(trials[trials["status"] == DONE])
    if done.empty or done["round"].nunique() < FEWEST_ROUNDS:
        return False
    widest_share = widest(case_results(trials, scenario))
    return widest_share is not None and widest_share <= share
