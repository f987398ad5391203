"""Deep Gradient Compression: top entries of locally accumulated momentum, with a sparsity that is warmed up.

Lin, Han, Mao, Wang and Dally, ICLR 2018 (arXiv 1712.01887). Per worker and step, on its own gradient g::

    g = clip(g)             local gradient clipping
    u = m u + g             momentum correction: momentum before sparsification,
    v = v + u               so that what waits in v has gathered it too
    send the top of v
    u = v = 0 where sent    momentum factor masking, against stale momentum

Where the paper leaves room, or a DDP bucket differs from its layers:

* The top is taken per bucket, of all its parameters together.
* Parameters of fewer than two dimensions (biases, norms) travel dense, as in the authors' code: few entries, each of
  which matters. What travels is their momentum, whose mean is the momentum of the mean.
* Each rank sends exactly ``ratio`` of a bucket: a surplus of the sampled threshold (at most 30 %) waits in v, as in
  the authors' code, and a shortage is padded with zeros. So one all-gather does, and ranks need not agree on sizes.
* Clipping is per parameter, as in the authors' code: the whole gradient's norm is not known when a bucket is ready.
* The optimizer's momentum is taken over and set to 0 there. It still adds weight decay, and that keeps its own
  momentum, which is dense but the same on every rank and therefore never sent (as in the authors' DGCSGD).
* Momentum is of the optimizer's kind. With Nesterov's (the authors', for ResNet-50): u = m (u + g), v = v + u + g.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate
from typing import Annotated, Any

import torch
import torch.distributed as dist
from pydantic import Field
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from baselines._calls import AllGather, AllReduce, Call
from baselines._memory import BucketMemory, Draft, WeightMemory
from baselines._momentum import MomentumState
from baselines._names import refuse_sparse_embeddings
from baselines._parameters import Decay, Positive, Share, Steps, parameters
from baselines._sparse import all_gather_mean, padded, sampled_top, share, sparse_bytes
from baselines._state import Shapes, numel, ring_all_reduce_bytes

LABEL = "DGC"
COLOR = "#D55E00"
MARKER = "v"
SENDS = "the largest entries of accumulated momentum, with their indices"
ALL_REDUCE = False
SOURCE = "Lin et al., ICLR 2018 (arXiv 1712.01887)"
MOST_LOSS = 0.04
MOST_LOSS_AT_PLATEAU = 0.02
PAPER_SAYS = (
    "none at a ratio of 0.1 % on 8 GPUs: ResNet-50 on ImageNet 76.6 % against 76.2 %, VGG-16-BN 74.1 % against 73.4 "
    "%; on 256 GPUs 75.9 % and 71.7 % (the authors' README)"
)

WARM_UP = (0.25, 0.0625, 0.015625, 0.004, 0.001)
"""The paper's ratios while the sparsity is warmed up: 75, 93.75, 98.4375, 99.6 and 99.9 % are held back."""


