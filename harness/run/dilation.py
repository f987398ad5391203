"""The least dilation at which this machine adds little to a step: found once a run for each method on each case.

What a machine adds, computation that does not keep up, late wake-ups and the collectives' own work, is about the same
in real seconds however slow everything runs: of a step that is told in undilated time it is ``added_s / dilation``. So
a few steps at a dilation and the same steps at a greater one tell it. It may be up to ``MOST_ADDED`` of a step, and is
taken off; what is not known of it, by the spread of those steps, must be within ``TOLERATED``.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.cluster.protocol import Cluster
from harness.errors import MeasurementError, UsageError
from harness.plan import estimate
from harness.plan.dilation import LADDER, MOST_ADDED, Dilation, Phase, phases_of_warmup, probe_steps
from harness.plan.expected import lower_bound_s, state_of
from harness.plan.trial import UNSETTLED_STEPS, Trial
from harness.run.outcome import Outcome
from harness.run.probe import Prober, metered_s, without_warmup
from harness.scenario.schema import Case, MethodSpec

TOLERATED = 0.01
"""Share of a step by which what is taken off may be wrong, as one standard error."""

CLOSE = 3
"""How many times slower they must be to be kept for another dilation."""

WORTH_IT = 2
"""By how many times a dilation must be lower to be tried when one is found that does."""

STRIDE = 2
"""By how many times a dilation that is too low grows at most before it is looked at again."""

CPUS = os.cpu_count() or 1


@dataclass(frozen=True)
class Found:
    """What was found of a method on a case."""

    dilation: float
    step_s: float
    """A step, without what this machine adds."""
    added_s: float
    """What this machine adds to it, in real seconds."""
    overrun_s: float
    """The part of it that workers metered, in the seconds that are told."""


class _Look:
    """Looks at a trial's steps at dilations, beside the same steps at one so great that little is added to them."""

    def __init__(self, trial: Trial, prober: Prober) -> None:
        self._trial, self._prober = trial, prober
        self._far: tuple[float, list[float]] = (0.0, [])
        """The great dilation, and the steps at it."""

    def at(self, dilation: float) -> tuple[Found, float]:
        """What steps at a dilation say, and which dilation is needed by that."""
        period = state_of(self._trial.method).agrees_every
        steps, farther, far_steps = probe_steps(dilation * (self._trial.expected.predicted_step_s or 1.0), period)
        if self._far[0] >= CLOSE * dilation:
            near = self._prober.steps(self._trial, dilation, steps)
        else:
            slower = farther * dilation
            near, far = self._prober.steps_at_two(self._trial, (dilation, steps), (slower, far_steps))
            self._far = slower, far.step_s
        times = self._far[0] / dilation
        near_s, more_s, error_s = _difference(near.step_s, self._far[1])
        added_s, error_s = (max(0.0, each) * times / (times - 1) for each in (more_s, error_s))
        step_s = near_s - added_s
        needed = dilation * added_s / (MOST_ADDED * step_s)
        if error_s > TOLERATED * step_s:
            needed = max(needed, _next(dilation))
        return Found(dilation, step_s, dilation * added_s, near.overrun_s), needed


def _difference(near_s: Sequence[float], far_s: Sequence[float]) -> tuple[float, float, float]:
    """The mean of the near steps, by how much that is more than the far ones' mean, and the standard error of this.

    Where the far steps differ among themselves, as those of a method that sends now and then, as many near ones are put
    beside them, the longest beside the longest. Where they are all alike, all near ones count.
    """
    if statistics.stdev(far_s) > TOLERATED * statistics.fmean(far_s):
        near_s = near_s[: len(far_s)]
        more_s = [near - far for near, far in zip(sorted(near_s), sorted(far_s), strict=True)]
        return statistics.fmean(near_s), statistics.fmean(more_s), _error_of_mean(more_s)
    near_mean_s = statistics.fmean(near_s)
    error_s = math.hypot(_error_of_mean(near_s), _error_of_mean(far_s))
    return near_mean_s, near_mean_s - statistics.fmean(far_s), error_s


