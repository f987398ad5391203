"""TernGrad: each gradient entry as -1, 0 or +1 times a scale that all workers share; unbiased.

Wen et al., NeurIPS 2017 (arXiv 1705.07878). Each parameter's gradient is clipped at 2.5 sigma and rounded at random to
a scale times -1, 0 or +1. The scale is the largest of all workers' (one small all-reduce), so that codes of one byte
can be summed by an ordinary all-reduce. The paper's parameter server sends two bits up and the sum's bits down.

Sigma is taken about zero. What PacTrain's ``values = "ternary"`` does to survivors, this does to all entries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
import torch.distributed as dist
from pydantic import Field
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from baselines._calls import AllReduce, Call
from baselines._lane import LaneState
from baselines._quantise import Dice, add_scaled, own_scales, refuse_overflow, ternarise
from baselines._state import Shapes, numel, parameters, ring_all_reduce_bytes
from baselines._streams import used_here

LABEL = "TernGrad"
COLOR = "#882255"
MARKER = "X"
SENDS = "a ternary code of one byte for every entry"
ALL_REDUCE = True
SOURCE = "Wen et al., NeurIPS 2017 (arXiv 1705.07878)"
MOST_LOSS = 0.01


@parameters
class State(LaneState):
    """What TernGrad keeps on one rank.

    Args:
        seed: of the random rounding; each rank adds its own number to it.
    """

    remembers = ("dice",)

    seed: Annotated[int, Field(ge=0)] = 0

    def wire_bytes(self, shapes: Shapes, world_size: int, step: int | None = None) -> float:
        return ring_all_reduce_bytes(numel(shapes) + 4 * len(shapes), world_size)

    def calls(self, shapes: Shapes, world_size: int) -> list[Call]:
        scales, (both,) = 4 * len(shapes), super().calls(shapes, world_size)
        return [AllReduce(scales), AllReduce(both.payload_bytes - scales)]

    def check(
        self,
        ddp: DistributedDataParallel,
        optimizer: torch.optim.Optimizer,
        loss: Callable[[], torch.Tensor] | None,
    ) -> None:
        super().check(ddp, optimizer, loss)
        refuse_overflow(dist.get_world_size(ddp.process_group))

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
    with state.stopwatch("encode"):
        scales = own_scales(gradient, counts)
    dist.all_reduce(scales, op=dist.ReduceOp.MAX, group=state.lane.process_group)
    with state.stopwatch("encode"):
        codes = ternarise(gradient, counts, scales, state.dice)
    work = dist.all_reduce(codes, group=state.lane.process_group, async_op=True)

    def decode(done: Future[list[torch.Tensor]]) -> torch.Tensor:
        (total,) = done.value()
        used_here(scales)
        with state.stopwatch("decode"):
            return add_scaled(gradient.zero_(), total, counts, scales / state.world_size)

    return work.get_future().then(decode)
