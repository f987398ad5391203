"""Time to accuracy as it is, beside the product of what was measured apart.

A time to accuracy is judged by a product: the throughput of a replayed large model, and the steps to the target of a
small one that was really trained. Here the small one's trainings are measured in one piece, paced, on links on which it
has the large one's ratio of communication to computation. Both are of the same seeds, and so of the same steps: these
cancel where the two are compared, and what is left is sharp. They differ where a product says too much: it takes every
step for one of the steady state, and so leaves out a warm-up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from harness.analysis.claims.figures import Run, throughput
from harness.analysis.claims.schema import Cell, Claim
from harness.analysis.estimates import Estimate
from harness.analysis.shifts import Shift, paired_shift, product
from harness.analysis.trials import leave_out_disturbed
from harness.plan.expected import communication_over_computation, state_of
from harness.plan.status import LEARNT
from harness.scenario.schema import Case

NEAR = 0.1
"""Share by which the two ratios of communication to computation may differ, to be taken for the same."""


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
    found: Estimate | None
    """How many times as soon at the target; None where nothing was run, or no seed reached it by both methods."""
    over_product: Estimate | None
    """How many times as much that is as the product, of the same seeds."""
    warm_up: Mapping[str, int]
    """Steps before the steady state, by the labels of methods that have any."""

    @property
    def differs(self) -> bool:
        """Whether it is surely not what the product says."""
        found = self.over_product
        return (
            found is not None and found.low is not None and found.high is not None and not found.low <= 1 <= found.high
        )


def in_one_piece(claim: Claim, runs: Mapping[str, Run]) -> tuple[OnePiece, ...]:
    """What was, with each share of the device for which the paced trainings have a case."""
    if not claim.in_one_piece:
        return ()
    (cell,), paced = claim.cells, runs[claim.in_one_piece]
    found = []
    for device in claim.devices:
        replayed = next(each for each in runs[cell.scenario].plan.scenario.cases if cell.is_about(each, device))
        claimed_ratio = communication_over_computation(replayed)
        case = min(
            paced.plan.scenario.cases, key=lambda case: _apart(communication_over_computation(case), claimed_ratio)
        )
        if _apart(communication_over_computation(case), claimed_ratio) <= math.log1p(NEAR):
            found.append(_measured(claim, cell, device, runs, case, claimed_ratio))
    return tuple(found)


def _apart(one: float, other: float) -> float:
    return abs(math.log(one / other))


def _measured(
    claim: Claim, cell: Cell, device: float, runs: Mapping[str, Run], case: Case, claimed_ratio: float
) -> OnePiece:
    paced = runs[str(claim.in_one_piece)]
    sooner, a_step = _paired(claim, cell, paced, case)
    methods = [each for each in paced.plan.scenario.methods if each.label in claim.labels]
    return OnePiece(
        device=device,
        model=case.train.model,
        ratio=communication_over_computation(case),
        claimed_ratio=claimed_ratio,
        found=paired_shift(sooner).estimate() if len(sooner) else None,
        over_product=_over(paired_shift(a_step), throughput(claim, cell, device, runs)) if len(a_step) else None,
        warm_up={each.label: steps for each in methods if (steps := state_of(each).steady_from_step)},
    )


def _paired(claim: Claim, cell: Cell, paced: Run, case: Case) -> tuple[np.ndarray, np.ndarray]:
    """By seeds that reached the target by both methods: how many times as soon, and how many times as fast a step."""
    own_ids = {trial.id for trial in paced.plan.trials if trial.case == case}
    trials = paced.trials[paced.trials["trial_id"].isin(own_ids)]
    if trials.empty:
        return np.array([]), np.array([])
    trials = leave_out_disturbed(trials)
    learnt = trials[trials["status"].isin(LEARNT)]
    own, base = (
        learnt[learnt["label"] == label].set_index("seed")[["time_to_target_s", "steps_to_target"]].astype(float)
        for label in (cell.method, claim.baseline)
    )
    ratios: pd.DataFrame = (base / own).dropna()
    sooner = ratios["time_to_target_s"]
    return sooner.to_numpy(), (sooner / ratios["steps_to_target"]).to_numpy()


def _over(a_step: Shift, replayed: Shift | None) -> Estimate | None:
    """What a step of the trainings shows, over what replays say, with the errors of both."""
    return product(a_step, replayed._replace(log=-replayed.log)).estimate() if replayed else None
