"""Methods with exchanges of their own: sparse ones, low rank, codes that add; what they lose and what they keep."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from ranks import Given, Training, flat, gradients
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

import baselines
from baselines import oktopk, thc
from baselines._quantise import Dice
from baselines.spardl import rounds
from baselines.zen import place_in, server_of

pytestmark = pytest.mark.methods

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


def entries_of_a_training_by_oktopk(steps: int) -> tuple[list[float], list[float]]:
    """In each step of quickstart's training, entries that come out, over k, and bytes sent, over the formula."""
    from harness.workload.digits import split_digits  # each of all ranks would import these
    from harness.workload.models import MODELS

    torch.manual_seed(0)
    net, state = MODELS["digits-cnn"].build(), baselines.get("oktopk").State(ratio=0.01)
    ddp = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    baselines.register(ddp, state, optimizer=optimizer)
    images, _, labels, _ = map(torch.tensor, split_digits())
    images, dice = images.unsqueeze(1) / 8 - 1, torch.Generator().manual_seed(dist.get_rank())
    shapes = [weight.shape for weight in net.parameters()]
    k, formula_bytes = 0.01 * sum(map(math.prod, shapes)), state.wire_bytes(shapes, dist.get_world_size())
    came_out, sent = [], []
    for _ in range(steps):
        batch = torch.randint(len(labels), (16,), generator=dice)
        optimizer.zero_grad()
        nn.functional.cross_entropy(ddp(images[batch]), labels[batch]).backward()
        came_out.append(sum(int(weight.grad.count_nonzero()) for weight in net.parameters()) / k)
        sent.append(sum(value for kind, value in state.take_notes() if kind == "formula_bytes") / formula_bytes)
        optimizer.step()
        schedule.step()
    return came_out, sent


@pytest.mark.parametrize("p", [2, 4, 8])
def test_oktopk_applies_about_k_entries_in_each_step_and_sends_what_its_formula_says(on_ranks, p):
    from_step = 2  # in step 1 DDP's buckets are others, and regions and thresholds are made anew
    of_ranks = on_ranks(p, entries_of_a_training_by_oktopk, 200)
    (came_out, _), sent = (
        of_ranks[0],
        [sum(of_step) / p for of_step in zip(*(sent for _, sent in of_ranks), strict=True)],
    )
    assert 0.8 <= min(came_out[from_step:]) <= max(came_out[from_step:]) <= 1.3
    assert sum(sent[from_step:]) / len(sent[from_step:]) == pytest.approx(1, rel=0.05)


SUMS: dict[str, Callable[[int, torch.Tensor], torch.Tensor]] = {
    "an exponential tail": lambda _, random: -random.log(),
    "all nearly alike": lambda _, random: 1 + 1e-3 * random,
    "one owner has the largest": lambda rank, random: random + 10 * (rank == 0),
    "one owner has most": lambda rank, random: random if rank == 0 else random[:3],
    "one owner has none": lambda rank, random: random if rank else random[:0],
}


def passed_by_an_estimate(sums_of: str, k: int) -> int:
    """How many of this rank's sums pass."""
    state = baselines.get("oktopk").State()
    Training(state)
    rank = dist.get_rank()
    random = torch.rand(3000, generator=torch.Generator().manual_seed(rank))
    sums = SUMS[sums_of](rank, random)
    threshold = oktopk.estimate_threshold(state, sums, torch.tensor(len(sums)), k)
    return int(sums.abs().ge(threshold).sum())


@pytest.mark.parametrize("sums_of", SUMS)
def test_quantiles_tell_the_threshold_however_sums_are_spread(on_ranks, sums_of):
    assert sum(on_ranks(3, passed_by_an_estimate, sums_of, 2000)) == pytest.approx(2000, rel=0.05)


def test_all_pass_where_there_are_less_than_k(on_ranks):
    assert sum(on_ranks(3, passed_by_an_estimate, "an exponential tail", 20_000)) > 0.97 * 9000


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


def with_a_transposed_matrix(*shapes: tuple[int, ...]) -> Given:
    """A model whose first matrix lies column by column."""
    model = Given(*shapes, dtype=torch.float64)
    model.weights[0] = nn.Parameter(model.weights[0].detach().t().contiguous().t())
    return model


