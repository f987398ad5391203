"""Methods that send the top of a gradient: how it is packed, what is sent, and that what is held back arrives."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from ranks import SHAPES, Training, assert_regrouped, flat, gradients

import baselines
from baselines._sparse import pack, sampled_top, sampling_stride, share, unpack
from baselines._state import BucketMemory
from baselines.dgc import State

pytestmark = pytest.mark.methods

EVERY_P = pytest.mark.parametrize("p", [2, 3, 4])
DOUBLE = {"dtype": torch.float64}


# Pure helpers


@given(
    values=st.lists(st.floats(width=32), max_size=20),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16]),
    data=st.data(),
)
def test_packing_is_undone_bit_for_bit(values, dtype, data):
    size = len(values)
    indices = data.draw(st.lists(st.integers(0, 2**31 - 1), min_size=size, max_size=size))
    sent = torch.tensor(values, dtype=dtype), torch.tensor(indices, dtype=torch.int64)
    block = pack(*sent)
    assert block.nbytes == size * (dtype.itemsize + 4)
    arrived = unpack(block, dtype)
    assert torch.equal(arrived[0].view(torch.uint8), sent[0].view(torch.uint8))
    assert torch.equal(arrived[1], sent[1])


@given(ratio=st.floats(0, 1, exclude_min=True), size=st.integers(1, 10**9))
def test_a_share_is_at_least_one_entry_and_at_most_all(ratio, size):
    assert 1 <= share(ratio, size) <= size
    assert abs(share(ratio, size) - ratio * size) <= 1
    assert share(1.0, size) == size


# What is sent, against slow references that are written from the papers

ONE_BUCKET = {"shapes": ((50, 60),), "bucket_cap_mb": 25}
N = 50 * 60
STEPS = 6


def gradients_of_one_bucket(step: int, rank: int) -> list[torch.Tensor]:
    return gradients(step, rank, ONE_BUCKET["shapes"], **DOUBLE)


def synchronise_one_bucket(name: str, parameters: dict[str, Any], settings: dict[str, Any]) -> list[torch.Tensor]:
    """What each step's gradients became."""
    training = Training(baselines.get(name).State(**parameters), settings=settings, **ONE_BUCKET, **DOUBLE)
    return [training.step(gradients_of_one_bucket(step, dist.get_rank())) for step in range(STEPS)]


def mean_of_what_is_sent(vectors: list[list[float]], sent: list[list[int]]) -> torch.Tensor:
    """Rank by rank, entry by entry."""
    mean = [0.0] * N
    for vector, places in zip(vectors, sent, strict=True):
        for place in places:
            mean[place] += vector[place] / len(vectors)
    return torch.tensor(mean, **DOUBLE)


def slow_top_k(a: list[float], k: int) -> list[int]:
    return sorted(range(N), key=lambda place: abs(a[place]), reverse=True)[:k]


def slow_topk(p: int, ratio: float, error_feedback: bool) -> list[torch.Tensor]:
    e = [[0.0] * N for _ in range(p)]
    results = []
    for step in range(STEPS):
        g = [flat(gradients_of_one_bucket(step, rank)).tolist() for rank in range(p)]
        a = [[x + y for x, y in zip(*pair, strict=True)] for pair in zip(g, e, strict=True)]
        sent = [slow_top_k(vector, round(ratio * N)) for vector in a]
        results.append(mean_of_what_is_sent(a, sent))
        if error_feedback:
            e = [
                [0.0 if i in places else x for i, x in enumerate(v)]
                for v, places in zip(a, map(set, sent), strict=True)
            ]
    return results


@EVERY_P
@pytest.mark.parametrize("error_feedback", [True, False])
def test_topk_sends_what_a_slow_reference_sends(on_ranks, error_feedback, p):
    parameters = {"ratio": 0.03, "error_feedback": error_feedback}
    expected = slow_topk(p, **parameters)
    for results in on_ranks(p, synchronise_one_bucket, "topk", {"selection": "exact", **parameters}, {"lr": 0.1}):
        assert all(torch.equal(*pair) for pair in zip(results, expected, strict=True))


def slow_sampled_top(v: list[float], k: int, stride: int, start: int) -> list[int]:
    """Hierarchical selection: a threshold from a sample; a second selection among what passed if that is too much."""
    sample = sorted((abs(x) for x in v[start % stride :: stride]), reverse=True)
    threshold = sample[math.ceil(len(sample) * k / len(v)) - 1]
    for _correction in range(11):
        passed = [place for place, x in enumerate(v) if abs(x) >= threshold]
        if len(passed) > 1.3 * k:
            return sorted(passed, key=lambda place: abs(v[place]), reverse=True)[:k]
        if len(passed) >= 0.8 * k:
            break
        threshold *= 0.8
    return passed[:k]


