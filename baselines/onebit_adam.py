"""1-bit Adam: Adam with dense gradients at first, then with a frozen variance and signs of the momentum.

Tang et al., ICML 2021 (arXiv 2102.02888), algorithm 1, as DeepSpeed does it. For ``warmup_steps`` all workers make Adam
of their mean gradient g::

    m = beta1 m + (1 - beta1) g         v = beta2 v + (1 - beta2) g^2         gradient <- m / (sqrt(v) + eps)

From then on v stays as it is, and what travels is the momentum, which each worker updates by its own gradient. It is
compressed twice, with error feedback both times: each worker sends a shard of every parameter to the shard's owner, as
signs and one scale, and the owner sends back the mean in the same way. A scale is the root of the mean square of what
it is of: a parameter at the worker, a parameter's shard at the owner.

The method is an optimizer, so the training's is to be plain SGD, whose rate is Adam's rate and whose weight decay is
added to the update as DeepSpeed adds it. SGD's momentum is taken over and set to 0. As in DeepSpeed, m and v are not
corrected for their start at zero, so in a short warm-up the first updates are too large for a rate tuned for Adam.

What is not there: DeepSpeed's mask for entries of a momentum that are always zero. Signs have no zero, so where v is
almost zero (inputs that are always dark, few warm-up steps) an update is a whole scale over eps: there eps must be of
the size of gradients, or the training diverges. The paper freezes v when it changes little; here, as in DeepSpeed, a
number of steps is given. The first step is always dense, because v must be something.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
import torch.distributed as dist
from pydantic import Field
from torch.futures import Future
from torch.nn.functional import pad

from baselines._calls import AllGather, AllToAll, Call
from baselines._lane import LaneState, settled
from baselines._memory import BucketMemory, Draft, Drafts
from baselines._momentum import MomentumState
from baselines._quantise import not_negative, packed_bits, unpacked_bits
from baselines._state import Shapes, numel, parameters, ring_all_reduce_bytes

LABEL = "1-bit Adam"
COLOR = "#DDCC77"
MARKER = "x"
SENDS = "the sign of every entry of the momentum to its owner, and the sign of the mean back, with scales"
ALL_REDUCE = False
SOURCE = "Tang et al., ICML 2021 (arXiv 2102.02888)"


@parameters
class State(MomentumState, LaneState):
    """What 1-bit Adam keeps on one rank.

    Args:
        warmup_steps: dense steps, after which the variance is frozen; at least one is made.
        beta1: what is left of the momentum from step to step.
        beta2: what is left of the variance.
        eps: added to the root of the variance.
    """

    most_copies = 10.0
    warmup_parameters = ("warmup_steps",)
    remembers = ("m", "v", "error", "owner_error")

    warmup_steps: Annotated[int, Field(ge=0)] = 20
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    eps: Annotated[float, Field(gt=0)] = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        self.m, self.v, self.error = BucketMemory(), BucketMemory(), BucketMemory()
        self.owner_error: Drafts[torch.Tensor] = Drafts()

    @property
    def steady_from_step(self) -> int:
        return max(self.warmup_steps, 1)

    def wire_bytes(self, shapes: Shapes, world_size: int, step: int | None = None) -> float:
        if step is not None and step < self.steady_from_step:
            return ring_all_reduce_bytes(4 * numel(shapes), world_size)
        return sum(call.sent_bytes(world_size) for call in self.calls(shapes, world_size))

    def calls(self, shapes: Shapes, world_size: int) -> list[Call]:
        message_bytes = sum(shard_size(math.prod(shape), world_size) / 8 + 4 for shape in shapes)
        return [AllToAll(world_size * message_bytes), AllGather(message_bytes)]


def onebit_adam_hook(state: State, bucket: dist.GradBucket) -> Future[torch.Tensor]:
    """Replace the bucket by Adam's update."""
    gradient = bucket.buffer()
    names = [state.names[weight] for weight in bucket.parameters()]
    counts = [weight.numel() for weight in bucket.parameters()]
    m = state.m.draft(bucket)
    if state.step < state.steady_from_step:
        v = state.v.draft(bucket)
        return state.lane.submit(lambda: settled(dense_step(state, gradient, m, v)))
    frozen, error = state.v.like(bucket), state.error.draft(bucket)
    return state.lane.submit(lambda: settled(signs_step(state, gradient, names, counts, m, frozen, error)))


