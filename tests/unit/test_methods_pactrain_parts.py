"""PacTrain's parts one by one: scores, schedule, GSE, variants, error feedback, adaptive choices."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from ranks import Training, flat, gradients
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import baselines
from baselines._adaptive import (
    Chooser,
    Contents,
    Cost,
    Mode,
    Sample,
    best_mode,
    covered,
    exploration,
    measured_costs,
)
from baselines._pruning import cubic_density, hessian_gradient
from baselines.pactrain import State

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


def prune_by_grasp() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    model = small_network()
    before = [weight.detach().clone() for weight in model.parameters()]
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = State(prune="grasp", density=0.5, warmup_steps=0)
    baselines.register(ddp, state, optimizer=optimizer, loss=lambda: loss_on(model, dist.get_rank()))
    return before, [weight.detach() for weight in model.parameters()]


def test_grasp_keeps_the_greatest_scores_of_all_ranks(on_ranks):
    products = sum(on_ranks(2, own_hessian_gradient, 2)) / 2
    (before, after), other = on_ranks(2, prune_by_grasp)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(after, other[1], strict=True))
    matrices_before, matrices_after = (
        flat([each for each in weights if each.ndim == 2]) for weights in (before, after)
    )
    scores = matrices_before * products
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
        ({"variant": "ideal"}, "variant.*'faithful', 'prototype' or 'best'"),
    ],
)
def test_what_does_not_go_together_is_refused(parameters, complaint):
    with pytest.raises(ValueError, match=f"(?s){complaint}"):
        State(**parameters)


def test_a_variant_yields_to_what_is_given_beside_it():
    assert State(variant="prototype").stable_after == 10
    assert State(variant="prototype", stable_after=3).stable_after == 3


# Adaptive


@given(spans=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), max_size=10))
def test_overlapping_spans_count_once(spans):
    seconds = {second for start, length in spans for second in range(start, start + length)}
    assert covered([(start, start + length) for start, length in spans]) == len(seconds)


CONTENTS = Contents(entries=1_000_000, survivors=200_000, parts=10, entry_bytes=4)
COSTS = {Mode.DENSE: Cost(1e-9, 0.0), Mode.COMPACT: Cost(2e-9, 1e-4), Mode.TERNARY: Cost(8e-9, 3e-4)}


@pytest.mark.parametrize(
    ("goodput_bps", "mode"), [(1e8, Mode.TERNARY), (2e10, Mode.COMPACT), (1e13, Mode.DENSE)], ids=str
)
def test_the_slower_the_link_the_shorter_what_travels(goodput_bps, mode):
    assert best_mode(CONTENTS, COSTS, goodput_bps, 4) is mode


@given(
    goodput_bps=st.floats(1e6, 1e12),
    sync_s=st.lists(st.floats(1e-3, 10), min_size=3, max_size=3),
    buckets=st.integers(1, 20),
)
def test_measured_costs_give_the_measured_times_again(goodput_bps, sync_s, buckets):
    contents = Contents(1000, 200, 3, 4)
    samples = {
        mode: [Sample(seconds, seconds, 0.1 * seconds, buckets * contents.sent_bytes(mode, 4))] * 3
        for mode, seconds in zip(Mode, sync_s, strict=True)
    }
    costs = measured_costs(samples, goodput_bps, buckets * contents.entries, buckets)
    again_s = {
        mode: buckets * (8 * contents.sent_bytes(mode, 4) / goodput_bps + contents.entries * codec_s + bucket_s)
        for mode, (codec_s, bucket_s) in costs.items()
    }
    offsets_s = [again_s[mode] - seconds for mode, seconds in zip(Mode, sync_s, strict=True)]
    assert offsets_s == pytest.approx([offsets_s[0]] * 3, abs=1e-6 * (1 + max(again_s.values())))
    assert min(cost.bucket_s for cost in costs.values()) == 0


def test_a_choice_is_made_anew_when_the_goodput_has_changed_by_more_than_a_fifth():
    chooser = Chooser(State(adaptive=True))
    chooser._believed_bps = 1e9
    assert not chooser._changed(5e8)  # what the choice's shorter messages reach: the reference from now on
    assert not chooser._changed(5.9e8)
    assert chooser._changed(2.5e8)
    assert chooser._believed_bps == pytest.approx(5e8)


@pytest.mark.parametrize(("dense_steps", "explored"), [(9, 3), (10, 2)])
def test_what_dense_steps_have_shown_is_not_explored_again(dense_steps, explored):
    assert len(set(exploration(dense_steps))) == explored


def choose_on_ranks() -> tuple[list[Mode], list[str], torch.Tensor]:
    state = State(adaptive=True, warmup_steps=2, density=0.3)
    training = Training(state)
    for step in range(state.steady_from_step + 1):
        training.step(gradients(step, dist.get_rank()))
    kinds = [kind for kind, _ in state.take_notes() if kind != "formula_bytes"]
    return list(state.chooser._modes.values()), kinds, flat(training.weights)


@EVERY_P
def test_rank_0_chooses_for_all(on_ranks, p):
    (modes, decisions, weights), *others = on_ranks(p, choose_on_ranks)
    assert len(modes) > 1
    assert "adaptive_goodput_bps" in decisions
    for their_modes, their_decisions, their_weights in others:
        assert (their_modes, their_decisions) == (modes, [])
        assert torch.equal(their_weights, weights)