def slow_dgc(p: int, ratio: float, momentum: float, momentum_masking: bool, nesterov: bool) -> list[torch.Tensor]:
    u, v = ([[0.0] * N for _ in range(p)] for _ in range(2))
    k = round(ratio * N)
    results = []
    for step in range(STEPS):
        sent = []
        for rank in range(p):
            for i, g in enumerate(flat(gradients_of_one_bucket(step, rank)).tolist()):
                if nesterov:
                    u[rank][i] = momentum * (u[rank][i] + g)
                    v[rank][i] += u[rank][i] + g
                else:
                    u[rank][i] = momentum * u[rank][i] + g
                    v[rank][i] += u[rank][i]
            sent.append(slow_sampled_top(v[rank], k, sampling_stride(N, k, 0.01), step))
        results.append(mean_of_what_is_sent(v, sent))
        for rank, places in enumerate(sent):
            for place in places:
                v[rank][place] = 0.0
                if momentum_masking:
                    u[rank][place] = 0.0
    return results


@EVERY_P
@pytest.mark.parametrize("momentum_masking", [True, False])
@pytest.mark.parametrize("nesterov", [True, False])
def test_dgc_sends_what_a_slow_reference_sends(on_ranks, momentum_masking, nesterov, p):
    parameters = {"ratio": 0.03, "momentum_masking": momentum_masking}
    expected = slow_dgc(p, momentum=0.9, nesterov=nesterov, **parameters)
    settings = {"lr": 0.1, "momentum": 0.9, "nesterov": nesterov}
    for results in on_ranks(
        p, synchronise_one_bucket, "dgc", {"warmup_steps": 0, "dense_vectors": False, **parameters}, settings
    ):
        assert all(torch.equal(*pair) for pair in zip(results, expected, strict=True))


# The sampled threshold


@given(
    n=st.integers(1, 3000),
    ratio=st.floats(1e-3, 1),
    sample_ratio=st.floats(0.01, 1),
    start=st.integers(0, 10**6),
    tail=st.floats(0.1, 20),
    seed=st.integers(0, 10**6),
)
def test_the_sampled_top_is_the_slow_reference_s(n, ratio, sample_ratio, start, tail, seed):
    generator = torch.Generator().manual_seed(seed)
    importance = torch.rand(n, generator=generator, **DOUBLE) ** tail
    k = share(ratio, n)
    indices = sampled_top(importance, k, sample_ratio, start)
    assert 1 <= indices.numel() <= k
    assert indices.unique().numel() == indices.numel()
    if k < n:
        slow = slow_sampled_top(importance.tolist(), k, sampling_stride(n, k, sample_ratio), start)
        assert set(indices.tolist()) == set(slow)
    if sample_ratio == 1:
        assert set(indices.tolist()) == set(importance.topk(k).indices.tolist())


@given(n=st.integers(1, 10**8), ratio=st.floats(1e-4, 1), sample_ratio=st.floats(0.01, 1))
def test_the_sample_is_as_large_as_asked_for_and_its_stride_odd(n, ratio, sample_ratio):
    k = share(ratio, n)
    stride = sampling_stride(n, k, sample_ratio)
    assert stride % 2 == 1
    assert n // stride >= min(n, max(n * sample_ratio, 2 * n / k))


K = 300
SPREAD = torch.linspace(0.1, 1, N, **DOUBLE)[torch.randperm(N, generator=torch.Generator().manual_seed(0))]


def test_a_surplus_beyond_the_bound_is_cut_to_the_exact_top():
    importance = SPREAD.clone()
    importance[:: sampling_stride(N, K, 0.01)] = 0.01  # the sample sees small entries only: its threshold is too low
    indices = sampled_top(importance, K, 0.01, start=0)
    assert set(indices.tolist()) == set(importance.topk(K).indices.tolist())


def test_a_shortage_lowers_the_threshold_until_enough_pass():
    importance = 100 / SPREAD.argsort().argsort().add(1).to(SPREAD)  # 100 / t entries are larger than t
    stride = sampling_stride(N, K, 0.01)
    importance[::stride] = 1.5  # the sample sees large entries only: its threshold is too high
    passing = {place for place in range(N) if importance[place] >= 1.5 * 0.8**6}
    assert 0.8 * K <= len(passing) < K
    assert len([place for place in range(N) if importance[place] >= 1.5 * 0.8**5]) < 0.8 * K
    assert set(sampled_top(importance, K, 0.01, start=0).tolist()) == passing


