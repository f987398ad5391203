"""Real trainings: overflows under a loss scaler, half precision, micro-batches, save and resume; every method."""

from __future__ import annotations

import io
import math
import re
from dataclasses import fields
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import Training, flat, gradients
from torch import nn

import baselines

METHODS = baselines.names()
VARIANTS = [*((name, {}) for name in METHODS), ("pactrain", {"variant": "best"}), ("dgc", {"ratio": 0.1})]
EVERY_VARIANT = pytest.mark.parametrize(("name", "parameters"), VARIANTS, ids=lambda value: str(value).strip("{}"))
NOTHING = object()
SETTINGS = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}


def brisk(name: str, **parameters: Any) -> baselines.MethodState:
    """A state whose warm-up and period end within a test, and that selects more than one entry in a hundred."""
    state_type = baselines.get(name).State
    short = {"warmup_steps": 2, "period": 2, "ratio": 0.2}
    known = {field.name for field in fields(state_type)}
    return state_type(**{key: value for key, value in short.items() if key in known} | parameters)


class Scaled:
    """A training with a loss scaler that may overflow in one entry of one rank."""

    def __init__(self, state: baselines.MethodState, scale: float, **options: Any) -> None:
        self.state, self.training = state, Training(state, settings=SETTINGS, **options)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)

    def step(self, step: int, overflow: bool = False, new_scale: float | None = None) -> bool:
        """Whether all gradients are finite on this rank."""
        training = self.training
        given = gradients(step, dist.get_rank())
        if overflow and dist.get_rank() == 1:
            given[step % len(given)].view(-1)[-1] = math.inf
        training.layouts.append([])
        training.optimizer.zero_grad()
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


def overflow_in_turn(name: str, parameters: dict[str, Any]) -> list[tuple[bool, ...]]:
    """For an overflow in each of three steps: what the method holds is untouched, no step counted, the next finite."""
    found = []
    for sick in (0, 1, 3):
        run = Scaled(brisk(name, **parameters), scale=1024.0)
        for step in range(sick):
            run.step(step)
        before, steps = remembered(run.state), run.state.step
        run.step(sick, overflow=True)
        untouched = run.state.step == steps and equal(before, remembered(run.state))
        found.append((untouched, run.scaler.get_scale() == 512, run.step(sick + 1), run.state.step == steps + 1))
    return found


@EVERY_VARIANT
def test_a_step_that_overflows_on_one_rank_is_skipped_by_all_and_leaves_no_trace(on_ranks, name, parameters):
    assert on_ranks(2, overflow_in_turn, name, parameters) == [[(True,) * 4] * 3] * 2


def train_with_scales(name: str, scales: list[float]) -> torch.Tensor:
    run = Scaled(brisk(name), scale=scales[0])
    for step, following in enumerate([*scales[1:], scales[-1]]):
        run.step(step, new_scale=following)
    return flat(run.training.weights)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "fp16"])  # its range is what scaling is for
def test_the_loss_scale_does_not_matter_nor_its_fall_by_64(on_ranks, name):
    plain = on_ranks(2, train_with_scales, name, [1.0] * 6)
    falling = on_ranks(2, train_with_scales, name, [1024.0] * 3 + [16.0] * 3)
    assert all(torch.equal(one, other) for one, other in zip(plain, falling, strict=True))


def train_in(name: str, dtype: torch.dtype) -> tuple[bool, bool]:
    training = Training(brisk(name), dtype=dtype, settings={"lr": 0.01})
    for step in range(4):
        training.step(gradients(step, dist.get_rank(), dtype=dtype))
    weights = flat(training.weights)
    extremes = torch.stack((weights, -weights)).float()
    dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
    return bool(weights.isfinite().all()), torch.equal(extremes[0], -extremes[1])


@pytest.mark.parametrize("name", METHODS)
def test_half_precision_trains_and_ranks_agree(on_ranks, name):
    for dtype in (torch.bfloat16, torch.float16):
        assert on_ranks(2, train_in, name, dtype) == [(True, True)] * 2


def accumulate(name: str) -> str:
    training = Training(brisk(name))
    for step in range(2):
        training.layouts.append([])
        try:
            training.ddp(gradients(step, dist.get_rank())).backward()
        except RuntimeError as error:
            return str(error)
    return "taken"


@pytest.mark.parametrize("name", METHODS)
def test_micro_batches_that_are_synchronised_one_by_one_are_refused_where_they_would_be_wrong(on_ranks, name):
    wanted = "taken" if brisk(name).accumulates else f"{name} would compress gradients again"
    assert all(wanted in answer for answer in on_ranks(2, accumulate, name))


