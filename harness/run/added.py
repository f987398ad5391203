"""What this machine adds to a step: steps put beside the same steps at a greater dilation.

What a machine adds, computation that does not keep up, late wake-ups and the collectives' own work, is about the same
in real seconds however slow everything runs: of a step that is told in undilated time it is ``added_s / dilation``. So
steps at two dilations tell it, and what a step takes without it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from harness.plan.dilation import FEWEST, tolerated
from harness.plan.expected import state_of
from harness.plan.trial import Trial
from harness.run.outcome import Outcome

SURELY = 2.0
"""So many standard errors apart two findings surely differ."""


class Added(NamedTuple):
    """What was found by steps at two dilations."""

    step_s: float
    """A step in undilated time, without what the machine adds; not above 0 where that cannot be so much."""
    added_s: float
    """What it adds to each, in real seconds."""
    error_s: float
    """How uncertain that is, as one standard error, in real seconds."""

    def share(self, dilation: float) -> float:
        """What the machine adds to a step at a dilation, over the rest of it."""
        return self._share(self.added_s, dilation)

    def _share(self, added_s: float, dilation: float) -> float:
        rest_s = self._told_s(dilation) - added_s / dilation
        return added_s / dilation / rest_s if rest_s > 0 else math.inf

    def _told_s(self, dilation: float) -> float:
        """A step at a dilation with what the machine adds."""
        return self.step_s + self.added_s / dilation

    def why_too_much(self, dilation: float, most: float) -> str | None:
        """Why a trial whose steps show this is to be run again at a greater dilation; None where it is not."""
        if self.is_too_much(dilation, most):
            return f"at a dilation of {dilation:g} this machine added {100 * self.share(dilation):.1f} % to a step"
        if not self.is_known(dilation, most):
            error = f"{100 * self.error_s / dilation / self._told_s(dilation):.1f} % of a step"
            return f"at a dilation of {dilation:g} what this machine added was known to {error} only"
        return None

    def is_too_much(self, dilation: float, most: float) -> bool:
        """Whether it may not be taken off steps at a dilation, since it is surely more than this share of them."""
        unsure_s = 0.0 if self.is_known(dilation, most) else SURELY * self.error_s
        return self._share(max(0.0, self.added_s - unsure_s), dilation) > most

    def is_known(self, dilation: float, most: float) -> bool:
        """Whether it may be taken off steps at a dilation, to which it may add such a share."""
        return dilation >= self.known_from(most)

    def known_from(self, most: float) -> float:
        """The least dilation at which it is known well enough, where it may add such a share to a step."""
        return self.error_s / (tolerated(most) * self.step_s) if self.step_s > 0 else math.inf

    def beside(self, added_s: float, error_s: float, dilation: float) -> Added:
        """The same with what was told before: the mean of both, each by how certain it is.

        Args:
            added_s: what was told before.
            error_s: how uncertain that was.
            dilation: that of the steps which show this.

        Returns:
            This one alone where the two surely differ: the machine is not what it was.
        """
        if abs(self.added_s - added_s) > SURELY * math.hypot(self.error_s, error_s):
            return self
        share = self.error_s**2 / (self.error_s**2 + error_s**2)
        more_s = share * (added_s - self.added_s)
        return Added(self.step_s - more_s / dilation, self.added_s + more_s, self.error_s * math.sqrt(1 - share))


def added(
    near_s: Sequence[float], dilation: float, far_s: Sequence[float], greater: float, are_alike: bool = True
) -> Added:
    """Put steps at a dilation beside steps at a greater one; both in undilated seconds.

    Args:
        are_alike: whether all send the same, so that chance alone makes them differ.
    """
    more_s, error_s = _difference(near_s, far_s, are_alike)
    per_difference = 1 / (1 / dilation - 1 / greater)
    added_s = max(0.0, more_s) * per_difference
    return Added(statistics.fmean(near_s) - added_s / dilation, added_s, error_s * per_difference)


def added_within(outcome: Outcome, trial: Trial) -> Added | None:
    """What the slower steps within a trial say; None where there were none, or the trial has not come so far.

    Ranks begin the slower steps together, and those after them. Later on they may be out of step for long, where links
    have a delay: each waits for the one before it, and what says that one is ready waits behind another's data. No
    machine makes such steps longer, so the slower ones are put beside those that come as soon after ranks have met.
    """
    look = trial.slowing.look
    if look is None or outcome.steps_seen < look.end:
        return None
    far = range(look.from_step, look.from_step + look.steps)
    delayed = any(pipe.delay_s for pipe in trial.expected.topology.pipes)
    before, after = range(far.start - look.beside, far.start), range(far.stop, far.stop + look.beside)
    near = after[: look.steps] if delayed else [*before, *after]
    settled, step_s = _settled(outcome, trial, near, far), outcome.step_s
    of_one_kind = None if state_of(trial.method).agrees_every > 1 else _of_one_kind(outcome, trial, *settled)
    near_s, far_s = ([step_s[step] for step in steps] for steps in of_one_kind or settled)
    return added(near_s, trial.dilation, far_s, look.dilation, are_alike=of_one_kind is not None)


def _settled(
    outcome: Outcome, trial: Trial, near: Sequence[int], far: Sequence[int]
) -> tuple[Sequence[int], Sequence[int]]:
    """Those steps with which the trial did not go on from a checkpoint, in whole periods; all where few are left."""
    period, unsettled = state_of(trial.method).agrees_every, outcome.resumed_with

    def without(steps: Sequence[int]) -> list[int]:
        periods = (steps[first : first + period] for first in range(0, len(steps), period))
        return [step for each in periods if unsettled.isdisjoint(each) for step in each]

    left = without(near), without(far)
    return left if min(map(len, left)) >= FEWEST else (near, far)


def _of_one_kind(
    outcome: Outcome, trial: Trial, near: Sequence[int], far: Sequence[int]
) -> tuple[Sequence[int], Sequence[int]] | None:
    """Those steps that send what most of the far ones do: a method that chooses may try something else now and then.

    None where they are too few.
    """
    kinds = outcome.kinds_of_steps(trial)
    kind = statistics.mode(kinds[step] for step in far)
    alike = [[step for step in steps if kinds[step] == kind] for steps in (near, far)]
    return (alike[0], alike[1]) if FEWEST <= len(alike[1]) <= len(alike[0]) else None


def _difference(near_s: Sequence[float], far_s: Sequence[float], are_alike: bool) -> tuple[float, float]:
    """By how much the near steps take longer than the far ones, and the standard error of this.

    Of steps that are alike, medians are compared: what makes some of them longer is no part of what is in all.

    Beside others, as those of a method that sends now and then, as many near ones are put, the longest beside the
    longest. Where there are fewer near ones, means are compared.
    """
    if are_alike:
        error_s = math.hypot(_error_of_median(near_s), _error_of_median(far_s))
        return statistics.median(near_s) - statistics.median(far_s), error_s
    if len(near_s) < len(far_s):
        error_s = math.hypot(_error_of_mean(near_s), _error_of_mean(far_s))
        return statistics.fmean(near_s) - statistics.fmean(far_s), error_s
    middle = (len(near_s) - len(far_s)) // 2
    nearest_s = sorted(near_s[middle : middle + len(far_s)])
    more_s = [near - far for near, far in zip(nearest_s, sorted(far_s), strict=True)]
    return statistics.fmean(more_s), _error_of_mean(more_s)


def _error_of_mean(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values))


def _error_of_median(values: Sequence[float]) -> float:
    """As of many that are normally distributed."""
    return statistics.stdev(values) * math.sqrt(math.pi / 2 / len(values))