def test_corrections_end_even_if_nothing_else_would_pass():
    importance = SPREAD * 1e-9
    sampled = slice(None, None, sampling_stride(N, K, 0.01))
    importance[sampled] = 1
    indices = sampled_top(importance, K, 0.01, start=0)
    assert torch.equal(indices, torch.arange(N)[sampled])


# What is held back arrives


class Bucket:
    """What a method sees of DDP's bucket."""

    def __init__(self, members: list[torch.Tensor]) -> None:
        self.members = members

    def parameters(self) -> list[torch.Tensor]:
        return list(self.members)

    def buffer(self) -> torch.Tensor:
        return flat(self.members)


@given(data=st.data(), sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_memory_follows_its_parameter_whatever_the_buckets(data, sizes):
    parameters = [torch.full((size,), float(place)) for place, size in enumerate(sizes)]
    memory = BucketMemory()
    for visit in range(4):
        order = data.draw(st.permutations(parameters))
        cuts = sorted(data.draw(st.sets(st.integers(1, len(order)))) | {0, len(order)})
        for start, end in pairwise(cuts):
            bucket = Bucket(order[start:end])
            remembered = memory.like(bucket)
            assert torch.equal(remembered, visit * bucket.buffer())
            assert memory.like(bucket) is remembered
            remembered += bucket.buffer()


def drain(name: str, parameters: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, list[Any]]:
    """The sum of what was given to this rank, and of what all of them were told, until nothing is left to tell."""
    training = Training(baselines.get(name).State(**parameters), **DOUBLE)
    sums = [torch.zeros(sum(map(math.prod, SHAPES)), **DOUBLE) for _ in range(2)]
    for step in range(30):
        mine = gradients(step, dist.get_rank(), **DOUBLE) if step < 4 else [torch.zeros(s, **DOUBLE) for s in SHAPES]
        sums[0] += flat(mine)
        told = training.step(mine)
        sums[1] += told * dist.get_world_size()
    assert not told.any()
    return *sums, training.layouts


@EVERY_P
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("topk", {"ratio": 0.2, "selection": "exact"}),
        ("topk", {"ratio": 0.4}),
        ("dgc", {"ratio": 0.2, "momentum": 0.0, "warmup_steps": 3}),
    ],
    ids=["topk", "sampled topk", "dgc"],
)
def test_all_that_was_sent_is_all_that_was_given(on_ranks, name, parameters, p):
    given, told, layouts = zip(*on_ranks(p, drain, name, parameters), strict=True)
    torch.testing.assert_close(told[0], sum(given), rtol=1e-12, atol=1e-12)
    assert_regrouped(layouts[0])


# Ratio 1 is a method that one knows