def resume(name: str, parameters: dict[str, Any], stop: int, load_first: bool) -> bool:
    """Whether a training that is resumed after so many steps ends as the one that was not interrupted."""
    state = brisk(name, **parameters)
    one = Training(state, settings=SETTINGS)
    for step in range(stop):
        one.step(gradients(step, dist.get_rank()))
    file = io.BytesIO()
    torch.save((one.model.state_dict(), one.optimizer.state_dict(), state.state_dict()), file)
    file.seek(0)
    model, optimizer, saved = torch.load(file, weights_only=True)
    fresh = brisk(name, **parameters)
    if load_first:
        fresh.load_state_dict(saved)
    other = Training(fresh, settings=SETTINGS)
    other.model.load_state_dict(model)
    other.optimizer.load_state_dict(optimizer)
    if not load_first:
        fresh.load_state_dict(saved)
    for step in range(stop, stop + 4):
        given = gradients(step, dist.get_rank())
        if not torch.equal(one.step(given), other.step(given)):
            return False
    return torch.equal(flat(one.weights), flat(other.weights)) and fresh.step == state.step == stop + 4


@EVERY_VARIANT
def test_a_resumed_training_goes_on_to_the_last_bit(on_ranks, name, parameters):
    for stop, load_first in ((1, True), (2, False), (5, True)):
        assert on_ranks(2, resume, name, parameters, stop, load_first) == [True, True], stop


def refusals(changes: dict[str, Any]) -> str:
    state = brisk("topk")
    training = Training(state)
    training.step(gradients(0, dist.get_rank()))
    try:
        state.load_state_dict({**state.state_dict(), **changes})
    except ValueError as error:
        return str(error)
    return "taken"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"method": "dgc"}, "the checkpoint is of dgc"),
        ({"version": 9}, "version 9"),
        ({"model": {"weights.0": [2, 2]}}, "another model: weights.0: \\[2, 2\\] there, \\[7, 11\\] here"),
        ({"world_size": 4}, "rank . of 4, and this is rank . of 2"),
        ({"parameters": {"error_feedback": False}}, "error_feedback=False, and this state has True"),
    ],
)
def test_a_foreign_checkpoint_is_one_line(on_ranks, changes, complaint):
    for answer in on_ranks(2, refusals, changes):
        assert re.search(complaint, answer)
        assert "\n" not in answer


def join_unevenly(name: str) -> str:
    training = Training(brisk(name))
    try:
        with training.ddp.join():
            for step in range(2 + dist.get_rank()):
                training.step(gradients(step, dist.get_rank()))
    except RuntimeError as error:
        return str(error)
    return "taken"


@pytest.mark.parametrize("name", METHODS)
def test_uneven_inputs_are_refused_where_ranks_would_get_out_of_step(on_ranks, name):
    wanted = f"{name} cannot train on uneven inputs" if not brisk(name).may_join else "taken"
    assert all(wanted in answer for answer in on_ranks(2, join_unevenly, name))


def door(name: str) -> list[str]:
    """What a second state is told, what a used one is told, and whether dense gradients come after ``remove``."""
    ddp = nn.parallel.DistributedDataParallel(nn.Linear(3, 2, bias=False))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1, momentum=0.9)
    state = brisk(name)
    answers = []
    with baselines.register(ddp, state, optimizer=optimizer):
        ddp(torch.ones(1, 3) * (1 + dist.get_rank())).sum().backward()
        optimizer.step()
        answers.append(complaint_of(lambda: baselines.register(ddp, brisk("dgc"), optimizer=optimizer)))
    answers.append(complaint_of(lambda: baselines.register(ddp, state, optimizer=optimizer)))
    optimizer.zero_grad()
    ddp(torch.ones(1, 3) * (1 + dist.get_rank())).sum().backward()
    mean = (1 + dist.get_world_size()) / 2
    same = torch.equal(ddp.module.weight.grad, torch.full((2, 3), mean))
    with baselines.register(ddp, brisk("topk"), optimizer=optimizer):
        return [*answers, f"dense {same}, momentum {optimizer.param_groups[0]['momentum']}"]


def complaint_of(attempt: Any) -> str:
    try:
        attempt()
    except (TypeError, ValueError) as error:
        return str(error)
    return "taken"


@pytest.mark.parametrize("name", METHODS)
def test_a_method_comes_alone_and_leaves_what_it_found(on_ranks, name):
    for second, again, after in on_ranks(2, door, name):
        assert f"{name} synchronises this model already" in second
        assert "belongs to another training" in again
        assert after == "dense True, momentum 0.9"


@pytest.mark.parametrize("name", [name for name in METHODS if brisk(name).parameters])
def test_what_is_assigned_later_is_checked(name):
    state = brisk(name)
    for parameter in state.parameters:
        assert "\n" not in complaint_of(lambda parameter=parameter: setattr(state, parameter, object()))
        with pytest.raises(ValueError, match=parameter):
            setattr(state, parameter, object())