def train_transposed(name: str) -> torch.Tensor:
    """A step's gradient of a matrix that lies column by column, and of one that does not; of rank 1 both."""
    columns = [
        torch.linspace(*ends, 40, **DOUBLE).outer(torch.linspace(*ends, 60, **DOUBLE)) for ends in ((1, 2), (-1, 3))
    ]
    state = baselines.get(name).State(rank=1, min_compression_rate=1.0)
    training = Training(state, model=with_a_transposed_matrix((40, 60), (40, 60)), dtype=torch.float64)
    return torch.stack([training.step(columns).view(2, 40, 60), torch.stack(columns)])


def test_a_matrix_that_lies_transposed_in_memory_is_approximated_as_itself(on_ranks):
    for result, true in on_ranks(2, train_transposed, "powersgd"):
        torch.testing.assert_close(result, true)


def train_rows_and_columns(name: str, parameters: dict[str, Any]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Results of a training of which a matrix lies column by column, and of one of which none does."""
    shapes = (40, 60), (7, 3, 2, 2), (5,)
    one, other = (
        Training(baselines.get(name).State(**parameters), model=model)
        for model in (with_a_transposed_matrix(*shapes), Given(*shapes, dtype=torch.float64))
    )
    steps = (gradients(step, dist.get_rank(), shapes, **DOUBLE) for step in range(3))
    return [(one.step(given), other.step(given)) for given in steps]


@pytest.mark.parametrize(
    ("name", "parameters"), [("onebit", {}), ("demo", {"sign": False, "chunk": 16}), ("dion", {})], ids=str
)
def test_where_a_matrix_lies_in_memory_makes_no_difference(on_ranks, name, parameters):
    for steps in on_ranks(2, train_rows_and_columns, name, parameters):
        for of_columns, of_rows in steps:
            torch.testing.assert_close(of_columns, of_rows)


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


Mix = Callable[[torch.Tensor], torch.Tensor]


def missed(gradient: torch.Tensor, length: int, mix: Mix, draws: int) -> float:
    """The mean square error of one round of one worker, in squares of the gradient, over so many draws of signs.

    Args:
        length: of all that travels; zeros lengthen the gradient to it.
        mix: the rotation behind the signs, its own inverse.
    """
    table, errors, whole = thc.best_table(4), [], nn.functional.pad(gradient, (0, length - len(gradient)))
    step = 2 * thc.reach() * gradient.norm() / length**0.5 / thc.GRANULARITY
    for seed in range(draws):
        signs = torch.randint(0, 2, (length,), generator=torch.Generator().manual_seed(seed)).double() * 2 - 1
        codes = thc.quantise(mix(whole * signs), step, table, Dice(CPU, seed))
        decoded = mix((table[codes.int()] - thc.GRANULARITY / 2) * step) * signs
        errors.append(float(((decoded - whole).norm() / gradient.norm()) ** 2))
    return sum(errors) / draws


def hadamard_of_the_whole(values: torch.Tensor) -> torch.Tensor:
    """The paper's, step by step, of (m,), a power of two."""
    half = 1
    while half < len(values):
        pairs = values.view(-1, 2, half)
        values = torch.stack((pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]), dim=1).flatten()
        half *= 2
    return values / len(values) ** 0.5


@pytest.mark.parametrize("n", [1 << 14, 20_000])
def test_codes_miss_as_little_of_spiky_gradients_as_of_normal_ones(n):
    """Mixed 256 by 256, one spike would be missed nearly whole."""
    for name, gradient in spiky(n).items():
        assert missed(gradient, math.prod(thc.sides(n)), thc.mix, draws=1) < 0.03, name


@pytest.mark.parametrize("n", [1 << 14, 1 << 16])
def test_codes_miss_as_much_of_a_spike_as_after_a_rotation_of_the_whole(n):
    spike = spiky(n)["one spike"]
    assert missed(spike, n, thc.mix, draws=3) == pytest.approx(
        missed(spike, n, hadamard_of_the_whole, draws=3), rel=0.05
    )


@pytest.mark.parametrize("n", [20_000, 35_070])
def test_they_miss_no_more_of_one_that_the_paper_would_lengthen(n):
    spike = spiky(n)["one spike"]
    whole = missed(spike, 1 << (n - 1).bit_length(), hadamard_of_the_whole, draws=3)
    assert missed(spike, math.prod(thc.sides(n)), thc.mix, draws=3) <= 1.05 * whole


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