@parameters
class State(MomentumState):
    """What DGC keeps on one rank.

    Args:
        ratio: the share of each bucket's entries that is sent after the warm-up.
        warmup_steps: steps in which the ratio comes down to ``ratio``, split evenly over the stages of ``WARM_UP``
            that lie above it; 0 for none.
        momentum: None takes it over from the optimizer.
        momentum_masking: whether momentum is forgotten where it was sent.
        clip_norm: largest L2 norm of a parameter's mean gradient; each worker clips to ``clip_norm / sqrt(workers)``.
            None for no clipping.
        dense_vectors: whether parameters of fewer than two dimensions travel dense.
        sample_ratio: the share of entries from which the threshold is estimated.
    """

    most_copies = 8.0
    swept = ("ratio",)
    warmup_parameters = ("warmup_steps",)
    adjustable = ("ratio", "clip_norm")
    does_to_momentum = "corrects"
    takes_nesterov = True
    remembers = ("u", "v", "m", "decay")
    takes_sparse_embeddings = False

    ratio: Share = 0.001
    warmup_steps: Steps = 20
    momentum: Decay | None = None
    momentum_masking: bool = True
    clip_norm: Positive | None = None
    dense_vectors: bool = True
    sample_ratio: Annotated[float, Field(ge=0.01, le=1)] = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        self.u = BucketMemory()
        self.v = BucketMemory()
        self._vectors: dict[tuple[int, ...], torch.Tensor] = {}

    @property
    def steady_from_step(self) -> int:
        return self.warmup_steps

    def ratio_at(self, step: int) -> float:
        """The share that is sent at a step."""
        stages = [ratio for ratio in WARM_UP if ratio > self.ratio]
        if step >= self.warmup_steps or not stages:
            return self.ratio
        return stages[step * len(stages) // self.warmup_steps]

    def wire_bytes(self, shapes: Shapes, world_size: int, step: int | None = None) -> float:
        ratio = self.ratio if step is None else self.ratio_at(step)
        dense = [shape for shape in shapes if self.dense_vectors and len(shape) < 2]
        sparse = [shape for shape in shapes if shape not in dense]
        return ring_all_reduce_bytes(4 * numel(dense), world_size) + sparse_bytes(ratio, sparse, world_size)

    def calls(self, shapes: Shapes, world_size: int) -> list[Call]:
        dense = [shape for shape in shapes if self.dense_vectors and len(shape) < 2]
        whole, sparse_each = 4 * numel(dense), self.wire_bytes(shapes, world_size) / (world_size - 1)
        return [AllGather(sparse_each - 2 / world_size * whole), AllReduce(whole)]

    def check(
        self,
        ddp: DistributedDataParallel,
        optimizer: torch.optim.Optimizer,
        loss: Callable[[], torch.Tensor] | None,
    ) -> None:
        super().check(ddp, optimizer, loss)
        refuse_sparse_embeddings(ddp.module, "dgc cannot correct the momentum of")

    def bind(self, ddp: DistributedDataParallel, optimizer: torch.optim.Optimizer) -> None:
        super().bind(ddp, optimizer)
        self.m = self.taken if self.momentum is None else self.momentum
        self.is_nesterov = bool(optimizer.param_groups[0]["nesterov"])
        self.decay = WeightMemory()
        """The momentum of earlier weight decay, of each weight."""

    def vectors(self, bucket: dist.GradBucket) -> torch.Tensor:
        """Places (int64) of the bucket's entries that travel dense."""
        layout = tuple(map(id, bucket.parameters()))
        if layout not in self._vectors:
            self._vectors[layout] = self.places(bucket, dense=True)
        return self._vectors[layout]

    def places(self, bucket: dist.GradBucket, dense: bool) -> torch.Tensor:
        """Places (int64), ascending, of the bucket's entries that travel dense, or of all others."""
        members, device = bucket.parameters(), bucket.buffer().device
        ends = accumulate(member.numel() for member in members)
        parts = [
            torch.arange(end - member.numel(), end, device=device)
            for member, end in zip(members, ends, strict=True)
            if (self.dense_vectors and member.ndim < 2) is dense
        ]
        return torch.cat([torch.arange(0, device=device), *parts])

    @torch.no_grad()
    def before_step(self) -> None:
        """Add to each gradient the momentum of earlier weight decay; the optimizer adds this step's decay itself."""
        super().before_step()
        for group in self.optimizer.param_groups:
            for weight in group["params"] if group["weight_decay"] else ():
                if weight.grad is not None:
                    past = self.decay.of(weight)
                    now = torch.add(weight * group["weight_decay"], past, alpha=self.m)
                    weight.grad.add_(now if self.is_nesterov else past, alpha=self.m)
                    past.copy_(now)


def dgc_hook(state: State, bucket: dist.GradBucket) -> Future[torch.Tensor]:
    """Replace the bucket by the mean of what all ranks sent of their accumulated momentum."""
    gradient = bucket.buffer()
    with state.stopwatch("encode"):
        if state.clip_norm is not None:
            for part in gradient.split([weight.numel() for weight in bucket.parameters()]):
                clip(part, state.clip_norm / math.sqrt(state.world_size))
        momentum, velocity = state.u.draft(bucket), state.v.draft(bucket)
        u, update = corrected(state, momentum, gradient)
        vectors = state.vectors(bucket)
        own, own_u = update.index_select(0, vectors), u.index_select(0, vectors)
        v = velocity.plus(update).index_fill_(0, vectors, 0)
        places = v.numel() - vectors.numel()
        k = share(state.ratio_at(state.step), places)
        if k == places:
            indices = state.places(bucket, dense=False)
        else:
            indices = sampled_top(v, k, state.sample_ratio, start=state.step)
        values = v.index_select(0, indices)
        v.index_fill_(0, indices, 0)
        if state.momentum_masking:
            # Where nothing was to be sent, the top may reach into vectors: their momentum is not forgotten.
            u.index_fill_(0, indices, 0).index_copy_(0, vectors, own_u)
    sparse = all_gather_mean(state, *padded(values, indices, k), out=gradient)
    if not vectors.numel():
        return sparse
    whole = own / state.world_size
    dense = dist.all_reduce(whole, group=state.process_group, async_op=True).get_future()

    def join(done: Future[list[Future[Any]]]) -> torch.Tensor:
        mean, (vector_mean,) = (part.value() for part in done.value())
        with state.stopwatch("decode"):
            return mean.index_copy_(0, vectors, vector_mean)  # type: ignore[no-any-return]

    return torch.futures.collect_all([sparse, dense]).then(join)


def corrected(state: State, momentum: Draft, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The momentum u (n,) after this step, and what it adds to v (n,): itself, unless it is Nesterov's."""
    if not state.is_nesterov:
        u = torch.mul(momentum.before, state.m, out=momentum.after).add_(gradient)
        return u, u
    u = momentum.plus(gradient).mul_(state.m)
    return u, u + gradient


def clip(gradient: torch.Tensor, norm: float) -> None:
    """Scale a gradient down, in place, to an L2 norm of at most ``norm``."""
    gradient.mul_((norm / (gradient.norm() + 1e-6)).clamp_(max=1))
