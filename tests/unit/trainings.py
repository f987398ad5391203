"""What tests of trainings share: every method's states, checkpoints, and how they tell what is not so."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import Training, flat, gradients

import baselines

SETTINGS = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}
LR = {"lr": 0.05}
Facts = dict[str, bool]
"""What should be true, by what it says."""

Method = Callable[[], baselines.MethodState]

METHODS = baselines.names()
VARIANTS = [*((name, {}) for name in METHODS), ("pactrain", {"variant": "best"}), ("dgc", {"ratio": 0.1})]
VARIANTS += [("diloco", {"values": "int8"}), ("sparseloco", {"bits": 32}), ("demo", {"sign": False})]
VARIANTS += [("streaming_diloco", {"delay": 1}), ("streaming_diloco", {"delay": 1, "values": "fp32"})]
VARIANTS += [("pactrain", {"variant": "local", "local_period": 2})]
VARIANTS += [("powersgd", {"rank": 1, "min_compression_rate": 1})]  # else no matrix of SHAPES is worth compressing
VARIANTS += [("zeroone_adam", {"warmup_steps": 3, "gap_doubles_after": 1})]
EVERY_VARIANT = pytest.mark.parametrize(("name", "parameters"), VARIANTS, ids=lambda value: str(value).strip("{}"))
KINDS = [*VARIANTS, ("pactrain", {"adaptive": True}), ("pactrain", {"scope": "layer"})]
EVERY_KIND = pytest.mark.parametrize(("name", "parameters"), KINDS, ids=lambda value: str(value).strip("{}"))
VALUES = [*VARIANTS, ("pactrain", {"values": "ternary"})]
EVERY_VALUE = pytest.mark.parametrize(("name", "parameters"), VALUES, ids=lambda value: str(value).strip("{}"))
WITHOUT_RESIDUALS = [(name, {"error_feedback": False}) for name in ("topk", "randomk", "thc", "powersgd")]
WITHOUT_RESIDUALS += [(name, {"ratio": 1.0}) for name in ("zen", "omnireduce")]
TERNARY = [("pactrain", {"values": "ternary"}), ("pactrain", {"adaptive": True})]
EVERY_MEMORY = pytest.mark.parametrize(
    ("name", "parameters"),
    [*((name, {}) for name in METHODS), *WITHOUT_RESIDUALS, *TERNARY],
    ids=lambda value: str(value).strip("{}"),
)
NOTHING = object()


def not_so(of_ranks: list[Facts]) -> list[tuple[int, str]]:
    """What should be true on a rank, and is not."""
    return [(rank, what) for rank, facts in enumerate(of_ranks) for what, holds in facts.items() if not holds]


def brisk(name: str, **parameters: Any) -> baselines.MethodState:
    """A state whose warm-up and period end within a test, and that selects more than one entry in a hundred."""
    state_type = baselines.get(name).State
    short = {"warmup_steps": 2, "period": 2, "delay": 0, "ratio": 0.2}
    known = {field.name for field in fields(state_type)}
    return state_type(**{key: value for key, value in short.items() if key in known} | parameters)


IN_ONE_ENTRY, IN_ALL_OF_A_RANK, IN_EVERY_ENTRY = "one entry of a rank", "all of a rank", "every entry of every rank"
OVERFLOWS = (IN_ONE_ENTRY, IN_ALL_OF_A_RANK, IN_EVERY_ENTRY)
"""Where gradients are not finite."""


class Scaled:
    """A training with a loss scaler that may overflow."""

    def __init__(self, state: baselines.MethodState, scale: float, **options: Any) -> None:
        self.state, self.training = state, Training(state, settings=SETTINGS, **options)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)

    def step(self, step: int, overflow: str = "", new_scale: float | None = None, first_batch: bool = False) -> bool:
        """Whether all gradients are finite on this rank.

        Args:
            overflow: one of ``OVERFLOWS``; nowhere if it is empty.
            first_batch: whether a micro-batch comes first that is not synchronised, and does not overflow.
        """
        training = self.training
        given = gradients(step, dist.get_rank())
        if overflow == IN_EVERY_ENTRY or (overflow == IN_ALL_OF_A_RANK and dist.get_rank() == 1):
            for gradient in given:
                gradient.fill_(math.inf if overflow == IN_EVERY_ENTRY else math.nan)
        elif overflow == IN_ONE_ENTRY and dist.get_rank() == 1:
            place = step % len(given)
            greatest = training.weights[place].abs().argmax()  # not pruned: the gradient of what is does not count
            given[place].view(-1)[greatest] = math.inf
        training.begin_step()
        if first_batch:
            with training.ddp.no_sync():
                self.scaler.scale(training.ddp(gradients(100 + step, dist.get_rank()))).backward()
        self.scaler.scale(training.ddp(given)).backward()
        finite = bool(flat([w.grad for w in training.weights]).isfinite().all())
        self.scaler.step(training.optimizer)
        self.scaler.update(new_scale)
        return finite


def remembered(state: baselines.MethodState) -> dict[str, Any]:
    """All that is remembered but where dice are in their sequence."""
    return {k: v for k, v in state.state_dict()["remembered"].items() if "dice" not in k}


def equal(one: Any, other: Any) -> bool:
    """To the last bit."""
    if isinstance(one, dict):
        return one.keys() <= other.keys() and all(equal(one.get(key, NOTHING), other[key]) for key in other)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    if one is NOTHING:  # a residual that was not used yet is zero
        return torch.is_tensor(other) and not other.any()
    return torch.equal(one, other) if torch.is_tensor(one) else one == other


def agree(tensor: torch.Tensor) -> bool:
    """Whether all ranks hold the same finite numbers."""
    extremes = torch.stack((tensor, -tensor))
    dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
    return bool(tensor.isfinite().all()) and torch.equal(extremes[0], -extremes[1])


def complaint_of(attempt: Callable[[], Any]) -> str:
    """What it is refused with."""
    try:
        attempt()
    except (TypeError, ValueError, RuntimeError) as error:
        return str(error)
    return "taken"


def saved(training: Training) -> bytes:
    """A checkpoint as users write one."""
    file = io.BytesIO()
    parts = (training.model, training.optimizer, training.handle.state)
    torch.save([part.state_dict() for part in parts], file)
    return file.getvalue()


def loaded(checkpoint: bytes) -> list[dict[str, Any]]:
    """The state dicts of model, optimizer and method."""
    return torch.load(io.BytesIO(checkpoint), weights_only=True)


def resumed(
    checkpoint: bytes,
    state: baselines.MethodState,
    load_first: bool = True,
    assigned: dict[str, Any] | None = None,
    **options: Any,
) -> Training:
    """A new training that goes on from a checkpoint.

    Args:
        load_first: whether the method's part is loaded before ``register``.
        assigned: parameters that are given other values then.
    """
    of_model, of_optimizer, of_method = loaded(checkpoint)

    def load() -> None:
        state.load_state_dict(of_method)
        for parameter, value in (assigned or {}).items():
            setattr(state, parameter, value)

    if load_first:
        load()
    training = Training(state, **{"settings": SETTINGS, **options})
    training.model.load_state_dict(of_model)
    training.optimizer.load_state_dict(of_optimizer)
    if not load_first:
        load()
    return training
