"""Methods with exchanges of their own: sparse ones, low rank, codes that add; what they lose and what they keep."""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from ranks import Training, flat, gradients
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

import baselines
from baselines import oktopk, thc
from baselines._quantise import Dice
from baselines.spardl import rounds
from baselines.zen import place_in, server_of

EVERY_P = pytest.mark.parametrize("p", [2, 3, 4])
MANY_P = pytest.mark.parametrize("p", [2, 3, 5, 8])
DOUBLE = {"dtype": torch.float64}
CPU = torch.device("cpu")
SHAPE = ((40, 30),)


def sparse_gradients(step: int, rank: int) -> list[torch.Tensor]:
    """Few entries, in a clump that all ranks share a part of."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    whole = torch.zeros(1200, **DOUBLE)
    start = 300 + 20 * rank
    whole[start : start + 40] = torch.randn(40, generator=generator, **DOUBLE)
    return [whole.view(40, 30)]


def synchronise_sparse(name: str, parameters: dict[str, Any]) -> tuple[list[torch.Tensor], float]:
    state = baselines.get(name).State(**parameters)
    training = Training(state, shapes=SHAPE, bucket_cap_mb=25, dtype=torch.float64)
    results = [training.step(sparse_gradients(step, dist.get_rank())) for step in range(3)]
    return results, sum(value for kind, value in state.take_notes() if kind == "formula_bytes") / 3


# What loses nothing


@MANY_P
@pytest.mark.parametrize("name", ["omnireduce", "zen"])
def test_sparse_gradients_give_the_plain_mean_for_fewer_bytes(on_ranks, name, p):
    for results, bytes_sent in on_ranks(p, synchronise_sparse, name, {}):
        for step, result in enumerate(results):
            mean = sum(flat(sparse_gradients(step, rank)) for rank in range(p)) / p
            torch.testing.assert_close(result, mean)
        assert bytes_sent < 0.9 * 2 * (p - 1) / p * 1200 * 8


@given(p=st.integers(2, 9), groups=st.integers(1, 300))
def test_zen_s_servers_own_one_of_each_group_and_know_its_place(p, groups):
    servers = server_of(torch.arange(p * groups), p).view(groups, p)
    assert torch.equal(servers.sort(dim=1).values, torch.arange(p).expand(groups, p))
    for server in range(p):
        places = place_in(torch.arange(groups), server, p)
        assert torch.equal(server_of(places, p), torch.full((groups,), server))
        assert torch.equal(places // p, torch.arange(groups))


def test_zen_s_servers_share_a_clump_evenly():
    clump = torch.arange(10_000, 14_000)
    column = torch.arange(0, 1_000_000, 64)  # of a matrix whose width the number of servers divides
    for places in (clump, column):
        load = server_of(places, 8).bincount(minlength=8)
        assert load.max() < 1.1 * load.float().mean()


@pytest.mark.parametrize("p", range(2, 33))
def test_spardl_s_rounds_sum_every_block_at_its_owner(p):
    held = [{(rank + i) % p: {rank} for i in range(p)} for rank in range(p)]
    for distance, count in rounds(p):
        sent = []
        for rank in range(p):
            sent.append([(block := (rank + distance + i) % p, held[rank].pop(block)) for i in range(count)])
        for rank in range(p):
            for block, ranks in sent[(rank - distance) % p]:
                assert not held[rank][block] & ranks
                held[rank][block] |= ranks
    assert all(held[rank] == {rank: set(range(p))} for rank in range(p))
    assert sum(count for _, count in rounds(p)) == p - 1


# What is not sent is remembered


def sent_and_held(name: str, parameters: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sums over steps of what came out and of this rank's gradients, and what this rank still holds."""
    state = baselines.get(name).State(**parameters)
    training = Training(state, shapes=SHAPE, bucket_cap_mb=25, dtype=torch.float64)
    came_out, went_in = torch.zeros(1200, **DOUBLE), torch.zeros(1200, **DOUBLE)
    for step in range(10):
        given = gradients(step, dist.get_rank(), SHAPE, **DOUBLE)
        came_out += training.step(given)
        went_in += flat(given)
    (held,) = state.residual.tensors()
    return came_out, went_in, held


