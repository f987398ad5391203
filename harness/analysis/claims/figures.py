"""What was measured of what a claim says: for one case of it, the figure with its error, or why there is none."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from harness.analysis.claims.plans import is_asked_for
from harness.analysis.claims.schema import Cell, Claim, Quantity
from harness.analysis.claims.sequential import FEWEST_FAILURES, FIRST_LOOK, confidence, rounds_to_decide
from harness.analysis.estimates import Estimate
from harness.analysis.pairs import paired_ratios
from harness.analysis.shifts import (
    FEWEST_VALUES,
    Difference,
    Shift,
    mean_difference,
    paired_shift,
    product,
    variance_of,
)
from harness.analysis.spreads import Usual, Variance, usual
from harness.analysis.trials import CASE_COLUMNS, leave_out_disturbed
from harness.plan.expected import shapes_of, state_of
from harness.plan.plan import Plan
from harness.plan.status import DIVERGED, DONE, LEARNT, MISSES, TIMEOUT
from harness.plan.trial import Trial
from harness.record.store import Store

MOST_OVERRUN = 0.1
"""The share of a replayed step by which this machine may be late before nothing is said of the device."""

LESS_IS_BETTER = {"bytes": "wire_bytes_per_step", "communication time": "comm_s_per_step"}
"""Columns of which the baseline's is divided by the method's."""

NOTHING = {
    "bytes": ("sent nothing", "more steps, of which some send"),
    "communication time": ("waited for nothing", "a slower link, on which there is something to wait for"),
}
"""What a 0 in such a column says, and what would decide a claim about a ratio to it."""

VARYING: tuple[Quantity, ...] = ("throughput", "communication time")
"""Ratios that differ from one round to the next: bytes do not."""


@dataclass(frozen=True)
class Run:
    """A scenario's plan, and the run of it that is judged, if there is one."""

    plan: Plan
    store: Store | None = None
    problem: str = ""
    """Why it could not be run, where that is so."""
    remedy: str = "a machine that can run it"
    """What would help then."""
    may_pass: bool = False
    """Whether the same run may find that problem gone a little later."""
    too_large: Mapping[str, str] = field(default_factory=dict)
    """Labels of methods that do not fit into this machine's memory: what would."""

    @cached_property
    def trials(self) -> pd.DataFrame:
        """The last attempt of each, in the columns of ``TRIAL_SCHEMA``; none without a run."""
        return self.store.trials() if self.store else pd.DataFrame(columns=["trial_id", "status"])

    @cached_property
    def counted(self) -> pd.DataFrame:
        """The same, those that are left out as disturbed told as such."""
        return self.trials if self.trials.empty else leave_out_disturbed(self.trials)

    @cached_property
    def pending(self) -> list[Trial]:
        """The trials that are not done; none where it cannot be run."""
        return [] if self.problem else self.plan.pending(self.trials)

    @cached_property
    def variances(self) -> dict[Quantity, list[Variance]]:
        """Of each replayed case and each method that has rounds enough: that of the logarithm of its ratio."""
        found: dict[Quantity, list[Variance]] = {quantity: [] for quantity in VARYING}
        if self.trials.empty:
            return found
        replayed = self.counted[self.counted["replay"].notna()]
        baseline = self.plan.scenario.baseline
        for _, of_case in replayed.groupby(list(CASE_COLUMNS), dropna=False):
            for label, quantity in itertools.product(sorted(set(of_case["label"]) - {baseline}), VARYING):
                logs = np.log(ratios(quantity, of_case, label, baseline).to_numpy())
                if len(logs) >= FEWEST_VALUES:
                    found[quantity].append(variance_of(logs))
        return found


