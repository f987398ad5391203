"""Ranks that meet: once is enough, whoever asks; and what they hold may be of any size, dtype and number."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist
from ranks import Given, Training, flat, gradients
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from trainings import EVERY_VARIANT, SETTINGS, Facts, agree, brisk, complaint_of, not_so

import baselines
from baselines._pruning import hessian_gradient

pytestmark = pytest.mark.methods


def flushed_again(name: str, parameters: dict[str, object], steps: int) -> Facts:
    state = brisk(name, **parameters)
    training = Training(state, settings={"lr": 0.05} if name in UPDATES else SETTINGS)
    for step in range(steps):
        training.step(gradients(step, dist.get_rank()))
    training.handle.flush()
    once = flat(training.weights)
    training.handle.flush()
    saved = state.state_dict()
    twice = flat(training.weights)
    state.load_state_dict(saved)
    training.handle.flush()
    return {
        "a second flush moves nothing": torch.equal(once, twice),
        "nor does one after a resume": torch.equal(once, flat(training.weights)),
    }


LOCAL = ("local_sgd", "diloco", "sparseloco", "streaming_diloco", "zeroone_adam")
UPDATES = ("demo", "dion", "onebit_adam", "zeroone_adam")


@EVERY_VARIANT
@pytest.mark.parametrize("steps", [4, 5], ids=["met", "not yet met"])
def test_a_flush_with_nothing_new_moves_nothing(on_ranks, name, parameters, steps):
    assert not_so(on_ranks(2, flushed_again, name, parameters, steps)) == []


def met_and_flushed(name: str, parameters: dict[str, object]) -> Facts:
    training = Training(brisk(name, **parameters), settings={"lr": 0.05})
    for step in range(4):
        training.step(gradients(step, dist.get_rank()))
    met = flat(training.weights)
    training.handle.flush()
    return {"they had met": torch.equal(met, flat(training.weights))}


@pytest.mark.parametrize("name", ["local_sgd", "diloco", "sparseloco", "zeroone_adam"])
def test_ranks_that_have_just_met_are_not_met_again(on_ranks, name):
    assert not_so(on_ranks(2, met_and_flushed, name, {})) == []


def mean_of_large(name: str) -> float:
    state = baselines.get(name).State()
    training = Training(state, shapes=((40,),), dtype=torch.float16)
    return float(training.step([torch.full((40,), 20_000.0, dtype=torch.float16)]).max())


@pytest.mark.parametrize("name", ["dense", "parameter_server"])
def test_a_mean_that_half_precision_holds_does_not_overflow_on_the_way(on_ranks, name):
    assert on_ranks(5, mean_of_large, name) == [20_000.0] * 5


def met_in_two_dtypes(name: str) -> Facts:
    model = Given((20, 9), (30,))
    model.weights[1].data = model.weights[1].data.double()
    training = Training(brisk(name), model=model, settings={"lr": 0.05})
    for step in range(4):
        training.step(gradients(step, dist.get_rank(), ((20, 9), (30,))))
    training.handle.flush()
    return {"alike": agree(flat([weight.double() for weight in training.weights]))}


@pytest.mark.parametrize("name", LOCAL)
def test_ranks_of_a_model_in_two_dtypes_meet(on_ranks, name):
    assert not_so(on_ranks(2, met_in_two_dtypes, name)) == []


PLAIN = {"outer_lr": 1.0, "outer_momentum": 0.0}
SELDOM = [
    ("local_sgd", {"period": 500}),
    ("diloco", {"period": 500, **PLAIN}),
    ("sparseloco", {"period": 500, "ratio": 1.0, "bits": 32}),
    ("streaming_diloco", {"period": 500, "values": "fp32", **PLAIN}),
    ("pactrain", {"variant": "local", "density": 1.0, **PLAIN}),
]


def frozen_before_they_meet(name: str, parameters: dict[str, object]) -> Facts:
    state = baselines.get(name).State(**parameters)
    training = Training(state, settings={"lr": 0.05}, find_unused_parameters=True)
    for step in range(3):
        training.step(gradients(step, dist.get_rank()))
    weight = training.weights[4].requires_grad_(False)
    weight.grad, mean = None, weight.clone()
    dist.all_reduce(mean)
    mean /= dist.get_world_size()
    facts: Facts = {}
    for step in range(3, 5):
        training.step(gradients(step, dist.get_rank()))
        training.handle.flush()
        facts[f"{step}: it is the mean"] = torch.allclose(weight, mean, rtol=0, atol=1e-5)
        facts[f"{step}: ranks"] = agree(flat(training.weights))
    return facts


@pytest.mark.parametrize(("name", "parameters"), SELDOM, ids=str)
def test_a_weight_that_is_frozen_before_they_meet_is_averaged_once_more(on_ranks, name, parameters):
    assert not_so(on_ranks(3, frozen_before_they_meet, name, parameters)) == []


def unfrozen_without_a_variance(name: str) -> str:
    training = Training(brisk(name), settings={"lr": 0.05}, find_unused_parameters=True)
    training.weights[4].requires_grad_(False)
    for step in range(3):
        training.step(gradients(step, dist.get_rank()))
    training.weights[4].requires_grad_(True)
    return complaint_of(lambda: training.step(gradients(3, dist.get_rank())))


@pytest.mark.parametrize("name", ["onebit_adam", "zeroone_adam"])
def test_adam_s_variance_is_not_made_up_of_a_weight_that_was_frozen(on_ranks, name):
    for answer in on_ranks(2, unfrozen_without_a_variance, name):
        assert answer.startswith(f"{name} has no variance of weights.4, which was frozen at the end of")
        assert "\n" not in answer


class Normed(nn.Module):
    """A layer and a batch norm, whose statistics DDP sends to all ranks before each forward pass."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(8)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.norm(self.layer(inputs)).pow(2).sum() + self.layer.weight.sum()


def normed_under_a_scaler(name: str) -> Facts:
    """Rank 1 alone overflows in step 1 of seven."""
    model = Normed()
    ddp, state = DistributedDataParallel(model), brisk(name)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.05)
    handle = baselines.register(ddp, state, optimizer=optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(7):
        optimizer.zero_grad()
        inputs = torch.randn(16, 8, generator=torch.Generator().manual_seed(7 * step + dist.get_rank()))
        scaler.scale(ddp(inputs)).backward()
        if step == 1 and dist.get_rank() == 1:
            model.layer.weight.grad[0, 0] = math.inf
        scaler.step(optimizer)
        scaler.update()
    if state.is_streaming:  # whose ranks hold a part of the model in common at a time
        handle.flush()
    weights = flat(list(model.parameters()))
    return {"steps": state.step == 6, "scale": scaler.get_scale() == 512, "they have met": agree(weights)}


@pytest.mark.parametrize("name", LOCAL)
def test_a_batch_norm_does_not_get_ranks_out_of_step_where_one_overflows(on_ranks, name):
    assert not_so(on_ranks(2, normed_under_a_scaler, name)) == []


def curvature_of_a_line() -> float:
    weight = torch.ones(5, requires_grad=True)
    (found,) = hessian_gradient((weight * 3).sum(), [weight])
    return float(found.abs().max())


def test_a_loss_that_is_a_line_has_no_curvature(on_ranks):
    assert on_ranks(2, curvature_of_a_line) == [0.0, 0.0]
