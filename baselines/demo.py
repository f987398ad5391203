"""DeMo: momentum that each worker keeps to itself, but for the strongest frequencies of each tile, which travel.

Peng, Quesnelle and Kingma, 2024 (arXiv 2411.19870), algorithm 1. Per worker and step, on its own gradient g::

    m = decay m + g
    q = the topk largest coefficients of the cosine transform (DCT-II) of each tile of m
    m = m - inverse transform of q          what was not sent stays in the momentum
    gradient <- sign(inverse transform of the mean of all workers' q)

A parameter is a matrix with its first dimension as rows, cut into tiles whose sides are the largest divisors of the
matrix' up to ``chunk``. A coefficient that several workers send is the mean over those that sent it, as in the authors'
code. Steps have the size of the learning rate alone, so a rate that suits Adam suits DeMo.

The optimizer's momentum is taken over and set to 0 there: DeMo is the momentum. What the optimizer does besides is what
the authors' does: its weight decay shrinks weights by the rate times it.

Where it differs: the momentum gathers gradients, not gradients times the learning rate, which is the same while the
rate does not change. Places within a tile travel as two bytes; the authors' code sends eight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Annotated

import torch
import torch.distributed as dist
from pydantic import Field
from torch.futures import Future

from baselines._calls import AllGather, Call
from baselines._memory import BucketMemory, as_matrix
from baselines._momentum import MomentumState
from baselines._parameters import Count, Decay, parameters
from baselines._state import Shapes, all_gather_bytes
from baselines._streams import used_here

LABEL = "DeMo"
COLOR = "#225522"
MARKER = "+"
SENDS = "the largest cosine coefficients of each tile of the momentum, with their places"
ALL_REDUCE = False
SOURCE = "Peng et al., 2024 (arXiv 2411.19870)"
MOST_LOSS = 0.01
MOST_LOSS_AT_PLATEAU = 0.01
MOST_PERPLEXITY = 0.06
PAPER_SAYS = (
    "comparable to AdamW or better: OLMo-1B after 100 billion tokens, HellaSwag 0.47 against 0.43 (k = 16; as notes "
    "on the paper have it)"
)

PLACE = torch.int16


@parameters
class State(MomentumState):
    """What DeMo keeps on one rank.

    Args:
        topk: coefficients that are sent of each tile; all of a tile that has fewer.
        chunk: the longest side of a tile.
        decay: of the momentum, from step to step.
        sign: whether the sign of the mean is applied, or the mean itself.
    """

    swept = ("topk",)
    most_copies = 8.0
    adjustable = ("topk", "decay")
    remembers = ("momentum",)

    topk: Count = 32
    chunk: Annotated[int, Field(ge=1, le=128)] = 64
    decay: Decay = 0.999
    sign: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.momentum = BucketMemory()

    def tiles_of(self, shape: torch.Size | tuple[int, ...]) -> Tiles:
        """How a parameter of that shape is cut."""
        rows = shape[0] if len(shape) > 1 else 1
        columns = math.prod(shape) // max(rows, 1)
        return Tiles(rows, columns, longest_side(rows, self.chunk), longest_side(columns, self.chunk))

    def sent_of(self, tiles: Tiles) -> int:
        """How many coefficients of each tile are sent."""
        return min(self.topk, tiles.tall * tiles.wide)

    def wire_bytes(self, shapes: Shapes, world_size: int, step: int | None = None) -> float:
        return all_gather_bytes(self.message_bytes(shapes), world_size)

    def message_bytes(self, shapes: Shapes) -> int:
        """What a rank sends of parameters of these shapes (fp32)."""
        every = [self.tiles_of(tuple(shape)) for shape in shapes]
        return sum(tiles.count * self.sent_of(tiles) for tiles in every) * (4 + PLACE.itemsize)

    def calls(self, shapes: Shapes, world_size: int) -> list[Call]:
        return [AllGather(self.message_bytes(shapes))]


@dataclass(frozen=True)
class Tiles:
    """A matrix of so many rows and columns in tiles so tall and wide."""

    rows: int
    columns: int
    tall: int
    wide: int

    @property
    def count(self) -> int:
        """How many there are."""
        return (self.rows // self.tall) * (self.columns // self.wide)

    def cut(self, values: torch.Tensor) -> torch.Tensor:
        """The tiles (count, tall, wide) of ``values`` (rows, columns)."""
        in_rows = values.view(self.rows // self.tall, self.tall, self.columns // self.wide, self.wide)
        return in_rows.transpose(1, 2).reshape(self.count, self.tall, self.wide)

    def joined(self, tiles: torch.Tensor) -> torch.Tensor:
        """The inverse of ``cut``, row by row (rows * columns,)."""
        in_rows = tiles.view(self.rows // self.tall, self.columns // self.wide, self.tall, self.wide)
        return in_rows.transpose(1, 2).reshape(-1)


def transformed(tiles: torch.Tensor) -> torch.Tensor:
    """The cosine coefficients (count, tall * wide) of tiles (count, tall, wide)."""
    down, across = (cosines(side, tiles.dtype, tiles.device) for side in tiles.shape[1:])
    return torch.einsum("nhw,ah,bw->nab", tiles, down, across).flatten(1)


def restored(coefficients: torch.Tensor, tall: int, wide: int) -> torch.Tensor:
    """The inverse of ``transformed``."""
    down, across = (cosines(side, coefficients.dtype, coefficients.device) for side in (tall, wide))
    return torch.einsum("nab,ah,bw->nhw", coefficients.view(-1, tall, wide), down, across)


@cache
def longest_side(size: int, most: int) -> int:
    """The largest divisor of a matrix' side that is at most so long; 1 of none."""
    return max((side for side in range(1, min(size, most) + 1) if size % side == 0), default=1)


