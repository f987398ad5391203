"""LoCo: 4-bit codes up, with an estimate of what they miss added before, and the mean back in 16 bits.

Xie, Lin, Toh and Zhou, 2024 (low-bit communication adaptor, arXiv 2407.04480). Per worker and step, on its own gradient
g::

    h = g + e
    d = h as codes of a few bits
    e = (1 - beta) e + beta (h - d)         a moving average of what codes have missed; 0 after every ``reset_every``

Codes go to the owner of a shard, which averages in full precision; its mean travels as bf16, as parameters do where
they are sharded.

Where it differs: the paper's codes have one scale, a setting that must suit the gradients; here each stretch of 128
entries has its own, which sends its largest entry as the largest code. The paper keeps e in 8 bits to save memory; here
it has the gradient's dtype.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
from torch.futures import Future
from torch.nn.functional import pad

from baselines._calls import AllToAll, Call, sent_bytes
from baselines._exchange import from_records, reduced_by_owners, shard_sizes, to_records
from baselines._lane import LaneState, settled
from baselines._memory import BucketMemory, Draft
from baselines._parameters import Count, Share, parameters
from baselines._pieces import pieces
from baselines._quantise import packed_fields, unpacked_fields
from baselines._state import Shapes, numel

LABEL = "LoCo"
COLOR = "#4477AA"
MARKER = "$L$"
SENDS = "a code of a few bits for every entry to its owner, with a scale for 128 entries, and the mean back as bf16"
ALL_REDUCE = False
SOURCE = "Xie et al., 2024 (arXiv 2407.04480)"
MOST_LOSS = 0.01
MOST_LOSS_AT_PLATEAU = 0.01
MOST_PERPLEXITY = 0.01
PAPER_SAYS = "no degradation with LLaMAs and mixtures of experts, Adam and 4 bits"

STRETCH = 128


@parameters
class State(LaneState):
    """What LoCo keeps on one rank.

    Args:
        bits: of a code, its sign included.
        beta: the weight of what codes miss now, in its moving average; 1 for plain error feedback.
        reset_every: steps after which that is forgotten.
    """

    most_copies = 7.0
    remembers = ("error",)

    bits: Literal[4, 8] = 4
    beta: Share = 0.05
    reset_every: Count = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        self.error = BucketMemory()

    @property
    def levels(self) -> int:
        """Above zero, and as many beneath."""
        return int(2 ** (self.bits - 1)) - 1

    @property
    def has_residuals(self) -> bool:
        return True

    def wire_bytes(self, shapes: Shapes, world_size: int, step: int | None = None) -> float:
        return sent_bytes(self.calls(shapes, world_size), world_size)

    def calls(self, shapes: Shapes, world_size: int) -> list[Call]:
        n = numel(shapes)
        return [AllToAll(n * (self.bits / 8 + 4 / STRETCH)), AllToAll(2 * n)]


def loco_hook(state: State, bucket: dist.GradBucket) -> Future[torch.Tensor]:
    """Replace the bucket by the mean of all ranks' codes."""
    gradient, error = bucket.buffer(), state.error.draft(bucket)
    return state.lane.submit(lambda: mean_of_codes(state, gradient, error))


def mean_of_codes(state: State, gradient: torch.Tensor, error: Draft) -> Future[torch.Tensor]:
    """The mean of ``gradient`` (n,), in place. Runs in the lane."""
    p, n = state.world_size, gradient.numel()
    with state.stopwatch("encode"):
        h = gradient.add_(error.before)
        codes, scales = nearest(h, state.levels)
        missed = h.sub_(decoded(codes, scales)[:n])
        torch.lerp(error.before, missed, state.beta, out=error.after)
        if (state.step + 1) % state.reset_every == 0:
            error.after.zero_()
        packed = packed_fields(codes.add_(state.levels).view(torch.uint8), state.bits)
        records = to_records(packed.view(len(scales), STRETCH * state.bits // 8), scales)
    columns = (torch.uint8, STRETCH * state.bits // 8), (gradient.dtype, 1)

    def mean(arrived: torch.Tensor) -> torch.Tensor:
        with state.stopwatch("encode"):
            total = gradient.new_zeros(arrived.shape[1] * STRETCH)
            for of_rank in arrived:
                packed, scales = (column.view(-1) for column in from_records(of_rank, *columns))
                total.add_(decoded(unpacked_fields(packed, state.bits).to(torch.int16).sub_(state.levels), scales))
            return total.div_(p).bfloat16().view(torch.uint8).view(arrived.shape[1], 2 * STRETCH)

    answers = reduced_by_owners(state, records, shard_sizes(len(records), p), mean)
    with state.stopwatch("decode"):
        return settled(gradient.copy_(answers.view(-1).view(torch.bfloat16)[:n]))


def nearest(values: torch.Tensor, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (int8) from -levels to levels, lengthened to whole stretches, and the stretches' scales, of (n,)."""
    codes, scales = [], []
    for (some,) in pieces(values):
        stretches = pad(some, (0, -some.numel() % STRETCH)).view(-1, STRETCH)
        scale = stretches.abs().amax(dim=1).div_(levels)
        ratios = stretches / scale.clamp(min=torch.finfo(scale.dtype).tiny).unsqueeze_(1)
        codes.append(ratios.round_().clamp_(-levels, levels).to(torch.int8).view(-1))
        scales.append(scale)
    return torch.cat(codes), torch.cat(scales)


def decoded(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """What codes mean (n,)."""
    return (codes.view(-1, STRETCH).to(scales.dtype) * scales.unsqueeze(1)).view(-1)
