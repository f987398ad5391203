"""TernGrad: each gradient entry as -1, 0 or +1 times a scale that all workers share; unbiased.

Wen et al., NeurIPS 2017 (arXiv 1705.07878). Each parameter's gradient is clipped at 2.5 sigma and rounded at random to
a scale times -1, 0 or +1. The scale is the largest of all workers' (one small all-reduce), so codes can be added up.
Two bits of every entry go to the owner of a shard; the sum's bits come back, 4 of them with up to 7 workers, then 8. In
the paper one server owns everything; here every worker owns a shard.

Sigma is taken about zero. What PacTrain's ``values = "ternary"`` does to survivors, this does to all entries; that one
sums codes of one byte by an ordinary all-reduce.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.futures import Future
from torch.nn.functional import pad
from torch.nn.parallel import DistributedDataParallel

from baselines._calls import AllReduce, AllToAll, Call, sent_bytes
from baselines._exchange import reduced_by_owners, shard_sizes
from baselines._lane import LaneState, settled
from baselines._parameters import Seed, parameters
from baselines._quantise import (
    Dice,
    add_scaled,
    own_scales,
    packed_fields,
    refuse_overflow,
    ternarise,
    unpacked_fields,
)
from baselines._state import Shapes, numel

LABEL = "TernGrad"
COLOR = "#882255"
MARKER = "X"
SENDS = "a ternary code of two bits for every entry to its owner, and the sum of the codes back"
ALL_REDUCE = False
SOURCE = "Wen et al., NeurIPS 2017 (arXiv 1705.07878)"
MOST_LOSS = 0.01
MOST_LOSS_AT_PLATEAU = 0.01
PAPER_SAYS = (
    "none with AlexNet (57.6 % against 57.3 %), less than 2 points on average with GoogLeNet; the last layer stays "
    "whole, and dropout and weight decay were lowered"
)


CODE_BITS, PER_BYTE = 2, 4


@parameters
class State(LaneState):
    """What TernGrad keeps on one rank.

    Args:
        seed: of the random rounding; each rank adds its own number to it.
    """

    most_copies = 5.0
    remembers = ("dice",)

    seed: Seed = 0

    def wire_bytes(self, shapes: Shapes, world_size: int, step: int | None = None) -> float:
        return sent_bytes(self.calls(shapes, world_size), world_size)

    def calls(self, shapes: Shapes, world_size: int) -> list[Call]:
        n = numel(shapes)
        return [AllReduce(4 * len(shapes)), AllToAll(n * CODE_BITS / 8), AllToAll(n * sum_bits(world_size) / 8)]

    def check_workers(self, world_size: int) -> None:
        refuse_overflow(world_size)

    def bind(self, ddp: DistributedDataParallel, optimizer: torch.optim.Optimizer) -> None:
        super().bind(ddp, optimizer)
        self.dice = Dice(self.device, self.seed + self.own_rank)


def terngrad_hook(state: State, bucket: dist.GradBucket) -> Future[torch.Tensor]:
    """Replace the bucket by the mean of all ranks' ternary gradients."""
    gradient = bucket.buffer()
    counts = [weight.numel() for weight in bucket.parameters()]
    return state.lane.submit(lambda: ternary_all_reduce(state, gradient, counts))


def ternary_all_reduce(state: State, gradient: torch.Tensor, counts: list[int]) -> Future[torch.Tensor]:
    """The mean of ``gradient`` (n,), which has parts of ``counts`` entries, in place, right on average."""
    p = state.world_size
    with state.stopwatch("encode"):
        scales = own_scales(gradient, counts)
    dist.all_reduce(scales, op=dist.ReduceOp.MAX, group=state.lane.process_group)
    with state.stopwatch("encode"):
        fields = ternarise(gradient, counts, scales, state.dice).add_(1).view(torch.uint8)
        packed = packed_fields(pad(fields, (0, -len(fields) % PER_BYTE)), CODE_BITS).unsqueeze(1)

    def total(arrived: torch.Tensor) -> torch.Tensor:
        with state.stopwatch("encode"):
            sums = torch.zeros(arrived.shape[1] * PER_BYTE, dtype=torch.uint8, device=gradient.device)
            for of_rank in arrived:
                sums.add_(unpacked_fields(of_rank.view(-1), CODE_BITS))
            return packed_fields(sums, sum_bits(p)).view(arrived.shape[1], PER_BYTE * sum_bits(p) // 8)

    answers = reduced_by_owners(state, packed, shard_sizes(len(packed), p), total)
    with state.stopwatch("decode"):
        codes = unpacked_fields(answers.view(-1), sum_bits(p))[: len(gradient)].to(torch.int16).sub_(p)
        return settled(add_scaled(gradient.zero_(), codes, counts, scales / p))


def sum_bits(world_size: int) -> int:
    """Of a sum of codes, each from 0 to 2."""
    return next(bits for bits in (2, 4, 8, 16) if 2 * world_size < 2**bits)