@dataclass(frozen=True)
class Finding:
    """A figure, or why it is not known."""

    measured: Shift | Difference | None
    """Of ratios the logarithm has shifted; all else is a mean."""
    rounds: int
    """How many there will be at most, with a look after each; trainings have one look, with all of their seeds."""
    problem: str = ""
    decides: str = ""
    """What would help, where the figure is not known or means nothing."""
    missed: bool = False
    """The method failed for good, so often that it is final: no number would be bad enough."""
    more_rounds_help: bool = True
    comparisons: int = 1
    """Intervals at each look that must all hold."""
    steps: Shift | None = None
    """Of a time to accuracy: the part of it that is told by trainings, which have all been run by then."""
    is_training: bool = False
    """Whether trainings alone tell it."""

    @property
    def confidence(self) -> float:
        """That of its interval at each look."""
        return confidence(FIRST_LOOK if self.is_training else self.rounds, self.comparisons)

    @property
    def estimate(self) -> Estimate | None:
        """The figure with its repeated interval."""
        return self.measured.estimate(self.confidence) if self.measured else None

    def rounds_to_leave(self, end: float) -> int | None:
        """After about how many rounds its interval would no longer hold a value; None: after too many."""
        if self.measured is None or self.measured.error is None:
            return None
        if self.steps and self._is_held_by_steps(end):
            return None
        is_log = isinstance(self.measured, Shift)
        place = (math.log(end) if end > 0 else -math.inf) if is_log else end
        distance = abs(self.measured[0] - place)
        n, error, freedom = self.measured.n, self.measured.error, self.measured.freedom
        return rounds_to_decide(distance, error * math.sqrt(n), self.confidence, freedom - (n - 1))

    def _is_held_by_steps(self, end: float) -> bool:
        """Whether the interval would hold a value even if the throughput were known exactly."""
        assert self.measured is not None
        assert self.steps is not None
        alone = self.steps._replace(log=self.measured[0]).estimate(self.confidence)
        return alone.low is None or alone.high is None or alone.low <= end <= alone.high


def find(claim: Claim, cell: Cell, device: float, runs: Mapping[str, Run]) -> Finding:
    """The figure of one case, with such a share of the device.

    Args:
        runs: by the names of scenarios, at least all that the claim needs.
    """
    run = runs[cell.scenario]
    found = _found(claim, cell, device, runs)
    lacking = [label for label in (cell.method, *claim.compared) if label in run.too_large]
    if not lacking:
        return found
    if found.measured is not None:
        return replace(found, more_rounds_help=False)
    problem = f"{lacking[0]} does not fit into memory: {run.too_large[lacking[0]]}"
    return replace(found, problem=problem, decides="a machine with more memory", more_rounds_help=False)


def _found(claim: Claim, cell: Cell, device: float, runs: Mapping[str, Run]) -> Finding:
    run = runs[cell.scenario]
    trials = trials_of(cell, device, run)
    if trials.empty:
        return _not_run(claim, run, "nothing of it was run")
    if left := {cell.method, *claim.compared} - set(trials["label"]):
        return _not_run(claim, run, f"nothing of {min(left)} was run")
    if claim.quantity == "accuracy":
        return _points_lost(claim, trials, run)
    if claim.quantity == "ablation":
        return _share_of_the_gain(claim, trials, run, usual_of(claim.of, trials, runs))
    found = _ratio(claim, cell, trials, runs)
    return with_fewer_steps(found, fewer_steps(claim, runs[claim.convergence])) if claim.convergence else found


def is_anything_left(claim: Claim, cell: Cell, device: float, runs: Mapping[str, Run]) -> bool:
    """Whether some of what a case needs is not done yet, with such a share of the device."""
    names = filter(None, (cell.scenario, claim.convergence))
    return any(is_asked_for(trial, name, claim, device, [cell]) for name in names for trial in runs[name].pending)


def throughput(claim: Claim, cell: Cell, device: float, runs: Mapping[str, Run]) -> Shift | None:
    """Of a time to accuracy the part that replays tell: how many times faster; None where none is known."""
    trials = trials_of(cell, device, runs[cell.scenario])
    if trials.empty:
        return None
    found = _ratio(claim, cell, trials, runs)
    return found.measured if isinstance(found.measured, Shift) and not found.problem else None


def usual_of(quantity: Quantity, trials: pd.DataFrame, runs: Mapping[str, Run]) -> Usual | None:
    """How much such a ratio of trials usually varies from round to round: as those of all replays of the runs do.

    None of what is not replayed, or does not vary, or where too little was replayed to tell.
    """
    if quantity not in VARYING or trials["replay"].isna().any():
        return None
    return usual([each for run in runs.values() for each in run.variances[quantity]])


def with_fewer_steps(found: Finding, fewer: Finding) -> Finding:
    """Time to accuracy: so many times the throughput, and so many times fewer steps."""
    if not isinstance(fewer.measured, Shift):  # whatever the throughput
        return fewer
    if not isinstance(found.measured, Shift):
        return found
    return replace(found, measured=product(found.measured, fewer.measured), steps=fewer.measured)


