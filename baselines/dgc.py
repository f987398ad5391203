"""Deep Gradient Compression: top entries of locally accumulated momentum, with a sparsity that is warmed up.

Lin, Han, Mao, Wang and Dally, ICLR 2018 (arXiv 1712.01887). Per worker and step, on its own gradient g::

    g = clip(g)             local gradient clipping
    u = m u + g             momentum correction: momentum before sparsification,
    v = v + u               so that what waits in v has gathered it too
    send the top of v
    u = v = 0 where sent    momentum factor masking, against stale momentum

Where the paper leaves room, or a DDP bucket differs from its layers:

* The top is taken per bucket, of all its parameters together; biases and norms are not exempt.
* Each rank sends exactly ``ratio`` of a bucket: a surplus of the sampled threshold (at most 30 %) waits in v, as in
  the authors' code, and a shortage is padded with zeros. So one all-gather does, and ranks need not agree on sizes.
* Clipping is per parameter, as in the authors' code: the whole gradient's norm is not known when a bucket is ready.
* The optimizer's momentum is taken over and set to 0 there. It still adds weight decay, and that keeps its own
  momentum, which is dense but the same on every rank and therefore never sent (as in the authors' DGCSGD).
* Momentum is the heavy ball's; Nesterov's and dampening are refused.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.distributed as dist
from pydantic import Field
from torch.futures import Future
from torch.nn.functional import pad
from torch.nn.parallel import DistributedDataParallel

from baselines._sparse import all_gather_mean, share, sparse_bytes
from baselines._state import BucketMemory, MethodState, Shapes, parameters

LABEL = "DGC"
COLOR = "#D55E00"
MARKER = "v"

WARM_UP = (0.25, 0.0625, 0.015625, 0.004, 0.001)
"""The paper's ratios while the sparsity is warmed up: 75, 93.75, 98.4375, 99.6 and 99.9 % are held back."""

SURPLUS, SHORTAGE, CORRECTIONS = 1.3, 0.8, 10
"""A sampled threshold may pass this much more or less than asked, and is corrected so many times (authors' code)."""


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
        sample_ratio: the share of entries from which the threshold is estimated.
    """

    ratio: Annotated[float, Field(gt=0, le=1)] = 0.001
    warmup_steps: Annotated[int, Field(ge=0)] = 20
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    momentum_masking: bool = True
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    sample_ratio: Annotated[float, Field(ge=0.01, le=1)] = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        self.u = BucketMemory()
        self.v = BucketMemory()

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
        return sparse_bytes(ratio, shapes, world_size)

    def bind(self, ddp: DistributedDataParallel, optimizer: torch.optim.Optimizer) -> None:
        super().bind(ddp, optimizer)
        taken = take_momentum(optimizer)
        self.m = taken if self.momentum is None else self.momentum
        self.decay: dict[torch.Tensor, torch.Tensor] = {}
        optimizer.register_step_pre_hook(lambda *_: self._carry_decay())

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
                    past = self.decay.setdefault(weight, torch.zeros_like(weight)).mul_(self.m)
                    weight.grad.add_(past)
                    past.add_(weight, alpha=group["weight_decay"])


def dgc_hook(state: State, bucket: dist.GradBucket) -> Future[torch.Tensor]:
    """Replace the bucket by the mean of what all ranks sent of their accumulated momentum."""
    gradient = bucket.buffer()
    with state.stopwatch("encode"):
        if state.clip_norm is not None:
            for part in gradient.split([weight.numel() for weight in bucket.parameters()]):
                clip(part, state.clip_norm / math.sqrt(state.world_size))
        u = state.u.like(bucket).mul_(state.m).add_(gradient)
        v = state.v.like(bucket).add_(u)
        k = share(state.ratio_at(state.step), v.numel())
        indices = sampled_top(v.abs(), k, state.sample_ratio, start=state.step)
        values = v.index_select(0, indices)
        v.index_fill_(0, indices, 0)
        if state.momentum_masking:
            u.index_fill_(0, indices, 0)
        shortage = (0, k - indices.numel())
        values, indices = pad(values, shortage), pad(indices, shortage)
    return all_gather_mean(state, values, indices, out=gradient)


def sampled_top(importance: torch.Tensor, k: int, sample_ratio: float, start: int) -> torch.Tensor:
    """Indices (int64) of about the ``k`` largest entries of (n,), never more than k, by a threshold from a sample.

    The sample is strided: one entry in so many, from entry ``start`` (modulo the stride) on.
    """
    n = importance.numel()
    if k == n:
        return torch.arange(n, device=importance.device)
    stride = sampling_stride(n, k, sample_ratio)
    sample = importance[start % stride :: stride]
    threshold = sample.topk(math.ceil(sample.numel() * k / n), sorted=False).values.min()
    for _ in range(1 + CORRECTIONS):
        passed = (importance >= threshold).nonzero().view(-1)
        if passed.numel() > SURPLUS * k:
            largest = importance.index_select(0, passed).topk(k, sorted=False).indices
            return passed.index_select(0, largest)
        if passed.numel() >= SHORTAGE * k:
            break
        threshold *= SHORTAGE
    return passed[:k]


def sampling_stride(n: int, k: int, sample_ratio: float) -> int:
    """The widest odd stride through n entries whose sample holds ``sample_ratio`` of them and two of the top k.

    Odd, lest it fall into step with the rows of a weight, which are mostly powers of two.
    """
    wanted = max(math.ceil(n * sample_ratio), math.ceil(2 * n / k))
    return (max(n // wanted, 1) - 1) | 1


def clip(gradient: torch.Tensor, norm: float) -> None:
    """Scale a gradient down, in place, to an L2 norm of at most ``norm``."""
    gradient.mul_((norm / (gradient.norm() + 1e-6)).clamp_(max=1))


def take_momentum(optimizer: torch.optim.Optimizer) -> float:
    """The optimizer's momentum, which is 0 from now on.

    Raises:
        ValueError: it is not plain SGD with one heavy-ball momentum.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        raise ValueError(
            f"dgc corrects the momentum of torch.optim.SGD; it cannot do so for {type(optimizer).__name__}"
        )
    groups = optimizer.param_groups
    for setting in ("nesterov", "dampening", "maximize"):
        if any(group[setting] for group in groups):
            raise ValueError(f"dgc corrects heavy-ball momentum only; switch the optimizer's {setting} off")
    momenta = {group["momentum"] for group in groups}
    if len(momenta) > 1:
        raise ValueError(f"dgc needs one momentum for all parameters, not {sorted(momenta)}")
    for group in groups:
        group["momentum"] = 0.0
    return float(momenta.pop())
