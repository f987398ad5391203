"""Ranks that meet: once is enough, whoever asks; and what they hold may be of any size, dtype and number."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from ranks import Given, Training, flat, gradients
from trainings import EVERY_VARIANT, SETTINGS, Facts, brisk, not_so

import baselines
from baselines._pruning import hessian_gradient


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
    return {"finite": all(bool(weight.isfinite().all()) for weight in training.weights), "alike": agree(training)}


def agree(training: Training) -> bool:
    own = flat([weight.double() for weight in training.weights])
    others = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(others, own)
    return all(torch.equal(own, other) for other in others)


@pytest.mark.parametrize("name", ["local_sgd", "diloco", "sparseloco", "streaming_diloco", "zeroone_adam"])
def test_ranks_of_a_model_in_two_dtypes_meet(on_ranks, name):
    assert not_so(on_ranks(2, met_in_two_dtypes, name)) == []


def curvature_of_a_line() -> float:
    weight = torch.ones(5, requires_grad=True)
    (found,) = hessian_gradient((weight * 3).sum(), [weight])
    return float(found.abs().max())


def test_a_loss_that_is_a_line_has_no_curvature(on_ranks):
    assert on_ranks(2, curvature_of_a_line) == [0.0, 0.0]
