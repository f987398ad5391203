"""Methods that send fewer bits an entry: what packing keeps, that rounding is fair, that errors come back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from ranks import Training, flat, gradients

import baselines
from baselines._quantise import Dice, packed_bits, packed_fields, unpacked_bits, unpacked_fields
from baselines.efsignsgd import add_and_measure, put_signs, take_signs
from baselines.onebit import add_bits, take_bits
from baselines.qsgd import add_levels, quantise

pytestmark = pytest.mark.methods

EVERY_P = pytest.mark.parametrize("p", [2, 3, 4])
DOUBLE = {"dtype": torch.float64}
CPU = torch.device("cpu")


@given(st.lists(st.booleans(), max_size=40))
def test_flags_are_packed_as_numpy_packs_them(flags):
    flags = torch.tensor([*flags, *[False] * (-len(flags) % 8)], dtype=torch.bool)
    packed = packed_bits(flags)
    assert packed.tolist() == np.packbits(flags.numpy(), bitorder="little").tolist()
    assert torch.equal(unpacked_bits(packed), flags)


@given(bits=st.sampled_from([2, 4, 8]), words=st.integers(0, 20), seed=st.integers(0, 10**6))
def test_fields_are_unpacked_as_they_were(bits, words, seed):
    generator = torch.Generator().manual_seed(seed)
    fields = torch.randint(2**bits, (words * 8 // bits,), dtype=torch.uint8, generator=generator)
    packed = packed_fields(fields, bits)
    assert len(packed) == words
    assert torch.equal(unpacked_fields(packed, bits), fields)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dice_are_uniform(dtype):
    """Power: a mean that is off by 0.003 would be 10 standard errors; 5 are allowed."""
    n = 1_000_000
    u = Dice(CPU, 0).like(torch.empty(n, dtype=dtype)).double()
    assert u.min() >= 0
    assert u.max() < 1
    for power in (1, 2, 3):
        expected = 1 / (power + 1)
        error = math.sqrt((1 / (2 * power + 1) - expected**2) / n)
        assert abs(u.pow(power).mean() - expected) < 5 * error
    assert abs(torch.corrcoef(torch.stack((u[:-1], u[1:])))[0, 1]) < 5 / math.sqrt(n)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_qsgd_is_right_on_average_and_never_off_by_more_than_a_level(bits):
    """Power: a bias of a tenth of a level would be 10 standard errors; 5 are allowed."""
    draws, levels = 2500, 2 ** (bits - 1) - 1
    x = torch.randn(300, generator=torch.Generator().manual_seed(0), **DOUBLE)
    dice = Dice(CPU, 1)
    decoded = []
    for _ in range(draws):
        codes, norms = quantise(x, levels, dice)
        fields = codes.add(levels).view(torch.uint8)
        decoded.append(torch.zeros_like(x))
        add_levels(decoded[-1], fields, norms / levels, levels)
    level = (norms / levels).repeat_interleave(128)[:300]
    errors = (torch.stack(decoded) - x) / level
    assert errors.abs().max() <= 1 + 1e-9
    assert (errors.mean(0).abs() <= 5 * 0.5 / math.sqrt(draws)).all()


@given(counts=st.lists(st.integers(1, 50), min_size=1, max_size=5), seed=st.integers(0, 10**6))
def test_signs_and_what_they_missed_are_the_whole(counts, seed):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(sum(counts), generator=generator, **DOUBLE)
    rest, sent = torch.empty_like(a), torch.zeros_like(a)
    scales = add_and_measure(a, torch.zeros_like(a), counts, out=rest)
    put_signs(torch.Tensor.add_, sent, counts, take_signs(rest, counts, scales), scales)
    torch.testing.assert_close(sent + rest, a)
    for part, scale in zip(sent.split(counts), scales, strict=True):
        torch.testing.assert_close(part.abs(), scale.expand_as(part))
    assert torch.equal(sent > 0, a >= 0)


def test_one_bit_has_the_mean_of_each_side_of_zero_in_each_column():
    weights = [torch.empty(shape) for shape in ((3, 2), (4,), (), (4, 0), (0, 3))]
    a = torch.tensor([1.0, -2.0, 3.0, -4.0, -5.0, 6.0, 1.0, 2.0, 3.0, -1.0, 7.0])
    rest, sent = a.clone(), torch.zeros_like(a)
    add_bits(sent, weights, take_bits(rest, weights), 1.0)
    expected = torch.tensor([2.0, -3.0, 2.0, -3.0, -5.0, 6.0, 2.0, 2.0, 2.0, -1.0, 7.0])
    assert torch.equal(sent, expected)
    assert torch.equal(rest, a - expected)


def sum_of_what_was_sent_and_is_held(name: str, parameters: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum over steps of the means that came out, and of this rank's gradients less what it still holds."""
    state = baselines.get(name).State(**parameters)
    training = Training(state, shapes=((40, 30),), bucket_cap_mb=25, dtype=torch.float64)
    came_out, went_in = torch.zeros(1200, **DOUBLE), torch.zeros(1200, **DOUBLE)
    for step in range(10):
        given = gradients(step, dist.get_rank(), ((40, 30),), **DOUBLE)
        came_out += training.step(given)
        went_in += flat(given)
    (held,) = state.residual.tensors()
    return came_out, went_in - held


