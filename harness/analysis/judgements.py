"""Claims, judged: what was found here, where each figure came from, and what the bytes alone allow.

A verdict compares two ranges, the claimed one and the 95 % interval of what was measured:

* ``reproduced``: the interval lies within the claimed range,
* ``not reproduced``: it lies wholly outside, below or above; or the method missed the target in every training,
* ``inconclusive``: it reaches over an end of the range; or too little was measured; or this machine was slower than the
  device that it replayed, so that the step was its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import pandas as pd

from harness.analysis.claims import Claim
from harness.analysis.estimates import Estimate
from harness.analysis.pairs import paired_ratios
from harness.analysis.shifts import Shift, paired_shift, product
from harness.analysis.trials import FAKE, leave_out_disturbed
from harness.plan.plan import Plan
from harness.plan.status import DONE
from harness.record.store import Store
from harness.units import format_size, format_time

MOST_OVERRUN = 0.1
"""The share of a replayed step by which this machine may be late before nothing is said of the device."""

Verdict = Literal["reproduced", "not reproduced", "inconclusive"]

VERDICTS: tuple[Verdict, ...] = ("reproduced", "not reproduced", "inconclusive")


@dataclass(frozen=True)
class Judgement:
    """What became of a claim."""

    claim: Claim
    verdict: Verdict
    found: Estimate | None
    """The claimed ratio as it was found; None where too little was measured."""
    reason: str
    explanation: str
    """What the bytes alone allow, by the methods' formulas."""
    origins: tuple[str, ...]
    """A sentence for each figure that tells where it came from."""


@dataclass(frozen=True)
class Run:
    """A scenario's plan, and the run of it that is judged, if there is one."""

    plan: Plan
    store: Store | None = None
    problem: str = ""
    """Why it could not be run, where that is so."""

    @cached_property
    def trials(self) -> pd.DataFrame:
        """The last attempt of each, in the columns of ``TRIAL_SCHEMA``; none without a run."""
        return self.store.trials() if self.store else pd.DataFrame(columns=["trial_id", "status"])


def judge(claim: Claim, runs: Mapping[str, Run]) -> Judgement:
    """Judge a claim by what was run.

    Args:
        runs: by the names of scenarios, at least all that the claim needs.
    """
    run = runs[claim.scenario_name]
    trials = _of_case(claim, run)
    found = _ratio(claim, run, trials)
    explanation = explain(claim, run.plan)
    origins = [_origin(claim.quantity if claim.convergence is None else "throughput", run, trials)]
    if claim.convergence and found.shift:
        training = runs[claim.convergence]
        fewer = _fewer_steps(claim, training)
        found = Finding(product(found.shift, fewer.shift)) if fewer.shift else fewer
        explanation += _in_seconds(claim, trials, training) if found.shift else ""
        origins.append(_origin("steps to the target", training, training.trials))
    ratio = found.shift.estimate() if found.shift else None
    unknown: Verdict = "not reproduced" if found.missed else "inconclusive"
    verdict, reason = verdict_on(ratio, claim.claimed) if ratio else (unknown, found.problem)
    if ratio and claim.quantity != "bytes" and (late := _late(trials, claim)):
        verdict, reason = "inconclusive", late
    return Judgement(claim, verdict, ratio, reason, explanation, tuple(filter(None, origins)))


class Finding(NamedTuple):
    """How many times better a method was found to be, or why that is not known."""

    shift: Shift | None
    problem: str = ""
    missed: bool = False
    """The method reached the target in no training, however long: no number would be great enough."""


def verdict_on(ratio: Estimate, claimed: tuple[float, float]) -> tuple[Verdict, str]:
    """The verdict and its reason: where the interval lies, seen from the claimed range."""
    low, high = claimed
    if ratio.low is None or ratio.high is None:
        return "inconclusive", "one round gives no interval"
    if low <= ratio.low and ratio.high <= high:
        return "reproduced", "it lies within the claimed range"
    if ratio.high < low:
        return "not reproduced", "it is less than is claimed"
    if ratio.low > high:
        return "not reproduced", "it is more than is claimed"
    return "inconclusive", f"its interval reaches over {low if ratio.low < low else high:g}"


def explain(claim: Claim, plan: Plan) -> str:
    """What the bytes alone allow, by the methods' formulas and the graph of the links; and what a profile predicts."""
    trials = {trial.method.label: trial for trial in plan.trials if claim.is_about(trial.case)}
    own, base = trials[claim.method], trials[claim.baseline]
    own_bytes, base_bytes = (trial.expected.wire_bytes_per_step for trial in (own, base))
    text = (
        f"In a step a worker sends {format_size(base_bytes)} by {claim.baseline} and {format_size(own_bytes)} by "
        f"{claim.method}"
    )
    if claim.quantity == "bytes":
        return f"{text}: {_plain(base_bytes / own_bytes)} times as much."
    most = base.expected.lower_bound_s_per_step / own.expected.lower_bound_s_per_step
    text += f": where nothing but the link takes time, that is {_plain(most)}x in throughput"
    low, high = claim.claimed
    if claim.convergence:
        text += "; the steps to the target do the rest."
    elif most < low:
        text += ", less than is claimed."
    elif most < high:
        text += f"; {high:g}x is out of the reach of bytes."
    else:
        text += "; computation, which no method shortens, leaves less of it."
    own_s, base_s = own.expected.predicted_step_s, base.expected.predicted_step_s
    if own_s and base_s:
        text += f" With computation and codec as profiled, {_plain(base_s / own_s)}x is predicted."
    return text