def _not_run(claim: Claim, run: Run, why: str) -> Finding:
    decides = run.remedy if run.problem else f"pacbench reproduce --claim {claim.id}"
    return Finding(None, run.plan.scenario.rounds, run.problem or why, decides, more_rounds_help=not run.problem)


def trials_of(cell: Cell, device: float, run: Run) -> pd.DataFrame:
    """The run's trials of a case, those that are left out as disturbed told as such."""
    own = {trial.id for trial in run.plan.trials if cell.is_about(trial.case, device)}
    return run.counted[run.counted["trial_id"].isin(own)]


def ratios(quantity: Quantity, trials: pd.DataFrame, better: str, worse: str) -> pd.Series[float]:
    """How many times better a method is than another, by round: faster, or with less of what is sent or waited for."""
    if column := LESS_IS_BETTER.get(quantity):
        found = paired_ratios(trials, worse, better, column)
    else:
        found = paired_ratios(trials, better, worse)
    return found[(found > 0) & np.isfinite(found)]


def _ratio(claim: Claim, cell: Cell, trials: pd.DataFrame, runs: Mapping[str, Run]) -> Finding:
    """Of trials of a case; of a time to accuracy the throughput."""
    run, usually = runs[cell.scenario], usual_of("throughput" if claim.convergence else claim.ratio, trials, runs)
    rounds, found = run.plan.scenario.rounds, ratios(claim.ratio, trials, cell.method, claim.baseline)
    if nothing := _without_ratio(claim.ratio, trials, (cell.method, claim.baseline), rounds):
        return nothing
    if found.empty:
        return _unfinished(cell.method, claim.baseline, rounds)
    if claim.counted == "gradient":
        found = found * gradient_share(claim.baseline, cell, run.plan) / gradient_share(cell.method, cell, run.plan)
    measured = paired_shift(found.to_numpy(), usually)
    if claim.ratio != "bytes" and (late := _late(trials, (cell.method, claim.baseline))):
        return _too_late(measured, rounds, late)
    return Finding(measured, rounds)


def _without_ratio(quantity: Quantity, trials: pd.DataFrame, labels: tuple[str, ...], rounds: int) -> Finding | None:
    """Where some round has no ratio, since there was nothing to divide by: the others alone are the unlucky ones."""
    if quantity not in LESS_IS_BETTER:
        return None
    done, (told, decides) = trials[trials["status"] == DONE], NOTHING[quantity]
    for label in labels:
        of_rounds = done.loc[done["label"] == label, LESS_IS_BETTER[quantity]]
        if nothing := int((of_rounds == 0).sum()):
            problem = f"{label} {told} in {nothing} of {len(of_rounds)} rounds: there is no ratio to that"
            return Finding(None, rounds, problem, decides, more_rounds_help=False)
    return None


def _too_late(measured: Shift | None, rounds: int, late: str) -> Finding:
    decides = "a greater train.dilation, or a faster machine"
    return Finding(measured, rounds, late, decides, more_rounds_help=False)


def _unfinished(method: str, baseline: str, rounds: int) -> Finding:
    problem = f"in no round both {method} and {baseline} finished"
    return Finding(None, rounds, problem, "trials that finish; each run's report lists why these did not")


def gradient_share(label: str, cell: Cell, plan: Plan) -> float:
    """What one worker's gradient takes, for each byte that the worker sends: its part of an all-gather or a ring."""
    trial = next(trial for trial in plan.trials if trial.method.label == label and cell.model == trial.case.train.model)
    calls = state_of(trial.method).calls(shapes_of(cell.model), cell.workers)
    return sum(call.payload_bytes for call in calls) / sum(call.sent_bytes(cell.workers) for call in calls)


def _late(trials: pd.DataFrame, labels: tuple[str, ...]) -> str:
    """Which method this machine was too slow to replay, and by how much; nothing if none.

    Where what the machine adds was measured, it was taken off.
    """
    left_in = trials[(trials["status"] == DONE) & trials["added_s_per_step"].isna()]
    for label in labels:
        done = left_in[left_in["label"] == label]
        overrun = done["overrun_s_per_step"].mean() / done["step_time_median_s"].mean()
        if overrun > MOST_OVERRUN:
            return (
                f"for up to {100 * overrun:.0f} % of {label}'s step this machine was slower than the device that it "
                "replays"
            )
    return ""


