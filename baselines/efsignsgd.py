"""EF-signSGD: each worker sends the signs of its gradient and remembers what they missed (error feedback).

Karimireddy et al., ICML 2019 (arXiv 1901.09847). With a = g + e, each parameter's part of a is sent as its signs, one
bit each, and one scale, mean(abs(a)); e = a - scale * sign. The mean over all workers is applied. BytePS calls this
onebit. 1-bit SGD, which came before it, has two scales for each column of a matrix: see ``onebit``.

With a whole parameter's entries sent as one magnitude, it learns more slowly per step than any other method here that
converges, at the learning rate that suits dense training (``scenarios/convergence.toml``).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch.futures import Future
from torch.nn.functional import pad

from baselines._calls import AllGather, Call
from baselines._memory import BucketMemory
from baselines._parameters import parameters
from baselines._pieces import ENTRIES, pieces, scratch
from baselines._quantise import (
    by_byte,
    divided,
    norms,
    not_negative,
    packed_bits,
    packed_in_shards,
    packed_size,
    places_of_bits,
    spread,
    unpacked_bits,
)
from baselines._state import MethodState, Shapes, all_gather_bytes
from baselines._streams import used_here

LABEL = "EF-signSGD"
COLOR = "#999933"
MARKER = "d"
SENDS = "the sign of every entry, and one scale for each parameter"
ALL_REDUCE = False
SOURCE = "Karimireddy et al., ICML 2019 (arXiv 1901.09847)"
MOST_LOSS = 0.13
MOST_LOSS_AT_PLATEAU = 0.01
PAPER_SAYS = (
    "a ResNet on CIFAR-100 0.64 to 0.92 points below SGD with momentum, VGG on CIFAR-10 0.27 to 0.71, each at its "
    "own rate (the authors' notebook)"
)


@parameters
class State(MethodState):
    """No parameters."""

    most_copies = 5.0
    remembers = ("residual",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.residual = BucketMemory()

    def wire_bytes(self, shapes: Shapes, world_size: int, step: int | None = None) -> float:
        return all_gather_bytes(sum(packed_size(math.prod(shape)) + 4 for shape in shapes), world_size)

    def calls(self, shapes: Shapes, world_size: int) -> list[Call]:
        return [AllGather(self.wire_bytes(shapes, world_size) / (world_size - 1))]


def efsignsgd_hook(state: State, bucket: dist.GradBucket) -> Future[torch.Tensor]:
    """Replace the bucket by the mean of all ranks' signs times scales."""
    gradient: torch.Tensor = bucket.buffer()
    counts = [weight.numel() for weight in bucket.parameters()]
    with state.stopwatch("encode"):
        residual = state.residual.draft(bucket)
        a = residual.after
        scales = add_and_measure(residual.before, gradient, counts, out=a)
        block = torch.cat((take_signs(a, counts, scales), scales.view(torch.uint8)))
        blocks = [torch.empty_like(block) for _ in range(state.world_size)]
    work = dist.all_gather(blocks, block, group=state.process_group, async_op=True)

    def decode(done: Future[object]) -> torch.Tensor:
        done.value()  # raises what the collective raised
        used_here(*blocks)
        with state.stopwatch("decode"):
            for rank, block in enumerate(blocks):
                signs, scales = block.split((sum(map(packed_size, counts)), len(counts) * gradient.itemsize))
                put = torch.Tensor.add_ if rank else torch.Tensor.copy_  # copying spares a pass that clears
                put_signs(put, gradient, counts, signs, scales.clone().view(gradient.dtype) / state.world_size)
        return gradient

    return work.get_future().then(decode)


def add_and_measure(
    residual: torch.Tensor, gradient: torch.Tensor, counts: list[int], out: torch.Tensor
) -> torch.Tensor:
    """Fill ``out`` with residual and gradient; the mean magnitude of each part of it, which has ``counts`` entries.

    On a CPU both in one pass, and as the sum of magnitudes: the norm that is the same takes twice as long.
    """
    sizes: list[float] = [max(count, 1) for count in counts]
    if residual.is_cuda:
        return divided(norms(torch.add(residual, gradient, out=out), counts, 1), sizes)
    magnitudes = scratch(residual)
    totals = []
    for part, *addends in zip(*(tensor.split(counts) for tensor in (out, residual, gradient)), strict=True):
        both = pieces(part, *addends)
        sums = [
            torch.abs(torch.add(one, other, out=some), out=magnitudes[: len(some)]).sum() for some, one, other in both
        ]
        totals.append(torch.stack(sums).sum())
    return divided(torch.stack(totals), sizes)


def take_signs(values: torch.Tensor, counts: list[int], scales: torch.Tensor) -> torch.Tensor:
    """The signs of ``values``, packed part by part (uint8); each sign times its scale is subtracted from them."""
    if values.is_cuda:
        flags, each_scale = not_negative(values), spread(scales, counts)
        values.sub_(torch.where(flags, each_scale, -each_scale))
        return packed_in_shards(flags, counts, whole_bytes(counts), messages=1).view(-1)
    packed = []
    for part, scale in zip(values.split(counts), scales, strict=True):
        rows = by_byte(torch.stack((-scale, scale)), bits=1)
        for (some,) in pieces(part):
            bits = packed_bits(pad(not_negative(some), (0, -some.numel() % 8)))
            some.sub_(rows.index_select(0, bits.int()).view(-1)[: some.numel()])
            packed.append(bits)
    return torch.cat(packed)


def put_signs(
    put: Callable[[torch.Tensor, torch.Tensor], object],
    values: torch.Tensor,
    counts: list[int],
    packed: torch.Tensor,
    scales: torch.Tensor,
) -> None:
    """Add to ``values``, or copy there, the signs, packed part by part, each times the scale of its part."""
    if values.is_cuda:
        places = places_of_bits(counts, whole_bytes(counts), values.device)
        flags, each_scale = unpacked_bits(packed)[places], spread(scales, counts)
        put(values, torch.where(flags, each_scale, -each_scale))
        return
    packed_parts = packed.split([packed_size(count) for count in counts])
    for part, packed_part, scale in zip(values.split(counts), packed_parts, scales, strict=True):
        rows = by_byte(torch.stack((-scale, scale)), bits=1)
        for some, some_packed in zip(part.split(ENTRIES), packed_part.split(packed_size(ENTRIES)), strict=True):
            put(some, rows.index_select(0, some_packed.int()).view(-1)[: some.numel()])


def whole_bytes(counts: list[int]) -> list[int]:
    """The bits of parts of so many entries, each of which fills its last byte."""
    return [8 * packed_size(count) for count in counts]
