"""What 1-bit Adam and 0/1 Adam share: a dense step of Adam, and means that travel as signs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.distributed as dist
from torch.nn.functional import pad

from baselines._calls import AllGather, AllToAll, Call
from baselines._lane import LaneState
from baselines._memory import BucketMemory, Draft, Drafts
from baselines._momentum import MomentumState
from baselines._quantise import divided, norms, not_negative, packed_bits, packed_in_shards, spread, unpacked_bits
from baselines._state import Shapes


class AdamState(MomentumState, LaneState):
    """Base of a ``State`` that is Adam in place of plain SGD, by whose rate its updates are applied."""

    scale_order: ClassVar[int]
    """Of the norm by which signs are scaled: 1, the mean magnitude; 2, the root of the mean square. What signs miss is
    never more than there was with the first. With the second it can be, where few entries are far larger than most."""

    beta1: float
    beta2: float
    eps: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self.m, self.v, self.error = BucketMemory(), BucketMemory(), BucketMemory()
        self.owner_error: Drafts[torch.Tensor] = Drafts()
        """What the signs of a parameter's shard missed of the mean, at its owner, by the parameter's name."""

    def refuse_without_variance(self, weights: Sequence[torch.Tensor]) -> None:
        """Refuse to go on if there are such weights.

        Raises:
            RuntimeError: there are; it names the first.
        """
        if weights:
            raise RuntimeError(
                f"{self.name} has no variance of {self.names[weights[0]]}, which was frozen at the end of the warm-up: "
                f"unfreeze it within the first {self.steady_from_step} steps (warmup_steps)"
            )

    def update(self, m: torch.Tensor, v: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Adam's, without corrections for the start, of a momentum and a variance of any shape."""
        return torch.div(m, v.sqrt().add_(self.eps), out=out)


def dense_step(state: AdamState, gradient: torch.Tensor, m: Draft, v: Draft) -> torch.Tensor:
    """The update by the mean of ``gradient`` (n,), in place. Runs in the lane."""
    with state.stopwatch("encode"):
        gradient.div_(state.world_size)
    dist.all_reduce(gradient, group=state.lane.process_group)
    with state.stopwatch("decode"):
        torch.lerp(gradient, m.before, state.beta1, out=m.after)
        torch.mul(v.before, state.beta2, out=v.after).addcmul_(gradient, gradient, value=1 - state.beta2)
        return state.update(m.after, v.after, out=gradient)


def signs_mean(
    state: AdamState, group: dist.ProcessGroup, names: Sequence[str], parts: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """The mean over all ranks of each parameter's part (n,), compressed twice. Waits for what it sends.

    Each worker sends a shard of every part to the shard's owner, as signs and one scale, and the owner sends back the
    mean in the same way. What signs missed is left in ``parts`` at the worker, and drafted as ``owner_error`` at the
    owner, which adds to the mean what it had missed before.
    """
    p, counts = state.world_size, [part.numel() for part in parts]
    sizes = [shard_size(count, p) for count in counts]
    with state.stopwatch("encode"):
        dtype = parts[0].dtype
        message = signs_of(parts, sizes, p, state.scale_order)
        arrived = torch.empty_like(message)
    dist.all_to_all_single(arrived, message, group=group)
    with state.stopwatch("encode"):
        means = values_of(arrived, sizes, dtype).sum(0).div_(p).split(sizes)
        shards = [
            mean[: held(count, size, state.own_rank)] for mean, count, size in zip(means, counts, sizes, strict=True)
        ]
        for name, shard in zip(names, shards, strict=True):
            if (past := state.owner_error.get(name)) is not None:
                shard.add_(past)
        own = signs_of(shards, sizes, 1, state.scale_order).view(-1)
        for name, shard in zip(names, shards, strict=True):  # what is left is the error
            state.owner_error.draft(name, shard)
        answers = [torch.empty_like(own) for _ in range(p)]
    dist.all_gather(answers, own, group=group)
    with state.stopwatch("decode"):
        read = values_of(torch.stack(answers), sizes, dtype).split(sizes, dim=1)
        return [mean.reshape(-1)[:count] for mean, count in zip(read, counts, strict=True)]


def signs_calls(shapes: Shapes, world_size: int) -> list[Call]:
    """The collectives of ``signs_mean`` of parameters of these shapes (fp32)."""
    message_bytes = sum(shard_size(math.prod(shape), world_size) / 8 + 4 for shape in shapes)
    return [AllToAll(world_size * message_bytes), AllGather(message_bytes)]


def shard_size(count: int, owners: int) -> int:
    """Entries of one owner's shard of a parameter, whole bytes of signs; the last shards may be less full."""
    return -(-count // (8 * owners)) * 8


def held(count: int, size: int, owner: int) -> int:
    """How many entries of a parameter are in an owner's shard."""
    return min(max(count - owner * size, 0), size)


def signs_of(parts: Sequence[torch.Tensor], sizes: list[int], rows: int, order: int) -> torch.Tensor:
    """Messages (rows, bytes), uint8, of the signs of all parts (n,), cut into shards, and one scale for each part.

    Each part becomes what its signs and its scale missed.

    Args:
        order: see ``AdamState.scale_order``.
    """
    counts = [part.numel() for part in parts]
    ones = [max(count, 1) ** (1 / order) for count in counts]
    if parts[0].is_cuda:
        values = torch.cat(list(parts))
        scales = divided(norms(values, counts, order), ones)
        flags, each_scale = not_negative(values), spread(scales, counts)
        values.sub_(torch.where(flags, each_scale, -each_scale))
        torch._foreach_copy_(list(parts), list(values.split(counts)))
        signs = packed_in_shards(flags, counts, sizes, rows)
    else:
        of_parts = []
        scales = divided(torch.stack([torch.linalg.vector_norm(part, order) for part in parts]), ones)
        for part, size, scale in zip(parts, sizes, scales, strict=True):
            flags = not_negative(part)
            part.sub_(torch.where(flags, scale, -scale))
            of_parts.append(packed_bits(pad(flags, (0, rows * size - len(flags)))).view(rows, -1))
        signs = torch.cat(of_parts, dim=1)
    return torch.cat((signs, scales.view(torch.uint8).expand(rows, -1)), dim=1)


def values_of(messages: torch.Tensor, sizes: list[int], dtype: torch.dtype) -> torch.Tensor:
    """What messages (rows, bytes) say of all parts' shards, one after the other: scales by signs (rows, entries)."""
    signs, every_scale = messages.split([sum(sizes) // 8, dtype.itemsize * len(sizes)], dim=1)
    flags = unpacked_bits(signs.reshape(-1)).view(len(messages), -1)
    scales = every_scale.clone(memory_format=torch.contiguous_format).view(dtype)
    each_scale = spread(scales, sizes)
    return torch.where(flags, each_scale, -each_scale)
