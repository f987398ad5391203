"""PowerSGD: each weight's gradient matrix as the product of two thin ones, by one power iteration a step.

Vogels et al., NeurIPS 2019 (arXiv 1905.13727). With M = G + E, of shape (a, b), and Q (b, r) from the step before (warm
start; random at first, the same on all ranks)::

    P = M Q         all-reduce P, orthogonalise it
    Q = M' P        all-reduce Q
    G <- P Q' / p   E = M - G

Both collectives are ordinary all-reduces of short dense tensors. Parameters of fewer than two dimensions, and matrices
that would not shrink by ``min_compression_rate``, travel dense together with P. Weights of more dimensions are matrices
with their first one as rows. Apart from the random start, it is torch's ``powerSGD_hook``, whose first steps are dense
(``start_powerSGD_iter``): here there are ``warmup_steps`` of them, none unless asked for, as in the paper.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.futures import Future

from baselines._lane import settled
from baselines._low_rank import LowRankState, Shape, columns, power_iteration, split
from baselines._memory import BucketMemory, Draft
from baselines._parameters import Count, Positive, Seed, Steps, parameters
from baselines._pieces import by_rows
from baselines._state import Shapes, numel, ring_all_reduce_bytes
from baselines.dense import dense_hook

LABEL = "PowerSGD"
COLOR = "#332288"
MARKER = ">"
SENDS = "two thin matrices for each weight's gradient"
ALL_REDUCE = True
SOURCE = "Vogels et al., NeurIPS 2019 (arXiv 1905.13727)"
MOST_LOSS = 0.02
MOST_LOSS_AT_PLATEAU = 0.01
MOST_PERPLEXITY = 0.08
PAPER_SAYS = (
    "none: ResNet-18 on CIFAR-10 with rank 2, 94.4 % as SGD; an LSTM on WikiText-2 with rank 4, SGD's perplexity (as "
    "notes on the paper have it)"
)


@parameters
class State(LowRankState):
    """What PowerSGD keeps on one rank.

    Args:
        rank: of the approximation; at most the lesser side of a matrix is used.
        min_compression_rate: matrices that would shrink by less travel dense.
        error_feedback: whether what the approximation missed is added to the next gradient.
        warmup_steps: dense steps at first.
        seed: of the first Q, the same on every rank.
    """

    most_copies = 5.0
    warmup_parameters = ("warmup_steps",)

    rank: Count = 4
    min_compression_rate: Positive = 2
    error_feedback: bool = True
    warmup_steps: Steps = 0
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.residual = BucketMemory()

    @property
    def remembers(self) -> tuple[str, ...]:
        return ("residual", "q") if self.error_feedback else ("q",)

    @property
    def steady_from_step(self) -> int:
        return self.warmup_steps

    def wire_bytes(self, shapes: Shapes, world_size: int, step: int | None = None) -> float:
        if step is not None and step < self.warmup_steps:
            return ring_all_reduce_bytes(4 * numel(shapes), world_size)
        return super().wire_bytes(shapes, world_size, step)

    def rank_of(self, shape: Shape) -> int:
        if len(shape) < 2 or not numel([shape]):
            return 0
        r = min(self.rank, shape[0], columns(shape))
        return r if (shape[0] + columns(shape)) * r * self.min_compression_rate < numel([shape]) else 0


def powersgd_hook(state: State, bucket: dist.GradBucket) -> Future[torch.Tensor]:
    """Replace the bucket by the mean of all ranks' gradients, its matrices approximated."""
    if state.step < state.warmup_steps:
        return dense_hook(state, bucket)
    gradient, weights = bucket.buffer(), bucket.parameters()
    residual = state.residual.draft(bucket) if state.error_feedback else None
    return state.lane.submit(lambda: low_rank_all_reduce(state, gradient, weights, residual))


def low_rank_all_reduce(
    state: State, gradient: torch.Tensor, weights: list[torch.Tensor], residual: Draft | None
) -> Future[torch.Tensor]:
    """The mean of ``gradient`` (n,), in place, but for the ``residual`` (n,), if there is one. Runs in the lane."""
    corrected = gradient if residual is None else residual.after
    with state.stopwatch("encode"):
        if residual is not None:
            residual.plus(gradient)
        matrices, dense = split(state, corrected, weights)
        approximated, whole = split(state, gradient, weights)
    ps, qs, means = power_iteration(state, matrices, dense)
    with state.stopwatch("decode"):
        for low, result, p, q in zip(matrices, approximated, ps, qs, strict=True):
            state.q.draft(state.names[low.weight], q)
            for some_p, some, some_missed in by_rows(p, result.matrix, low.matrix):
                torch.matmul(some_p, q.t(), out=some)
                if residual is not None:
                    some_missed.sub_(some)
        for part, mean, travelled in zip(whole, means, dense, strict=True):
            part.copy_(mean)
            if residual is not None:
                travelled.zero_()
        return settled(gradient)
