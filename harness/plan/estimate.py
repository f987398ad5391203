"""What is known of a trial before it runs: its bytes, the time it cannot beat, and what it will take."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from harness.plan import predict
from harness.plan.trial import Trial, profile_of, state_of, topology_of
from harness.workload.data import DATASETS
from harness.workload.models import MODELS
from harness.workload.replay import memory_bytes as replay_bytes

ASSUMED_FLOPS_PER_CORE = 2e10
"""For estimates before anything has run; what a trial computes in is measured, never assumed."""


BRING_UP_S = 6.0


TRIAL_OVERHEAD_S = 0.6


@dataclass(frozen=True)
class Expected:
    """What is known of a trial before it runs."""

    wire_bytes_per_step: float
    """Payload that each worker sends in a step of the steady state, by the method's formula."""
    lower_bound_s_per_step: float
    """The least time those bytes need on the case's links; 0 where they are unshaped."""
    time_s: float
    """Estimated wall time of the trial."""
    predicted_step_s: float | None
    """What a step of the steady state is expected to take, overlap included; None without a profile."""
    memory_bytes: int | None
    """Of all workers of a replay; None for real training."""


def wire_bytes(trial: Trial, step: int | None = None) -> float:
    """Payload bytes that each worker sends in a step, by the method's formula; in the steady state without a step."""
    return state_of(trial.method).wire_bytes(shapes_of(trial.case.train.model), trial.case.cluster.workers, step)


def lower_bound_s(trial: Trial, step: int | None = None) -> float:
    """The least time that a step's bytes need on the trial's network; 0 where nothing limits them."""
    busiest_bytes = state_of(trial.method).busiest_bytes(
        shapes_of(trial.case.train.model), trial.case.cluster.workers, step
    )
    return topology_of(trial.case).bound_s(wire_bytes(trial, step), busiest_bytes)


def estimate(trial: Trial, cpu_count: int) -> Expected:
    """Bytes, lower bound and time of a trial, from the method's byte formula and the model's operation count."""
    train, replayed = trial.case.train, profile_of(trial.case)
    ramp = min(state_of(trial.method).steady_from_step, train.steps)
    wire_s = sum(lower_bound_s(trial, step) for step in range(ramp)) + (train.steps - ramp) * lower_bound_s(trial)
    if replayed:
        compute_s = train.steps * (replayed.forward_s + replayed.backward_s + replayed.optimizer_s)
        evaluation_s = 0.0
    else:
        compute_s, evaluation_s = _training_s(trial, cpu_count)
    return Expected(
        wire_bytes_per_step=wire_bytes(trial),
        lower_bound_s_per_step=lower_bound_s(trial),
        time_s=TRIAL_OVERHEAD_S + trial.dilation * (wire_s + compute_s) + evaluation_s,
        predicted_step_s=predicted_step_s(trial),
        memory_bytes=memory_bytes(trial),
    )


def memory_bytes(trial: Trial) -> int | None:
    """What the workers of a replay need together, about; None for real training."""
    replayed = profile_of(trial.case)
    if replayed is None:
        return None
    return replay_bytes(replayed, trial.case.cluster.workers, state_of(trial.method).most_copies)


def predicted_step_s(trial: Trial) -> float | None:
    """What a step of the steady state is expected to take; None without a profile.

    Where time is dilated, it is told as measured: what wakes processes is this machine, which dilation does not slow.
    """
    replayed = profile_of(trial.case)
    if replayed is None:
        return None
    state, topology = state_of(trial.method), topology_of(trial.case)
    message_s = predict.MESSAGE_S / trial.dilation
    return predict.step_s(replayed, trial.method, state, topology, trial.case.train.bucket_bytes, message_s)


def _training_s(trial: Trial, cpu_count: int) -> tuple[float, float]:
    """Seconds of all steps' computation and of all evaluations, from the model's operation count."""
    train, workers = trial.case.train, trial.case.cluster.workers
    flops = _flops_per_sample(train.model)
    flops_per_s = ASSUMED_FLOPS_PER_CORE * min(cpu_count, workers)
    compute_s = train.steps * flops * train.batch_size * workers / flops_per_s
    evaluations = math.ceil(train.steps / train.eval_every)
    forward_share = 1 / 3  # of the operations of a forward and backward pass
    return compute_s, evaluations * forward_share * flops * DATASETS[train.dataset].test_size / flops_per_s


def total_s(trials: Iterable[Trial], cpu_count: int) -> float:
    """Estimated wall time of these trials on a fresh cluster."""
    return BRING_UP_S + sum(estimate(trial, cpu_count).time_s for trial in trials)


@cache
def shapes_of(model: str) -> list[tuple[int, ...]]:
    """Of the model's parameters."""
    return MODELS[model].shapes()


@cache
def _flops_per_sample(model: str) -> int:
    return MODELS[model].flops_per_sample()