@EVERY_P
@pytest.mark.parametrize(("name", "parameters"), [("efsignsgd", {}), ("onebit", {}), ("randomk", {"ratio": 0.1})])
def test_nothing_is_lost_but_what_the_residual_holds(on_ranks, name, parameters, p):
    results = on_ranks(p, sum_of_what_was_sent_and_is_held, name, parameters)
    mean = sum(gone_in for _, gone_in in results) / p
    for came_out, _ in results:
        torch.testing.assert_close(came_out, mean)


def mean_over_draws(name: str, draws: int) -> tuple[torch.Tensor, torch.Tensor]:
    state = baselines.get(name).State(**({"ratio": 0.3, "error_feedback": False} if name == "randomk" else {}))
    training = Training(state, shapes=((10, 7),), bucket_cap_mb=25, dtype=torch.float64)
    given = [torch.linspace(-1, 1, 70, **DOUBLE).view(10, 7) * (1 + dist.get_rank())]
    results = torch.stack([training.step(given) for _ in range(draws)])
    return results.mean(0) - flat(given) * 1.5 / (1 + dist.get_rank()), results.std(0) / math.sqrt(draws)


@pytest.mark.parametrize("name", ["terngrad", "qsgd", "randomk"])
def test_the_mean_of_all_ranks_is_right_on_average(on_ranks, name):
    for error, standard_error in on_ranks(2, mean_over_draws, name, 1500):
        assert (error.abs() <= 5 * standard_error + 1e-9).all()


# Methods that exchange parameters, or by servers


def train_with(name: str, parameters: dict[str, Any], steps: int) -> list[torch.Tensor]:
    training = Training(baselines.get(name).State(**parameters), settings={"lr": 0.1}, dtype=torch.float64)
    history = []
    for step in range(steps):
        training.step(gradients(step, dist.get_rank(), **DOUBLE))
        history.append(flat(training.weights))
    return history


@EVERY_P
def test_local_sgd_ends_a_period_where_plain_sgd_is(on_ranks, p):
    """These gradients do not depend on the weights, so the mean of what each did alone is what all do together."""
    local = on_ranks(p, train_with, "local_sgd", {"period": 3}, 6)
    dense = on_ranks(p, train_with, "dense", {}, 6)
    for mine, theirs in zip(local, dense, strict=True):
        assert not torch.allclose(mine[1], theirs[1])
        for step in (2, 5):
            torch.testing.assert_close(mine[step], theirs[step])


@EVERY_P
def test_local_sgd_is_dense_in_its_warm_up(on_ranks, p):
    local = on_ranks(p, train_with, "local_sgd", {"period": 3, "warmup_steps": 4}, 6)
    dense = on_ranks(p, train_with, "dense", {}, 6)
    for mine, theirs in zip(local, dense, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(mine[:4], theirs[:4], strict=True))
        assert not torch.allclose(mine[4], theirs[4])
        torch.testing.assert_close(mine[5], theirs[5])


@EVERY_P
def test_diloco_without_outer_momentum_is_local_sgd(on_ranks, p):
    plain = {"period": 3, "outer_lr": 1.0, "outer_momentum": 0.0}
    for ours, theirs in zip(
        on_ranks(p, train_with, "diloco", plain, 6), on_ranks(p, train_with, "local_sgd", {"period": 3}, 6), strict=True
    ):
        torch.testing.assert_close(ours[5], theirs[5])


def test_diloco_s_outer_step_is_nesterov_s(on_ranks):
    histories = on_ranks(2, train_with, "diloco", {"period": 2, "outer_lr": 0.7, "outer_momentum": 0.9}, 4)
    dense = on_ranks(2, train_with, "dense", {}, 4)
    # The change that two plain steps make, seen from anywhere, is the same: the outer gradients are known.
    first, second = dense[0][1], dense[0][3] - dense[0][1]
    (weights,) = on_ranks(1, initial_weights)
    one, two = weights - first, -second
    expected = weights - 0.7 * (one + 0.9 * one)
    torch.testing.assert_close(histories[0][1], expected)
    velocity = 0.9 * one + two
    torch.testing.assert_close(histories[0][3], expected - 0.7 * (two + 0.9 * velocity))


def initial_weights() -> torch.Tensor:
    return flat(Training(baselines.get("dense").State(), dtype=torch.float64).weights)


@EVERY_P
@pytest.mark.parametrize("servers", [1, 2])
def test_servers_give_the_plain_mean(on_ranks, servers, p):
    dense = on_ranks(p, train_with, "dense", {}, 2)
    for ours, theirs in zip(on_ranks(p, train_with, "parameter_server", {"servers": servers}, 2), dense, strict=True):
        for mine, its in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, its)


def too_many_servers() -> str:
    with pytest.raises(ValueError, match="servers") as refusal:
        Training(baselines.get("parameter_server").State(servers=3))
    return str(refusal.value)


def test_more_servers_than_workers_are_refused(on_ranks):
    assert all("3 of 2 workers" in refusal for refusal in on_ranks(2, too_many_servers))
