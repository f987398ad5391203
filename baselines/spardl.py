"""SparDL: a reduce-scatter of top entries in ceil(log2 p) rounds, chosen anew before each, then an all-gather.

Zhao et al., ICDE 2024 (arXiv 2304.00737; the authors' code is public). Sums of sparse gradients grow denser with every
worker that is added. SparDL keeps their size: a = g + e is cut into p equal blocks, and only the k / p largest entries
of a block, with whatever was added to it so far, ever travel.

* **Spar-Reduce-Scatter**: in rounds of distance 2^i, farthest first, worker r sends r + 2^i all the blocks which that
  one is nearer to, and adds what it receives from r - 2^i. In the end block r is summed at worker r. This is Bruck's
  all-gather in reverse and works for any p; p - 1 blocks leave each worker.
* **All-gather** of the p blocks.
* **Global residual collection**: nothing is lost. At places that no block's final choice holds, each worker takes its
  own a back, sent or not. At places that it does hold, a residual is what was dropped on the way, and it stays at the
  worker that dropped it, sums of several workers' numbers included.

Where the paper leaves room, or this differs:

* The top is found by a threshold from a sample, as top-k here does by default.
* A block is cut to its top when it is about to travel, as in the authors' code; until then it stays dense at its
  holder, so that each choice sees the sum of all that has arrived.
* Workers form one team. The paper's Spar-All-Gather among several teams trades bytes for rounds.
* Blocks are parts of a DDP bucket. The last ones are lengthened by zeros so that all have one size.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch.futures import Future

from baselines._calls import AllGather, Call, Shift
from baselines._lane import LaneState, settled
from baselines._memory import BucketMemory
from baselines._parameters import Share, parameters
from baselines._ring import exchange
from baselines._sparse import pack, padded, sampled_top, share, sparse_bytes, unpack
from baselines._state import Shapes

LABEL = "SparDL"
COLOR = "#117733"
MARKER = "H"
SENDS = "the largest entries of each block, chosen anew in each round, with their indices"
ALL_REDUCE = False
SOURCE = "Zhao et al., ICDE 2024 (arXiv 2304.00737)"
MOST_LOSS = 0.04
MOST_LOSS_AT_PLATEAU = 0.01

SAMPLE_RATIO = 0.01


@parameters
class State(LaneState):
    """What SparDL keeps on one rank.

    Args:
        ratio: the share of each block's entries that travels and is applied.
    """

    swept = ("ratio",)
    adjustable = ("ratio",)
    most_copies = 5.0
    remembers = ("residual",)

    ratio: Share = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        self.residual = BucketMemory()

    def wire_bytes(self, shapes: Shapes, world_size: int, step: int | None = None) -> float:
        passes = 2  # p - 1 blocks of a p-th each leave a worker in the reduce-scatter, and as many in the all-gather
        return passes * sparse_bytes(self.ratio, shapes, world_size) / world_size

    def calls(self, shapes: Shapes, world_size: int) -> list[Call]:
        block = self.wire_bytes(shapes, world_size) / (2 * (world_size - 1))
        scattered = [Shift(count * block, distance) for distance, count in rounds(world_size)]
        return [*scattered, AllGather(block)]


def spardl_hook(state: State, bucket: dist.GradBucket) -> Future[torch.Tensor]:
    """Replace the bucket by the mean, over all ranks, of the entries that came through every choice."""
    gradient = bucket.buffer()
    with state.stopwatch("encode"):
        a = state.residual.draft(bucket).plus(gradient)
    return state.lane.submit(lambda: sparse_all_reduce(state, a, gradient))


def sparse_all_reduce(state: State, a: torch.Tensor, out: torch.Tensor) -> Future[torch.Tensor]:
    """Fill ``out`` (n,) with the sparse mean of all ranks' ``a`` (n,), which becomes the residual. Runs in the lane."""
    p, rank = state.world_size, state.own_rank
    with state.stopwatch("encode"):
        blocks = in_blocks(a, p)
        k = share(state.ratio, blocks.shape[1])
    reduce_scatter(state, blocks, k)
    with state.stopwatch("encode"):
        own = pack(*take_top(state, blocks, [rank], k))
        gathered = [torch.empty_like(own) for _ in range(p)]
    dist.all_gather(gathered, own, group=state.lane.process_group)
    with state.stopwatch("decode"):
        tops = [unpack(parcel, a.dtype) for parcel in gathered]
        apply = apply_all if a.is_cuda else apply_some
        return settled(apply(tops, blocks, a, out.zero_()))


