"""What a look at a script tells of its job: a step's profile, its gradients, and what methods make of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, median
from typing import Any

from harness.attach.findings import Looked, Step
from harness.attach.orders import LOOK_STEPS, SETTLING_STEPS, TIMED_STEPS
from harness.attach.reading import RankFindings
from harness.errors import MeasurementError
from harness.plan.machine import NETWORK_S
from harness.plugins import short
from harness.provenance import cpu_model
from harness.record.pilot import Fit, Job
from harness.scenario.schema import MethodSpec
from harness.workload.profile import SCHEMA as PROFILE_SCHEMA
from harness.workload.profile import Codec, Gradient, Profile

LEAST_FORWARD_S = 1e-6


def job_of(ranks: Sequence[RankFindings], methods: Sequence[MethodSpec], wall_s: float) -> Job:
    """What all ranks of a look found, put together.

    Args:
        wall_s: what the command took.

    Raises:
        MeasurementError: the script ended before the look was over.
    """
    first = ranks[0]
    if first.gradients is None or first.distribution is None or len(first.looked) < len(methods) or not first.model:
        steps = min(rank.steps_done for rank in ranks)
        raise MeasurementError(f"the script ended after {steps} steps; a look takes {LOOK_STEPS}")
    timed = [rank.steps[SETTLING_STEPS : SETTLING_STEPS + TIMED_STEPS] for rank in ranks]
    gradients = _gradients(ranks)
    backward_s = gradients[-1].ready_s
    optimizer_s = _typical(timed, lambda step: step.step_s - step.ready_s - step.exposed_s)
    looked = [[rank.looked[place] for rank in ranks] for place in range(len(methods))]
    plain_s = next((_mean(own, "optimizer_s") for own in looked if own[0].refused is None), 0.0)
    codecs = [
        _codec(method, own, max(0.0, optimizer_s) - plain_s)
        for method, own in zip(methods, looked, strict=True)
        if own[0].refused is None
    ]
    profile = Profile.model_validate(
        {
            "schema": PROFILE_SCHEMA,
            "model": "the script's",
            "batch_size": first.gradients.batch_size,
            "device": cpu_model() if first.model.device == "cpu" else first.model.device,
            "source": "measured",
            "made_by": "pacbench pilot",
            "workers": len(ranks),
            "forward_s": max(LEAST_FORWARD_S, _typical(timed, lambda step: step.ready_s) - backward_s),
            "backward_s": backward_s,
            "optimizer_s": max(0.0, optimizer_s),
            "optimizer": first.model.optimizer,
            "gradients": tuple(gradients),
            "codecs": tuple(codecs),
        }
    )
    steps_s = [_typical([[step] for step in of_step], _without_network_s) for of_step in zip(*timed, strict=True)]
    spread = first.distribution
    return Job(
        profile=profile,
        between_s=_typical(timed, lambda step: step.between_s or 0.0),
        bucket_bytes=first.gradients.bucket_bytes,
        first_bucket_bytes=first.gradients.first_bucket_bytes,
        compute_s=tuple(steps_s),
        non_zero=spread.non_zero,
        holding_90=spread.holding_90,
        holding_99=spread.holding_99,
        fits=tuple(_fit(method, own, plain_s) for method, own in zip(methods, looked, strict=True)),
        overhead_s=NETWORK_S + max(0.0, wall_s - sum(step.step_s + (step.between_s or 0.0) for step in first.steps)),
    )


def _without_network_s(step: Step) -> float:
    return step.step_s - step.exposed_s + (step.between_s or 0.0)


def _typical(timed: Sequence[Sequence[Step]], seconds: Callable[[Step], float]) -> float:
    return median(seconds(step) for steps in timed for step in steps)


def _gradients(ranks: Sequence[RankFindings]) -> list[Gradient]:
    """Each parameter's gradient, at the mean of the ranks' times, in the order in which they are ready."""
    times: dict[str, list[float]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for rank in ranks:
        for name, shape, ready_s in rank.gradients.parameters if rank.gradients else []:
            times.setdefault(name, []).append(ready_s)
            shapes[name] = tuple(shape)
    means_s = {name: fmean(own) for name, own in times.items()}
    return [
        Gradient(parameter=name, shape=shapes[name], ready_s=means_s[name])
        for name in sorted(means_s, key=lambda each: means_s[each])
    ]


def _mean(looked: Sequence[Looked], name: str) -> float:
    return fmean(getattr(each, name) for each in looked)


def _codec(method: MethodSpec, looked: Sequence[Looked], beyond_s: float) -> Codec:
    """What a method costs in the script.

    Args:
        beyond_s: what a step of the script's optimizer takes beyond a shadow's: clipping, say.
    """
    parts: dict[str, Any] = {name: _mean(looked, name) for name in ("encode_s", "beside_s", "decode_s")}
    optimizer_s = max(0.0, _mean(looked, "optimizer_s") + beyond_s)
    return Codec(method=short(method.name), params=method.params, workers=len(looked), optimizer_s=optimizer_s, **parts)


def _fit(method: MethodSpec, looked: Sequence[Looked], plain_s: float) -> Fit:
    if looked[0].refused is not None:
        return Fit(method=method, refused=looked[0].refused)
    codec_s = sum(_mean(looked, name) for name in ("encode_s", "beside_s", "decode_s"))
    gradient = {
        name: _mean(looked, name) if looked[0].nmse is not None else None for name in ("nmse", "cosine", "progress")
    }
    return Fit(
        method=method,
        refused=None,
        codec_s=codec_s + max(0.0, _mean(looked, "optimizer_s") - plain_s),
        held_bytes=max(each.held_bytes for each in looked),
        **gradient,
    )