def train_twice(
    name: str, parameters: dict[str, Any], settings: dict[str, Any], dense_settings: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights after training by a method, and by dense synchronisation with other settings of SGD."""
    trainings = (
        Training(baselines.get(name).State(**parameters), settings=settings, **DOUBLE),
        Training(baselines.get("dense").State(), settings=dense_settings, **DOUBLE),
    )
    for training in trainings:
        for step in range(STEPS):
            training.optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
            training.step(gradients(step, dist.get_rank(), **DOUBLE))
    return flat(trainings[0].weights), flat(trainings[1].weights)


@EVERY_P
@pytest.mark.parametrize("error_feedback", [True, False])
def test_topk_of_everything_is_dense(on_ranks, error_feedback, p):
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    parameters = {"ratio": 1.0, "error_feedback": error_feedback}
    for topk, dense in on_ranks(p, train_twice, "topk", parameters, settings, settings):
        torch.testing.assert_close(topk, dense, rtol=1e-12, atol=1e-14)


@EVERY_P
@pytest.mark.parametrize("nesterov", [True, False])
def test_dgc_of_everything_without_masking_is_momentum_sgd(on_ranks, nesterov, p):
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "nesterov": nesterov}
    parameters = {"ratio": 1.0, "momentum_masking": False}
    for dgc, momentum_sgd in on_ranks(p, train_twice, "dgc", parameters, settings, settings):
        torch.testing.assert_close(dgc, momentum_sgd, rtol=1e-12, atol=1e-14)


@EVERY_P
def test_dgc_of_everything_with_masking_is_plain_sgd(on_ranks, p):
    settings = {"lr": 0.1, "momentum": 0.9}
    parameters = {"ratio": 1.0, "dense_vectors": False}
    for dgc, sgd in on_ranks(p, train_twice, "dgc", parameters, settings, {"lr": 0.1}):
        torch.testing.assert_close(dgc, sgd, rtol=1e-12, atol=1e-14)


@EVERY_P
@pytest.mark.parametrize("nesterov", [True, False])
def test_dgc_sends_vectors_dense_with_their_momentum(on_ranks, nesterov, p):
    settings, vectors = {"lr": 0.1, "momentum": 0.9, "nesterov": nesterov}, places_of_vectors()
    for dgc, momentum_sgd in on_ranks(p, train_twice, "dgc", {"ratio": 0.05}, settings, settings):
        torch.testing.assert_close(dgc[vectors], momentum_sgd[vectors], rtol=1e-12, atol=1e-14)
        assert not torch.isclose(dgc[~vectors], momentum_sgd[~vectors]).all()


def places_of_vectors() -> torch.Tensor:
    return torch.cat([torch.full((math.prod(shape),), len(shape) < 2) for shape in SHAPES])


# DGC's other parts


def norms_after_clipping(clip_norm: float) -> list[tuple[float, float]]:
    """Each parameter's gradient norm before and after, where all ranks have the same gradients."""
    state = State(ratio=1.0, momentum=0.0, clip_norm=clip_norm)
    training = Training(state, **DOUBLE)
    same = gradients(0, 0, **DOUBLE)
    training.step(same)
    return [(float(a.norm()), float(w.grad.norm())) for a, w in zip(same, training.weights, strict=True)]


@EVERY_P
def test_each_worker_clips_each_parameter_to_its_part(on_ranks, p):
    clip_norm = 8.0
    bound = clip_norm / math.sqrt(p)
    (norms, *_) = on_ranks(p, norms_after_clipping, clip_norm)
    assert {before > bound for before, _ in norms} == {True, False}
    for before, after in norms:
        assert after == pytest.approx(min(before, bound), rel=1e-6)


@pytest.mark.parametrize(
    ("ratio", "warmup_steps", "expected"),
    [
        (0.001, 8, [0.25] * 2 + [0.0625] * 2 + [0.015625] * 2 + [0.004] * 2 + [0.001] * 2),
        (0.01, 7, [0.25] * 3 + [0.0625] * 2 + [0.015625] * 2 + [0.01] * 3),
        (0.0001, 5, [0.25, 0.0625, 0.015625, 0.004, 0.001, 0.0001]),
        (0.25, 5, [0.25] * 6),
        (0.5, 5, [0.5] * 6),
        (0.001, 0, [0.001] * 3),
    ],
)
def test_the_sparsity_is_warmed_up_in_even_stages(ratio, warmup_steps, expected):
    state = State(ratio=ratio, warmup_steps=warmup_steps)
    assert [state.ratio_at(step) for step in range(len(expected))] == expected
    assert state.ratio_at(10**9) == state.ratio_at(state.steady_from_step) == ratio


def sgd(**settings: Any) -> torch.optim.SGD:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, **settings)


def test_dgc_takes_the_momentum_over():
    optimizer = sgd(momentum=0.9)
    assert State().take_momentum(optimizer) == 0.9
    assert optimizer.param_groups[0]["momentum"] == 0


def two_momenta() -> torch.optim.SGD:
    optimizer = sgd(momentum=0.9)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "momentum": 0.5})
    return optimizer


def nesterov_for_some() -> torch.optim.SGD:
    optimizer = sgd(momentum=0.9)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "nesterov": True})
    return optimizer


@pytest.mark.parametrize(
    ("optimizer", "complaint"),
    [
        (nesterov_for_some(), "one kind of momentum"),
        (sgd(momentum=0.9, dampening=0.5), "dampening off"),
        (sgd(momentum=0.9, maximize=True), "maximize off"),
        (torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))]), "SGD.*Adam"),
        (two_momenta(), r"one momentum for all parameters, not \[0.5, 0.9\]"),
    ],
)
def test_dgc_refuses_what_it_cannot_correct(optimizer, complaint):
    with pytest.raises(ValueError, match=complaint):
        State().take_momentum(optimizer)


def give_momentum_back() -> str:
    training = Training(State(), settings={"lr": 0.1, "momentum": 0.9})
    training.step(gradients(0, dist.get_rank()))
    training.optimizer.param_groups[0]["momentum"] = 0.9
    with pytest.raises(RuntimeError) as refusal:
        training.step(gradients(1, dist.get_rank()))
    return str(refusal.value)


def test_dgc_notices_that_the_optimizer_has_momentum_again(on_ranks):
    assert all("keep it at 0" in refusal for refusal in on_ranks(2, give_momentum_back))


def own_momentum() -> tuple[float, float]:
    state = State(momentum=0.5)
    training = Training(state, settings={"lr": 0.1, "momentum": 0.9})
    return state.m, training.optimizer.param_groups[0]["momentum"]


def test_a_momentum_of_dgc_s_own_replaces_the_optimizer_s(on_ranks):
    assert on_ranks(2, own_momentum) == [(0.5, 0.0)] * 2
