"""Real trainings by every method: overflows under a loss scaler, half precision, micro-batches, odd models."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import beside
import pytest
import torch
import torch.distributed as dist
from ranks import SHAPES, SMALL_BUCKETS_MB, Given, Training, flat, gradients
from torch import nn
from torch.utils.checkpoint import checkpoint
from trainings import (
    EVERY_KIND,
    EVERY_MEMORY,
    EVERY_VALUE,
    IN_ONE_ENTRY,
    KINDS,
    LR,
    OVERFLOWS,
    WITHOUT_RESIDUALS,
    Facts,
    Scaled,
    agree,
    brisk,
    complaint_of,
    equal,
    not_so,
    remembered,
)

import baselines
from baselines._loss_scale import leads_back

pytestmark = pytest.mark.methods


def overflow_before_each_step(name: str, parameters: dict[str, Any]) -> Facts:
    """Of each kind of overflows, a training meets one before every step, in another place; a calm one only at first.

    Every other step has two micro-batches.
    """
    calm = Scaled(brisk(name, **parameters), scale=1024.0)
    calm.step(0, OVERFLOWS[0])  # DDP regroups its buckets after it
    sick = {where: Scaled(brisk(name, **parameters), scale=1024.0) for where in OVERFLOWS}
    facts: Facts = {}
    for step in range(6):
        again = {"first_batch": step % 2 == 1}
        calm.step(step, **again)
        for where, each in sick.items():
            before, steps, scale = remembered(each.state), each.state.step, each.scaler.get_scale()
            each.step(step, where, **again)
            facts[f"{where}, {step}: untouched"] = each.state.step == steps and equal(before, remembered(each.state))
            facts[f"{where}, {step}: skipped"] = each.scaler.get_scale() == scale / 2
            facts[f"{where}, {step}: the next is finite"] = each.step(step, **again) and each.state.step == steps + 1
    for where, each in sick.items():
        if equal(dice(calm.state), dice(each.state)) and "adaptive" not in parameters:  # which chooses by the clock
            facts[f"{where}: remembered"] = equal(remembered(calm.state), remembered(each.state))
            facts[f"{where}: weights"] = torch.equal(flat(calm.training.weights), flat(each.training.weights))
    return facts


class Wrapped:
    """An optimizer within another thing, as Accelerate's, which scalers are given as it is."""

    def __init__(self, weights: list[nn.Parameter], **settings: Any) -> None:
        self.optimizer = torch.optim.SGD(weights, **settings)
        self.param_groups = self.optimizer.param_groups
        self.step, self.zero_grad = self.optimizer.step, self.optimizer.zero_grad


def overflow_within_a_wrapper(name: str, parameters: dict[str, Any]) -> Facts:
    run = Scaled(brisk(name, **parameters), scale=1024.0, optimizer=Wrapped)
    for step in range(3):
        run.step(step)
    run.step(3, IN_ONE_ENTRY)
    facts: Facts = {"skipped": run.state.step == 3}
    for step in range(4, 7):
        run.step(step)
    run.training.handle.flush()
    return {**facts, "ranks": agree(flat(run.training.weights))}


@EVERY_VALUE
def test_ranks_agree_on_a_skipped_step_whatever_the_optimizer_is_within(on_ranks, name, parameters):
    assert not_so(on_ranks(2, overflow_within_a_wrapper, name, parameters)) == []


def dice(state: baselines.MethodState) -> dict[str, Any]:
    """Where the dice are: a step that is skipped may have used some."""
    return {key: value for key, value in state.state_dict()["remembered"].items() if "dice" in key}


@EVERY_KIND
def test_a_step_that_overflows_anywhere_is_skipped_by_all_and_leaves_no_trace(on_ranks, name, parameters):
    assert not_so(on_ranks(2, overflow_before_each_step, name, parameters)) == []


def train_with_scales(name: str, parameters: dict[str, Any], scales: list[float]) -> torch.Tensor:
    run = Scaled(brisk(name, **parameters), scale=scales[0])
    for step, following in enumerate([*scales[1:], scales[-1]]):
        run.step(step, new_scale=following)
    return flat(run.training.weights)


@EVERY_VALUE
def test_the_loss_scale_does_not_matter_nor_its_fall_by_64(on_ranks, name, parameters):
    if name == "fp16":
        return  # its range is what scaling is for
    plain = on_ranks(2, train_with_scales, name, parameters, [1.0] * 6)
    falling = on_ranks(2, train_with_scales, name, parameters, [1024.0] * 3 + [16.0] * 3)
    assert all(torch.equal(one, other) for one, other in zip(plain, falling, strict=True))