def _points_lost(claim: Claim, trials: pd.DataFrame, run: Run) -> Finding:
    """Points of final accuracy that the method has less than its baseline, paired by seeds."""
    (method,), baseline, rounds = claim.method, claim.baseline, run.plan.scenario.rounds
    if left := _left(trials, (method, baseline), run):
        return _not_run(claim, run, left)
    for label in (method, baseline):
        own = trials.loc[trials["label"] == label, "status"]
        if missed := int(own.isin(MISSES).sum()):
            problem = f"{label} diverged or ran out of time in {missed} of {len(own)} trainings"
            has_failed = label == method and bool((own == DIVERGED).all())
            decides = "trainings that come to their end: with a lower learning rate, or a longer train.timeout"
            return _failed(rounds, problem, decides, len(own) if has_failed else 0)
    learnt = trials[trials["status"].isin(LEARNT)]
    of = [learnt[learnt["label"] == label].set_index("round")["final_accuracy"] for label in (baseline, method)]
    lost = (100 * (of[0] - of[1])).dropna().astype(float).sort_index()
    if lost.empty:
        return _unfinished(method, baseline, rounds)
    return Finding(mean_difference(lost.to_numpy()), rounds, is_training=True)


def _failed(rounds: int, problem: str, decides: str, failures: int) -> Finding:
    """Of trainings that failed.

    Args:
        failures: how many, where they are all of the method's, and it failed for good in each; else 0.
    """
    if failures and (left := FEWEST_FAILURES - failures) > 0:
        decides = f"{left} more seed{'s' if left > 1 else ''}, if {'they fail' if left > 1 else 'it fails'} as well"
    return Finding(None, rounds, problem, decides, missed=failures >= FEWEST_FAILURES, more_rounds_help=False)


def _left(trials: pd.DataFrame, labels: tuple[str, ...], run: Run) -> str:
    """What is left to run of trainings, which are looked at once, when all have run; nothing if nothing is.

    One that crashed or was interrupted tells nothing of what it would have learnt: it has not run.
    """
    ended = trials[trials["status"].isin([*LEARNT, *MISSES])]
    for label in labels:
        planned = {trial.round for trial in run.plan.trials if trial.method.label == label}
        if left := planned - set(ended.loc[ended["label"] == label, "round"]):
            return f"{len(planned) - len(left)} of {len(planned)} trainings by {label} have run"
    return ""


def _share_of_the_gain(claim: Claim, trials: pd.DataFrame, run: Run, usually: Usual | None) -> Finding:
    """The share of the gain's logarithm that goes with one part of the method, by rounds."""
    rounds, (method,), without = run.plan.scenario.rounds, claim.method, str(claim.without)
    if claim.of != "bytes" and (late := _late(trials, (method, without, claim.baseline))):
        return _too_late(None, rounds, late)
    if nothing := _without_ratio(claim.of, trials, (method, without, claim.baseline), rounds):
        return nothing
    whole = np.log(ratios(claim.of, trials, method, claim.baseline))
    part = np.log(ratios(claim.of, trials, method, without))
    both = pd.DataFrame({"whole": whole, "part": part}).dropna()
    if both.empty:
        return _unfinished(method, without, rounds)
    share = share_of_gain(both["whole"].to_numpy(), both["part"].to_numpy(), rounds, usually)
    if share is None:
        problem = f"{method} is not surely better than {claim.baseline}: there is no gain to be shared out"
        return Finding(None, rounds, problem, "a slower link, on which there is a gain")
    return Finding(share, rounds)


def share_of_gain(
    whole: np.ndarray[Any, Any], part: np.ndarray[Any, Any], rounds: int, usually: Usual | None
) -> Difference | None:
    """How much of a gain's logarithm goes with one part, by rounds; None where there is not surely any gain.

    Args:
        rounds: how many there will be at most.
        usually: how much a ratio's logarithm usually varies.
    """
    gain = mean_difference(whole, usually)
    surely = gain.estimate(confidence(rounds))
    if surely.low is not None and surely.low <= 0:
        return None
    share = float(part.mean()) / gain.mean
    # By the delta method: of three trials' logarithms, each with half a ratio's variance, the share of the gain holds
    # the method's 1 - share times, the baseline's share times, and the third's once.
    varies = usually.times(((1 - share) ** 2 + share**2 + 1) / 2 / gain.mean**2) if usually else None
    return mean_difference(part / whole, varies)


