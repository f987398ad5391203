"""1-bit SGD: the sign of every entry, two scales for each column of a matrix, and what these missed is remembered.

Seide et al., Interspeech 2014. With a = g + e, and each parameter as a matrix with its first dimension as rows: of each
column a bit says which entries are at least zero; these become their mean, all others become theirs; e = a - what was
sent. The mean over all workers is applied. A parameter of one dimension is one column.

Where it differs: the paper's workers own shards, add up what they receive there, and send the sum on as bits once more.
Here all bits go to all workers. EF-signSGD, with one scale for each parameter, is ``efsignsgd``.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch.futures import Future
from torch.nn.functional import pad

from baselines._calls import AllGather, Call
from baselines._memory import BucketMemory, as_matrix
from baselines._parameters import parameters
from baselines._quantise import by_byte, not_negative, numbers, packed_bits, packed_size
from baselines._state import MethodState, Shapes, all_gather_bytes, numel
from baselines._streams import used_here

LABEL = "1-bit SGD"
COLOR = "#EE8866"
MARKER = "$1$"
SENDS = "the sign of every entry, and two scales for each column"
ALL_REDUCE = False
SOURCE = "Seide et al., Interspeech 2014"
MOST_LOSS = 0.08
MOST_LOSS_AT_PLATEAU = 0.01
PAPER_SAYS = "none or nearly none with 46 million parameters (Switchboard), a small one with 160 million on 20 servers"

Shape = torch.Size | tuple[int, ...]


@parameters
class State(MethodState):
    """No parameters."""

    most_copies = 6.0
    remembers = ("residual",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.residual = BucketMemory()

    def wire_bytes(self, shapes: Shapes, world_size: int, step: int | None = None) -> float:
        sizes = (packed_size(math.prod(shape)) + 4 * 2 * columns(tuple(shape)) for shape in shapes)
        return all_gather_bytes(sum(sizes), world_size)

    def calls(self, shapes: Shapes, world_size: int) -> list[Call]:
        return [AllGather(self.wire_bytes(shapes, world_size) / (world_size - 1))]


def onebit_hook(state: State, bucket: dist.GradBucket) -> Future[torch.Tensor]:
    """Replace the bucket by the mean of what all ranks' bits and scales say."""
    gradient: torch.Tensor = bucket.buffer()
    weights = bucket.parameters()
    with state.stopwatch("encode"):
        a = state.residual.draft(bucket).plus(gradient)
        block = take_bits(a, weights)
        blocks = [torch.empty_like(block) for _ in range(state.world_size)]
    work = dist.all_gather(blocks, block, group=state.process_group, async_op=True)

    def decode(done: Future[object]) -> torch.Tensor:
        done.value()  # raises what the collective raised
        used_here(*blocks)
        with state.stopwatch("decode"):
            gradient.zero_()
            for block in blocks:
                add_bits(gradient, weights, block, 1 / state.world_size)
        return gradient

    return work.get_future().then(decode)


def columns(shape: Shape) -> int:
    """Of a parameter as a matrix; a parameter of at most one dimension is one column."""
    return numel([shape[1:]]) if len(shape) > 1 else 1


def matrices(values: torch.Tensor, weights: list[torch.Tensor]) -> list[torch.Tensor]:
    """Views (rows, columns) of (n,), one for each parameter."""
    parts = zip(weights, values.split([weight.numel() for weight in weights]), strict=True)
    return [as_matrix(part, weight) if weight.dim() > 1 else part.unsqueeze(1) for weight, part in parts]


def take_bits(values: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
    """The bits of ``values`` (n,), part by part, and all columns' scales (uint8); what they say is subtracted."""
    bits, scales = [], []
    for matrix in matrices(values, weights):
        flags = not_negative(matrix)
        number, total, magnitude = flags.to(matrix.dtype).sum(0), matrix.sum(0), matrix.abs().sum(0)
        high = magnitude.add(total).div_(2).div_(number.clamp(min=1))
        low = total.sub_(magnitude).div_(2).div_((len(matrix) - number).clamp_(min=1))
        matrix.sub_(torch.where(flags, high, low))
        bits.append(packed_bits(pad(flags.reshape(-1), (0, -flags.numel() % 8))))
        scales += [high, low]
    return torch.cat((*bits, torch.cat(scales).view(torch.uint8)))


def add_bits(values: torch.Tensor, weights: list[torch.Tensor], block: torch.Tensor, factor: float) -> None:
    """Add to ``values`` (n,) what ``take_bits`` gave, times a factor."""
    sizes = [packed_size(weight.numel()) for weight in weights]
    *bits, scale_bytes = block.split([*sizes, len(block) - sum(sizes)])
    every_scale = scale_bytes.clone().view(values.dtype).mul_(factor)
    scales = every_scale.split([columns(weight.shape) for weight in weights for _ in range(2)])
    flags_of = by_byte(numbers((0, 1), values.device, torch.bool), bits=1)
    for matrix, packed, high, low in zip(matrices(values, weights), bits, scales[::2], scales[1::2], strict=True):
        flags = flags_of.index_select(0, packed.int()).view(-1)[: matrix.numel()].view(matrix.shape)
        matrix.add_(torch.where(flags, high, low))
