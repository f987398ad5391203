"""Methods of 2021 to 2025 against their papers' pseudo code, written here once more in plain numpy; and identities."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import scipy.fft
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from ranks import Training, assert_regrouped, flat, gradients

import baselines
from baselines._bins import add_binned, binned
from baselines.demo import State as DemoState
from baselines.demo import restored, transformed
from baselines.sparseloco import CHUNK, packed_twelves, sent_of, unpacked_twelves

pytestmark = pytest.mark.methods

SOME_P = pytest.mark.parametrize("p", [1, 2, 5])
DOUBLE = {"dtype": torch.float64}
SHAPES = ((70, 90), (5,), (12, 3, 2, 2), (13,))
LR = 0.1
Vectors = list[np.ndarray]
"""A flat vector of each parameter."""


def trained(name: str, parameters: dict[str, Any], steps: int, bucket_cap_mb: float = 25) -> list[torch.Tensor]:
    """On a rank: all weights after each step of plain SGD."""
    state = baselines.get(name).State(**parameters)
    training = Training(state, shapes=SHAPES, dtype=torch.float64, settings={"lr": LR}, bucket_cap_mb=bucket_cap_mb)
    history = []
    for step in range(steps):
        training.step(gradients(step, dist.get_rank(), SHAPES, **DOUBLE))
        history.append(flat(training.weights))
    if bucket_cap_mb < 1:
        assert_regrouped(training.layouts)
    return history


def initial() -> list[torch.Tensor]:
    state = baselines.get("dense").State()
    return [flat([weight]) for weight in Training(state, shapes=SHAPES, dtype=torch.float64).weights]


@pytest.fixture(scope="module")
def start(on_ranks) -> Vectors:
    (weights,) = on_ranks(1, initial)
    return [weight.numpy() for weight in weights]


def given_to(rank: int, step: int) -> Vectors:
    return [each.flatten().numpy() for each in gradients(step, rank, SHAPES, **DOUBLE)]


def zeros() -> Vectors:
    return [np.zeros(math.prod(shape)) for shape in SHAPES]


def assert_all_are(histories: list[list[torch.Tensor]], expected: list[tuple[int, Vectors]]) -> None:
    """At these steps all ranks hold these weights."""
    for history in histories:
        for step, weights in expected:
            torch.testing.assert_close(history[step], torch.from_numpy(np.concatenate(weights)))


def in_bins(values: np.ndarray, bins: int) -> np.ndarray:
    """Each value as the mean of those that share its bin."""
    if not len(values):
        return values
    sigma = values.std(ddof=1) if len(values) > 1 else 0.0
    width = 6 * sigma / bins or 1.0
    codes = np.clip(np.rint((values - values.mean()) / width + bins // 2), 0, bins - 1)
    return np.array([values[codes == code].mean() for code in codes])


# SparseLoCo


def top_of_chunks(error: np.ndarray, ratio: float, bits: int) -> np.ndarray:
    places = []
    for begin in range(0, len(error), 4096):
        chunk = np.abs(error[begin : begin + 4096])
        k = max(1, round(ratio * len(chunk)))
        places.extend(begin + np.argsort(-chunk, kind="stable")[:k])
    sent = np.zeros_like(error)
    sent[places] = error[places] if bits == 32 else in_bins(error[places], 2**bits)
    return sent


def sparseloco(start: Vectors, p: int, syncs: int, **told: Any) -> Iterator[tuple[int, Vectors]]:
    """Algorithm 1 of arXiv 2508.15706, with SGD as the inner optimizer."""
    common, errors = list(start), [zeros() for _ in range(p)]
    for sync in range(syncs):
        steps = range(sync * told["period"], (sync + 1) * told["period"])
        means = zeros()
        for rank in range(p):
            for place, error in enumerate(errors[rank]):
                error *= told["decay"]
                error += LR * sum(given_to(rank, step)[place] for step in steps)
                sent = top_of_chunks(error, told["ratio"], told["bits"])
                error -= sent
                means[place] += sent / p
        common = [weight - told["outer_lr"] * mean for weight, mean in zip(common, means, strict=True)]
        yield steps[-1], common


@SOME_P
@pytest.mark.parametrize(("bits", "ratio"), [(2, 1 / 64), (4, 0.1), (32, 0.05)])
def test_sparseloco_is_its_paper_s(on_ranks, start, p, bits, ratio):
    told = {"period": 2, "ratio": ratio, "bits": bits, "decay": 0.9, "outer_lr": 0.8}
    histories = on_ranks(p, trained, "sparseloco", told, 6)
    assert_all_are(histories, list(sparseloco(start, p, 3, **told)))


@SOME_P
def test_sparseloco_that_leaves_nothing_out_is_diloco_without_momentum(on_ranks, p):
    whole = {"period": 2, "ratio": 1.0, "bits": 32, "outer_lr": 0.7}
    ours = on_ranks(p, trained, "sparseloco", whole, 4)
    theirs = on_ranks(p, trained, "diloco", {"period": 2, "outer_lr": 0.7, "outer_momentum": 0.0}, 4)
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, its)


# Streaming DiLoCo


def e3m0(values: np.ndarray) -> np.ndarray:
    """Each value as the nearest of those that a sign and three bits of exponent can say, beside the greatest."""
    levels = np.array([0.0, *(2.0**exponent for exponent in range(-6, 1))]) * np.abs(values).max()
    nearest = np.abs(np.abs(values)[:, None] - levels).argmin(1)
    return np.sign(values) * levels[nearest]


FRAGMENT_OF = (0, 1, 1, 1)
"""The largest parameter is alone in one; the others are smaller together."""


def streaming(start: Vectors, p: int, steps: int, told: dict[str, Any]) -> Iterator[tuple[list[Vectors], Vectors]]:
    """Algorithm 2 of arXiv 2501.18512, with SGD as the inner optimizer: all ranks' parameters, and the common ones."""
    period, delay, mix = told["period"], told["delay"], told["mix"]
    coded = e3m0 if told["values"] == "e3m0" else np.copy
    own, common, momenta = [[np.copy(w) for w in start] for _ in range(p)], [np.copy(w) for w in start], zeros()
    arriving: dict[int, tuple[int, Vectors]] = {}
    for step in range(1, steps + 1):
        for rank in range(p):
            for weight, gradient in zip(own[rank], given_to(rank, step - 1), strict=True):
                weight -= LR * gradient
        for fragment in (0, 1):
            places = [place for place, its in enumerate(FRAGMENT_OF) if its == fragment]
            if step % period == (fragment + 1) * period // 2 % period:
                changes = [[coded(common[place] - own[rank][place]) for place in places] for rank in range(p)]
                sent = [sum(of_ranks) / p for of_ranks in zip(*changes, strict=True)]
            else:
                sent = None
            if sent is not None and not delay:
                arriving[fragment] = (step, sent)
            if fragment in arriving and arriving[fragment][0] == step:
                for place, change in zip(places, arriving.pop(fragment)[1], strict=True):
                    momenta[place] = told["outer_momentum"] * momenta[place] + change
                    common[place] = common[place] - told["outer_lr"] * (
                        change + told["outer_momentum"] * momenta[place]
                    )
                    for rank in range(p):
                        own[rank][place] = mix * own[rank][place] + (1 - mix) * common[place]
            if sent is not None and delay:
                arriving[fragment] = (step + delay, sent)
        yield [[np.copy(w) for w in each] for each in own], [np.copy(w) for w in common]


