"""SparseLoCo: DiLoCo whose changes travel as the top of each chunk in 2 bits, with error feedback for momentum.

Sarfi et al., 2025 (arXiv 2508.15706), algorithm 1. Every ``period`` steps, with the change c of each parameter since
the last common ones, which takes the place of a gradient::

    e = decay e + c         error feedback: what was not sent before, which fades
    s = Q(top(e))           the largest entries of each chunk of 4096, each as one of four values
    e = e - s
    common parameters -= outer_lr * mean of all workers' s

The error that fades stands in for DiLoCo's outer momentum, so the outer step is plain SGD. An entry is 12 bits of place
in its chunk and ``bits`` of value. The values of a parameter are cut into equal bins, six deviations wide together, and
each bin is read as the mean of what fell into it, as in the authors' code; these means travel beside the codes.

Where it differs: a chunk is 4096 entries in a row, where the authors' are tiles of 64 x 64 of a matrix; the last chunk
of a parameter is shorter, and the same share of it is sent. The paper's inner optimizer is AdamW; here it is the
training's own. Codes of places are not compressed further. With ``bits = 32`` values travel as they are: with
``ratio = 1`` besides, it is DiLoCo without outer momentum.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
import torch.distributed as dist
from pydantic import Field
from torch.futures import Future
from torch.nn.functional import pad
from torch.nn.parallel import DistributedDataParallel

from baselines._bins import binned
from baselines._calls import AllGather, Call
from baselines._lane import settled
from baselines._memory import WeightMemory
from baselines._outer import Outer, OuterState
from baselines._parameters import Count, Positive, Share, parameters
from baselines._quantise import packed_fields, unpacked_fields
from baselines._sparse import share
from baselines._state import Shapes, all_gather_bytes

LABEL = "SparseLoCo"
COLOR = "#661100"
MARKER = "4"
SENDS = "the largest changes of each chunk, as codes of 2 bits with their places, once in `period` steps"
ALL_REDUCE = False
SOURCE = "Sarfi et al., 2025 (arXiv 2508.15706)"
MOST_LOSS = 0.06
MOST_LOSS_AT_PLATEAU = 0.01
MOST_PERPLEXITY = 0.4
PAPER_SAYS = (
    "better than DiLoCo with 1 to 3 % and 2 bits (512 million parameters); such methods may be slightly below AdamW "
    "in each step"
)

CHUNK = 4096
"""Entries, so that a place in it has 12 bits."""

AS_THEY_ARE = 32
"""Bits of a value that is not cut into bins."""


@parameters
class State(OuterState):
    """What SparseLoCo keeps on one rank.

    Args:
        period: steps from one synchronisation to the next.
        ratio: the share of each chunk's entries that is sent.
        bits: of a value; 32 for values as they are.
        decay: what is left, a synchronisation later, of an error.
        outer_lr: the outer optimizer's rate.
    """

    swept = ("ratio",)
    most_copies = 7.0
    adjustable = ("period", "ratio")
    remembers = ("outer", "error", "met_at")

    period: Count = 20
    ratio: Share = 1 / 64
    bits: Literal[2, 4, 8, 32] = 2
    decay: Annotated[float, Field(ge=0, le=1)] = 0.95
    outer_lr: Positive = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.error = WeightMemory()

    @property
    def has_residuals(self) -> bool:
        return True

    def wire_bytes(self, shapes: Shapes, world_size: int, step: int | None = None) -> float:
        """A message of all changes in every ``period``-th step; with a loss scaler also a flag in each step."""
        exchange = all_gather_bytes(sum(self.message_bytes(shapes)), world_size)
        if step is None:
            return exchange / self.period + self.flag_bytes(world_size)
        return self.flag_bytes(world_size) + (exchange if (step + 1) % self.period == 0 else 0.0)

    def message_bytes(self, shapes: Shapes, itemsize: int = 4) -> tuple[int, int, int]:
        """Places, values, and what values mean, of a model of these shapes, whose numbers have so many bytes."""
        sent = sum(sent_of(math.prod(shape), self.ratio) for shape in shapes)
        places = 3 * -(-sent // 2)
        if self.bits == AS_THEY_ARE:
            return places, itemsize * sent, 0
        return places, -(-sent * self.bits // 8), itemsize * 2**self.bits * len(shapes)

    def calls(self, shapes: Shapes, world_size: int) -> list[Call]:
        return [AllGather(sum(self.message_bytes(shapes)))]

    def bind(self, ddp: DistributedDataParallel, optimizer: torch.optim.Optimizer) -> None:
        super().bind(ddp, optimizer)
        self.outer = Outer(self.trained, self.outer_lr, momentum=0.0)

    @torch.no_grad()
    def exchange(self) -> None:
        with self.stopwatch("encode"):
            changes = self.outer.changes()
            if not changes:
                return
            chunks = Chunks([change.numel() for change in changes.values()], self.ratio)
            message = self._message(changes, chunks)
            messages = [torch.empty_like(message) for _ in range(self.world_size)]
        dist.all_gather(messages, message, group=self.process_group)
        with self.stopwatch("decode"):
            mean = torch.cat([change.reshape(-1) for change in changes.values()]).zero_()
            for each in messages:
                self._add(each, chunks, mean, factor=1 / self.world_size)
            for change, part in zip(changes.values(), mean.split(chunks.sizes), strict=True):
                change.copy_(part.view(change.shape))
            self.outer.step()

    def _message(self, changes: dict[torch.Tensor, torch.Tensor], chunks: Chunks) -> torch.Tensor:
        """What this rank sends of its changes (uint8); the rest becomes its error."""
        together = [change.add(self.error.of(weight), alpha=self.decay) for weight, change in changes.items()]
        a = torch.cat([each.reshape(-1) for each in together])
        places = chunks.tops(a)
        message = self._encoded(places, a.index_select(0, places + chunks.starts(a.device)), chunks)
        self._add(message, chunks, a, factor=-1)
        for weight, error in zip(changes, a.split(chunks.sizes), strict=True):
            self.error.of(weight).copy_(error.view(weight.shape))
        return message

    def _encoded(self, places: torch.Tensor, values: torch.Tensor, chunks: Chunks) -> torch.Tensor:
        """A message (uint8) of values (k,) with their places, each within its chunk."""
        if self.bits == AS_THEY_ARE:
            return torch.cat((packed_twelves(places), values.view(torch.uint8)))
        parts = [binned(part, 2**self.bits) for part in values.split(chunks.sent)]
        codes = torch.cat([codes for codes, _ in parts])
        packed = packed_fields(pad(codes, (0, -len(codes) % (8 // self.bits))), self.bits)
        return torch.cat((packed_twelves(places), packed, torch.cat([means for _, means in parts]).view(torch.uint8)))

    def _add(self, message: torch.Tensor, chunks: Chunks, a: torch.Tensor, factor: float) -> None:
        """Add the values of a message, times a factor, to ``a`` (n,)."""
        parts = message.split(self.message_bytes([(size,) for size in chunks.sizes], a.itemsize))
        starts = chunks.starts(a.device)
        places = unpacked_twelves(parts[0])[: len(starts)] + starts
        values, means = (part.clone() for part in parts[1:])  # a view must start at a multiple of its item size
        a.index_add_(0, places, self._decoded(values, means, chunks, a.dtype), alpha=factor)

    def _decoded(self, values: torch.Tensor, means: torch.Tensor, chunks: Chunks, dtype: torch.dtype) -> torch.Tensor:
        """The values (k,) of a message, from their bytes and those of what they mean."""
        if self.bits == AS_THEY_ARE:
            return values.view(dtype)
        codes = unpacked_fields(values, self.bits)[: sum(chunks.sent)].int().split(chunks.sent)
        tables = means.view(dtype).split(2**self.bits)
        return torch.cat([table.index_select(0, some) for table, some in zip(tables, codes, strict=True)])


class Chunks:
    """Parameters of these sizes, one after the other, in chunks of which a share is sent."""

    def __init__(self, sizes: list[int], ratio: float) -> None:
        self.sizes = sizes
        self.sent = [sent_of(size, ratio) for size in sizes]
        self._ratio = ratio

    def starts(self, device: torch.device) -> torch.Tensor:
        """Where the chunk begins (k,), int64, that each sent entry is of."""
        starts, before = [torch.arange(0, device=device)], 0
        for size in self.sizes:
            whole, rest = divmod(size, CHUNK)
            of_chunks = torch.arange(whole, device=device).mul_(CHUNK).add_(before)
            starts.append(of_chunks.unsqueeze(1).expand(whole, share(self._ratio, CHUNK)).reshape(-1))
            if rest:
                starts.append(torch.full((share(self._ratio, rest),), before + whole * CHUNK, device=device))
            before += size
        return torch.cat(starts)

    def tops(self, a: torch.Tensor) -> torch.Tensor:
        """The places (k,), int64, each within its chunk, of the largest entries of ``a`` (n,), chunk by chunk."""
        found = [torch.arange(0, device=a.device)]
        for part in a.split(self.sizes):
            whole = part.numel() // CHUNK * CHUNK
            for chunks in (part[:whole].view(-1, CHUNK), part[whole:].unsqueeze(0)):
                if chunks.numel():
                    k = share(self._ratio, chunks.shape[1])
                    found.append(chunks.abs().topk(k, dim=1, sorted=False).indices.view(-1))
        return torch.cat(found)


def sent_of(size: int, ratio: float) -> int:
    """How many entries of a parameter of that size are sent."""
    whole, rest = divmod(size, CHUNK)
    return whole * share(ratio, CHUNK) + (share(ratio, rest) if rest else 0)


def packed_twelves(numbers: torch.Tensor) -> torch.Tensor:
    """Numbers (k,) below 4096, a pair in three bytes (uint8)."""
    first, second = pad(numbers, (0, len(numbers) % 2)).int().view(-1, 2).unbind(1)
    parts = (first & 255, (first >> 8) | ((second & 15) << 4), second >> 4)
    return torch.stack(parts, dim=1).to(torch.uint8).view(-1)


def unpacked_twelves(packed: torch.Tensor) -> torch.Tensor:
    """The numbers (int32) that ``packed_twelves`` packed, with a zero more where they were odd."""
    low, middle, high = packed.int().view(-1, 3).unbind(1)
    return torch.stack((low | ((middle & 15) << 8), (middle >> 4) | (high << 4)), dim=1).view(-1)


def sparseloco_hook(state: State, bucket: dist.GradBucket) -> Future[torch.Tensor]:
    """Leave the bucket as it is: this rank's own gradient."""
    return settled(bucket.buffer())
