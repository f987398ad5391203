"""QSGD: entries rounded at random to a few levels of their bucket's L2 norm; unbiased, so nothing is remembered.

Alistarh et al., NeurIPS 2017 (arXiv 1610.02132). Stretches of 128 entries are divided by their L2 norm, and each entry
is rounded at random to one of the s = 2^(bits - 1) - 1 levels beneath or above it, so that it is right on average.
Sums of codes with different norms would mean nothing. So codes and norms go to the owner of a shard, which adds them
up; the mean travels back as codes again, rounded once more at random: a quantised reduce-scatter and all-gather.

The paper's workers send their codes to all others, which is more than dense from 8 workers on with 8 bits. It codes
levels with Elias' code, whose length depends on them; here they have a fixed number of bits, as in practice. Stretches
run through a DDP bucket, across parameters.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
from torch.futures import Future
from torch.nn.functional import pad
from torch.nn.parallel import DistributedDataParallel

from baselines._calls import AllToAll, Call, sent_bytes
from baselines._exchange import from_records, reduced_by_owners, shard_sizes, to_records
from baselines._lane import LaneState, settled
from baselines._parameters import Seed, parameters
from baselines._pieces import ENTRIES, pieces
from baselines._quantise import Dice, packed_fields, unpacked_fields
from baselines._state import Shapes, numel

LABEL = "QSGD"
COLOR = "#CC79A7"
MARKER = "h"
SENDS = "a code of a few bits for every entry to its owner, and one for the mean back, with a norm for 128 entries"
ALL_REDUCE = False
SOURCE = "Alistarh et al., NeurIPS 2017 (arXiv 1610.02132)"
MOST_LOSS = 0.01
MOST_LOSS_AT_PLATEAU = 0.01
PAPER_SAYS = (
    "none with 4 bits: ResNet-50 on ImageNet 74.76 % against 74.68 %; 4 bits for 8,192 entries together lose 0.68 "
    "points, 2 bits for 64 lose 1.73 (section 5 and table 1)"
)

STRETCH = 128


@parameters
class State(LaneState):
    """What QSGD keeps on one rank.

    Args:
        bits: of a code, its sign included.
        seed: of the random rounding; each rank adds its own number to it.
    """

    most_copies = 5.0
    remembers = ("dice",)

    bits: Literal[2, 4, 8] = 8
    seed: Seed = 0

    @property
    def levels(self) -> int:
        """Above zero, and as many beneath."""
        return int(2 ** (self.bits - 1)) - 1

    def wire_bytes(self, shapes: Shapes, world_size: int, step: int | None = None) -> float:
        return sent_bytes(self.calls(shapes, world_size), world_size)

    def calls(self, shapes: Shapes, world_size: int) -> list[Call]:
        codes = AllToAll(numel(shapes) * (self.bits / 8 + 4 / STRETCH))
        return [codes, codes]

    def bind(self, ddp: DistributedDataParallel, optimizer: torch.optim.Optimizer) -> None:
        super().bind(ddp, optimizer)
        self.dice = Dice(self.device, self.seed + self.own_rank)


def qsgd_hook(state: State, bucket: dist.GradBucket) -> Future[torch.Tensor]:
    """Replace the bucket by the mean of all ranks' rounded gradients, rounded."""
    gradient: torch.Tensor = bucket.buffer()
    return state.lane.submit(lambda: rounded_mean(state, gradient))


def rounded_mean(state: State, gradient: torch.Tensor) -> Future[torch.Tensor]:
    """The mean of ``gradient`` (n,), in place, right on average. Runs in the lane."""
    with state.stopwatch("encode"):
        records = to_stretches(state, gradient)
    counts = shard_sizes(len(records), state.world_size)

    def mean(arrived: torch.Tensor) -> torch.Tensor:
        with state.stopwatch("encode"):
            total = gradient.new_zeros(arrived.shape[1] * STRETCH)
            for of_rank in arrived:
                add_stretches(state, total, of_rank, 1 / state.world_size)
            return to_stretches(state, total)

    answers = reduced_by_owners(state, records, counts, mean)
    with state.stopwatch("decode"):
        add_stretches(state, gradient.zero_(), answers, 1.0)
        return settled(gradient)


def to_stretches(state: State, values: torch.Tensor) -> torch.Tensor:
    """Records (stretches, bytes) of ``values`` (n,): a stretch's codes and its norm."""
    codes, norms = quantise(values, state.levels, state.dice)
    packed = packed_fields(codes.add_(state.levels).view(torch.uint8), state.bits)
    return to_records(packed.view(len(norms), STRETCH * state.bits // 8), norms)


def add_stretches(state: State, values: torch.Tensor, records: torch.Tensor, factor: float) -> None:
    """Add to ``values`` (n,) what records (stretches, bytes) say, times a factor."""
    columns = (torch.uint8, STRETCH * state.bits // 8), (values.dtype, 1)
    packed, norms = (column.view(-1) for column in from_records(records, *columns))
    add_levels(values, unpacked_fields(packed, state.bits), norms * (factor / state.levels), state.levels)


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
