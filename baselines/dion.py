"""Dion: momentum that each worker keeps to itself, but for an orthonormal matrix of low rank, which travels.

Ahn, Xu, Abreu and Langford, 2025 (arXiv 2504.05295), in its form for data-parallel workers, whose momenta are
decoupled. For a matrix of shape (m, n), with Q (n, r) from the step before (random at first, the same on all ranks)::

    B = M + G                                   M: this worker's momentum, G: its own gradient
    P = B Q       all-reduce P, orthonormalise it
    R = B' P      all-reduce R
    M = B - (1 - mu) P R'                       what was not sent stays in the momentum
    Q = R with columns of length 1
    gradient <- sqrt(m / n) P Q'

Both collectives are ordinary all-reduces of short dense tensors. The mean of all workers' momenta is what one worker
would have that sees all gradients, so the result does not depend on how samples are spread over workers.

Weights of more than two dimensions are matrices with their first one as rows, as the authors do it for Muon. All other
parameters travel dense and get Lion's update (Chen et al., 2023, arXiv 2302.06675), as the authors advise. Both updates
have the size of the learning rate alone: a rate for Muon suits, not one for SGD. The optimizer's momentum is taken over
and set to 0 there; its weight decay shrinks weights by the rate times it, as the authors' does.

Where it differs: the authors advise Lion's update for embeddings and for the last layer as well, with a rate of its own
for the latter. Nothing here tells them from other matrices. P is orthonormalised by a plain QR. A column of R that is
no more than rounding errors beside the longest makes no update.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch.futures import Future

from baselines._lane import settled
from baselines._low_rank import LowRankState, Shape, columns, power_iteration, split
from baselines._memory import BucketMemory, Draft
from baselines._momentum import MomentumState
from baselines._parameters import Decay, Seed, Share, parameters
from baselines._state import numel

LABEL = "Dion"
COLOR = "#AA3377"
MARKER = "$D$"
SENDS = "two thin matrices for the momentum of each weight"
ALL_REDUCE = True
SOURCE = "Ahn et al., 2025 (arXiv 2504.05295)"
MOST_LOSS = 0.01
MOST_LOSS_AT_PLATEAU = 0.01
MOST_PERPLEXITY = 0.01
PAPER_SAYS = "as good as Muon and better than AdamW, from 160 million to 3 billion parameters; it compares with no SGD"

TINY = 1e-8
"""Added to a column's length, as in the authors' code."""

ROUNDED = 64
"""Roundings of the longest column that are no direction."""

LION_BETAS = 0.9, 0.95
"""As in the authors' code."""


@parameters
class State(MomentumState, LowRankState):
    """What Dion keeps on one rank.

    Args:
        rank_fraction: the rank of P and Q, as a share of a matrix' lesser side, rounded up.
        mu: what is left of the momentum, where it was sent, from step to step.
        seed: of the first Q, the same on every rank.
    """

    swept = ("rank_fraction",)
    most_copies = 6.0
    adjustable = ("mu",)
    remembers = ("momentum", "q")

    rank_fraction: Share = 0.25
    mu: Decay = 0.95
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.momentum = BucketMemory()

    def rank_of(self, shape: Shape) -> int:
        if len(shape) < 2 or not numel([shape]):
            return 0
        return math.ceil(self.rank_fraction * min(shape[0], columns(shape)))


def dion_hook(state: State, bucket: dist.GradBucket) -> Future[torch.Tensor]:
    """Replace the bucket by the update that all ranks make."""
    gradient, weights = bucket.buffer(), bucket.parameters()
    momentum = state.momentum.draft(bucket)
    return state.lane.submit(lambda: settled(update_by_all(state, gradient, weights, momentum)))


def update_by_all(state: State, gradient: torch.Tensor, weights: list[torch.Tensor], momentum: Draft) -> torch.Tensor:
    """The update by all ranks' ``gradient`` (n,) and momenta (n,), in place. Runs in the lane."""
    updates, dense = split(state, gradient, weights)
    with state.stopwatch("encode"):
        momentum.plus(gradient)
        momenta, kept = split(state, momentum.after, weights)
    ps, rs, means = power_iteration(state, momenta, dense)
    with state.stopwatch("decode"):
        for low, update, p, r in zip(momenta, updates, ps, rs, strict=True):
            low.matrix.addmm_(p, r.t(), alpha=state.mu - 1)
            q = columns_of_one_length(r)
            rows, wide = low.matrix.shape
            torch.matmul(p, q.t(), out=update.matrix).mul_(math.sqrt(rows / wide))
            state.q.draft(state.names[low.weight], q)
        _, before = split(state, momentum.before, weights)
        for part, mean, past, now in zip(dense, means, before, kept, strict=True):
            lion(mean, past, update=part, momentum=now)
        return gradient


def columns_of_one_length(r: torch.Tensor) -> torch.Tensor:
    """The columns of (n, rank), each divided by its length; what is no more than rounding errors beside others is zero.

    Else, of a gradient of a lower rank, directions that are nothing but noise would move the weights as far as others.
    """
    lengths = torch.linalg.vector_norm(r, dim=0)
    noise = lengths.max() * ROUNDED * torch.finfo(r.dtype).eps
    return torch.where(lengths < noise, 0, r / (lengths + TINY))


def lion(mean: torch.Tensor, past: torch.Tensor, update: torch.Tensor, momentum: torch.Tensor) -> None:
    """Fill ``update`` and ``momentum`` by a mean gradient and the momentum that is past, all (n,)."""
    beta1, beta2 = LION_BETAS
    mixed = torch.lerp(mean, past, beta1)
    update.copy_(
        mixed.sign().where(mixed.isfinite(), torch.nan)
    )  # the sign of a NaN is 0 in torch, and must not hide it
    torch.lerp(mean, past, beta2, out=momentum)
