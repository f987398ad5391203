"""Steps that took far longer than their like, as when a worker stood still: how many, and what they took too much.

The rule, stated here alone:

* Steps are compared with their like: those for which the method's formula gives the same bytes, and of these the steps
  before the steady state and the steady ones apart. So neither a method that sends once in eight steps nor a warm-up
  whose steps become shorter looks disturbed.
* A step is far out if it is above the third quartile of its like by more than 3 interquartile ranges (Tukey's far out,
  1977) and takes more than 1.5 times their median. The second condition matters where times hardly differ, as in
  replays.
* A trial is disturbed if what its far-out steps took beyond those medians is more than 3 % of all its training time.

Quartiles and median are steps themselves, the lower ones where two would do: so one step of two can be far out. The
first ``UNSETTLED_STEPS`` are never judged, nor is a step that has no like.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from harness.plan.status import UNSETTLED_STEPS

FENCE = 3.0
FACTOR = 1.5

FEWEST_ALIKE = 4
"""Steps before the steady state below which they say too little of one another: they are judged with the steady ones.
Otherwise one late step, which the steady state begins behind, would have no like."""

MOST_DISTURBED = 0.03
"""Share of the training time that far-out steps may take beyond the usual."""


class FarOut(NamedTuple):
    """The steps of a trial that are far out."""

    steps: int
    extra_s: float
    """What they took beyond the medians of their like."""


def far_out(step_s: Sequence[float], kinds: Sequence[Hashable], steady_from: int) -> FarOut:
    """Find them.

    Args:
        step_s: the times of all steps, in order.
        kinds: for each step, what it sends; steps that send as much are alike.
        steady_from: the first step that is timed.
    """
    found = [_of_alike(np.asarray([step_s[step] for step in steps])) for steps in _alike(kinds, steady_from)]
    return FarOut(sum(each.steps for each in found), sum(each.extra_s for each in found))


def _alike(kinds: Sequence[Hashable], steady_from: int) -> Iterator[list[int]]:
    """Steps, in groups of those that are to be compared."""
    for kind in dict.fromkeys(kinds):
        steps = [step for step in range(UNSETTLED_STEPS, len(kinds)) if kinds[step] == kind]
        early = [step for step in steps if step < steady_from]
        if len(early) < FEWEST_ALIKE:
            yield steps
        else:
            yield early
            yield steps[len(early) :]


def _of_alike(times_s: np.ndarray[Any, Any]) -> FarOut:
    if not len(times_s):
        return FarOut(0, 0.0)
    first_quartile, median, third_quartile = np.percentile(times_s, [25, 50, 75], method="lower")
    fence = max(third_quartile + FENCE * (third_quartile - first_quartile), FACTOR * median)
    beyond = times_s[times_s > fence] - median
    return FarOut(len(beyond), float(beyond.sum()))