def families(judgements: Sequence[Judgement]) -> dict[str, list[Judgement]]:
    """The judgements of each claim in the file, in their order."""
    found: dict[str, list[Judgement]] = {}
    for judgement in judgements:
        found.setdefault(judgement.claim.family, []).append(judgement)
    return found


def _of_case(claim: Claim, run: Run) -> pd.DataFrame:
    """The run's trials on the claim's link, workers and model, those that are left out as disturbed told as such."""
    own = {trial.id for trial in run.plan.trials if claim.is_about(trial.case)}
    trials = run.trials
    of_case = trials[trials["trial_id"].isin(own)]
    return of_case if of_case.empty else leave_out_disturbed(of_case)


def _ratio(claim: Claim, run: Run, trials: pd.DataFrame) -> Finding:
    """How many times better the method is in these trials, paired by rounds: faster, or with fewer bytes."""
    if trials.empty:
        return Finding(None, run.problem or "nothing of it was run")
    if claim.quantity == "bytes":
        ratios = paired_ratios(trials, claim.baseline, claim.method, "wire_bytes_per_step")
    else:
        ratios = paired_ratios(trials, claim.method, claim.baseline)
    if ratios.empty:
        return Finding(None, f"in no round both {claim.method} and {claim.baseline} finished")
    return Finding(paired_shift(ratios.to_numpy()))


def _late(trials: pd.DataFrame, claim: Claim) -> str:
    """Which of the two methods this machine was too slow to replay, and by how much; nothing if neither."""
    for label in (claim.method, claim.baseline):
        done = trials[(trials["label"] == label) & (trials["status"] == DONE)]
        overrun = done["overrun_s_per_step"].mean() / done["step_time_median_s"].mean()
        if overrun > MOST_OVERRUN:
            return (
                f"for up to {100 * overrun:.0f} % of {label}'s step this machine was slower than the device that it "
                "replays; a greater dilation takes that away"
            )
    return ""


def _fewer_steps(claim: Claim, training: Run) -> Finding:
    """How many times fewer steps to the target the method takes, paired by seeds."""
    by_label = {label: steps_to_target(training, label) for label in (claim.method, claim.baseline)}
    if any(steps.empty for steps in by_label.values()):
        return Finding(None, training.problem or "its training was not run")
    for label in (claim.baseline, claim.method):
        steps = by_label[label]
        if missed := int(steps.isna().sum()):
            problem = f"{label} missed the target in {missed} of {len(steps)} trainings"
            return Finding(None, problem, missed=label == claim.method and missed == len(steps))
    ratios = (by_label[claim.baseline] / by_label[claim.method]).dropna()
    return (
        Finding(paired_shift(ratios.to_numpy()))
        if len(ratios)
        else Finding(None, "no seed was trained by both methods")
    )


def steps_to_target(run: Run, label: str) -> pd.Series[float]:
    """By round, the steps after which a finished training first reached the target; NaN where it never did."""
    if run.store is None:
        return pd.Series(dtype=float)
    trials = run.trials
    own = trials[(trials["label"] == label) & (trials["status"] == DONE)]
    return own.set_index("round")["steps_to_target"].astype(float).sort_index()


def _in_seconds(claim: Claim, trials: pd.DataFrame, training: Run) -> str:
    """What both take to the target: the median steps of the one run times the median step of the other."""
    sentences = []
    for label in (claim.method, claim.baseline):
        steps = steps_to_target(training, label).median()
        step_s = trials.loc[(trials["label"] == label) & (trials["status"] == DONE), "step_time_median_s"].median()
        if math.isfinite(steps) and math.isfinite(step_s):
            sentences.append(
                f" To the target {label} takes {steps:g} steps of the training; at {format_time(step_s)} a step of the "
                f"other run that is {format_time(steps * step_s)}."
            )
    return "".join(sentences)


def _origin(figure: str, run: Run, trials: pd.DataFrame) -> str:
    """Where a figure comes from: real training or replay of which profile, on which cluster, in which run."""
    done = trials[trials["status"] == DONE]
    if run.store is None or done.empty:
        return ""
    what = " and ".join(dict.fromkeys(f"{row.model}, {row.dataset}" for row in done.itertuples()))
    clusters = set(done["cluster"])
    where = "a fake cluster, SCRIPTED, not measured" if FAKE in clusters else ", ".join(sorted(clusters))
    return f"{figure}: {what}, {len(done)} trials on {where}, {run.store.folder.name}"


def _plain(ratio: float) -> str:
    """Three digits, and never an exponent."""
    return f"{ratio:.0f}" if ratio >= 100 else f"{ratio:.3g}"