def scaled_for_a_while(name: str, parameters: dict[str, Any], goes_on: str) -> Facts:
    """With a loss scaler, without one, and with one again; the first of two micro-batches each is not synchronised.

    Args:
        goes_on: how losses that are not scaled come: ``by itself``, or from a scaler that is ``disabled``.
    """
    run, by_hand = (Scaled(brisk(name, **parameters), scale=65536.0) for _ in range(2))
    scaler, disabled = run.scaler, torch.amp.GradScaler("cpu", enabled=False)
    facts: Facts = {}
    for step in range(9):
        is_scaled = step // 3 != 1
        if is_scaled or goes_on == "disabled":
            run.scaler = scaler if is_scaled else disabled
            run.step(step, first_batch=True)
        else:
            train_unscaled(run.training, step)
        train_unscaled(by_hand.training, step)
        facts[f"{step}: remembered"] = equal(remembered(run.state), remembered(by_hand.state))
        facts[f"{step}: weights"] = torch.equal(flat(run.training.weights), flat(by_hand.training.weights))
    return facts


def train_unscaled(training: Training, step: int) -> None:
    """What ``Scaled.step`` does with a first batch, without a scaler."""
    training.begin_step()
    with training.ddp.no_sync():
        training.ddp(gradients(100 + step, dist.get_rank())).backward()
    training.ddp(gradients(step, dist.get_rank())).backward()
    training.optimizer.step()


@EVERY_VALUE
@pytest.mark.parametrize("goes_on", ["by itself", "disabled"])
def test_a_loss_is_taken_as_scaled_only_if_it_is(on_ranks, goes_on, name, parameters):
    if name == "fp16":
        return  # its range is what scaling is for
    assert not_so(on_ranks(2, scaled_for_a_while, name, parameters, goes_on)) == []


def scaled_in_odd_ways() -> Facts:
    """Each against the loss that is not scaled, by the result of top-k, whose residuals tell of all steps before."""
    ways: dict[str, Callable[[Training, torch.amp.GradScaler, torch.Tensor], None]] = {
        "in a list": lambda _, scaler, loss: scaler.scale([loss])[0].backward(),
        "from a generator": lambda _, scaler, loss: next(iter(scaler.scale(each for each in [loss]))).backward(),
        "divided afterwards": lambda _, scaler, loss: (scaler.scale(loss * 4) / 4).backward(),
        "in two parts": lambda _, scaler, loss: (scaler.scale(loss / 2) + scaler.scale(loss / 2)).backward(),
        "long before": look_at_something_else_first,
    }
    facts: Facts = {}
    for way, backward in ways.items():
        one, by_hand = (Training(brisk("topk"), settings=LR) for _ in range(2))
        scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
        for step in range(6):
            given = gradients(step, dist.get_rank())
            one.begin_step()
            loss = one.ddp(given)
            if step % 2:
                backward(one, scaler, loss)
                scaler.unscale_(one.optimizer)
                scaler.update()
            else:
                loss.backward()
            one.optimizer.step()  # not the scaler's
            by_hand.step(given)
        facts[way] = torch.equal(flat(one.weights), flat(by_hand.weights))
    return facts


def look_at_something_else_first(training: Training, scaler: torch.amp.GradScaler, loss: torch.Tensor) -> None:
    scaled = scaler.scale(loss)
    with torch.no_grad():
        training.ddp(gradients(50, 0))
    scaled.backward()


def test_it_does_not_matter_how_a_scaled_loss_is_led_back(on_ranks):
    assert not_so(on_ranks(2, scaled_in_odd_ways)) == []


def train_in(name: str, parameters: dict[str, Any], dtype: torch.dtype) -> Facts:
    training = Training(brisk(name, **parameters), dtype=dtype, settings={"lr": 0.01})
    for step in range(4):
        training.step(gradients(step, dist.get_rank(), dtype=dtype))
    with training.handle.common():
        return {f"{dtype}: ranks agree": agree(flat(training.weights).float())}