class Dilations:
    """Finds dilations, and keeps them for the run.

    Args:
        file: where they are kept, for a run that goes on later.
        cluster: on which the short trials run.
        baseline: whose steps a warm-up may be like.
        attempt: runs a trial on the cluster's network; what became of it.
    """

    def __init__(self, file: Path, cluster: Cluster, baseline: MethodSpec, attempt: Callable[[Trial], Outcome]) -> None:
        self._file, self._cluster, self._baseline = file, cluster, baseline
        self._prober = Prober(attempt, cluster.changes_links)
        kept = json.loads(file.read_text()) if file.exists() else {}
        self._labels: dict[str, str] = {key: values.pop("label") for key, values in kept.items()}
        self._found = {key: Found(**values) for key, values in kept.items()}
        self._too_low: dict[str, float] = {}

    def settle(self, trial: Trial) -> Trial:
        """The trial with its dilation, which is found first where it is not known.

        Raises:
            UsageError: the cluster cannot carry it, however slow.
            MeasurementError: this machine adds too much at every dilation, or the short trials fail.
        """
        if not trial.case.chooses_dilation:
            return trial
        found = self._known(trial)
        slowing = Dilation(steady=found.dilation, phases=self._phases(trial, found), added_s=found.added_s)
        return trial.model_copy(update={"found": slowing})

    def why_missed(self, trial: Trial, outcome: Outcome) -> str | None:
        """Why a trial's dilation was too small, by what its workers metered; None where it was not."""
        found = self._found.get(_key(trial))
        if not trial.found or found is None:  # another of its kind has missed it just before
            return None
        more_s = metered_s(outcome) - found.overrun_s
        if more_s <= TOLERATED * found.step_s:
            return None
        share = f"{100 * more_s / found.step_s:.1f} %"
        return f"at a dilation of {found.dilation:g} this machine added {share} more to a step than when that was found"

    def forget(self, trial: Trial) -> None:
        """Look again, at greater dilations, when a trial of this kind comes next."""
        key = _key(trial)
        self._too_low[key] = self._found.pop(key).dilation

    def _known(self, trial: Trial) -> Found:
        if (key := _key(trial)) not in self._found:
            self._keep(trial, self._find(trial, above=self._too_low.get(key, 0.0)))
        return self._found[key]

    def _keep(self, trial: Trial, found: Found) -> None:
        key = _key(trial)
        self._found[key] = found
        self._labels[key] = trial.method.label
        kept = {key: {"label": self._labels[key], **asdict(each)} for key, each in self._found.items()}
        unfinished = self._file.with_suffix(".new")
        unfinished.write_text(json.dumps(kept, indent=1))
        unfinished.rename(self._file)

    def _find(self, trial: Trial, above: float) -> Found:
        """Look at a guess; where that is too low, or much too high, at what this says would do."""
        least = max(estimate.least_dilation(trial, CPUS), _next(above))
        look = _Look(trial, self._prober)
        dilation = self._carried(trial, max(self._guess(trial), least))
        found, needed = look.at(dilation)
        if needed <= dilation:
            lower = self._carried(trial, max(needed, least))
            if WORTH_IT * lower > dilation:
                return found
            found_lower, needed = look.at(lower)
            return found_lower if needed <= lower else found
        while needed > dilation:
            # What the machine adds for want of time to compute ends with a somewhat greater dilation.
            dilation = self._carried(trial, min(needed, max(_next(dilation), STRIDE * dilation)))
            found, needed = look.at(dilation)
        return found

    def _guess(self, trial: Trial) -> float:
        """By what others of the case were found to need, or what is usual."""
        of_the_case = [each.added_s for key, each in self._found.items() if key.startswith(_case_key(trial.case))]
        return estimate.usual_dilation(trial, CPUS, max(of_the_case, default=None))

    def _carried(self, trial: Trial, dilation: float) -> float:
        """The least dilation, from this one on, at which the cluster carries the trial's links."""
        topology, resources = trial.expected.topology, trial.case.cluster.resources
        for rung in (rung for rung in LADDER if rung >= dilation):
            try:
                self._cluster.check(topology.slowed(rung), resources)
            except UsageError:
                if rung == LADDER[-1]:
                    raise
            else:
                return rung
        raise MeasurementError(
            f"{trial.method.label}: at a dilation of {LADDER[-1]:g} this machine still adds more than "
            f"{100 * MOST_ADDED:g} % to a step; fewer workers, more CPUs, or less beside them would help"
        )

    def _phases(self, trial: Trial, found: Found) -> tuple[Phase, ...]:
        """Parts of the warm-up whose steps are longer than those of the steady state, and can run less slowed.

        A step takes as long in real time as it must in the steady state, or in the baseline's, which computes as much.
        """
        method, case = trial.method, trial.case
        steady = state_of(method).steady_from_step
        if not self._cluster.changes_links or case.link.trace or steady <= UNSETTLED_STEPS:
            return ()
        like = self._known(trial.model_copy(update={"method": self._baseline}))
        real_s = max(each.dilation * each.step_s for each in (found, like))
        beside_s = found.step_s - lower_bound_s(case, method)
        step_s = [beside_s + lower_bound_s(case, method, step) for step in range(steady)]
        return phases_of_warmup(step_s, found.dilation, real_s)


def _error_of_mean(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values))


def _next(dilation: float) -> float:
    return next((rung for rung in LADDER if rung > dilation), math.inf)


def _key(trial: Trial) -> str:
    method = without_warmup(trial.method)
    return f"{_case_key(trial.case)}-{_digest([method.name, method.params])}"


def _case_key(case: Case) -> str:
    """Of all that matters to how long a step takes."""
    learning = {"steps", "eval_every", "target", "timeout_s", "lr", "momentum", "weight_decay"}
    learning |= {"schedule", "pretrain", "checkpoint"}
    return _digest(case.model_dump(mode="json", exclude={"train": learning}))


def _digest(thing: object) -> str:
    return hashlib.sha256(json.dumps(thing, sort_keys=True).encode()).hexdigest()[:12]
