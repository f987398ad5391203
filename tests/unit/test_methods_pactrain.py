"""PacTrain: what is pruned stays pruned, and what survives is synchronised without loss, or right on average."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from posing import posing_as_a_gpu
from ranks import SHAPES, Training, assert_regrouped, flat, gradients
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import baselines
from baselines import pactrain
from baselines._pruning import most_important, prove_equal
from baselines._quantise import Dice, own_scales, refuse_overflow, ternarise
from baselines.pactrain import State

pytestmark = pytest.mark.methods

EVERY_P = pytest.mark.parametrize("p", [2, 3, 4])
EVERY_KIND = pytest.mark.parametrize("values", ["fp32", "ternary"])


def exact_gradients(step: int, rank: int, p: int) -> list[torch.Tensor]:
    """Multiples of p, so small that their mean has no rounding error whatever the order of additions."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return [p * torch.randint(-50, 50, shape, generator=generator).float() for shape in SHAPES]


def exact_mean(step: int, p: int) -> torch.Tensor:
    return sum(flat(exact_gradients(step, rank, p)) for rank in range(p)) / p


# Pruning


@given(
    sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5),
    density=st.floats(0, 1, exclude_min=True),
    levels=st.integers(1, 20),
    seed=st.integers(0, 10**6),
)
def test_the_mask_keeps_exactly_that_share_and_the_largest(sizes, density, levels, seed):
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randint(-levels, levels + 1, size, generator=generator).float() for size in sizes]
    masks = most_important([weight.abs() for weight in weights], density)
    assert [mask.shape for mask in masks] == [weight.shape for weight in weights]
    magnitude, mask = flat(weights).abs(), flat(masks)
    assert mask.sum() == max(1, round(density * mask.numel()))
    if not mask.all():
        assert magnitude[mask].min() >= magnitude[~mask].max()


def weights_by_step(parameters: dict[str, Any], steps: int) -> list[torch.Tensor]:
    """Before each step, and after the last."""
    training = Training(State(**parameters), settings={"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1})
    history = [flat(training.weights)]
    for step in range(steps):
        training.step(gradients(step, dist.get_rank()))
        history.append(flat(training.weights))
    return history


PRUNABLE = flat([torch.full(shape, len(shape) >= 2) for shape in SHAPES])


@EVERY_P
@pytest.mark.parametrize("warmup_steps", [0, 1, 3])
def test_the_model_is_pruned_once_after_the_warm_up(on_ranks, warmup_steps, p):
    parameters = {"density": 0.3, "warmup_steps": warmup_steps}
    (history, *_) = on_ranks(p, weights_by_step, parameters, 6)
    kept = round(0.3 * int(PRUNABLE.sum()))
    for step, weights in enumerate(history):
        survivors = weights != 0
        assert survivors[~PRUNABLE].all()
        assert survivors[PRUNABLE].sum() == (kept if step >= warmup_steps else PRUNABLE.sum())
    assert torch.equal(history[-1] != 0, history[warmup_steps] != 0)
    assert not torch.equal(history[-1], history[warmup_steps])


OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "heavy ball": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
    "nesterov": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True}),
    "adam": (torch.optim.Adam, {"lr": 0.1, "weight_decay": 0.1}),
    "amsgrad": (torch.optim.Adam, {"lr": 0.1, "weight_decay": 0.1, "amsgrad": True}),
    "adamw": (torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.1}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "centered": True}),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.1, "weight_decay": 0.1}),
}


def survivors_by_step(values: str, optimizer: str) -> list[torch.Tensor]:
    kind, settings = OPTIMIZERS[optimizer]
    training = Training(State(density=0.3, values=values, warmup_steps=4), optimizer=kind, settings=settings)
    history = []
    for step in range(12):
        training.step(gradients(step, dist.get_rank()))
        history.append(flat(training.weights) != 0)
    return history


@EVERY_KIND
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_no_optimizer_brings_a_weight_back(on_ranks, optimizer, values):
    (history, *_) = on_ranks(2, survivors_by_step, values, optimizer)
    assert history[2].all()
    pruned = ~history[3]
    assert pruned.sum() == PRUNABLE.sum() - round(0.3 * int(PRUNABLE.sum()))
    assert all(torch.equal(~later, pruned) for later in history[4:])