def fewer_steps(claim: Claim, training: Run) -> Finding:
    """How many times fewer steps to the target the method takes, paired by seeds."""
    (method,), rounds = claim.method, training.plan.scenario.rounds
    if left := _left(training.trials, (method, claim.baseline), training) if training.store else "no training has run":
        return _not_run(claim, training, left)
    by_label = {label: steps_to_target(training, label) for label in (claim.baseline, method)}
    for label, steps in by_label.items():
        missed, late = int(steps.isna().sum()), _out_of_time(training, label)
        if missed:
            allowed = "a longer train.timeout" if late else "longer trainings, or a target within reach"
            has_failed = label == method and missed == len(steps) and not late
            return _failed(rounds, told_missed(label, missed, late, len(steps)), allowed, missed if has_failed else 0)
        if at_once := int((steps == 0).sum()):
            problem = told_at_once(label, at_once, len(steps))
            return Finding(None, rounds, problem, "a target beyond where trainings begin", more_rounds_help=False)
    found = (by_label[claim.baseline] / by_label[method]).dropna()
    if found.empty:
        return Finding(None, rounds, "no seed was trained by both methods", "trainings by both")
    return Finding(paired_shift(found.to_numpy()), rounds)


def told_missed(label: str, missed: int, late: int, n: int) -> str:
    """That a method is not known to have reached the target in so many trainings, some of which ran out of time.

    Who ran out of time may have needed no more than that: how long a step takes is this machine's.
    """
    told = [f"missed the target in {missed - late}"] if missed > late else []
    told += [f"ran out of time in {late}"] if late else []
    return f"{label} {' and '.join(told)} of {n} trainings"


def told_at_once(label: str, at_once: int, n: int) -> str:
    """That a method was at the target before it began: there is no ratio to that."""
    return f"{label} was at the target before its first step in {at_once} of {n} trainings"


def _out_of_time(run: Run, label: str) -> int:
    return int((_ended(run, label)["status"] == TIMEOUT).sum())


def _ended(run: Run, label: str) -> pd.DataFrame:
    """A method's trainings that came to an end, whichever."""
    own_ids = {trial.id for trial in run.plan.trials}
    own = run.trials[(run.trials["label"] == label) & run.trials["status"].isin([*LEARNT, *MISSES])]
    return own[own["trial_id"].isin(own_ids)]


def steps_to_target(run: Run, label: str) -> pd.Series[float]:
    """By round, the steps after which a training first reached the target; NaN where it is not known to have."""
    if run.store is None:
        return pd.Series(dtype=float)
    own = _ended(run, label)
    steps = own["steps_to_target"].where(~own["status"].isin(MISSES)).astype(float)
    return steps.set_axis(own["round"]).sort_index()


def steps_along(claim: Claim, device: float, runs: Mapping[str, Run]) -> list[Finding]:
    """How the ratio changes from each case of an axis to the next, in the claimed direction, paired by rounds."""
    sign = 1 if claim.direction == "grows" else -1
    findings = [find(claim, cell, device, runs) for cell in claim.cells]
    if problems := [each for each in findings if each.measured is None or each.problem]:
        # What was measured there is one case's ratio, and no change of it.
        return [replace(min(problems, key=lambda each: each.more_rounds_help), measured=None)]
    trials = [trials_of(cell, device, runs[cell.scenario]) for cell in claim.cells]
    logs = [
        ratios(claim.of, own, cell.method, claim.baseline).map(math.log)
        for own, cell in zip(trials, claim.cells, strict=True)
    ]
    rounds = runs[claim.cells[0].scenario].plan.scenario.rounds
    changes = [(sign * (after - before)).dropna() for before, after in itertools.pairwise(logs)]
    if any(change.empty for change in changes):
        return [Finding(None, rounds, "no round has all cases of the axis", "trials that finish")]
    usually = usual_of(claim.of, pd.concat(trials), runs)
    helps = all(each.more_rounds_help for each in findings)
    steps = steps_of([change.to_numpy() for change in changes], rounds, usually)
    return [replace(each, more_rounds_help=helps) for each in steps]


def steps_of(changes: Sequence[np.ndarray[Any, Any]], rounds: int, usually: Usual | None) -> list[Finding]:
    """The steps along an axis, each by how a ratio's logarithm changes in it from round to round.

    Args:
        rounds: how many there will be at most.
        usually: how much a ratio's logarithm usually varies.
    """
    # What changes from one case to the next varies as two ratios do.
    twice = usually.times(2) if usually else None
    measured = [Shift(*mean_difference(change, twice)) for change in changes]
    return [Finding(each, rounds, comparisons=len(measured)) for each in measured]