@MANY_P
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("spardl", {"ratio": 0.05}),
        ("zen", {"ratio": 0.05}),
        ("omnireduce", {"ratio": 0.3}),
        ("thc", {}),
        ("powersgd", {"rank": 1}),
        ("topk", {"ratio": 0.05}),
    ],
    ids=lambda value: str(value),
)
def test_all_that_went_in_came_out_or_is_held(on_ranks, name, parameters, p):
    results = on_ranks(p, sent_and_held, name, parameters)
    came_out = results[0][0]
    held = sum(held for _, _, held in results) / p
    went_in = sum(went_in for _, went_in, _ in results) / p
    assert came_out.any()
    assert held.any()
    torch.testing.assert_close(came_out + held, went_in)


@EVERY_P
def test_oktopk_clears_only_what_was_selected_and_applied(on_ranks, p):
    """What a worker sent without success stays with it, so the whole is that of top-k: sent entries of the selected."""
    for came_out, went_in, held in on_ranks(p, sent_and_held, "oktopk", {"ratio": 0.05}):
        untouched = came_out == 0
        torch.testing.assert_close(held[untouched], went_in[untouched])
        assert (held[~untouched] != went_in[~untouched]).any()


def applied_by_oktopk() -> tuple[torch.Tensor, torch.Tensor]:
    training = Training(
        baselines.get("oktopk").State(ratio=0.05, selection="exact"),
        shapes=SHAPE,
        bucket_cap_mb=25,
        dtype=torch.float64,
    )
    own = gradients(0, dist.get_rank(), SHAPE, **DOUBLE)
    return training.step(own), flat(own)


@MANY_P
def test_oktopk_applies_the_top_of_the_sum_of_tops(on_ranks, p):
    results = on_ranks(p, applied_by_oktopk)
    k = 60
    total = torch.zeros(1200, **DOUBLE)
    for _, own in results:
        top = own.abs().topk(k).indices
        total.index_add_(0, top, own[top])
    expected = torch.zeros_like(total)
    places = total.abs().topk(k).indices
    expected[places] = total[places] / p
    for applied, _ in results:
        torch.testing.assert_close(applied, expected)


