"""PowerSGD: each weight's gradient matrix as the product of two thin ones, by one power iteration a step.

Vogels et al., NeurIPS 2019 (arXiv 1905.13727). With M = G + E, of shape (a, b), and Q (b, r) from the step before (warm
start; random at first, the same on all ranks)::

    P = M Q         all-reduce P, orthogonalise it
    Q = M' P        all-reduce Q
    G <- P Q' / p   E = M - G

Both collectives are ordinary all-reduces of short dense tensors. Parameters of fewer than two dimensions, and matrices
that would not shrink by ``min_compression_rate``, travel dense together with P. Weights of more dimensions are matrices
with their first one as rows. Apart from the random start, it is torch's ``powerSGD_hook`` without its dense first
steps.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
import torch.distributed as dist
from pydantic import Field
from torch.futures import Future

from baselines._calls import AllReduce, Call
from baselines._lane import LaneState, settled
from baselines._memory import BucketMemory, Draft, Drafts
from baselines._state import Shapes, numel, parameters, ring_all_reduce_bytes

LABEL = "PowerSGD"
COLOR = "#332288"
MARKER = ">"
SENDS = "two thin matrices for each weight's gradient"
ALL_REDUCE = True
SOURCE = "Vogels et al., NeurIPS 2019 (arXiv 1905.13727)"
MOST_LOSS = 0.01


@parameters
class State(LaneState):
    """What PowerSGD keeps on one rank.

    Args:
        rank: of the approximation; at most the lesser side of a matrix is used.
        min_compression_rate: matrices that would shrink by less travel dense.
        error_feedback: whether what the approximation missed is added to the next gradient.
        seed: of the first Q, the same on every rank.
    """

    most_copies = 5.0
    remembers = ("residual", "q")

    rank: Annotated[int, Field(ge=1)] = 4
    min_compression_rate: Annotated[float, Field(gt=0)] = 2
    error_feedback: bool = True
    seed: Annotated[int, Field(ge=0)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.residual = BucketMemory()
        self.q: Drafts[torch.Tensor] = Drafts()

    def rank_of(self, shape: torch.Size | tuple[int, ...]) -> int:
        """The rank of the approximation of a parameter of that shape; 0 if it travels dense."""
        if len(shape) < 2 or not numel([shape]):
            return 0
        rows, columns = shape[0], numel([shape[1:]])
        r = min(self.rank, rows, columns)
        return r if (rows + columns) * r * self.min_compression_rate < rows * columns else 0

    def wire_bytes(self, shapes: Shapes, world_size: int, step: int | None = None) -> float:
        def sent(shape: tuple[int, ...]) -> int:
            r = self.rank_of(shape)
            return r * (shape[0] + numel([shape[1:]])) if r else numel([shape])

        return ring_all_reduce_bytes(4 * sum(sent(tuple(shape)) for shape in shapes), world_size)

    def calls(self, shapes: Shapes, world_size: int) -> list[Call]:
        ranks = [(shape, self.rank_of(tuple(shape))) for shape in shapes]
        p_bytes = 4 * sum(r * shape[0] if r else numel([shape]) for shape, r in ranks)
        q_bytes = 4 * sum(r * numel([shape[1:]]) for shape, r in ranks if r)
        return [AllReduce(p_bytes), AllReduce(q_bytes)]

    def q_of(self, weight: torch.Tensor) -> torch.Tensor:
        """Q (b, r) of a parameter's gradient, from the step before."""
        key = self.names[weight]
        if (warm := self.q.get(key)) is not None:
            return warm
        place = list(self.names.values()).index(key)
        dice = torch.Generator(weight.device).manual_seed(self.seed + place)
        size = numel([weight.shape[1:]]), self.rank_of(weight.shape)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        start: torch.Tensor = torch.linalg.qr(torch.randn(*size, generator=dice, dtype=dtype, device=weight.device)).Q
        return start


class Low(NamedTuple):
    """A matrix of a bucket that is approximated."""

    weight: torch.Tensor
    matrix: torch.Tensor
    """(a, b): a view of the bucket's memory."""


def powersgd_hook(state: State, bucket: dist.GradBucket) -> Future[torch.Tensor]:
    """Replace the bucket by the mean of all ranks' gradients, its matrices approximated."""
    gradient, weights = bucket.buffer(), bucket.parameters()
    residual = state.residual.draft(bucket) if state.error_feedback else None
    return state.lane.submit(lambda: low_rank_all_reduce(state, gradient, weights, residual))


def low_rank_all_reduce(
    state: State, gradient: torch.Tensor, weights: list[torch.Tensor], residual: Draft | None
) -> Future[torch.Tensor]:
    """The mean of ``gradient`` (n,), in place, but for the ``residual`` (n,), if there is one. Runs in the lane."""
    group = state.lane.process_group
    with state.stopwatch("encode"):
        if residual is not None:
            gradient.copy_(residual.plus(gradient))
        matrices, dense = split(state, gradient, weights)
        qs = [state.q_of(low.weight) for low in matrices]
        together = torch.cat([*((low.matrix @ q).view(-1) for low, q in zip(matrices, qs, strict=True)), *dense])
    dist.all_reduce(together, group=group)
    with state.stopwatch("encode"):
        *summed, means = together.split(
            [*(len(low.matrix) * q.shape[1] for low, q in zip(matrices, qs, strict=True)), sum(map(len, dense))]
        )
        ps = [torch.linalg.qr(p.view(-1, q.shape[1])).Q for p, q in zip(summed, qs, strict=True)]
        flat_q = gradient.new_empty(sum(q.numel() for q in qs))
        views = [part.view(q.shape) for part, q in zip(flat_q.split([q.numel() for q in qs]), qs, strict=True)]
        for low, p, q in zip(matrices, ps, views, strict=True):
            torch.matmul(low.matrix.t(), p, out=q)
    dist.all_reduce(flat_q, group=group)
    with state.stopwatch("decode"):
        flat_q.div_(state.world_size)
        for low, p, q in zip(matrices, ps, views, strict=True):
            torch.matmul(p, q.t(), out=low.matrix)
            state.q.draft(state.names[low.weight], q)
        for part, mean in zip(dense, means.div_(state.world_size).split([len(part) for part in dense]), strict=True):
            part.copy_(mean)
        if residual is not None:
            missed = residual.after.sub_(gradient)
            _, travelled_whole = split(state, missed, weights)
            for part in travelled_whole:
                part.zero_()
        return settled(gradient)


def split(state: State, flat: torch.Tensor, weights: list[torch.Tensor]) -> tuple[list[Low], list[torch.Tensor]]:
    """A bucket's matrices that are approximated, and the flat parts that travel whole; views of ``flat`` (n,)."""
    matrices, dense = [], []
    for weight, part in zip(weights, flat.split([weight.numel() for weight in weights]), strict=True):
        if state.rank_of(weight.shape):
            matrices.append(Low(weight, part.view(weight.shape[0], -1)))
        else:
            dense.append(part)
    return matrices, dense