def disagree() -> None:
    mask = torch.ones(10, dtype=torch.bool)
    prove_equal([mask, mask], dist.group.WORLD)
    mask[dist.get_rank()] = False
    with pytest.raises(RuntimeError, match="masks differ"):
        prove_equal([mask], dist.group.WORLD)


@EVERY_P
def test_ranks_with_different_masks_are_stopped(on_ranks, p):
    on_ranks(p, disagree)


# Compact all-reduce


def synchronise(values: str, warmup_steps: int, steps: int) -> tuple[list[torch.Tensor], torch.Tensor, list[Any]]:
    """What exact gradients became in each step, the weights that survived, and DDP's buckets."""
    training = Training(State(density=0.3, values=values, warmup_steps=warmup_steps))
    p, rank = dist.get_world_size(), dist.get_rank()
    results = [training.step(exact_gradients(step, rank, p)) for step in range(steps)]
    return results, flat(training.weights) != 0, training.layouts


@EVERY_P
@pytest.mark.parametrize("warmup_steps", [0, 1, 3])
def test_compact_all_reduce_is_the_masked_mean_bit_for_bit(on_ranks, warmup_steps, p):
    for results, mask, layouts in on_ranks(p, synchronise, "fp32", warmup_steps, 5):
        assert_regrouped(layouts)  # with warmup_steps = 0, between two compact steps
        assert 0 < mask.sum() < mask.numel()
        for step, result in enumerate(results):
            mean = exact_mean(step, p)
            assert torch.equal(result, mean * mask if step >= warmup_steps else mean)


def compact_beside_dense() -> list[tuple[torch.Tensor, torch.Tensor]]:
    state = State(density=0.3, warmup_steps=0)
    compact, dense = Training(state), Training(baselines.get("dense").State())
    mask = flat(compact.weights) != 0
    pairs = []
    for step in range(3):
        given = gradients(step, dist.get_rank())
        pairs.append((compact.step(given), dense.step(given) * mask))
    return pairs


@EVERY_P
def test_compact_all_reduce_is_dense_under_the_mask(on_ranks, p):
    """Any numbers: the ring adds up a compact tensor in another order, so that the last bits may differ if p > 2."""
    for pairs in on_ranks(p, compact_beside_dense):
        for compact, dense in pairs:
            assert torch.equal(compact != 0, dense != 0)
            if p == 2:
                assert torch.equal(compact, dense)
            torch.testing.assert_close(compact, dense, rtol=1e-5, atol=1e-6)


