"""Time to accuracy as it is, beside the product of what was measured apart.

A time to accuracy is judged by a product: the throughput of a replayed large model, and the steps to the target of a
small one that was really trained. Here the small one's trainings are measured in one piece, paced, on links on which it
has the large one's ratio of communication to computation. Its steps to the target are those of the product, since the
seeds are the same. So both are compared by what a step takes, which is sharp, and what differs has two factors: what a
step of the steady state gains with this model, over the replay's; and what steps outside of it, such as a warm-up,
change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import pandas as pd

from harness.analysis.claims.figures import Run, throughput, told_at_once, told_missed
from harness.analysis.claims.plans import case_beside
from harness.analysis.claims.schema import Claim
from harness.analysis.estimates import Estimate
from harness.analysis.shifts import Shift, paired_shift, product
from harness.plan.expected import communication_over_computation, state_of
from harness.plan.status import DONE, MISSES, TIMEOUT
from harness.scenario.schema import Case

SAME = 0.1
"""The share by which two figures may differ and still say the same, if that is sure."""

TIME, STEPS, SPEED = "time_to_target_s", "steps_to_target", "samples_per_s"


@dataclass(frozen=True)
class OnePiece:
    """What was measured in one piece of a claim's case, with one share of the device."""

    device: float
    model: str
    """The small model, which was really trained."""
    ratio: float
    """How many times as long as its computation a dense step's bytes take."""
    claimed_ratio: float
    """The same of the large model, on the claim's link."""
    warm_up: Mapping[str, int]
    """Steps before the steady state, by the labels of methods that have any."""
    found: Estimate | None = None
    """How many times as soon at the target, over seeds."""
    problem: str = ""
    """Why there is no figure, where trainings missed the target, or began at it."""
    over_product: Estimate | None = None
    """How many times as much that is as the product of the same seeds; None where no replay tells."""
    steady_over_replay: float | None = None
    """The factor of it that the steady state has: that of another model, with other buckets."""
    beyond_steady: float | None = None
    """The factor of it that steps outside of the steady state have."""

    @property
    def answer(self) -> Literal["differs", "the same", "unknown"]:
        """Whether it is what the product says, as far as that is sure."""
        found = self.over_product
        if found is None or found.low is None or found.high is None:
            return "unknown"
        if not found.low <= 1 <= found.high:
            return "differs"
        return "the same" if found.low >= 1 / (1 + SAME) and found.high <= 1 + SAME else "unknown"


def in_one_piece(claim: Claim, runs: Mapping[str, Run]) -> tuple[OnePiece, ...]:
    """What was, with each share of the device for which the paced trainings have a case."""
    if not claim.in_one_piece:
        return ()
    scenarios = {name: run.plan.scenario for name, run in runs.items()}
    beside = {device: case_beside(claim, device, scenarios) for device in claim.devices}
    return tuple(_measured(claim, device, runs, *cases) for device, cases in beside.items() if cases)


def _measured(claim: Claim, device: float, runs: Mapping[str, Run], case: Case, replayed: Case) -> OnePiece:
    paced, (cell,) = runs[str(claim.in_one_piece)], claim.cells
    methods = [each for each in paced.plan.scenario.methods if each.label in claim.labels]
    nothing = OnePiece(
        device=device,
        model=case.train.model,
        ratio=communication_over_computation(case),
        claimed_ratio=communication_over_computation(replayed),
        warm_up={each.label: steps for each in methods if (steps := state_of(each).steady_from_step)},
    )
    trials = _trials_of(case, paced)
    if problem := _without_time(trials, claim.labels):
        return replace(nothing, problem=problem)
    ratios = _ratios(trials, cell.method, claim.baseline) if len(trials) else pd.DataFrame()
    if ratios.empty:
        return nothing
    found = replace(nothing, found=paired_shift(ratios["sooner"].to_numpy()).estimate())
    return _beside_product(found, ratios, throughput(claim, cell, device, runs))


def _beside_product(found: OnePiece, ratios: pd.DataFrame, replayed: Shift | None) -> OnePiece:
    """With how it compares to the product of the same seeds, if a replay tells that."""
    if replayed is None:
        return found
    a_step, steady = (paired_shift(ratios[column].to_numpy()) for column in ("a step", "a steady step"))
    return replace(
        found,
        over_product=product(a_step, replayed._replace(log=-replayed.log)).estimate(),
        steady_over_replay=math.exp(steady.log - replayed.log),
        beyond_steady=math.exp(a_step.log - steady.log),
    )


def _trials_of(case: Case, paced: Run) -> pd.DataFrame:
    own_ids = {trial.id for trial in paced.plan.trials if trial.case == case}
    return paced.counted[paced.counted["trial_id"].isin(own_ids)]


def _without_time(trials: pd.DataFrame, labels: tuple[str, ...]) -> str:
    """Who has no time to the target, and how often; nothing if nobody. A mean of the others would be another's."""
    for label in labels if len(trials) else ():
        own = trials[trials["label"] == label]
        missed = int((own["status"].isin(MISSES) | ((own["status"] == DONE) & own[TIME].isna())).sum())
        if missed:
            return told_missed(label, missed, int((own["status"] == TIMEOUT).sum()), len(own))
        if at_once := int((own[TIME] == 0).sum()):
            return told_at_once(label, at_once, len(own))
    return ""


def _ratios(trials: pd.DataFrame, method: str, baseline: str) -> pd.DataFrame:
    """By seeds that both trained: how many times as soon at the target, as fast a step, as fast a steady step."""
    done = trials[trials["status"] == DONE]
    own, base = (
        done[done["label"] == label].set_index("seed")[[TIME, STEPS, SPEED]].astype(float)
        for label in (method, baseline)
    )
    sooner = base[TIME] / own[TIME]
    found = {"sooner": sooner, "a step": sooner * own[STEPS] / base[STEPS], "a steady step": own[SPEED] / base[SPEED]}
    return pd.DataFrame(found).dropna()
