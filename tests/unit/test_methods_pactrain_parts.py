"""PacTrain's parts one by one: scores, schedule, GSE, variants, error feedback, adaptive choices."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from ranks import Training, flat, gradients
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import baselines
from baselines._adaptive import seen_together
from baselines._choice import EXPLORATION, WINDOW_STEPS, Mode, Policy, Sample
from baselines._pruning import cubic_density, hessian_gradient
from baselines.pactrain import State

pytestmark = pytest.mark.methods

EVERY_P = pytest.mark.parametrize("p", [2, 3, 4])
DOUBLE = {"dtype": torch.float64}


# GraSP


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def batch_of(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(6, 3, generator=generator, **DOUBLE), torch.randn(6, 2, generator=generator, **DOUBLE)


def loss_on(model: nn.Module, rank: int) -> torch.Tensor:
    inputs, outputs = batch_of(rank)
    return nn.functional.mse_loss(model(inputs), outputs)


def own_hessian_gradient(least_dimensions: int) -> torch.Tensor:
    model = small_network()
    weights = [weight for weight in model.parameters() if weight.ndim >= least_dimensions]
    return flat(hessian_gradient(loss_on(model, dist.get_rank()), weights))


@EVERY_P
def test_the_hessian_s_product_is_the_whole_hessian_s(on_ranks, p):
    """Against the Hessian matrix of the mean loss, which torch builds entry by entry."""
    model = small_network()
    names, weights = zip(*model.named_parameters(), strict=True)

    def mean_loss(vector: torch.Tensor) -> torch.Tensor:
        parts = vector.split([weight.numel() for weight in weights])
        values = {name: part.view(weight.shape) for name, weight, part in zip(names, weights, parts, strict=True)}
        called = [torch.func.functional_call(model, values, (batch_of(rank)[0],)) for rank in range(p)]
        return sum(nn.functional.mse_loss(out, batch_of(rank)[1]) for rank, out in enumerate(called)) / p

    at = flat(list(weights))
    hessian = torch.autograd.functional.hessian(mean_loss, at)
    gradient = torch.autograd.functional.jacobian(mean_loss, at)
    torch.testing.assert_close(sum(on_ranks(p, own_hessian_gradient, 1)) / p, hessian @ gradient)


def prune_by_grasp(score: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    model = small_network()
    before = [weight.detach().clone() for weight in model.parameters()]
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = State(prune=score, density=0.5, warmup_steps=0)
    baselines.register(ddp, state, optimizer=optimizer, loss=lambda: loss_on(model, dist.get_rank()))
    return before, [weight.detach() for weight in model.parameters()]


@pytest.mark.parametrize(("score", "of"), [("grasp", torch.Tensor.clone), ("grasp-magnitude", torch.Tensor.abs)])
def test_grasp_keeps_the_greatest_scores_of_all_ranks(on_ranks, score, of):
    products = sum(on_ranks(2, own_hessian_gradient, 2)) / 2
    (before, after), other = on_ranks(2, prune_by_grasp, score)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(after, other[1], strict=True))
    matrices_before, matrices_after = (
        flat([each for each in weights if each.ndim == 2]) for weights in (before, after)
    )
    scores = of(matrices_before * products)
    assert torch.equal(matrices_after == 0, scores < scores.topk(10).values.min())


def register_grasp_without_a_loss() -> None:
    with pytest.raises(ValueError, match="needs the Hessian"):
        Training(State(prune="grasp"))


def test_grasp_without_a_loss_is_refused(on_ranks):
    on_ranks(2, register_grasp_without_a_loss)


# Schedule and scope


@given(density=st.floats(0.01, 1), events=st.integers(1, 20))
def test_the_density_comes_down_to_what_was_asked(density, events):
    stages = [cubic_density(density, event, events) for event in range(events + 1)]
    assert stages[0] == 1
    assert stages[-1] == pytest.approx(density)
    assert all(later <= sooner for sooner, later in pairwise(stages))


def masks_over_time(parameters: dict[str, Any], steps: int) -> list[torch.Tensor]:
    """Which prunable weights are not zero, after each step."""
    training = Training(State(**parameters), settings={"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1})
    masks = []
    for step in range(steps):
        training.step(gradients(step, dist.get_rank()))
        masks.append(flat([weight for weight in training.weights if weight.ndim >= 2]) != 0)
    return masks


def test_scheduled_masks_are_nested_and_end_at_the_density(on_ranks):
    schedule = {"density": 0.1, "warmup_steps": 1, "prune_steps": 3, "prune_every": 2}
    masks, _ = on_ranks(2, masks_over_time, schedule, 8)
    for sooner, later in pairwise(masks):
        assert not (later & ~sooner).any()
    n = len(masks[0])
    kept = [int(mask.sum()) for mask in masks]
    stages = [round(cubic_density(0.1, event, 3) * n) for event in (1, 1, 2, 2, 3, 3, 3, 3)]
    assert kept == stages


def test_layers_may_be_pruned_each_by_itself(on_ranks):
    shares = on_ranks(2, kept_of_each_layer)[0]
    assert all(share == pytest.approx(0.5, abs=0.02) for share in shares)


def kept_of_each_layer() -> list[float]:
    training = Training(State(density=0.5, scope="layer", warmup_steps=0))
    return [float((weight != 0).float().mean()) for weight in training.weights if weight.ndim >= 2]


# GSE, with the optimizers that bring weights back


def survivors_under(optimizer: str, gse: bool) -> list[bool]:
    settings = {"lr": 0.01, "weight_decay": 0.1, **({"momentum": 0.9} if optimizer == "SGD" else {})}
    training = Training(
        State(density=0.3, warmup_steps=2, gse=gse), optimizer=getattr(torch.optim, optimizer), settings=settings
    )
    for step in range(2):
        training.step(gradients(step, dist.get_rank()))
    pruned = flat(training.weights) == 0
    assert pruned.any()
    after = []
    for step in range(2, 6):
        training.step(gradients(step, dist.get_rank()))
        after.append(bool((flat(training.weights)[pruned] == 0).all()))
    return after


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW"])
@pytest.mark.parametrize("gse", [True, False])
def test_gse_and_nothing_else_keeps_weights_pruned(on_ranks, optimizer, gse):
    for after in on_ranks(2, survivors_under, optimizer, gse):
        assert after == [gse] * 4


# What does not change the result


def synchronised(parameters: dict[str, Any]) -> list[torch.Tensor]:
    training = Training(State(density=0.4, warmup_steps=1, **parameters), dtype=torch.float64)
    return [training.step(gradients(step, dist.get_rank(), **DOUBLE)) for step in range(6)]


@EVERY_P
@pytest.mark.parametrize(
    ("values", "other"),
    [("fp32", {"compact": False}), ("fp32", {"stable_after": 3}), ("ternary", {"compact": False})],
    ids=str,
)
def test_how_survivors_travel_does_not_matter(on_ranks, other, values, p):
    plain, switched = (on_ranks(p, synchronised, {"values": values, **more}) for more in ({}, other))
    for mine, theirs in zip(plain, switched, strict=True):
        for one, another in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one, another)


def sent_and_held(density: float) -> tuple[torch.Tensor, torch.Tensor]:
    """With the best variant: what came out of all steps, and what went in where weights survive, less what is held."""
    state = State(variant="best", density=density, warmup_steps=0)
    training = Training(state, shapes=((40, 30),), bucket_cap_mb=25, dtype=torch.float64)
    came_out, went_in = torch.zeros(1200, **DOUBLE), torch.zeros(1200, **DOUBLE)
    kept = flat(training.weights) != 0
    for step in range(30):
        given = gradients(step, dist.get_rank(), ((40, 30),), **DOUBLE)
        came_out += training.step(given)
        went_in += flat(given) * kept
    (held,) = state.residual.tensors()
    assert held.abs().max() < 30
    return came_out, went_in - held


@EVERY_P
@pytest.mark.parametrize("density", [0.3, 1.0])
def test_error_feedback_loses_nothing(on_ranks, density, p):
    results = on_ranks(p, sent_and_held, density)
    mean = sum(gone for _, gone in results) / p
    for came_out, _ in results:
        torch.testing.assert_close(came_out, mean)


def prototype_s_step() -> tuple[torch.Tensor, torch.Tensor]:
    state = State(variant="prototype", density=1.0, stable_after=0)
    training = Training(state, shapes=((4, 5),), bucket_cap_mb=25, dtype=torch.float64)
    given = gradients(0, dist.get_rank(), ((4, 5),), **DOUBLE)
    return training.step(given), flat(given)


@EVERY_P
def test_the_prototype_sums_nearest_codes_times_the_mean_scale(on_ranks, p):
    results = on_ranks(p, prototype_s_step)
    scales = [min(float(own.abs().max()), 2.5 * float(own.norm()) / math.sqrt(20)) for _, own in results]
    codes = sum((own / scale).round().clamp(-1, 1) for (_, own), scale in zip(results, scales, strict=True))
    for came_out, _ in results:
        torch.testing.assert_close(came_out, codes * sum(scales) / p)


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({"error_feedback": True}, "error_feedback.*ternary"),
        ({"variant": "best", "values": "fp32"}, "error_feedback.*ternary"),
        ({"adaptive": True, "gse": False}, "adaptive.*gse"),
        ({"variant": "best", "adaptive": True}, "adaptive.*error_feedback"),
        ({"variant": "ideal"}, "variant.*'faithful', 'prototype', 'best' or 'local'"),
    ],
)
def test_what_does_not_go_together_is_refused(parameters, complaint):
    with pytest.raises(ValueError, match=f"(?s){complaint}"):
        State(**parameters)


def test_a_variant_yields_to_what_is_given_beside_it():
    assert State(variant="prototype").stable_after == 10
    assert State(variant="prototype", stable_after=3).stable_after == 3


# Adaptive


def choose_on_ranks(steps_after: int) -> tuple[list[Any], set[str], list[float], torch.Tensor]:
    """Ways that were chosen and are scheduled, kinds of notes, formula bytes of each step, weights."""
    state = State(adaptive=True, warmup_steps=2, density=0.3)
    training, ways, kinds, sent = Training(state), [], set(), []
    for step in range(2 + len(EXPLORATION) + steps_after):
        training.step(gradients(step, dist.get_rank()))
        ways.append((state.chooser.policy.way, list(state.chooser._schedule or [])))
        notes = state.take_notes()
        kinds |= {kind for kind, _ in notes}
        sent.append(sum(value for kind, value in notes if kind == "formula_bytes"))
    return ways, kinds - {"formula_bytes"}, sent, flat(training.weights)


@EVERY_P
def test_all_ranks_choose_the_same_from_what_all_of_them_measured(on_ranks, p):
    (ways, decisions, _, weights), *others = on_ranks(p, choose_on_ranks, 3 * WINDOW_STEPS)
    assert "adaptive_goodput_bps" in decisions
    for their_ways, their_decisions, _, their_weights in others:
        assert (their_ways, their_decisions) == (ways, set())
        assert torch.equal(their_weights, weights)


def steady() -> Any:
    """A policy for which compact is always best, and nothing else worth a look: what is done does not hang on times."""
    return mock.patch.multiple(Policy, review=lambda *_: None, schedule=lambda _: [(Mode.COMPACT,)] * WINDOW_STEPS)


def bytes_of_a_window() -> list[float]:
    with steady():
        return choose_on_ranks(WINDOW_STEPS)[2][-WINDOW_STEPS:]


def values_of_steps() -> list[str]:
    """The values of a state that would make each step of an exploration just so, and of a window after it."""
    state = State(adaptive=True, warmup_steps=2, density=0.3)
    training, values = Training(state), []
    with steady():
        for step in range(2 + len(EXPLORATION) + WINDOW_STEPS):
            values.append(state.steps_as["values"])
            training.step(gradients(step, dist.get_rank()))
    return values[2:]


def test_it_is_known_which_fixed_choice_a_step_is_like(on_ranks):
    ternary = [Mode.TERNARY in way for way in EXPLORATION] + [False] * WINDOW_STEPS
    assert on_ranks(2, values_of_steps) == [["ternary" if each else "fp32" for each in ternary]] * 2
    assert State().steps_as == {}, "nothing is chosen"
    assert State(adaptive=True).steps_as["values"] == "ternary", "as the byte formula"


@EVERY_P
def test_the_times_that_ranks_tell_each_other_are_counted(on_ranks, p):
    seconds_of_sync_and_codec = 2 * 4
    for *others, of_review in on_ranks(p, bytes_of_a_window):
        assert len(set(others)) == 1
        assert of_review - others[0] == (p - 1) * WINDOW_STEPS * seconds_of_sync_and_codec


def test_the_rank_that_begins_last_tells_how_long_a_step_takes():
    way = (Mode.TERNARY,)
    rows = [[(3.0, 0.5), (2.0, 0.1)], [(1.0, 0.2), (4.0, 0.3)]]
    assert seen_together([way, way], rows) == [Sample(way, 1.0, 0.5), Sample(way, 2.0, 0.3)]


def skip_a_step() -> list[bool]:
    """Of each step in a window, whether it was taken to be ages long; a backward pass before the last led to none."""
    state = State(adaptive=True, warmup_steps=2, density=0.3)
    training = Training(state)
    with steady():
        for step in range(2 + len(EXPLORATION) + 2):
            training.step(gradients(step, dist.get_rank()))
        training.layouts.append([])
        training.ddp(gradients(9, dist.get_rank())).backward()
        state.chooser._began_at -= 1e6
        training.step(gradients(10, dist.get_rank()))
    return [each.sync_s > 1e5 for each in state.chooser._samples]


def test_a_step_that_is_skipped_is_not_timed(on_ranks):
    assert on_ranks(2, skip_a_step) == [[False] * 3] * 2


def resume_adaptive() -> tuple[bool, bool, torch.Tensor]:
    """Whether masks and dice are those that were saved, whether it explores again, and the weights in the end."""
    state = State(adaptive=True, warmup_steps=2, density=0.3)
    training, begun = Training(state), 2 + len(EXPLORATION)
    for step in range(begun + 3):
        training.step(gradients(step, dist.get_rank()))
    fresh = State(adaptive=True, warmup_steps=2, density=0.3)
    fresh.load_state_dict(state.state_dict())
    other = Training(fresh)
    other.model.load_state_dict(training.model.state_dict())
    pairs = [(one, fresh.tracker.mask_of(two)) for one, two in zip(masks_of(state), other.weights, strict=True)]
    same = all(one is two or torch.equal(one, two) for one, two in pairs)
    same &= torch.equal(state.dice.state_dict({}), fresh.dice.state_dict({}))
    ways = []
    for step in range(begun + 3, 2 * begun + 3):
        other.step(gradients(step, dist.get_rank()))
        ways.append(fresh.chooser.policy.way if fresh.chooser._schedule is None else fresh.chooser._schedule[0])
    return same, set(EXPLORATION) <= set(ways), flat(other.weights)


def masks_of(state: State) -> list[torch.Tensor | None]:
    return [state.tracker.mask_of(weight) for weight in state.model.parameters()]


def test_a_resumed_adaptive_training_has_its_masks_and_explores_anew(on_ranks):
    (same, explores, weights), (their_same, their_explores, their_weights) = on_ranks(2, resume_adaptive)
    assert (same, explores, their_same, their_explores) == (True,) * 4
    assert torch.equal(weights, their_weights)


def overflow_where_pruned() -> tuple[int, bool, float]:
    """Steps made, whether gradients are finite, and the loss scale, after an overflow in a pruned entry on one rank."""
    state = State(warmup_steps=1, density=0.3)
    training, scaler = Training(state), torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(3):
        given = gradients(step, dist.get_rank())
        if step == 2 and dist.get_rank() == 1:
            given[0][training.weights[0] == 0] = torch.inf
        training.begin_step()
        scaler.scale(training.ddp(given)).backward()
        finite = bool(flat([weight.grad for weight in training.weights]).isfinite().all())
        scaler.step(training.optimizer)
        scaler.update()
    assert not training.weights[0].all()
    return state.step, finite, scaler.get_scale()


def test_an_overflow_of_what_is_pruned_does_not_count(on_ranks):
    assert on_ranks(2, overflow_where_pruned) == [(3, True, 1024.0)] * 2