def as_if_wide(name: str, parameters: dict[str, Any], dtype: torch.dtype) -> Facts:
    """The same gradients in fp32, in the same buckets, and rounded in the end alone."""
    state = brisk(name, **parameters)
    if state.as_given:  # it rounds earlier, as its name says, or as DDP does
        return {}
    halves = Given(*SHAPES, dtype=dtype)
    wide = Given(*SHAPES)
    wide.load_state_dict(halves.state_dict())
    narrow = Training(state, model=halves, settings={"lr": 0.0}, bucket_cap_mb=SMALL_BUCKETS_MB / 2)
    by_hand = Training(brisk(name, **parameters), model=wide, settings={"lr": 0.0})
    facts: Facts = {}
    for step in range(5):
        given = gradients(step, dist.get_rank(), dtype=dtype)
        expected = by_hand.step([gradient.float() for gradient in given]).to(dtype)
        facts[f"{dtype}: result of {step}"] = torch.equal(narrow.step(given), expected)
    return {**facts, "buckets": narrow.layouts == by_hand.layouts}


@EVERY_VALUE
def test_half_precision_is_computed_with_in_single_precision(on_ranks, name, parameters):
    for dtype in (torch.bfloat16, torch.float16):
        assert not_so(on_ranks(2, train_in, name, parameters, dtype)) == []
        assert not_so(on_ranks(2, as_if_wide, name, parameters, dtype)) == []


CLOSE = {"bf16": 0.05, "fp16": 0.01}
"""How near a result is that was rounded after each micro-batch, where that is more than fp32 does."""


def accumulate(name: str, parameters: dict[str, Any]) -> Facts:
    """Synchronises two micro-batches one by one, against a training that gets their sum."""
    state = brisk(name, **parameters)
    one, by_hand = Training(state, settings=LR), Training(brisk(name, **parameters), settings=LR)
    facts: Facts = {}
    for step in range(4):
        batches = [gradients(2 * step + each, dist.get_rank()) for each in range(2)]
        one.optimizer.zero_grad()
        one.layouts += [[], []]
        one.ddp(batches[0]).backward()
        answer = complaint_of(lambda batch=batches[1]: one.ddp(batch).backward())
        if not state.accumulates:
            return {answer: f"{name} would compress gradients again" in answer and "\n" not in answer}
        expected = by_hand.step([sum(parts) for parts in zip(*batches, strict=True)])
        result = flat([weight.grad for weight in one.weights])
        one.optimizer.step()
        facts[f"{step}: {answer}"] = answer == "taken"
        facts[f"{step}: right"] = torch.allclose(result, expected, rtol=0, atol=CLOSE.get(name, 1e-5))
    return facts


@EVERY_MEMORY
def test_micro_batches_that_are_synchronised_one_by_one_are_right_or_refused(on_ranks, name, parameters):
    assert not_so(on_ranks(2, accumulate, name, parameters)) == []


def join_unevenly(name: str, parameters: dict[str, Any]) -> str:
    training = Training(brisk(name, **parameters))
    try:
        with training.ddp.join():
            for step in range(2 + dist.get_rank()):
                training.step(gradients(step, dist.get_rank()))
    except RuntimeError as error:
        return str(error)
    return "taken"


@EVERY_MEMORY
def test_uneven_inputs_are_refused_where_ranks_would_get_out_of_step(on_ranks, name, parameters):
    wanted = f"{name} cannot train on uneven inputs" if not brisk(name, **parameters).may_join else "taken"
    assert all(wanted in answer for answer in on_ranks(2, join_unevenly, name, parameters))


@pytest.mark.parametrize(("name", "parameters"), WITHOUT_RESIDUALS, ids=str)
def test_what_holds_no_residuals_is_not_refused_for_them(name, parameters):
    state = brisk(name, **parameters)
    assert not state.has_residuals
    assert state.may_join == (name != "powersgd"), "which remembers Q"
    assert state.accumulates == ("ratio" in parameters), "where it loses nothing"


# What a training may do beside, against one that does the same by hand


BESIDE = (
    *(beside.accumulated, beside.clipped, beside.clipped_under_a_scaler, beside.frozen, beside.frozen_later),
    *(beside.frozen_between_meetings, beside.unfrozen_later, beside.ignored, beside.beside_a_scaled_model),
    *(beside.by_a_closure, beside.in_groups, beside.unused, beside.unused_for_once),
    beside.unused_for_once_beside_a_frozen_one,
    *(beside.unused_in_the_first_bucket, beside.of_sparse_rows_beside_a_frozen_weight),
    *(beside.in_a_static_graph, beside.of_sparse_rows, beside.of_sparse_rows_after_a_skipped_step),
)