class Convolutions(nn.Module):
    """Channels-last weights, and a branch so faint that all of it is pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3))
        self.head, self.faint = nn.Linear(12, 4), nn.Linear(12, 4, bias=False)
        with torch.no_grad():
            self.faint.weight.mul_(1e-6)
        self.to(memory_format=torch.channels_last)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        features = self.features(inputs).mean((2, 3))
        return self.head(features) + self.faint(features)


def convolve(values: str, as_view: bool) -> list[torch.Tensor]:
    """The weights after each step."""
    torch.manual_seed(0)
    model = Convolutions()
    assert not model.features[0].weight.is_contiguous()
    ddp = DistributedDataParallel(model, bucket_cap_mb=1e-4, gradient_as_bucket_view=as_view)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1, momentum=0.9)
    baselines.register(ddp, State(density=0.2, values=values, warmup_steps=2), optimizer=optimizer)
    torch.manual_seed(1 + dist.get_rank())
    history = []
    for step in range(6):
        optimizer.zero_grad()
        ddp(torch.randn(4, 3, 8, 8)).square().mean().backward()
        if step >= 2:
            for weight in model.parameters():
                assert not weight.grad[weight == 0].any()
            survivors = model.features[0].weight.grad[model.features[0].weight != 0]
            assert survivors.any() if values == "ternary" else survivors.all()
        optimizer.step()
        history.append(flat(list(model.parameters())))
    assert not model.faint.weight.any()
    return history


@EVERY_KIND
@pytest.mark.parametrize("as_view", [False, True])
def test_masks_follow_the_order_of_memory_and_may_prune_a_layer_whole(on_ranks, as_view, values):
    first, *others = on_ranks(3, convolve, values, as_view)
    assert torch.equal(first[-1] == 0, first[2] == 0)
    for other in others:
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(first, other, strict=True))


# Ternary quantisation


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_scale_is_the_largest_entry_but_at_most_two_and_a_half_sigma(dtype):
    flat_part, spiked, single = torch.tensor([3.0, -3.0, 3.0]), torch.tensor([0.0] * 99 + [-100.0]), torch.tensor([7.0])
    many = torch.full((70_000,), 0.25)  # more than fp16 can count
    values = torch.cat([flat_part, spiked, single, many]).to(dtype)
    scales = own_scales(values, [3, 100, 0, 1, 70_000])
    tiny = torch.finfo(dtype).tiny
    torch.testing.assert_close(scales, torch.tensor([3.0, 2.5 * 10.0, tiny, 7.0, 0.25], dtype=dtype))


@given(seed=st.integers(0, 10**6))
def test_codes_are_ternary_and_saturate_beyond_the_scale(seed):
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(50, generator=generator)
    ratio = torch.cat([x[:20] / 0.5, x[20:] / 2])
    codes = ternarise(x, [20, 30], torch.tensor([0.5, 2.0]), Dice(torch.device("cpu"), seed))
    assert codes.dtype == torch.int8
    assert set(codes.tolist()) <= {-1, 0, 1}
    assert (codes * ratio >= 0).all()
    beyond = ratio.abs() >= 1
    assert torch.equal(codes[beyond].float(), ratio[beyond].sign())


def test_a_code_is_never_two_even_if_the_sum_of_ratio_and_dice_is_rounded_up():
    almost_one = torch.tensor([1 - 2**-24])
    assert almost_one + 1 == 2
    dice = mock.Mock(spec=Dice, like=lambda values: almost_one)
    assert ternarise(torch.ones(1), [1], torch.ones(1), dice) == 1


@pytest.mark.parametrize("way", [nullcontext, posing_as_a_gpu], ids=["cpu", "gpu"])
def test_codes_are_right_on_average(way):
    """Power: a bias of 1 % of the scale, away from or towards zero, would be 10 standard errors; 5 are allowed."""
    draws = 4000
    x = torch.linspace(-1, 1, 101, dtype=torch.float64)
    counts, scales = [40, 61], torch.tensor([1.0, 8.0])
    values = torch.cat([part * scale for part, scale in zip(x.split(counts), scales, strict=True)])
    dice = Dice(torch.device("cpu"), 0)
    with way():
        codes = torch.stack([ternarise(values, counts, scales, dice) for _ in range(draws)])
    error = codes.double().mean(0) - x
    variance = x.abs() * (1 - x.abs()) / draws
    assert 0.01 * x.abs().gt(0).sum() / variance.sum().sqrt() > 10
    assert (error.abs() <= 5 * variance.sqrt()).all()
    for direction in (x.sign(), torch.ones_like(x)):
        assert (error @ direction).abs() <= 5 * variance.sum().sqrt()


WIDE = ((60, 50), (40,))


def uniform_gradients(rank: int) -> list[torch.Tensor]:
    """No entry beyond 2.5 sigma, which is 1.44 here; each rank has its own magnitude."""
    generator = torch.Generator().manual_seed(rank)
    return [(1 + rank) * (2 * torch.rand(shape, generator=generator) - 1) for shape in WIDE]


def ternary_draws(steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same gradients in each step, synchronised: (steps, n); and the weights that survived."""
    state = State(density=0.3, values="ternary", warmup_steps=0)
    training = Training(state, shapes=WIDE, settings={"lr": 0.0})
    mine = uniform_gradients(dist.get_rank())
    results = torch.stack([training.step(mine) for _ in range(steps)])
    return results, flat(training.weights) != 0


@EVERY_P
def test_the_ternary_mean_is_right_on_average_with_scales_that_all_share(on_ranks, p):
    """Power: 5 % too much or too little in all entries would be 7 standard errors; 4 are allowed."""
    steps = 120
    (draws, mask), *others = on_ranks(p, ternary_draws, steps)
    assert all(torch.equal(draws, theirs) for theirs, _ in others)

    own = [flat(uniform_gradients(rank)) * mask for rank in range(p)]
    sizes = [math.prod(shape) for shape in WIDE]
    scales = torch.cat([torch.stack([g.split(sizes)[i].abs().max() for g in own]).amax().expand(size)
                        for i, size in enumerate(sizes)])  # fmt: skip
    codes = draws * p / scales
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-5)
    assert codes.abs().max() <= p + 1e-5

    mean = sum(own) / p
    variance = sum((g.abs() / scales) * (1 - g.abs() / scales) for g in own) * (scales / p) ** 2 / steps
    error = draws.mean(0) - mean
    assert (error.abs() <= 5 * variance.sqrt() + 1e-6).all()
    assert (error @ mean.sign()).abs() <= 4 * variance.sum().sqrt()
    assert 0.05 * mean.abs().sum() > 7 * variance.sum().sqrt()


