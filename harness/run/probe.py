"""Short trials: some steps of a method's steady state at a dilation, of which nothing is stored."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from harness.errors import MeasurementError
from harness.plan.dilation import FAR, Dilation, probe_steps, probed_at, whole_periods
from harness.plan.expected import state_of
from harness.plan.status import DONE, first_steady_step
from harness.plan.trial import Trial
from harness.record.row import Event
from harness.run.added import Added, added
from harness.run.outcome import Outcome
from harness.scenario.limits import MOST_TRACE_S
from harness.scenario.links import Trace
from harness.scenario.schema import Case, MethodSpec
from harness.scenario.section import Section


class Prober:
    """Runs short trials.

    Args:
        attempt: runs a trial on the cluster; what became of it.
    """

    def __init__(self, attempt: Callable[[Trial], Outcome]) -> None:
        self._attempt = attempt

    def added(self, trial: Trial, dilation: float) -> tuple[Added, float]:
        """What this machine adds to a trial's steady steps at a dilation, and what workers metered of it in a step.

        Raises:
            MeasurementError: a short trial did not come to its end.
        """
        period = state_of(trial.method).agrees_every
        slowings = probed_at(dilation), Dilation(steady=FAR * dilation)
        near, far = (self._steps(trial, slowing, period) for slowing in slowings)
        return added(near.step_s, dilation, far.step_s, FAR * dilation, are_alike=period == 1), near.overrun_s

    def _steps(self, trial: Trial, slowing: Dilation, period: int) -> _Probe:
        steps = probe_steps(slowing.steady, trial.expected.predicted_step_s or 1.0, period)
        outcome = self._attempt(_short(trial, steps, slowing))
        if outcome.status != DONE:
            raise MeasurementError(f"{trial.method.label}: no dilation can be found: {outcome.reason}")
        return _together(_steady_steps(outcome)[-steps:])


class _Probe(NamedTuple):
    """What some steps were."""

    step_s: list[float]
    """Seconds of each, as they are told."""
    overrun_s: float
    """What workers metered of their lateness in a step, in the mean."""


def metered_s(outcome: Outcome) -> float:
    """What workers metered of their lateness in a steady step of a trial, in the mean."""
    steps, unsettled = _steady_steps(outcome), outcome.resumed_with
    first = outcome.results[0].steady_from_step
    settled = [each for step, each in enumerate(steps, start=first) if step not in unsettled]
    return _together(settled or steps).overrun_s


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


def _together(steps: list[_Step]) -> _Probe:
    return _Probe([step.step_s for step in steps], statistics.fmean(step.overrun_s for step in steps))


def _short(trial: Trial, steps: int, slowing: Dilation) -> Trial:
    """The trial without its warm-up, with at least so many steady steps, on links that lose nothing and stay alike."""
    method = without_warmup(trial.method)
    state = state_of(method)
    total = whole_periods(first_steady_step(state) + steps, state.agrees_every)
    train = trial.case.train.model_copy(update={"steps": total, "eval_every": total, "target": None})
    case = _at_their_best(trial.case).model_copy(update={"train": train})
    alike = {"found": slowing, "is_probe": True, "most_segments": trial.expected.topology.segments}
    return trial.model_copy(update={"case": case, "method": method, **alike})


def _at_their_best(case: Case) -> Case:
    """The case with links that lose nothing and stay as fast as they ever become.

    So all short trials have the same ones, and what this machine adds is a greater share of no step of the trial.
    The slowest rate, which comes into force when a short trial has long ended, says how long segments may be.
    """
    link, fabric = _lossless(case.link), _lossless(case.fabric)
    if link.trace:
        rows = sorted(link.trace.rows, key=lambda row: row.rate_bps)
        fastest, slowest = rows[-1].model_copy(update={"t_s": 0.0}), rows[0].model_copy(update={"t_s": MOST_TRACE_S})
        link = link.model_copy(update={"trace": Trace(rows=(fastest, slowest))})
    return case.model_copy(update={"link": link, "fabric": fabric})


LOSSES = {"loss": 0.0, "loss_bursts": None, "corrupt": 0.0}
"""What makes packets get lost, as it is where none do: of directions of links, and of rows of traces."""


def _lossless(part: Any) -> Any:
    """A part of a case, and all below it, in which no packet is lost."""
    match part:
        case Section():
            given = {name: getattr(part, name) for name in part.model_fields_set}
            return part.model_copy(update={name: LOSSES.get(name, _lossless(each)) for name, each in given.items()})
        case dict():
            return {key: _lossless(each) for key, each in part.items()}
        case tuple():
            return tuple(map(_lossless, part))
    return part


def without_warmup(method: MethodSpec) -> MethodSpec:
    """The method as it is in its steady state; one that needs its warm-up keeps it."""
    return method.model_copy(update={"params": state_of(method).without_warmup().parameters})