def dense_step(state: State, gradient: torch.Tensor, m: Draft, v: Draft) -> torch.Tensor:
    """Adam's update by the mean of ``gradient`` (n,), in place. Runs in the lane."""
    with state.stopwatch("encode"):
        gradient.div_(state.world_size)
    dist.all_reduce(gradient, group=state.lane.process_group)
    with state.stopwatch("decode"):
        torch.lerp(gradient, m.before, state.beta1, out=m.after)
        torch.mul(v.before, state.beta2, out=v.after).addcmul_(gradient, gradient, value=1 - state.beta2)
        return torch.div(m.after, v.after.sqrt().add_(state.eps), out=gradient)


def signs_step(
    state: State,
    gradient: torch.Tensor,
    names: list[str],
    counts: list[int],
    m: Draft,
    v: torch.Tensor,
    error: Draft,
) -> torch.Tensor:
    """The update by the frozen variance ``v`` (n,) and the mean of all ranks' momenta, in place. Runs in the lane.

    Args:
        names: of the bucket's parameters.
        counts: their entries.
    """
    p, group = state.world_size, state.lane.process_group
    sizes = [shard_size(count, p) for count in counts]
    with state.stopwatch("encode"):
        a = torch.lerp(gradient, m.before, state.beta1, out=error.after).add_(error.before)
        message = signs_of(a.split(counts), sizes, p)
        arrived = torch.empty_like(message)
    dist.all_to_all_single(arrived, message, group=group)
    with state.stopwatch("encode"):
        means = [each.sum(0).div_(p) for each in values_of(arrived, sizes, a.dtype)]
        shards = [
            mean[: held(count, size, state.own_rank)] for mean, count, size in zip(means, counts, sizes, strict=True)
        ]
        for name, shard in zip(names, shards, strict=True):
            if (past := state.owner_error.get(name)) is not None:
                shard.add_(past)
        own = signs_of(shards, sizes, 1).view(-1)
        for name, shard in zip(names, shards, strict=True):  # what is left is the error
            state.owner_error.draft(name, shard)
        answers = [torch.empty_like(own) for _ in range(p)]
    dist.all_gather(answers, own, group=group)
    with state.stopwatch("decode"):
        read = values_of(torch.stack(answers), sizes, a.dtype)
        for part, mean, count in zip(m.after.split(counts), read, counts, strict=True):
            part.copy_(mean.view(-1)[:count])
        return torch.div(m.after, v.sqrt().add_(state.eps), out=gradient)


def shard_size(count: int, owners: int) -> int:
    """Entries of one owner's shard of a parameter, whole bytes of signs; the last shards may be less full."""
    return -(-count // (8 * owners)) * 8


def held(count: int, size: int, owner: int) -> int:
    """How many entries of a parameter are in an owner's shard."""
    return min(max(count - owner * size, 0), size)


def signs_of(parts: Sequence[torch.Tensor], sizes: list[int], rows: int) -> torch.Tensor:
    """Messages (rows, bytes), uint8, of the signs of all parts (n,), cut into shards, and one scale for each part.

    Each part becomes what its signs and its scale missed.
    """
    signs, scales = [], []
    for part, size in zip(parts, sizes, strict=True):
        scale = torch.linalg.vector_norm(part) / math.sqrt(max(part.numel(), 1))
        flags = not_negative(part)
        part.sub_(torch.where(flags, scale, -scale))
        signs.append(packed_bits(pad(flags, (0, rows * size - len(flags)))).view(rows, -1))
        scales.append(scale)
    every_scale = torch.stack(scales).view(torch.uint8)
    return torch.cat((*signs, every_scale.expand(rows, -1)), dim=1)


def values_of(messages: torch.Tensor, sizes: list[int], dtype: torch.dtype) -> list[torch.Tensor]:
    """Of each part, what messages (rows, bytes) say: its scale by its signs (rows, size)."""
    *signs, every_scale = messages.split([*(size // 8 for size in sizes), dtype.itemsize * len(sizes)], dim=1)
    scales = every_scale.clone(memory_format=torch.contiguous_format).view(dtype).split(1, dim=1)
    flags = (unpacked_bits(some.reshape(-1)).view(len(messages), -1) for some in signs)
    return [torch.where(flag, scale, -scale) for flag, scale in zip(flags, scales, strict=True)]