@pytest.mark.parametrize("check", BESIDE, ids=lambda each: each.__name__)
@EVERY_KIND
def test_a_training_ends_as_one_that_does_the_same_by_hand(on_ranks, check, name, parameters):
    assert not_so(on_ranks(2, check, partial(brisk, name, **parameters))) == []


@pytest.mark.parametrize("where", ["outside", "inside"])
def test_a_compiled_training_ends_as_one_that_is_not(on_ranks, where):
    methods = {f"{name} {parameters}": partial(brisk, name, **parameters) for name, parameters in KINDS}
    assert not_so(on_ranks(2, beside.compiled, where, methods)) == []


# Any gradients, any shapes, any number of workers


UPDATES = ("demo", "onebit_adam", "zeroone_adam")
"""Methods whose result is an update of a size of its own, and no gradient."""


def without_anything_to_say(name: str, parameters: dict[str, Any]) -> Facts:
    """All gradients zero, then all of them 0.5."""
    state = brisk(name, **parameters)
    training = Training(state, settings=LR)
    before = flat(training.weights).clone()
    for _ in range(4):
        training.step([torch.zeros(shape) for shape in SHAPES])
    still = flat(training.weights)
    # Pruning sets to 0, and a fifth of a weight five times is not always the weight.
    stays = torch.allclose(still[still != 0], before[still != 0], rtol=1e-6, atol=0)
    results = torch.stack([training.step([torch.full(shape, 0.5) for shape in SHAPES]) for _ in range(4)])
    most = math.inf if name in UPDATES else 0.5 + 1e-3
    return {
        "zero stays zero": stays,
        "0.5 on average, or less": 0 < float(results.mean()) <= most,
        "no entry turns": float(results.sum(0).min()) >= -1e-3,
        "ranks": agree(flat(training.weights)),
    }


@EVERY_KIND
@pytest.mark.parametrize("p", [2, 5])
def test_gradients_without_any_variance_are_no_trouble(on_ranks, name, parameters, p):
    assert not_so(on_ranks(p, without_anything_to_say, name, parameters)) == []


ODD_SHAPES = ((0,), (), (1,), (1, 1), (1, 9), (3, 1, 5), (129,), (16, 17))
ONE_ENTRY, BESIDE_AN_EMPTY_MATRIX = ((1,),), ((2, 0, 3), (3, 2))
A_BUCKET_EACH_MB = 1 / 2**20

MANY = 7
"""From so many workers on, which take most time, models of few entries are no other matter than with fewer."""


def train_odd_models(name: str, parameters: dict[str, Any]) -> Facts:
    """Whether all ranks hold the same finite weights whenever they should: in one bucket, then in one for each."""
    facts: Facts = {}
    of_few = () if dist.get_world_size() >= MANY else (ONE_ENTRY, BESIDE_AN_EMPTY_MATRIX)
    for shapes in (ODD_SHAPES, *of_few):
        state = brisk(name, **parameters)
        training = Training(state, shapes=shapes, settings=LR, bucket_cap_mb=A_BUCKET_EACH_MB)
        for step in range(4):
            training.step(gradients(step, dist.get_rank(), shapes))
            if (step + 1) % state.agrees_every == 0:
                with state.common():
                    facts[f"{shapes}: {step}"] = agree(flat(training.weights))
        facts[f"{shapes}: buckets"] = [len(layout) for layout in training.layouts] == [1, *[len(shapes)] * 3]
    return facts


@EVERY_KIND
@pytest.mark.parametrize("p", [1, 2, 5, 7, 8])
def test_any_number_of_workers_and_any_shape(on_ranks, name, parameters, p):
    assert not_so(on_ranks(p, train_odd_models, name, parameters)) == []


# Whose scaler it is


def test_a_scaler_is_a_model_s_if_its_loss_leads_back_to_it():
    own, other = nn.Linear(3, 2), nn.Linear(3, 2)
    weights, given = frozenset(own.parameters()), torch.ones(1, 3, requires_grad=True)
    hidden = checkpoint(own, given, use_reentrant=True).sum()
    assert leads_back(own(given).sum(), weights)
    assert leads_back(hidden, weights)  # as far as can be known
    assert not leads_back(other(given).sum(), weights)
    assert not leads_back(own(given).sum().detach(), weights)