def streamed(parameters: dict[str, Any], steps: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """On a rank: its own weights and the common ones, after each step."""
    training = Training(
        baselines.get("streaming_diloco").State(**parameters), shapes=SHAPES, settings={"lr": LR}, **DOUBLE
    )
    history = []
    for step in range(steps):
        training.step(gradients(step, dist.get_rank(), SHAPES, **DOUBLE))
        own = flat(training.weights).clone()
        with training.handle.common():
            common = flat(training.weights).clone()
        assert torch.equal(own, flat(training.weights))
        history.append((own, common))
    return history


@SOME_P
@pytest.mark.parametrize("values", ["fp32", "e3m0"])
@pytest.mark.parametrize(("delay", "mix"), [(0, 0.5), (1, 0.5), (3, 0.25), (2, 0.0)])
def test_streaming_diloco_is_its_paper_s(on_ranks, start, p, values, delay, mix):
    told = {"period": 4, "fragments": 2, "delay": delay, "mix": mix, "outer_lr": 0.4, "outer_momentum": 0.9}
    told["values"] = values
    expected = list(streaming(start, p, 13, told))
    for rank, history in enumerate(on_ranks(p, streamed, told, 13)):
        for (own, common), (of_ranks, expected_common) in zip(history, expected, strict=True):
            torch.testing.assert_close(own, torch.from_numpy(np.concatenate(of_ranks[rank])))
            torch.testing.assert_close(common, torch.from_numpy(np.concatenate(expected_common)))


@SOME_P
def test_streaming_diloco_of_one_fragment_that_is_waited_for_is_diloco(on_ranks, p):
    outer = {"period": 2, "outer_lr": 0.7, "outer_momentum": 0.9}
    whole = {"fragments": 1, "delay": 0, "mix": 0.0, "values": "fp32"}
    ours = on_ranks(p, trained, "streaming_diloco", outer | whole, 4)
    for mine, its in zip(ours, on_ranks(p, trained, "diloco", outer, 4), strict=True):
        torch.testing.assert_close(mine, its)


def test_a_fragment_travels_no_longer_than_until_its_next_moment():
    with pytest.raises(ValueError, match="delay: 4 steps"):
        baselines.get("streaming_diloco").State(period=4, delay=4)


def applied_and_held(period: int, syncs: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What SparseLoCo without fading applied, what this rank's changes were in all, and what it still holds."""
    state = baselines.get("sparseloco").State(period=period, decay=1.0)
    training = Training(state, shapes=SHAPES, dtype=torch.float64, settings={"lr": LR})
    before, changes = flat(training.weights), torch.zeros(1)
    for step in range(period * syncs):
        mine = gradients(step, dist.get_rank(), SHAPES, **DOUBLE)
        training.step(mine)
        changes = changes + LR * flat(mine)
    return before - flat(training.weights), changes, flat([state.error.of(weight) for weight in training.weights])


@SOME_P
def test_all_changes_are_applied_or_held_by_sparseloco(on_ranks, p):
    results = on_ranks(p, applied_and_held, 2, 4)
    went_in, held = (sum(each[place] for each in results) / p for place in (1, 2))
    assert held.any()
    torch.testing.assert_close(results[0][0] + held, went_in)


def test_an_entry_has_12_bits_of_place_and_2_of_value_146_times_fewer_than_fp32():
    places, values, means = baselines.get("sparseloco").State().message_bytes([(4096, 1000)])
    assert places + values == 64 * 1000 * 14 / 8
    assert 32 / 8 * 4096 * 1000 / (places + values + means) == pytest.approx(146, abs=0.5)


@given(st.lists(st.integers(0, 4095), max_size=9))
def test_places_are_unpacked_as_they_were(numbers):
    packed = packed_twelves(torch.tensor(numbers, dtype=torch.int64))
    assert len(packed) == 3 * -(-len(numbers) // 2)
    assert unpacked_twelves(packed)[: len(numbers)].tolist() == numbers


@pytest.mark.parametrize(("size", "sent"), [(0, 0), (1, 1), (63, 1), (4096, 64), (4097, 65), (3 * CHUNK + 640, 202)])
def test_the_same_share_of_a_shorter_chunk_is_sent(size, sent):
    assert sent_of(size, 1 / 64) == sent


# INT8


@given(n=st.integers(0, 300), bins=st.sampled_from([4, 16, 256]), seed=st.integers(0, 10**6))
def test_bins_are_read_as_their_means_and_keep_the_sum(n, bins, seed):
    values = torch.randn(n, generator=torch.Generator().manual_seed(seed), **DOUBLE).pow(3)
    codes, means = binned(values, bins)
    read = torch.zeros_like(values)
    add_binned(read, codes, means)
    torch.testing.assert_close(read, torch.from_numpy(in_bins(values.numpy(), bins)))
    torch.testing.assert_close(read.sum(), values.sum())


@pytest.mark.parametrize("values", [[3.5] * 7, [2.0], [0.0, 0.0], [-1.0, 1.0]])
def test_bins_lose_nothing_of_numbers_that_are_few(values):
    values = torch.tensor(values, **DOUBLE)
    read = torch.zeros_like(values)
    add_binned(read, *binned(values, 256))
    torch.testing.assert_close(read, values)


def ring_mean(of_ranks: list[np.ndarray]) -> np.ndarray:
    """Of arXiv 2412.01152: a ring whose hops are quantised."""
    p = len(of_ranks)
    shards = [np.array_split(values, p) for values in of_ranks]
    for hop in range(p - 1):
        sent = [in_bins(shards[rank][(rank - hop) % p], 256) for rank in range(p)]
        for rank in range(p):
            mine = (rank - hop - 1) % p
            shards[rank][mine] = shards[rank][mine] + sent[(rank - 1) % p]
    return np.concatenate([in_bins(shards[(shard - 1) % p][shard] / p, 256) for shard in range(p)])


@SOME_P
def test_the_ring_of_int8_is_its_report_s(on_ranks, start, p):
    """In one bucket, in which DDP puts the parameters in the order of their gradients: here as they are registered."""
    weights, sizes = np.concatenate(start), np.cumsum([len(each) for each in start])[:-1]
    (first, *_), *_ = histories = on_ranks(p, trained, "int8", {}, 1)
    mean = ring_mean([np.concatenate(given_to(rank, 0)) for rank in range(p)])
    assert_all_are(histories, [(0, np.split(weights - LR * mean, sizes))])
    dense = sum(np.concatenate(given_to(rank, 0)) for rank in range(p)) / p
    off = (weights - first.numpy()) / LR - dense
    assert 0 < np.linalg.norm(off) < 0.1 * np.linalg.norm(dense)
    assert abs(off.sum()) < 1e-9


@SOME_P
def test_diloco_averages_its_changes_by_that_ring(on_ranks, start, p):
    told = {"period": 2, "outer_lr": 0.7, "outer_momentum": 0.9, "values": "int8"}
    common, velocity, expected = np.concatenate(start), 0.0, []
    for sync in range(2):
        changes = [LR * sum(np.concatenate(given_to(rank, 2 * sync + step)) for step in range(2)) for rank in range(p)]
        # A change is taken from weights, so that it has their last bits.
        mean = ring_mean([common - (common - change) for change in changes])
        velocity = 0.9 * velocity + mean
        common = common - 0.7 * (mean + 0.9 * velocity)
        expected.append((2 * sync + 1, [common]))
    assert_all_are(on_ranks(p, trained, "diloco", told, 4), expected)


# DeMo


def sides(rows: int, columns: int, most: int) -> tuple[int, int]:
    tall, wide = (max(side for side in range(1, most + 1) if size % side == 0) for size in (rows, columns))
    return tall, wide


def over_tiles(shape: tuple[int, ...], most: int) -> Iterator[tuple[slice, slice]]:
    rows, columns = (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, shape[0])
    tall, wide = sides(rows, columns, most)
    for top in range(0, rows, tall):
        for left in range(0, columns, wide):
            yield slice(top, top + tall), slice(left, left + wide)


def demo(start: Vectors, p: int, steps: int, **told: Any) -> Iterator[tuple[int, Vectors]]:
    """Algorithm 1 of arXiv 2411.19870; coefficients that several send are meaned over those, as in its code."""
    weights, momenta = list(start), [zeros() for _ in range(p)]
    for step in range(steps):
        for place, shape in enumerate(SHAPES):
            rows = shape[0] if len(shape) > 1 else 1
            update = np.zeros((rows, math.prod(shape) // rows))
            of_ranks = []
            for rank in range(p):
                momenta[rank][place] = told["decay"] * momenta[rank][place] + given_to(rank, step)[place]
                of_ranks.append(momenta[rank][place].reshape(update.shape))
            for tile in over_tiles(shape, told["chunk"]):
                sums, counts = np.zeros_like(update[tile]), np.zeros_like(update[tile])
                for matrix in of_ranks:
                    coefficients = scipy.fft.dctn(matrix[tile], norm="ortho")
                    k = min(told["topk"], coefficients.size)
                    least = np.sort(np.abs(coefficients), axis=None)[-k]
                    sent = np.where(np.abs(coefficients) >= least, coefficients, 0.0)
                    matrix[tile] -= scipy.fft.idctn(sent, norm="ortho")
                    sums += sent
                    counts += sent != 0
                update[tile] = scipy.fft.idctn(sums / np.maximum(counts, 1), norm="ortho")
            weights[place] = weights[place] - LR * update.ravel()
        yield step, list(weights)


@SOME_P
def test_demo_is_its_paper_s_but_for_the_sign(on_ranks, start, p):
    """The sign of what would be zero but for rounding is anyone's."""
    told = {"topk": 7, "chunk": 16, "decay": 0.9}
    histories = on_ranks(p, trained, "demo", {**told, "sign": False}, 4, 1e-4)
    assert_all_are(histories, list(demo(start, p, 4, **told)))


def updates_of_demo(sign: bool) -> list[torch.Tensor]:
    training = Training(DemoState(sign=sign), shapes=SHAPES)
    return [training.step(gradients(step, dist.get_rank(), SHAPES)) for step in range(4)]


@SOME_P
def test_demo_applies_the_sign(on_ranks, p):
    of_signs, of_means = on_ranks(p, updates_of_demo, True), on_ranks(p, updates_of_demo, False)
    for signs, means in zip(of_signs, of_means, strict=True):
        assert all(torch.equal(sign, mean.sign()) and mean.any() for sign, mean in zip(signs, means, strict=True))


@SOME_P
def test_demo_that_leaves_no_coefficient_out_is_dense(on_ranks, p):
    whole = {"topk": 128 * 128, "chunk": 128}
    for mine, its in zip(
        on_ranks(p, trained, "demo", {**whole, "sign": False}, 3), on_ranks(p, trained, "dense", {}, 3), strict=True
    ):
        torch.testing.assert_close(mine, its)


# Dion


def dion(
    start: Vectors, p: int, steps: int, mu: float, rank_fraction: float, q: Vectors
) -> Iterator[tuple[int, Vectors]]:
    """Algorithm 1 of arXiv 2504.05295, of one worker that sees all gradients' mean; Lion for what is no matrix."""
    weights, momenta, qs = list(start), zeros(), [each.copy() for each in q]
    for step in range(steps):
        for place, shape in enumerate(SHAPES):
            mean = sum(given_to(rank, step)[place] for rank in range(p)) / p
            if len(shape) < 2:
                update = np.sign(0.9 * momenta[place] + 0.1 * mean)
                momenta[place] = 0.95 * momenta[place] + 0.05 * mean
            else:
                matrix = (momenta[place] + mean).reshape(shape[0], -1)
                left, _ = np.linalg.qr(matrix @ qs[place])
                right = matrix.T @ left
                momenta[place] = (matrix - (1 - mu) * left @ right.T).ravel()
                qs[place] = right / (np.linalg.norm(right, axis=0) + 1e-8)
                update = math.sqrt(len(matrix) / matrix.shape[1]) * (left @ qs[place].T).ravel()
            weights[place] = weights[place] - LR * update
        yield step, list(weights)


def first_qs(told: dict[str, Any]) -> list[torch.Tensor]:
    state = baselines.get("dion").State(**told)
    weights = Training(state, shapes=SHAPES, dtype=torch.float64).weights
    return [state.q_of(weight) if weight.ndim > 1 else torch.zeros(0) for weight in weights]


@SOME_P
@pytest.mark.parametrize("rank_fraction", [0.1, 1.0])
def test_dion_is_what_its_paper_makes_of_the_mean_of_all_gradients(on_ranks, start, p, rank_fraction):
    told = {"mu": 0.8, "rank_fraction": rank_fraction}
    histories = on_ranks(p, trained, "dion", told, 4, 1e-4)
    (qs,) = on_ranks(1, first_qs, told)
    assert_all_are(histories, list(dion(start, p, 4, **told, q=[q.numpy() for q in qs])))


def updates_of_dion() -> list[torch.Tensor]:
    training = Training(baselines.get("dion").State(rank_fraction=1.0), shapes=((40, 30),), dtype=torch.float64)
    return [training.step(gradients(step, dist.get_rank(), ((40, 30),), **DOUBLE)) for step in range(3)]


def test_dion_of_full_rank_makes_updates_whose_columns_have_one_length(on_ranks):
    """Power: the gradients' own columns differ in length by tens of percent."""
    for update in on_ranks(1, updates_of_dion)[0]:
        singular = torch.linalg.svdvals(update.view(40, 30) / math.sqrt(40 / 30))
        assert singular.max() < 2
        assert singular.square().sum() == pytest.approx(30, rel=1e-6)


# LoCo


MATRIX = ((70, 90),)
"""Its last stretch of 128 is a short one."""


def of_matrix(rank: int, step: int) -> np.ndarray:
    return gradients(step, rank, MATRIX, **DOUBLE)[0].flatten().numpy()


def updates_of_loco(told: dict[str, Any]) -> list[torch.Tensor]:
    training = Training(baselines.get("loco").State(**told), shapes=MATRIX, dtype=torch.float64)
    return [training.step(gradients(step, dist.get_rank(), MATRIX, **DOUBLE)) for step in range(6)]


def loco(p: int, steps: int, bits: int, beta: float, reset_every: int) -> Iterator[np.ndarray]:
    """Algorithm 1 of arXiv 2407.04480, with a scale for each stretch; the mean rounded to bf16 by torch."""
    levels = 2 ** (bits - 1) - 1
    errors = [np.zeros(70 * 90) for _ in range(p)]
    for step in range(steps):
        mean = np.zeros(70 * 90)
        for rank, error in enumerate(errors):
            h = of_matrix(rank, step) + error
            d = np.empty_like(h)
            for begin in range(0, len(h), 128):
                stretch = h[begin : begin + 128]
                scale = np.abs(stretch).max() / levels
                d[begin : begin + 128] = scale * np.rint(stretch / scale)
            error *= 1 - beta
            error += beta * (h - d)
            if (step + 1) % reset_every == 0:
                error[:] = 0
            mean += d / p
        yield torch.from_numpy(mean).bfloat16().double().numpy()


@SOME_P
@pytest.mark.parametrize("bits", [4, 8])
def test_loco_is_its_paper_s(on_ranks, p, bits):
    told = {"bits": bits, "beta": 0.3, "reset_every": 4}
    expected = list(loco(p, 6, **told))
    for updates in on_ranks(p, updates_of_loco, told):
        for mine, its in zip(updates, expected, strict=True):
            torch.testing.assert_close(mine, torch.from_numpy(its), rtol=2**-7, atol=1e-6)  # a tie may round either way


def mean_update_of_loco(beta: float) -> torch.Tensor:
    """Of many steps in which gradients stay the same."""
    training = Training(baselines.get("loco").State(beta=beta), shapes=MATRIX, dtype=torch.float64)
    given = gradients(0, dist.get_rank(), MATRIX, **DOUBLE)
    return torch.stack([training.step([each.clone() for each in given]) for _ in range(40)]).mean(0)


def test_what_loco_adds_beforehand_makes_up_for_what_codes_miss(on_ranks):
    mean = torch.from_numpy(sum(of_matrix(rank, 0) for rank in range(2)) / 2)
    off = [(on_ranks(2, mean_update_of_loco, beta)[0] - mean).abs().mean() for beta in (1e-9, 0.05, 1.0)]
    assert off[2] < off[1] < 0.8 * off[0]


@pytest.mark.parametrize("shape", [(1,), (13,), (64, 128), (67, 3), (130, 2, 5), (0,), (4, 0), ()])
def test_tiles_are_whole_and_transformed_back(shape):
    tiles = DemoState().tiles_of(shape)
    values = torch.randn(math.prod(shape), generator=torch.Generator().manual_seed(0), **DOUBLE)
    coefficients = transformed(tiles.cut(values))
    assert coefficients.shape == (tiles.count, tiles.tall * tiles.wide)
    assert coefficients.numel() == values.numel()
    torch.testing.assert_close(coefficients.norm(), values.norm())
    torch.testing.assert_close(tiles.joined(restored(coefficients, tiles.tall, tiles.wide)), values)


# 1-bit Adam


def root_mean_square(values: np.ndarray) -> np.ndarray:
    return np.sqrt(np.mean(values**2))


def mean_magnitude(values: np.ndarray) -> np.ndarray:
    return np.mean(np.abs(values))


Scale = Callable[[np.ndarray], np.ndarray]


def signs_and_scale(values: np.ndarray, scale: Scale) -> np.ndarray:
    return np.where(values >= 0, 1.0, -1.0) * scale(values) if len(values) else values


def by_owners(of_ranks: Vectors, owner_error: np.ndarray, scale: Scale) -> np.ndarray:
    """DeepSpeed's mean: signs of each rank's vector, then of each shard of the sum; errors are kept in place."""
    p = len(of_ranks)
    total = owner_error + sum(signs_and_scale(own, scale) for own in of_ranks) / p
    for own in of_ranks:
        own -= signs_and_scale(own, scale)
    size = math.ceil(len(total) / (8 * p)) * 8
    mean = np.concatenate([signs_and_scale(total[at : at + size], scale) for at in range(0, len(total), size)])
    owner_error[:] = total - mean
    return mean


def onebit_adam(start: Vectors, p: int, steps: int, **told: Any) -> Iterator[tuple[int, Vectors]]:
    """Algorithm 1 of arXiv 2102.02888, with DeepSpeed's shards of a parameter."""
    beta1, beta2, eps = told["beta1"], told["beta2"], told["eps"]
    weights, m, v = list(start), zeros(), zeros()
    errors, owner_errors = [zeros() for _ in range(p)], zeros()
    for step in range(steps):
        for place, weight in enumerate(weights):
            of_ranks = [given_to(rank, step)[place] for rank in range(p)]
            if step < told["warmup_steps"]:
                mean = sum(of_ranks) / p
                m[place] = beta1 * m[place] + (1 - beta1) * mean
                v[place] = beta2 * v[place] + (1 - beta2) * mean**2
            else:
                for rank, gradient in enumerate(of_ranks):
                    errors[rank][place] += beta1 * m[place] + (1 - beta1) * gradient
                m[place] = by_owners([of_rank[place] for of_rank in errors], owner_errors[place], root_mean_square)
            weights[place] = weight - LR * m[place] / (np.sqrt(v[place]) + eps)
        yield step, list(weights)


@SOME_P
def test_onebit_adam_is_its_paper_s(on_ranks, start, p):
    told = {"warmup_steps": 2, "beta1": 0.8, "beta2": 0.9, "eps": 1e-3}
    histories = on_ranks(p, trained, "onebit_adam", told, 6, 1e-4)
    assert_all_are(histories, list(onebit_adam(start, p, 6, **told)))


def momenta_and_errors() -> tuple[list[torch.Tensor], list[torch.Tensor], list[list[torch.Tensor]]]:
    """After each of two compressed steps the common momentum and this rank's errors, of the only parameter."""
    state = baselines.get("onebit_adam").State(warmup_steps=1, beta1=0.0)
    training = Training(state, shapes=((40, 30),), dtype=torch.float64)
    momenta, errors, owned = [], [], []
    for step in range(4):
        training.step(gradients(step, dist.get_rank(), ((40, 30),), **DOUBLE))
        momenta.append(state.m.tensors()[0].clone())
        errors.append(state.error.tensors()[0].clone() if state.error.tensors() else torch.zeros(1200, **DOUBLE))
        owned.append(list(state.owner_error.now.values()))
    return momenta, errors, owned


@SOME_P
def test_what_signs_missed_at_workers_and_owners_comes_with_the_next(on_ranks, p):
    """Without memory of the momentum itself, a step's momentum is its gradient."""
    results = on_ranks(p, momenta_and_errors)

    def missed(step: int) -> torch.Tensor:
        at_owners = torch.cat([shard for _, _, owned in results for shard in owned[step]] or [torch.zeros(1200)])
        return sum(errors[step] for _, errors, _ in results) / p + at_owners

    for step in (1, 2, 3):
        mean = sum(flat(gradients(step, rank, ((40, 30),), **DOUBLE)) for rank in range(p)) / p
        assert missed(step).any()
        torch.testing.assert_close(results[0][0][step] + missed(step), mean + missed(step - 1))


def test_the_first_step_is_dense_whatever_the_warm_up():
    state = baselines.get("onebit_adam").State(warmup_steps=0)
    dense = baselines.get("dense").State().wire_bytes(SHAPES, 4)
    assert [state.wire_bytes(SHAPES, 4, step) == dense for step in range(3)] == [True, False, False]


# 0/1 Adam


def zeroone_adam(start: Vectors, p: int, steps: int, refreshed: set[int], **told: Any) -> Iterator[tuple[int, Vectors]]:
    """Algorithm 1 of arXiv 2202.06009, and DeepSpeed's warm-up: the weights when all ranks hold the same."""
    beta1, beta2, eps, warmup = told["beta1"], told["beta2"], told["eps"], told["warmup_steps"]
    weights, m, v = list(start), zeros(), zeros()
    errors, owner_errors = [zeros() for _ in range(p)], zeros()
    own_weights, own_m, alone = [list(start) for _ in range(p)], [zeros() for _ in range(p)], 0
    for step in range(steps):
        if step == warmup:
            errors, owner_errors = [zeros() for _ in range(p)], zeros()
        alone += step >= warmup
        meets = step < warmup or (step + 1) % told["period"] == 0
        for place, weight in enumerate(weights):
            of_ranks = [given_to(rank, step)[place] for rank in range(p)]
            if step < warmup:
                mean = sum(of_ranks) / p
                if step in refreshed:
                    v[place] = beta2 * v[place] + (1 - beta2) * mean**2
                else:
                    for rank, gradient in enumerate(of_ranks):
                        errors[rank][place] += gradient
                    mean = by_owners([of_rank[place] for of_rank in errors], owner_errors[place], mean_magnitude)
                m[place] = beta1 * m[place] + (1 - beta1) * mean
                weights[place] = weight - LR * m[place] / (np.sqrt(v[place]) + eps)
            else:
                root = np.sqrt(v[place]) + eps
                for rank, gradient in enumerate(of_ranks):
                    own_m[rank][place] = beta1 * own_m[rank][place] + (1 - beta1) * gradient
                    own_weights[rank][place] = own_weights[rank][place] - LR * own_m[rank][place] / root
                if meets:
                    for rank in range(p):
                        errors[rank][place] += (weight - own_weights[rank][place]) * root
                    u = by_owners([of_rank[place] for of_rank in errors], owner_errors[place], mean_magnitude)
                    m[place], weights[place] = u / (LR * alone), weight - u / root
            if meets:
                for rank in range(p):
                    own_weights[rank][place], own_m[rank][place] = weights[place], m[place]
        if meets:
            alone = 0
            yield step, list(weights)


@SOME_P
def test_zeroone_adam_is_its_paper_s(on_ranks, start, p):
    told = {"warmup_steps": 4, "gap_doubles_after": 1, "period": 3, "beta1": 0.8, "beta2": 0.9, "eps": 1e-2}
    histories = on_ranks(p, trained, "zeroone_adam", told, 12, 1e-4)
    assert_all_are(histories, list(zeroone_adam(start, p, 12, {0, 1, 3}, **told)))


@SOME_P
def test_zeroone_adam_warms_up_as_onebit_adam_does_while_all_steps_refresh(on_ranks, p):
    told = {"warmup_steps": 3, "eps": 1e-2}
    ours, theirs = (on_ranks(p, trained, name, told, 3) for name in ("zeroone_adam", "onebit_adam"))
    for mine, its in zip(ours, theirs, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(mine, its, strict=True))


@pytest.mark.parametrize(
    ("gap_doubles_after", "expected"),
    [(1, [0, 1, 3, 7, 15]), (2, [0, 1, 2, 4, 6, 10, 14]), (99, [*range(20)]), (0, [*range(20)])],
)
def test_the_variance_is_refreshed_at_the_paper_s_steps(gap_doubles_after, expected):
    """The gap after refresh j is 2 to the power of j // kappa."""
    state = baselines.get("zeroone_adam").State(gap_doubles_after=gap_doubles_after)
    assert [step for step in range(20) if state.refreshes(step)] == expected


def test_zeroone_adam_sends_the_signs_of_a_period_at_once():
    state = baselines.get("zeroone_adam").State(warmup_steps=3, gap_doubles_after=1, period=4)
    dense = baselines.get("dense").State().wire_bytes(SHAPES, 4)
    signs = baselines.get("onebit_adam").State().wire_bytes(SHAPES, 4)
    assert [state.wire_bytes(SHAPES, 4, step) for step in range(8)] == [dense, dense, signs, signs, 0, 0, 0, signs]
    assert state.wire_bytes(SHAPES, 4) == signs / 4


@pytest.mark.parametrize("name", ["demo", "dion", "onebit_adam", "zeroone_adam"])
@pytest.mark.parametrize("make", [torch.optim.AdamW, lambda weights: torch.optim.SGD(weights, 0.1, 0.9, nesterov=True)])
def test_a_momentum_that_cannot_be_replaced_is_refused(name: str, make: Callable[..., torch.optim.Optimizer]):
    with pytest.raises(ValueError, match=f"{name} replaces"):
        baselines.get(name).State().check_optimizer(make([torch.zeros(1, requires_grad=True)]))
