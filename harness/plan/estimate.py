"""How long trials will take on this machine, about: for who decides whether to start them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache

from harness.plan.expected import lower_bound_s, state_of
from harness.plan.trial import Trial
from harness.workload.data import DATASETS
from harness.workload.models import MODELS

ASSUMED_FLOPS_PER_CORE = 2e10
"""For estimates before anything has run; what a trial computes in is measured, never assumed."""

BRING_UP_S = 6.0
TRIAL_OVERHEAD_S = 0.6


def total_s(trials: Iterable[Trial], cpu_count: int) -> float:
    """Estimated wall time of these trials on a fresh cluster."""
    return BRING_UP_S + sum(time_s(trial, cpu_count) for trial in trials)


def time_s(trial: Trial, cpu_count: int) -> float:
    """Estimated wall time of a trial, from the method's byte formula and the model's operation count."""
    case, train, profile = trial.case, trial.case.train, trial.expected.profile
    ramp = min(state_of(trial.method).steady_from_step, train.steps)
    wire_s = sum(lower_bound_s(case, trial.method, step) for step in range(ramp))
    wire_s += (train.steps - ramp) * trial.expected.lower_bound_s_per_step
    compute_s, evaluation_s = (0.0, 0.0) if train.replay else _training_s(trial, cpu_count)
    if not train.profile:
        return TRIAL_OVERHEAD_S + wire_s + compute_s + evaluation_s
    if profile:
        device_s = train.steps * (profile.forward_s + profile.backward_s + profile.optimizer_s)
    else:
        device_s, _ = _training_s(trial, cpu_count=case.cluster.workers)  # a core for each
    return TRIAL_OVERHEAD_S + max(trial.dilation * (wire_s + device_s), compute_s) + evaluation_s


def _training_s(trial: Trial, cpu_count: int) -> tuple[float, float]:
    """Seconds of all steps' computation and of all evaluations, from the model's operation count."""
    train, workers = trial.case.train, trial.case.cluster.workers
    flops = _flops_per_sample(train.model)
    flops_per_s = ASSUMED_FLOPS_PER_CORE * min(cpu_count, workers)
    compute_s = train.steps * flops * train.batch_size * workers / flops_per_s
    evaluations = math.ceil(train.steps / train.eval_every)
    forward_share = 1 / 3  # of the operations of a forward and backward pass
    return compute_s, evaluations * forward_share * flops * DATASETS[train.dataset].test_size / flops_per_s


@cache
def _flops_per_sample(model: str) -> int:
    return MODELS[model].flops_per_sample()
