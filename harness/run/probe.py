"""Short trials: some steps of a method's steady state at a dilation, of which nothing is stored."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from typing import NamedTuple

from harness.errors import MeasurementError
from harness.methods import method_named
from harness.plan.dilation import Dilation, Phase
from harness.plan.expected import state_of
from harness.plan.status import DONE
from harness.plan.trial import UNSETTLED_STEPS, Trial
from harness.record.row import Event
from harness.run.outcome import Outcome
from harness.scenario.schema import MethodSpec


class Probe(NamedTuple):
    """What some steps were."""

    step_s: list[float]
    """Seconds of each, as they are told."""
    overrun_s: float
    """What workers metered of their lateness in a step, in the mean."""


class Prober:
    """Runs short trials.

    Args:
        attempt: runs a trial on the cluster; what became of it.
        changes_links: whether links can change while a trial runs.
    """

    def __init__(self, attempt: Callable[[Trial], Outcome], changes_links: bool) -> None:
        self._attempt, self._changes_links = attempt, changes_links

    def steps(self, trial: Trial, dilation: float, steps: int) -> Probe:
        """So many steady steps of a trial at a dilation.

        Raises:
            MeasurementError: they did not come to their end.
        """
        probes = _steady_steps(self._finished(_short(trial, steps, Dilation(steady=dilation))))
        return _together(probes[:steps])

    def steps_at_two(self, trial: Trial, near: tuple[float, int], far: tuple[float, int]) -> tuple[Probe, Probe]:
        """A dilation with a number of steps, and another: of one short trial, where links can change in it."""
        (dilation, steps), (slower, slower_steps) = near, far
        if not self._changes_links or trial.case.link.trace:
            return self.steps(trial, *near), self.steps(trial, *far)
        plain = _short(trial, steps + slower_steps, Dilation(steady=dilation))
        last = Phase(from_step=plain.case.train.steps - slower_steps, dilation=slower)
        slowing = Dilation(steady=dilation, phases=(Phase(from_step=0, dilation=dilation), last))
        found = _steady_steps(self._finished(plain.model_copy(update={"found": slowing})))
        return _together(found[:steps]), _together(found[-slower_steps:])

    def _finished(self, trial: Trial) -> Outcome:
        outcome = self._attempt(trial)
        if outcome.status != DONE:
            raise MeasurementError(f"{trial.method.label}: no dilation can be found: {outcome.reason}")
        return outcome


def metered_s(outcome: Outcome) -> float:
    """What workers metered of their lateness in a steady step of a trial, in the mean."""
    return _together(_steady_steps(outcome)).overrun_s


class _Step(NamedTuple):
    step_s: float
    overrun_s: float


def _steady_steps(outcome: Outcome) -> list[_Step]:
    """Rank 0's time, and all ranks' mean lateness, of each step from where the method declares its steady state."""
    step_s = [event.value for event in _steady(outcome, "step_s") if event.rank == 0]
    overruns: dict[int, list[float]] = {}
    for event in _steady(outcome, "overrun_s"):
        overruns.setdefault(event.step, []).append(event.value)
    overrun_s = [statistics.fmean(overruns[step]) for step in sorted(overruns)]
    return [_Step(*each) for each in zip(step_s, overrun_s, strict=True)]


def _steady(outcome: Outcome, kind: str) -> Iterator[Event]:
    first = outcome.results[0].steady_from_step
    return (event for event in outcome.events if event.kind == kind and event.step >= first)


def _together(steps: list[_Step]) -> Probe:
    return Probe([step.step_s for step in steps], statistics.fmean(step.overrun_s for step in steps))


def _short(trial: Trial, steps: int, slowing: Dilation) -> Trial:
    """The trial without its warm-up, with at least so many steady steps."""
    method = without_warmup(trial.method)
    state = state_of(method)
    wanted = max(state.steady_from_step, UNSETTLED_STEPS) + steps
    total = math.ceil(wanted / state.agrees_every) * state.agrees_every
    train = trial.case.train.model_copy(update={"steps": total, "eval_every": total, "target": None})
    case = trial.case.model_copy(update={"train": train})
    return trial.model_copy(update={"case": case, "method": method, "found": slowing, "is_probe": True})


def without_warmup(method: MethodSpec) -> MethodSpec:
    """The method as it is in its steady state. Every parameter of a warm-up is a number of steps."""
    names = method_named(method.name).State.warmup_parameters
    return method.model_copy(update={"params": {**method.params, **dict.fromkeys(names, 0)}})
