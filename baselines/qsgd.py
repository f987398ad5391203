"""QSGD: entries rounded at random to a few levels of their bucket's L2 norm; unbiased, so nothing is remembered.

Alistarh et al., NeurIPS 2017 (arXiv 1610.02132). Stretches of 128 entries are divided by their L2 norm, and each entry
is rounded at random to one of the s = 2^(bits - 1) - 1 levels beneath or above it, so that it is right on average.
Codes and norms are all-gathered, because sums of codes with different norms would mean nothing.

The paper codes levels with Elias' code, whose length depends on them; here they have a fixed number of bits, as in
practice. Stretches run through a DDP bucket, across parameters.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.distributed as dist
from pydantic import Field
from torch.futures import Future
from torch.nn.functional import pad
from torch.nn.parallel import DistributedDataParallel

from baselines._calls import AllGather, Call
from baselines._pieces import ENTRIES, pieces
from baselines._quantise import Dice, packed_fields, unpacked_fields
from baselines._state import MethodState, Shapes, all_gather_bytes, numel, parameters
from baselines._streams import used_here

LABEL = "QSGD"
COLOR = "#CC79A7"
MARKER = "h"
SENDS = "a code of a few bits for every entry, and one norm for 128 entries"
ALL_REDUCE = False
SOURCE = "Alistarh et al., NeurIPS 2017 (arXiv 1610.02132)"
MOST_LOSS = 0.01

STRETCH = 128


@parameters
class State(MethodState):
    """What QSGD keeps on one rank.

    Args:
        bits: of a code, its sign included.
        seed: of the random rounding; each rank adds its own number to it.
    """

    remembers = ("dice",)

    bits: Literal[2, 4, 8] = 8
    seed: Annotated[int, Field(ge=0)] = 0

    @property
    def levels(self) -> int:
        """Above zero, and as many beneath."""
        return int(2 ** (self.bits - 1)) - 1

    def wire_bytes(self, shapes: Shapes, world_size: int, step: int | None = None) -> float:
        return all_gather_bytes(numel(shapes) * (self.bits / 8 + 4 / STRETCH), world_size)

    def calls(self, shapes: Shapes, world_size: int) -> list[Call]:
        return [AllGather(self.wire_bytes(shapes, world_size) / (world_size - 1))]

    def bind(self, ddp: DistributedDataParallel, optimizer: torch.optim.Optimizer) -> None:
        super().bind(ddp, optimizer)
        self.dice = Dice(self.device, self.seed + self.own_rank)


def qsgd_hook(state: State, bucket: dist.GradBucket) -> Future[torch.Tensor]:
    """Replace the bucket by the mean of all ranks' rounded gradients."""
    gradient: torch.Tensor = bucket.buffer()
    with state.stopwatch("encode"):
        codes, norms = quantise(gradient, state.levels, state.dice)
        packed = packed_fields(codes.add_(state.levels).view(torch.uint8), state.bits)
        block = torch.cat((packed, norms.view(torch.uint8)))
        blocks = [torch.empty_like(block) for _ in range(state.world_size)]
    work = dist.all_gather(blocks, block, group=state.process_group, async_op=True)

    def decode(done: Future[object]) -> torch.Tensor:
        done.value()  # raises what the collective raised
        used_here(*blocks)
        with state.stopwatch("decode"):
            gradient.zero_()
            for block in blocks:
                packed, norm_bytes = block.split((codes.numel() * state.bits // 8, norms.nbytes))
                steps = norm_bytes.clone().view(norms.dtype) / (state.levels * state.world_size)
                add_levels(gradient, unpacked_fields(packed, state.bits), steps, state.levels)
        return gradient

    return work.get_future().then(decode)


def quantise(values: torch.Tensor, levels: int, dice: Dice) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (int8) in -levels..levels, lengthened to whole stretches, and the stretches' norms, of ``values`` (n,)."""
    codes, norms = [], []
    for (some,) in pieces(values):
        stretches = pad(some, (0, -some.numel() % STRETCH)).view(-1, STRETCH)
        norm = torch.linalg.vector_norm(stretches, dim=1)
        ratios = stretches / norm.clamp(min=torch.finfo(norm.dtype).tiny).unsqueeze_(1) * levels
        rounded = ratios.view(-1).add_(dice.like(ratios.view(-1))).floor_().clamp_(-levels, levels)
        codes.append(rounded.to(torch.int8))
        norms.append(norm)
    return torch.cat(codes), torch.cat(norms)


def add_levels(values: torch.Tensor, fields: torch.Tensor, steps: torch.Tensor, zero: int) -> None:
    """Add to ``values`` (n,) the fields (uint8), less ``zero``, each times the step of its stretch."""
    whole = values.numel() // STRETCH * STRETCH
    size = max(whole, 1) if values.is_cuda else ENTRIES
    for start in range(0, whole, size):
        end = min(start + size, whole)
        some = values[start:end].view(-1, STRETCH)
        levels = fields[start:end].to(values.dtype).sub_(zero).view(-1, STRETCH)
        some.addcmul_(levels, steps[start // STRETCH : end // STRETCH].unsqueeze(1))
    if whole < values.numel():
        rest = fields[whole : values.numel()].to(values.dtype).sub_(zero)
        values[whole:].addcmul_(rest, steps[-1])
