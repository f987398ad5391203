"""OmniReduce: only blocks with something in them travel, to the block's owner and, summed, back to all.

Fei et al., SIGCOMM 2021. A bucket is cut into blocks of 256 numbers. Each worker sends its non-zero blocks, with 4
bytes of place each, to the aggregator that owns them, and every worker receives the union of them, summed. It loses
nothing. With gradients that have no zero blocks it sends what a dense all-reduce sends, and 0.4 % more; it is meant for
embeddings and other sparse models. With ``ratio`` below 1 only the blocks of largest norm are sent, with error
feedback: the paper's block-based sparsification.

Not a ring: this is a parameter server without weights, whose aggregators are the workers themselves, each the owner of
an equal shard. The paper streams blocks through aggregators in many small rounds; here one exchange goes up and one
down.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.futures import Future
from torch.nn.functional import pad

from baselines._calls import AllToAll, Call
from baselines._exchange import (
    SIZE_BYTES,
    OwnersState,
    agree_on_count,
    agree_on_counts,
    all_gather,
    all_gather_records_bytes,
    all_to_all,
    all_to_all_bytes,
    from_records,
    shard_ends,
    shard_sizes,
    to_records,
)
from baselines._lane import settled
from baselines._memory import Draft
from baselines._parameters import Share, parameters
from baselines._sparse import INDEX, places_of, share
from baselines._state import Shapes, numel

LABEL = "OmniReduce"
COLOR = "#D55E9A"
MARKER = "8"
SENDS = "blocks that are not zero to their owners, and the summed blocks back"
ALL_REDUCE = False
SOURCE = "Fei et al., SIGCOMM 2021"
MOST_LOSS = 0.02
MOST_LOSS_AT_PLATEAU = 0.01

BLOCK = 256


@parameters
class State(OwnersState):
    """What OmniReduce keeps on one rank.

    Args:
        ratio: the share of blocks that may be sent; 1 sends every block that is not zero.
    """

    most_copies = 9.0
    host_synchronisations_a_bucket = 2
    swept = ("ratio",)

    ratio: Share = 1.0

    def wire_bytes(self, shapes: Shapes, world_size: int, step: int | None = None) -> float:
        """For gradients without zero blocks, whose largest blocks are anywhere."""
        all_blocks = numel(shapes) / BLOCK * (4 * BLOCK + INDEX.itemsize)
        union = 1 - (1 - self.ratio) ** world_size
        return (self.ratio + union) * all_blocks * (world_size - 1) / world_size

    def calls(self, shapes: Shapes, world_size: int) -> list[Call]:
        all_blocks = numel(shapes) / BLOCK * (4 * BLOCK + INDEX.itemsize)
        union = 1 - (1 - self.ratio) ** world_size
        counts = AllToAll(SIZE_BYTES * world_size)
        return [counts, AllToAll(self.ratio * all_blocks), counts, AllToAll(union * all_blocks)]


def omnireduce_hook(state: State, bucket: dist.GradBucket) -> Future[torch.Tensor]:
    """Replace the bucket by the mean of all ranks' blocks."""
    gradient = bucket.buffer()
    residual = state.draft_of(bucket)
    return state.lane.submit(lambda: block_all_reduce(state, gradient, residual))


def block_all_reduce(state: State, gradient: torch.Tensor, residual: Draft | None) -> Future[torch.Tensor]:
    """The mean of ``gradient`` (n,), in place, but for the ``residual`` (n,), if there is one. Runs in the lane."""
    n, dtype = gradient.numel(), gradient.dtype
    with state.stopwatch("encode"):
        a = gradient if residual is None else residual.plus(gradient)
        blocks = pad(a, (0, -n % BLOCK)).view(-1, BLOCK)
        chosen = chosen_blocks(blocks, state.ratio)
        going = counts_of_shards(chosen, state.world_size)
    counts, sources = agree_on_counts(state, going)
    with state.stopwatch("encode"):
        places = places_of(chosen, sum(counts))
        records = to_records(blocks.index_select(0, places), places.to(INDEX))
        if residual is not None:
            residual.after.copy_(blocks.index_fill(0, places, 0).view(-1)[:n])
    arrived = all_to_all(state, records, counts, sources)
    with state.stopwatch("encode"):
        shards = shard_sizes(len(blocks), state.world_size)
        first = sum(shards[: state.own_rank])
        shard = blocks.new_zeros(shards[state.own_rank], BLOCK)
        touched = torch.zeros(len(shard), dtype=torch.bool, device=shard.device)
        for own in arrived.split(sources):  # rank by rank, for one order of additions
            values, their_places = from_records(own, (dtype, BLOCK), (INDEX, 1))
            within = their_places.view(-1).long().sub_(first)
            shard.index_add_(0, within, values)
            touched.index_fill_(0, within, True)
        filled = touched.count_nonzero()
    count, of_owners = agree_on_count(state, filled)
    with state.stopwatch("encode"):
        union = places_of(touched, count)
        summed = to_records(shard.index_select(0, union).div_(state.world_size), union.add(first).to(INDEX))
    returned = all_gather(state, summed, of_owners)
    width = records.shape[1]
    sent = all_to_all_bytes(state, counts, width) + all_gather_records_bytes(state, len(summed), width)
    state.note("formula_bytes", sent)
    with state.stopwatch("decode"):
        values, places = from_records(returned, (dtype, BLOCK), (INDEX, 1))
        mean = torch.zeros_like(blocks).index_copy_(0, places.view(-1).long(), values)
        return settled(gradient.copy_(mean.view(-1)[:n]))


def chosen_blocks(blocks: torch.Tensor, ratio: float) -> torch.Tensor:
    """Which of the blocks (m, 256) to send (bool): not zero, and in the share of all m of largest norm."""
    # Of the largest magnitude, not the norm, whether there is anything: squares of small numbers vanish.
    filled: torch.Tensor = torch.linalg.vector_norm(blocks, float("inf"), dim=1).ne(0)
    if ratio < 1:
        largest = torch.linalg.vector_norm(blocks, dim=1).topk(share(ratio, len(blocks)), sorted=False).indices
        filled &= torch.zeros_like(filled).index_fill_(0, largest, True)
    return filled


def counts_of_shards(flags: torch.Tensor, owners: int) -> torch.Tensor:
    """How many flags (m,), bool, are true in each of as many shards (owners,), int64."""
    below = pad(flags.cumsum(0), (1, 0)).index_select(0, shard_ends(len(flags), owners, flags.device))
    return below.diff(prepend=below.new_zeros(1))