Top = tuple[torch.Tensor, torch.Tensor]
"""Values, and indices within their block, of as many blocks as the context says, one after the other."""


def apply_some(tops: list[Top], blocks: torch.Tensor, a: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Put a p-th of each block's final choice into ``out`` (n,), zeros; ``a`` (n,) gets there what was dropped.

    Args:
        tops: of each block; zeros in it are there to fill up.
        blocks: (p, m), what was dropped on the way.
    """
    for start, (values, indices) in zip(range(0, blocks.numel(), blocks.shape[1]), tops, strict=True):
        meant = values.ne(0)
        places = indices[meant].long() + start
        a.index_copy_(0, places, blocks.view(-1).index_select(0, places))
        out.index_copy_(0, places, values[meant].div_(len(blocks)))
    return out


def apply_all(tops: list[Top], blocks: torch.Tensor, a: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """The same by passes over all entries, so that a GPU is not waited for: how many are meant it alone knows."""
    chosen = torch.zeros_like(blocks)
    for block, (values, indices) in zip(chosen, tops, strict=True):
        block.index_add_(0, indices.long(), values)
    together = chosen.view(-1)[: len(out)]
    torch.where(together.ne(0), blocks.view(-1)[: len(out)], a, out=a)
    return torch.div(together, len(blocks), out=out)


def rounds(p: int) -> list[tuple[int, int]]:
    """The distance of each round of the reduce-scatter and how many blocks each of p workers sends in it."""
    distances = [2**i for i in reversed(range((p - 1).bit_length()))]
    return [(distance, min(distance, p - distance)) for distance in distances]


def in_blocks(a: torch.Tensor, p: int) -> torch.Tensor:
    """A copy of ``a`` (n,) as p rows of one size, lengthened by zeros."""
    blocks = a.new_zeros(p, -(-a.numel() // p))
    blocks.view(-1)[: a.numel()] = a
    return blocks


def take_top(state: State, blocks: torch.Tensor, rows: Iterable[int], k: int) -> Top:
    """Cut about the k largest entries out of these rows of ``blocks`` (p, m), filled up to k each; the rest stays."""
    tops = []
    for row in rows:
        block = blocks[row]
        indices = sampled_top(block, k, SAMPLE_RATIO, start=state.step)
        tops.append(padded(block.index_select(0, indices), indices, k))
        block.index_fill_(0, indices, 0)
    return torch.cat([values for values, _ in tops]), torch.cat([indices for _, indices in tops])


def reduce_scatter(state: State, blocks: torch.Tensor, k: int) -> None:
    """Add up block r of all ranks at rank r; elsewhere ``blocks`` (p, m) then holds what was dropped on the way."""
    p, rank = state.world_size, state.own_rank
    for distance, count in rounds(p):
        with state.stopwatch("encode"):
            parcel = pack(*take_top(state, blocks, [(rank + distance + i) % p for i in range(count)], k))
        arrived = exchange(
            state, state.lane.process_group, parcel, to=(rank + distance) % p, source=(rank - distance) % p
        )
        with state.stopwatch("decode"):
            values, indices = unpack(arrived, blocks.dtype)
            for i, (v, places) in enumerate(zip(values.split(k), indices.split(k), strict=True)):
                blocks[(rank + i) % p].index_add_(0, places, v)