def entries_of_a_training_by_oktopk(ratio: float, steps: int) -> tuple[list[int], int]:
    """How many entries come out in each step of a small convolutional net's training on digits; and k."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 64), nn.ReLU(), nn.Linear(64, 10))
    ddp = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.05, momentum=0.9)
    baselines.register(ddp, baselines.get("oktopk").State(ratio=ratio), optimizer=optimizer)
    from sklearn.datasets import load_digits  # each of all ranks would import it, which takes a second

    digits = load_digits()
    images, labels = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32), torch.tensor(digits.target)
    dice = torch.Generator().manual_seed(dist.get_rank())
    came_out = []
    for _ in range(steps):
        batch = torch.randint(len(labels), (16,), generator=dice)
        optimizer.zero_grad()
        nn.functional.cross_entropy(ddp(images[batch]), labels[batch]).backward()
        came_out.append(sum(int(weight.grad.count_nonzero()) for weight in net.parameters()))
        optimizer.step()
    return came_out, round(ratio * sum(weight.numel() for weight in net.parameters()))


@pytest.mark.parametrize("p", [2, 4])
def test_oktopk_s_threshold_is_steered_to_k(on_ranks, p):
    for came_out, k in on_ranks(p, entries_of_a_training_by_oktopk, 0.02, 200):
        after = came_out[oktopk.REUSED_STEPS + 1 :]
        means = [sum(after[first : first + 32]) / 32 for first in range(len(after) - 32)]
        assert 0.8 * k <= min(means) <= max(means) <= 1.3 * k
        assert sum(after) / len(after) == pytest.approx(k, rel=0.05)


@given(n=st.integers(1, 10**9), share=st.floats(1e-6, 1.0), passed=st.integers(0, 10**9))
def test_steering_moves_a_threshold_towards_k_and_not_too_far(n, share, passed):
    k, passed = max(1, round(share * n)), min(passed, n)
    times = oktopk.steering(passed, k, n)
    assert 1 / oktopk.MOST_STEERED <= times <= oktopk.MOST_STEERED
    assert (times > 1) == (passed > k)
    assert (times < 1) == (passed < k)


@pytest.mark.parametrize("wrong", [0.5, 0.8, 1.1, 2.0])
def test_steering_is_soon_right_where_tails_are_exponential(wrong):
    magnitudes = torch.empty(1_000_000).exponential_(generator=torch.Generator().manual_seed(0))
    threshold = wrong * math.log(100)
    for _ in range(8):
        threshold *= oktopk.steering(int(magnitudes.gt(threshold).sum()), 10_000, 1_000_000)
    assert int(magnitudes.gt(threshold).sum()) == pytest.approx(10_000, rel=0.05)


def applied_and_gathered_by_oktopk(uneven: float) -> tuple[list[torch.Tensor], list[int]]:
    """Regions are agreed on while entries are everywhere; then all that is large is in the first."""
    gathered: list[int] = []

    def noting(state, records, sources):
        gathered.append(len(records))
        return all_gather(state, records, sources)

    all_gather, results = oktopk.all_gather, []
    with mock.patch.object(oktopk, "UNEVEN", uneven), mock.patch.object(oktopk, "all_gather", noting):
        training = Training(baselines.get("oktopk").State(ratio=0.1, selection="exact"), shapes=SHAPE, bucket_cap_mb=25)
        for step in range(6):
            (gradient,) = gradients(step, dist.get_rank(), SHAPE)
            if step >= 2:
                gradient.view(-1)[:120] *= 1000
            results.append(training.step([gradient]))
    return results, gathered[-3:]


def test_oktopk_spreads_evenly_what_one_owner_has_most_of_and_applies_the_same(on_ranks):
    p = 8
    spread, as_it_is = (on_ranks(p, applied_and_gathered_by_oktopk, uneven) for uneven in (4.0, math.inf))
    for (results, _), (others, _) in zip(spread, as_it_is, strict=True):
        assert all(torch.equal(*pair) for pair in zip(results, others, strict=True))
    most, most_as_it_is = (max(gathered[-1] for _, gathered in ranks) for ranks in (spread, as_it_is))
    total = sum(gathered[-1] for _, gathered in as_it_is)
    assert most_as_it_is > 4 * total / p
    assert most == math.ceil(total / p)


def test_oktopk_begins_densely_where_it_is_asked_to(on_ranks):
    def mean(step: int) -> torch.Tensor:
        return sum(flat(gradients(step, rank, SHAPE)) for rank in range(2)) / 2

    for results in on_ranks(2, warmed_up_by_oktopk):
        for step in range(3):
            torch.testing.assert_close(results[step], mean(step))
        assert results[3].count_nonzero() <= 2 * 60


def warmed_up_by_oktopk() -> list[torch.Tensor]:
    training = Training(baselines.get("oktopk").State(ratio=0.05, warmup_steps=3), shapes=SHAPE, bucket_cap_mb=25)
    return [training.step(gradients(step, dist.get_rank(), SHAPE)) for step in range(4)]


# Low rank


def beside_torch_s(rank: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Each step's gradients from the method and from torch's hook, which is given the method's random start."""
    shape = ((40, 30),)
    state = baselines.get("powersgd").State(rank=rank, warmup_steps=2)
    ours = Training(state, shapes=shape, bucket_cap_mb=25, dtype=torch.float64)
    start = state.q_of(ours.weights[0]).clone()
    reference = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=rank, start_powerSGD_iter=2)
    theirs = Training(
        lambda _, bucket: powerSGD_hook.powerSGD_hook(reference, bucket),
        shapes=shape,
        bucket_cap_mb=25,
        dtype=torch.float64,
    )
    steps = []
    given_in = {step: gradients(10 + step, dist.get_rank(), shape, **DOUBLE) for step in range(-2, 4)}
    with mock.patch.object(torch, "randn", side_effect=lambda *size, **options: start.clone()):
        for given in given_in.values():
            result = theirs.step(given)
            steps.append((ours.step(given), result))
    return steps


@EVERY_P
@pytest.mark.parametrize("rank", [1, 4])
def test_powersgd_is_torch_s(on_ranks, rank, p):
    for steps in on_ranks(p, beside_torch_s, rank):
        for ours, theirs in steps:
            torch.testing.assert_close(ours, theirs)


def train_full_rank() -> list[tuple[torch.Tensor, torch.Tensor]]:
    full = baselines.get("powersgd").State(rank=99, min_compression_rate=1e-9)
    ours, dense = Training(full, dtype=torch.float64), Training(baselines.get("dense").State(), dtype=torch.float64)
    steps = (gradients(step, dist.get_rank(), **DOUBLE) for step in range(3))
    return [(ours.step(given), dense.step(given)) for given in steps]


