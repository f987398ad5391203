"""Steps that took far longer than their like, as when a worker stood still: how many, and what they took too much.

The rule, stated here alone:

* Steps are compared with their like: those for which the method's formula gives the same bytes, and of these the steps
  before the steady state and the steady ones apart. So neither a method that sends once in eight steps nor a warm-up
  whose steps become shorter looks disturbed.
* A step is far out if it is above the third quartile of its like by more than 3 interquartile ranges (Tukey's far out,
  1977) and takes more than 1.5 times their median. The second condition matters where times hardly differ, as in
  replays.
* The first ``UNSETTLED_STEPS`` of a training, or of one that goes on, take longer anyway: for memory, for TCP's pace,
  for what a plug-in prepares. Without what all workers took for themselves, one of them is far out if it takes more
  than 4 times the median of its like, and more than a second of real time beyond it.
* A trial is disturbed if what its far-out steps took beyond those medians is more than 3 % of all its training time.

Quartiles and median are steps themselves, the lower ones where two would do: so one step of two can be far out. A step
that has no like is never judged.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

FENCE = 3.0
FACTOR = 1.5

FIRST_FACTOR, FIRST_S = 4.0, 1.0
"""See the rule. (Of 1,946 first steps of stored trainings and replays, two to eight workers on two cores, none took
more than 2.7 times the median of its like, nor half a second of real time beyond it.)"""

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


def far_out(
    step_s: Sequence[float],
    kinds: Sequence[Hashable],
    steady_from: int,
    first: Mapping[int, float],
    left_out: Collection[int] = (),
) -> FarOut:
    """Find them.

    Args:
        step_s: the times of all steps, in order; of the first ones without what all workers took for themselves.
        kinds: for each step, what it sends; steps that send as much are alike.
        steady_from: the first step that is timed.
        first: the first steps, each with ``FIRST_S`` as it is told there.
        left_out: steps that are not judged.
    """
    found = []
    for kind in dict.fromkeys(kinds):
        own = [step for step in range(len(kinds)) if kinds[step] == kind and step not in left_out]
        early, late = _alike([step for step in own if step not in first], steady_from)
        found += [_of_alike(_times(step_s, steps)) for steps in (early, late)]
        found += [
            _of_first(step_s[step], _times(step_s, late if step >= steady_from or not early else early), first[step])
            for step in own
            if step in first
        ]
    return FarOut(sum(each.steps for each in found), sum(each.extra_s for each in found))


def _alike(steps: Sequence[int], steady_from: int) -> tuple[list[int], list[int]]:
    """Steps of a kind, in two groups of those that are to be compared."""
    early = [step for step in steps if step < steady_from]
    if len(early) < FEWEST_ALIKE:
        return [], [*steps]
    return early, [*steps[len(early) :]]


def _times(step_s: Sequence[float], steps: Sequence[int]) -> np.ndarray[Any, Any]:
    return np.asarray([step_s[step] for step in steps])


def _of_alike(times_s: np.ndarray[Any, Any]) -> FarOut:
    if not len(times_s):
        return FarOut(0, 0.0)
    first_quartile, median, third_quartile = np.percentile(times_s, [25, 50, 75], method="lower")
    fence = max(third_quartile + FENCE * (third_quartile - first_quartile), FACTOR * median)
    beyond = times_s[times_s > fence] - median
    return FarOut(len(beyond), float(beyond.sum()))


def _of_first(time_s: float, like_s: np.ndarray[Any, Any], least_s: float) -> FarOut:
    if not len(like_s):
        return FarOut(0, 0.0)
    median = float(np.percentile(like_s, 50, method="lower"))
    extra_s = time_s - median
    return FarOut(1, extra_s) if extra_s > max((FIRST_FACTOR - 1) * median, least_s) else FarOut(0, 0.0)
