"""How sure a verdict is that is looked for after every round.

Whoever looks at an interval again after each round, and stops as soon as it decides, is wrong more often than the
interval says. Repeated confidence intervals (Jennison and Turnbull, J. R. Stat. Soc. B 51, 1989) hold the truth at all
looks at once, whenever one stops and for whatever reason. Here the error is spent evenly over the looks (Bonferroni's
inequality; the simplest of the spending rules of Lan and DeMets, Biometrika 70, 1983): with t intervals that is exact
from the second round on. Pocock's level (Biometrika 64, 1977), which is for a known variance, would be wrong in 5.5 %
of studies of five rounds where it says 5 % (``tests/unit/test_claims_sequential.py``). Trainings run with all their
seeds, and are looked at once.
"""

from __future__ import annotations

import math

from harness.analysis.shifts import half_width

ERROR = 0.05
"""Share of verdicts that may be wrong, of claims whose truth lies at the very end of the claimed range."""

FEWEST_FAILURES = math.floor(math.log2(1 / ERROR)) + 1
"""Trainings of which all must fail before that is final: who fails half the time does so in all of them in a smaller
share of studies than ``ERROR``."""

FIRST_LOOK = 2
"""Rounds before the first look: one has no spread."""

MOST_LOOKED_AHEAD = 200
"""Rounds beyond which nobody will run a claim."""


def confidence(rounds: int, comparisons: int = 1) -> float:
    """Confidence of each interval, so that all of them hold the truth with a probability of ``1 - ERROR``.

    Args:
        rounds: how many there will be at most.
        comparisons: intervals at each look that must all hold.
    """
    looks = max(1, rounds - FIRST_LOOK + 1)
    return 1 - ERROR / (looks * comparisons)


def rounds_to_decide(distance: float, spread: float, confidence: float, usual_freedom: float = 0.0) -> int | None:
    """After how many rounds of this spread an interval would not reach so far any more; None: after too many.

    Args:
        distance: from the mean to what the interval must not hold.
        spread: standard deviation of a round.
        usual_freedom: degrees of freedom of the spread beside those of these rounds.
    """
    for rounds in range(FIRST_LOOK, MOST_LOOKED_AHEAD + 1):
        if half_width(spread / math.sqrt(rounds), usual_freedom + rounds - 1, confidence) < distance:
            return rounds
    return None