@EVERY_P
def test_full_rank_is_dense(on_ranks, p):
    for steps in on_ranks(p, train_full_rank):
        for ours, dense in steps:
            torch.testing.assert_close(ours, dense)


# Codes that add


@pytest.mark.parametrize("n", [1, 6, 255, 256, 5000, 35070])
def test_a_box_holds_what_it_should_and_little_more(n):
    volume = math.prod(thc.sides(n))
    assert n <= volume <= max(n + 3, n * 65 / 64)
    assert volume % 4 == 0
    assert thc.sides(volume) == thc.sides(n)


@pytest.mark.parametrize("n", [1, 255, 256, 5000])
def test_a_rotation_is_undone_and_keeps_the_norm(n):
    values = torch.randn(n, generator=torch.Generator().manual_seed(0), **DOUBLE)
    signs = thc.random_signs(n, torch.Generator().manual_seed(1), torch.float64)
    rotated = thc.rotate(values, signs)
    torch.testing.assert_close(rotated.norm(), values.norm())
    torch.testing.assert_close(thc.unrotate(rotated, signs)[:n], values)


def test_a_rotation_spreads_a_spike_over_all_it_is_mixed_with():
    spike = torch.zeros(256, **DOUBLE)
    spike[17] = 16
    rotated = thc.rotate(spike, thc.random_signs(256, torch.Generator().manual_seed(1), torch.float64))
    torch.testing.assert_close(rotated.abs(), torch.ones(256, **DOUBLE))


def spiky(n: int) -> dict[str, torch.Tensor]:
    """Gradients whose entries are far from normal."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(n, generator=generator, **DOUBLE)
    one_spike, few = 0.001 * noise, torch.zeros(n, **DOUBLE)
    one_spike[n // 21] = 10
    few[:: n // 100] = noise[:: n // 100]
    layers = noise * 10.0 ** -(torch.arange(n) * 8 // n)
    rows = noise.clone()
    rows[n // 64 :] = 0
    return {"normal": noise, "one spike": one_spike, "few": few, "layers": layers, "rows": rows}


@pytest.mark.parametrize("n", [1 << 14, 20_000])
def test_codes_miss_as_little_of_spiky_gradients_as_of_normal_ones(n):
    """As the paper's rotation of the whole does; mixed 256 by 256, one spike would be missed nearly whole."""
    for name, gradient in spiky(n).items():
        signs = thc.random_signs(n, torch.Generator().manual_seed(1), torch.float64)
        rotated, table = thc.rotate(gradient, signs), thc.best_table(4)
        step = 2 * thc.reach() * gradient.norm() / len(rotated) ** 0.5 / thc.GRANULARITY
        codes = thc.quantise(rotated, step, table, Dice(CPU, 1))
        decoded = thc.unrotate((table[codes.int()] - thc.GRANULARITY / 2) * step, signs)[:n]
        assert ((decoded - gradient).norm() / gradient.norm()) ** 2 < 0.03, name


@pytest.mark.parametrize("bits", [2, 4])
def test_the_table_is_symmetric_and_denser_where_entries_are(bits):
    table = thc.best_table(bits)
    assert len(table) == 2**bits
    assert torch.equal(table + table.flip(0), torch.full_like(table, 30))
    gaps = table.diff()
    assert (gaps > 0).all()
    assert gaps[len(gaps) // 2] <= gaps[0]


def test_codes_on_the_grid_are_right_on_average():
    """Power: a bias of a tenth of a grid step would be over 7 standard errors; 5 are allowed."""
    draws, table, step = 4000, thc.best_table(4), torch.tensor(0.1, **DOUBLE)
    x = torch.linspace(-1.5, 1.5, 101, **DOUBLE)
    dice = Dice(CPU, 0)
    decoded = [table[thc.quantise(x, step, table, dice).long()].double().sub(15).mul(step) for _ in range(draws)]
    errors = torch.stack(decoded) - x
    widest = table.diff().max() * step
    assert errors.abs().max() <= widest + 1e-9
    assert (errors.mean(0).abs() <= 5 * widest / 2 / math.sqrt(draws)).all()
