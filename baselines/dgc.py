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
* Momentum is the heavy ball's; Nesterov's and dampening are refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Annotated, Any

import torch
import torch.distributed as dist
from pydantic import Field
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from baselines._calls import AllGather, AllReduce, Call
from baselines._memory import BucketMemory
from baselines._names import plain_name, sparse_embeddings
from baselines._sparse import all_gather_mean, padded, sampled_top, share, sparse_bytes
from baselines._state import MethodState, Shapes, numel, parameters, ring_all_reduce_bytes

LABEL = "DGC"
COLOR = "#D55E00"
MARKER = "v"
SENDS = "the largest entries of accumulated momentum, with their indices"
ALL_REDUCE = False
SOURCE = "Lin et al., ICLR 2018 (arXiv 1712.01887)"
MOST_LOSS = 0.01

WARM_UP = (0.25, 0.0625, 0.015625, 0.004, 0.001)
"""The paper's ratios while the sparsity is warmed up: 75, 93.75, 98.4375, 99.6 and 99.9 % are held back."""


@parameters
class State(MethodState):
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
    remembers = ("u", "v", "m", "decay")
    takes_sparse_embeddings = False

    ratio: Annotated[float, Field(gt=0, le=1)] = 0.001
    warmup_steps: Annotated[int, Field(ge=0)] = 20
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    momentum_masking: bool = True
    clip_norm: Annotated[float, Field(gt=0)] | None = None
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

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        common_momentum(optimizer)

    def check(
        self,
        ddp: DistributedDataParallel,
        optimizer: torch.optim.Optimizer,
        loss: Callable[[], torch.Tensor] | None,
    ) -> None:
        super().check(ddp, optimizer, loss)
        if sparse := sparse_embeddings(ddp.module):
            raise ValueError(
                f"dgc cannot correct the momentum of a sparse embedding ({plain_name(next(iter(sparse.values())))}): "
                "make it with sparse=False"
            )

    def bind(self, ddp: DistributedDataParallel, optimizer: torch.optim.Optimizer) -> None:
        super().bind(ddp, optimizer)
        self.taken = take_momentum(optimizer)
        self.m = self.taken if self.momentum is None else self.momentum
        self.decay = Decay()
        self._decaying = optimizer.register_step_pre_hook(lambda *_: self._carry_decay())

    def leave(self) -> None:
        self._decaying.remove()
        give_momentum(self.optimizer, self.taken)
        super().leave()

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
    def _carry_decay(self) -> None:
        """Add to each gradient the momentum of earlier weight decay; the optimizer adds this step's decay itself."""
        for group in self.optimizer.param_groups:
            if group["momentum"] != 0:
                raise RuntimeError(
                    "dgc applies the momentum itself, but the optimizer's was set again since "
                    "(by a scheduler that cycles it, or a loaded checkpoint); keep it at 0"
                )
            for weight in group["params"] if group["weight_decay"] else ():
                if weight.grad is not None:
                    past = self.decay.of(weight).mul_(self.m)
                    weight.grad.add_(past)
                    past.add_(weight, alpha=group["weight_decay"])


class Decay:
    """The momentum of earlier weight decay, of each weight."""

    def __init__(self) -> None:
        self._past: dict[torch.Tensor, torch.Tensor] = {}

    def of(self, weight: torch.Tensor) -> torch.Tensor:
        """A weight's, shaped like it; zeros at first."""
        if weight not in self._past:
            self._past[weight] = torch.zeros_like(weight)
        return self._past[weight]

    def state_dict(self, names: Mapping[torch.Tensor, str]) -> dict[str, torch.Tensor]:
        """By name, where there is any."""
        return {names[weight]: past.clone() for weight, past in self._past.items()}

    def load_state_dict(self, saved: Mapping[str, torch.Tensor], names: Mapping[torch.Tensor, str]) -> None:
        """Go on from what ``state_dict`` gave."""
        self._past.clear()
        for weight, name in names.items():
            if name in saved:
                self.of(weight).copy_(saved[name])


def dgc_hook(state: State, bucket: dist.GradBucket) -> Future[torch.Tensor]:
    """Replace the bucket by the mean of what all ranks sent of their accumulated momentum."""
    gradient = bucket.buffer()
    with state.stopwatch("encode"):
        if state.clip_norm is not None:
            for part in gradient.split([weight.numel() for weight in bucket.parameters()]):
                clip(part, state.clip_norm / math.sqrt(state.world_size))
        momentum, velocity = state.u.draft(bucket), state.v.draft(bucket)
        u = torch.mul(momentum.before, state.m, out=momentum.after).add_(gradient)
        vectors = state.vectors(bucket)
        own = u.index_select(0, vectors)
        v = velocity.plus(u).index_fill_(0, vectors, 0)
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
            u.index_fill_(0, indices, 0).index_copy_(0, vectors, own)
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


def clip(gradient: torch.Tensor, norm: float) -> None:
    """Scale a gradient down, in place, to an L2 norm of at most ``norm``."""
    gradient.mul_((norm / (gradient.norm() + 1e-6)).clamp_(max=1))


TAKEN = "dgc_momentum"
"""Where the optimizer's groups keep, also in its checkpoints, the momentum that was taken from them."""


def common_momentum(optimizer: torch.optim.Optimizer) -> float:
    """The momentum of all groups, also if it was taken already.

    Raises:
        ValueError: it is not plain SGD with one heavy-ball momentum.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        raise ValueError(
            f"dgc corrects the momentum of torch.optim.SGD; it cannot do so for {type(optimizer).__name__}"
        )
    groups = optimizer.param_groups
    if any(group.get("fused") for group in groups):
        raise ValueError("dgc changes gradients that a fused step may still have to unscale; use fused=False")
    for setting in ("nesterov", "dampening", "maximize"):
        if any(group[setting] for group in groups):
            raise ValueError(f"dgc corrects heavy-ball momentum only; switch the optimizer's {setting} off")
    momenta = {group["momentum"] or group.get(TAKEN, 0.0) for group in groups}
    if len(momenta) > 1:
        raise ValueError(f"dgc needs one momentum for all parameters, not {sorted(momenta)}")
    return float(momenta.pop())


def take_momentum(optimizer: torch.optim.Optimizer) -> float:
    """The optimizer's momentum, which is 0 from now on."""
    momentum = common_momentum(optimizer)
    for group in optimizer.param_groups:
        group["momentum"], group[TAKEN] = 0.0, momentum
    return momentum


def give_momentum(optimizer: torch.optim.Optimizer, momentum: float) -> None:
    """Give the optimizer back what was taken; it gathers its momentum anew."""
    for group in optimizer.param_groups:
        group["momentum"] = group.pop(TAKEN, momentum)