@cache
def cosines(size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The orthogonal matrix (size, size) of the DCT-II, a frequency a row."""
    place = torch.arange(size, dtype=torch.float64)
    rows = torch.cos(math.pi / size * place.unsqueeze(1) * (place + 0.5)).mul_(math.sqrt(2 / size))
    rows[0] /= math.sqrt(2)
    return rows.to(device, dtype)


def demo_hook(state: State, bucket: dist.GradBucket) -> Future[torch.Tensor]:
    """Replace the bucket by the sign of the mean of what all ranks sent of their momenta."""
    gradient: torch.Tensor = bucket.buffer()
    weights = bucket.parameters()
    tilings = [state.tiles_of(weight.shape) for weight in weights]
    sent = [state.sent_of(tiles) for tiles in tilings]
    with state.stopwatch("encode"):
        memory = state.momentum.draft(bucket)
        momentum = torch.mul(memory.before, state.decay, out=memory.after).add_(gradient)
        block = take_strongest(momentum, weights, tilings, sent)
        blocks = [torch.empty_like(block) for _ in range(state.world_size)]
    work = dist.all_gather(blocks, block, group=state.process_group, async_op=True)

    def decode(done: Future[object]) -> torch.Tensor:
        done.value()  # raises what the collective raised
        used_here(*blocks)
        with state.stopwatch("decode"):
            put_means(blocks, weights, tilings, sent, out=gradient)
            # The sign of a NaN is 0 in torch, and must not hide it.
            if state.sign:
                gradient.copy_(gradient.sign().where(gradient.isfinite(), torch.nan))
        return gradient

    return work.get_future().then(decode)


def take_strongest(
    momentum: torch.Tensor, weights: list[torch.Tensor], tilings: list[Tiles], sent: list[int]
) -> torch.Tensor:
    """Subtract from ``momentum`` (n,) its tiles' largest coefficients; these and their places in a tile (uint8)."""
    values, places = [momentum[:0]], [torch.arange(0, device=momentum.device)]
    parts = matrices(momentum, weights)
    for members in alike(tilings):
        tiles, k = tilings[members[0]], sent[members[0]]
        coefficients = transformed(torch.cat([tilings[each].cut(parts[each]) for each in members]))
        strongest = coefficients.abs().topk(k, dim=1, sorted=False).indices
        values.append(coefficients.gather(1, strongest).view(-1))
        places.append(strongest.view(-1))
        alone = torch.zeros_like(coefficients).scatter_(1, strongest, values[-1].view(-1, k))
        taken = restored(alone, tiles.tall, tiles.wide).split([tilings[each].count for each in members])
        for each, of_part in zip(members, taken, strict=True):
            parts[each].sub_(tilings[each].joined(of_part).view(parts[each].shape))
    return torch.cat((torch.cat(values).view(torch.uint8), torch.cat(places).to(PLACE).view(torch.uint8)))


def put_means(
    blocks: list[torch.Tensor], weights: list[torch.Tensor], tilings: list[Tiles], sent: list[int], out: torch.Tensor
) -> None:
    """Fill ``out`` (n,) with what belongs to the coefficients of all ranks, each the mean over those that sent it."""
    starts = tile_starts(tilings, sent, out.device)
    sums, counts, ones = torch.zeros_like(out), torch.zeros_like(out), out.new_ones(len(starts))
    for block in blocks:
        values, places = block.split((len(starts) * out.itemsize, len(starts) * PLACE.itemsize))
        at = places.clone().view(PLACE) + starts
        sums.index_add_(0, at, values.view(out.dtype))
        counts.index_add_(0, at, ones)
    means, parts, before = sums.div_(counts.clamp_(min=1)), matrices(out, weights), 0
    for members in alike(tilings):
        tiles, of_each = tilings[members[0]], [tilings[each].count for each in members]
        entries = sum(of_each) * tiles.tall * tiles.wide
        found = restored(means[before : before + entries], tiles.tall, tiles.wide).split(of_each)
        for each, of_part in zip(members, found, strict=True):
            parts[each].copy_(tilings[each].joined(of_part).view(parts[each].shape))
        before += entries


def matrices(values: torch.Tensor, weights: list[torch.Tensor]) -> list[torch.Tensor]:
    """Views (rows, columns) of (n,), one for each parameter; one of at most one dimension is a row."""
    parts = zip(weights, values.split([weight.numel() for weight in weights]), strict=True)
    return [as_matrix(part, weight) if weight.dim() > 1 else part.unsqueeze(0) for weight, part in parts]


def alike(tilings: list[Tiles]) -> list[list[int]]:
    """The numbers of the parameters whose tiles have the same size, for each size: they are transformed together."""
    of_size: dict[tuple[int, int], list[int]] = {}
    for number, tiles in enumerate(tilings):
        of_size.setdefault((tiles.tall, tiles.wide), []).append(number)
    return list(of_size.values())


def tile_starts(tilings: list[Tiles], sent: list[int], device: torch.device) -> torch.Tensor:
    """Where the tile begins (k,), int64, that each sent coefficient is of, among the coefficients of a bucket.

    Tiles of one size lie together.
    """
    starts, before = [torch.arange(0, device=device)], 0
    for members in alike(tilings):
        tiles, count = tilings[members[0]], sum(tilings[each].count for each in members)
        size = tiles.tall * tiles.wide
        of_tiles = torch.arange(count, device=device).mul_(size).add_(before)
        starts.append(of_tiles.unsqueeze(1).expand(count, sent[members[0]]).reshape(-1))
        before += count * size
    return torch.cat(starts)