def with_a_nan_on_rank_1() -> tuple[torch.Tensor, torch.Tensor]:
    training = Training(State(density=0.9, values="ternary", warmup_steps=0))
    mine = gradients(0, dist.get_rank())
    if dist.get_rank() == 1:
        mine[0].fill_(math.nan)
    result = training.step(mine)
    split = math.prod(SHAPES[0])
    return result[:split], result[split:]


@EVERY_P
def test_what_is_not_finite_on_one_rank_shows_on_all(on_ranks, p):
    for sick, healthy in on_ranks(p, with_a_nan_on_rank_1):
        assert not sick[sick != 0].isfinite().any()
        assert sick.isnan().any() or sick.isinf().any()
        assert healthy.isfinite().all()


def test_more_workers_than_int8_can_add_up_are_refused():
    refuse_overflow(127)
    with pytest.raises(ValueError, match="128 workers can add up to 128, and int8 ends at 127"):
        refuse_overflow(128)


def pretend_to_be_many() -> None:
    with mock.patch.object(dist, "get_world_size", return_value=128):
        Training(State(values="fp32"))
        with pytest.raises(ValueError, match="int8 ends at 127"):
            Training(State(values="ternary"))


def test_they_are_refused_before_training(on_ranks):
    on_ranks(2, pretend_to_be_many)


# Several buckets in flight


def signs(step: int, rank: int, p: int) -> list[torch.Tensor]:
    """Gradients that ternary codes hold exactly: one magnitude a parameter, which p divides, the same on all ranks."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return [
        p * (1 + step + place) * (2.0 * torch.randint(2, shape, generator=generator) - 1)
        for place, shape in enumerate(SHAPES)
    ]


def synchronise_out_of_step(steps: int) -> tuple[list[torch.Tensor], torch.Tensor, list[Any]]:
    """Codecs that take their own time on each rank."""
    p, rank = dist.get_world_size(), dist.get_rank()
    moods = random.Random(rank)

    def sluggish(codec: Callable[..., Any]) -> Callable[..., Any]:
        def delayed(*arguments: Any) -> Any:
            time.sleep(moods.choice((0, 0, 0.004)))
            return codec(*arguments)

        return delayed

    training = Training(State(density=0.5, values="ternary", warmup_steps=0))
    codecs = {name: sluggish(getattr(pactrain, name)) for name in ("own_scales", "ternarise", "add_scaled")}
    with mock.patch.multiple(pactrain, **codecs):
        results = [training.step(signs(step, rank, p)) for step in range(steps)]
    return results, flat(training.weights) != 0, training.layouts


@EVERY_P
def test_buckets_are_not_mixed_up_when_ranks_are_out_of_step(on_ranks, p):
    for results, mask, layouts in on_ranks(p, synchronise_out_of_step, 12):
        assert_regrouped(layouts)
        for step, result in enumerate(results):
            mean = sum(flat(signs(step, rank, p)) for rank in range(p)) / p
            assert torch.equal(result, mean * mask)


def fail_in_the_lane(name: str) -> str:
    training = Training(State(density=0.5, values="ternary", warmup_steps=0))
    with (
        mock.patch.object(pactrain, name, side_effect=ArithmeticError(f"no {name} today")),
        pytest.raises(RuntimeError) as failure,
    ):
        training.step(gradients(0, dist.get_rank()))
    return str(failure.value)


@pytest.mark.parametrize("name", ["own_scales", "ternarise", "add_scaled"])
def test_a_failure_beside_the_backward_pass_ends_it(on_ranks, name):
    assert all(f"ArithmeticError: no {name} today" in failure for failure in on_ranks(2, fail_in_the_lane, name))
