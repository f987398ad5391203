"""Sparse gradients on the wire: how many entries to send, how they travel, and how their mean is taken."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch.futures import Future
from torch.nn.functional import pad

from baselines._pieces import pieces, scratch
from baselines._state import MethodState, Shapes, all_gather_bytes, numel
from baselines._streams import used_here

INDEX = torch.int32

SURPLUS, SHORTAGE, CORRECTIONS = 1.3, 0.8, 10
"""A sampled threshold may pass this much more or less than asked, and is corrected so many times (authors' code)."""


def share(ratio: float, size: int) -> int:
    """How many of ``size`` entries a ratio in (0, 1] stands for: at least one."""
    return max(1, round(ratio * size))


def sparse_bytes(ratio: float, shapes: Shapes, world_size: int) -> float:
    """Bytes each rank sends when it sends that share of its fp32 gradient, each value with its index."""
    return all_gather_bytes(ratio * numel(shapes) * (4 + INDEX.itemsize), world_size)


def exact_top(vector: torch.Tensor, k: int) -> torch.Tensor:
    """Indices (int64) of the ``k`` entries of (n,) whose magnitude is largest. A NaN is."""
    return vector.abs().topk(k, sorted=False).indices


def sampled_top(vector: torch.Tensor, k: int, sample_ratio: float, start: int) -> torch.Tensor:
    """About those that ``exact_top`` gives, never more than k, by a threshold from a sample.

    The sample is strided: one entry in so many, from entry ``start`` (modulo the stride) on. On a GPU just those that
    ``exact_top`` gives: how many pass a threshold would have to be waited for, and its selection is fast.
    """
    n = vector.numel()
    if k == n:
        return torch.arange(n, device=vector.device)
    if vector.is_cuda:
        return exact_top(vector, k)
    stride = sampling_stride(n, k, sample_ratio)
    sample = vector[start % stride :: stride].abs()
    threshold = sample.topk(math.ceil(sample.numel() * k / n), sorted=False).values.min()
    for _ in range(1 + CORRECTIONS):
        passed = not_below(vector, threshold)
        if passed.numel() > SURPLUS * k:
            return passed.index_select(0, exact_top(vector.index_select(0, passed), k))
        if passed.numel() >= SHORTAGE * k:
            break
        threshold *= SHORTAGE
    return passed[:k]


def not_below(vector: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """Indices (int64) of the entries of (n,) whose magnitude is not below a threshold. A NaN passes, lest it hide."""
    magnitudes = scratch(vector)
    below = torch.empty_like(magnitudes, dtype=torch.bool)
    found, before = [], 0
    for (some,) in pieces(vector):
        size = some.numel()
        torch.lt(torch.abs(some, out=magnitudes[:size]), threshold, out=below[:size])
        found.append(few_places(below[:size].logical_not_()).add_(before))
        before += size
    return torch.cat(found)


def few_places(flags: torch.Tensor) -> torch.Tensor:
    """Where flags (n,), bool, are true, which few are: words of eight are looked at first."""
    whole = pad(flags, (0, -flags.numel() % 8)) if flags.numel() % 8 else flags
    words = whole.view(torch.int64).nonzero().view(-1)
    word, place = whole.view(-1, 8).index_select(0, words).nonzero().unbind(1)
    return words.index_select(0, word).mul_(8).add_(place)


def places_of(flags: torch.Tensor, count: int) -> torch.Tensor:
    """Where flags (n,), bool, are true, which ``count`` are: a GPU (torch 2.6 or later) is not waited for."""
    if not flags.is_cuda:
        return flags.nonzero().view(-1)
    return torch.nonzero_static(flags, size=count).view(-1) if count else flags.new_empty(0, dtype=torch.int64)


def at_most_places_of(flags: torch.Tensor, most: int) -> torch.Tensor:
    """Where flags (n,), bool, are true, which few are. A GPU fills this up to ``most`` by n: it is not waited for."""
    if not flags.is_cuda:
        return few_places(flags)
    if not most:
        return flags.new_empty(0, dtype=torch.int64)
    return torch.nonzero_static(flags, size=most, fill_value=len(flags)).view(-1)


def sampling_stride(n: int, k: int, sample_ratio: float) -> int:
    """The widest odd stride through n entries whose sample holds ``sample_ratio`` of them and two of the top k.

    Odd, lest it fall into step with the rows of a weight, which are mostly powers of two.
    """
    wanted = max(math.ceil(n * sample_ratio), math.ceil(2 * n / k))
    return (max(n // wanted, 1) - 1) | 1


def padded(values: torch.Tensor, indices: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and indices lengthened to k entries by zeros, which add nothing to place 0."""
    shortage = (0, k - indices.numel())
    return pad(values, shortage), pad(indices, shortage)


def pack(values: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """One block of bytes (uint8), values first, so that both travel in one collective."""
    return torch.cat((values.view(torch.uint8), indices.to(INDEX).view(torch.uint8)))


def unpack(block: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The values, of type ``dtype``, and the int32 indices of a packed block."""
    count = block.numel() // (dtype.itemsize + INDEX.itemsize)
    values, indices = block.split((count * dtype.itemsize, count * INDEX.itemsize))
    return values.view(dtype), indices.clone().view(INDEX)  # cloned: a view must start at a multiple of its item size


def all_gather_mean(
    state: MethodState, values: torch.Tensor, indices: torch.Tensor, out: torch.Tensor
) -> Future[torch.Tensor]:
    """Fill ``out`` with the mean over all ranks of their sparse gradients, zero where no rank sent anything.

    Args:
        values: (k,), overwritten; k must be the same on every rank.
        indices: (k,), integers; where the values belong. No place may appear twice, unless to pad with zeros.
        out: (n,), of the type of ``values``.
    """
    with state.stopwatch("encode"):
        block = pack(values.div_(state.world_size), indices)
        blocks = [torch.empty_like(block) for _ in range(state.world_size)]
    work = dist.all_gather(blocks, block, group=state.process_group, async_op=True)

    def decode(done: Future[object]) -> torch.Tensor:
        done.value()  # raises what the collective raised
        used_here(*blocks)
        with state.stopwatch("decode"):
            out.zero_()
            # Rank by rank: within one rank no place appears twice, so that even where additions run in parallel
            # their order, and with it the last bit, is the same on every rank.
            for values, indices in (unpack(block, out.dtype) for block in blocks):
                out.index_add_(0, indices, values)
        return out

    return work.get_future().then(decode)
