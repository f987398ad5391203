"""What PowerSGD and Dion share: matrices that travel as two thin ones, by one power iteration a step."""

from __future__ import annotations

from abc import abstractmethod
from itertools import takewhile
from typing import NamedTuple

import torch
import torch.distributed as dist

from baselines._calls import AllReduce, Call, sent_bytes
from baselines._lane import LaneState
from baselines._memory import Drafts, as_matrix
from baselines._state import Shapes, numel

Shape = torch.Size | tuple[int, ...]


class LowRankState(LaneState):
    """Base of a ``State`` that sends matrices of shape (a, b) as P (a, r) and Q (b, r), and all else dense.

    Weights of more than two dimensions are matrices with their first one as rows.
    """

    seed: int
    """Of the first Q, the same on every rank."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.q: Drafts[torch.Tensor] = Drafts()
        """Of each matrix by its name, from the step before."""

    @abstractmethod
    def rank_of(self, shape: Shape) -> int:
        """The rank r of a parameter of that shape; 0 if it travels dense."""

    def wire_bytes(self, shapes: Shapes, world_size: int, step: int | None = None) -> float:
        return sent_bytes(self.calls(shapes, world_size), world_size)

    def calls(self, shapes: Shapes, world_size: int) -> list[Call]:
        ranks = [(tuple(shape), self.rank_of(tuple(shape))) for shape in shapes]
        p_bytes = 4 * sum(r * shape[0] if r else numel([shape]) for shape, r in ranks)
        q_bytes = 4 * sum(r * columns(shape) for shape, r in ranks if r > 0)
        return [AllReduce(p_bytes), AllReduce(q_bytes)]

    def q_of(self, weight: torch.Tensor) -> torch.Tensor:
        """Q (b, r) of a parameter's matrix, from the step before; at first random and orthonormal."""
        key = self.names[weight]
        if (warm := self.q.get(key)) is not None:
            return warm
        before = takewhile(lambda each: each is not weight, self.names)
        place = sum(each.requires_grad for each in before)  # also of a weight that was frozen since DDP was made
        dice = torch.Generator(weight.device).manual_seed(self.seed + place)
        size = columns(weight.shape), self.rank_of(weight.shape)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        start: torch.Tensor = torch.linalg.qr(torch.randn(*size, generator=dice, dtype=dtype, device=weight.device)).Q
        return start


class Low(NamedTuple):
    """A matrix of a bucket that is approximated."""

    weight: torch.Tensor
    matrix: torch.Tensor
    """(a, b): a view of the bucket's memory."""


def split(state: LowRankState, flat: torch.Tensor, weights: list[torch.Tensor]) -> tuple[list[Low], list[torch.Tensor]]:
    """A bucket's matrices that are approximated, and the flat parts that travel whole; views of ``flat`` (n,)."""
    matrices, dense = [], []
    for weight, part in zip(weights, flat.split([weight.numel() for weight in weights]), strict=True):
        if state.rank_of(weight.shape):
            matrices.append(Low(weight, as_matrix(part, weight)))
        else:
            dense.append(part)
    return matrices, dense


class Factors(NamedTuple):
    """What one power iteration gives on all ranks, in the order of what went in."""

    ps: list[torch.Tensor]
    """(a, r), orthonormal."""
    qs: list[torch.Tensor]
    """(b, r): the mean of all ranks' matrix' P."""
    means: tuple[torch.Tensor, ...]
    """Of the dense parts."""


def power_iteration(state: LowRankState, matrices: list[Low], dense: list[torch.Tensor]) -> Factors:
    """Of all ranks' matrices, with the dense parts beside them in the first of two all-reduces. Runs in the lane.

    Factors lie in memory column by column: so thin, a product of rows takes a CPU several times as long.
    """
    group = state.lane.process_group
    with state.stopwatch("encode"):
        before = [state.q_of(low.weight).t().contiguous() for low in matrices]
        products = [torch.matmul(q, low.matrix.t()) for low, q in zip(matrices, before, strict=True)]
        together = torch.cat([*(product.view(-1) for product in products), *dense])
    dist.all_reduce(together, group=group)
    with state.stopwatch("encode"):
        *summed, sums = together.split([*map(torch.numel, products), sum(map(len, dense))])
        ps = [torch.linalg.qr(p.view(each.shape).t()).Q for p, each in zip(summed, products, strict=True)]
        flat = together.new_empty(sum(map(torch.numel, before)))
        parts = flat.split([q.numel() for q in before])
        qs = [part.view(q.shape) for part, q in zip(parts, before, strict=True)]
        for low, p, q in zip(matrices, ps, qs, strict=True):
            torch.matmul(p.t(), low.matrix, out=q)
    dist.all_reduce(flat, group=group)
    with state.stopwatch("decode"):
        flat.div_(state.world_size)
        means = sums.div_(state.world_size).split([len(part) for part in dense])
        return Factors(ps, [q.t() for q in qs], means)


def columns(shape: Shape) -> int:
    """Of a parameter as a matrix."""
    return numel([shape[1:]])
