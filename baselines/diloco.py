"""DiLoCo: long stretches of local training, whose mean change is a gradient for an outer Nesterov optimizer.

Douillard et al., 2023 (arXiv 2311.08105). Every ``period`` steps each worker's change since the last common parameters
is averaged; an outer SGD with Nesterov momentum applies the mean as if it were a gradient, and all go on from there.
Not an all-reduce of gradients: the bytes of dense training are divided by ``period``.

The paper's inner optimizer is AdamW; here it is the training's own, whose memory stays each worker's. Without outer
momentum and with an outer rate of 1 it is local SGD. With ``values = "int8"`` the changes are averaged as INTELLECT-1
does it (Jaghouar et al., 2024, arXiv 2412.01152): see ``int8``. A weight that no worker changed may then move a
little, because its code also stands for small changes.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from baselines._calls import AllReduce, Call, sent_bytes
from baselines._lane import settled
from baselines._local import all_reduce_mean, average_in_place
from baselines._outer import Outer, OuterState
from baselines._parameters import Count, Decay, Positive, parameters
from baselines._ring import int8_ring_calls, int8_ring_mean
from baselines._state import Shapes, numel

LABEL = "DiLoCo"
COLOR = "#997700"
MARKER = "3"
SENDS = "the change of every parameter, once in `period` steps"
ALL_REDUCE = True
SOURCE = "Douillard et al., 2023 (arXiv 2311.08105)"
MOST_LOSS = 0.06
MOST_LOSS_AT_PLATEAU = 0.01
MOST_PERPLEXITY = 0.37
PAPER_SAYS = (
    "none: C4, 150 million parameters, 8 workers, 500 steps between meetings, begun from a trained model: perplexity "
    "15.0 against 15.3 for as much data (as notes on the paper have it)"
)


@parameters
class State(OuterState):
    """What DiLoCo keeps on one rank.

    Args:
        period: steps from one synchronisation to the next.
        outer_lr: the outer optimizer's rate.
        outer_momentum: its Nesterov momentum.
        values: how changes travel: as they are, or as codes of one byte in a quantised ring.
    """

    most_copies = 6.0
    adjustable = ("period",)
    remembers = ("outer", "met_at")

    period: Count = 500
    outer_lr: Positive = 0.7
    outer_momentum: Decay = 0.9
    values: Literal["fp32", "int8"] = "fp32"

    def wire_bytes(self, shapes: Shapes, world_size: int, step: int | None = None) -> float:
        """A change of all parameters in every ``period``-th step; with a loss scaler also a flag in each step."""
        exchange = sent_bytes(self.calls(shapes, world_size), world_size)
        if step is None:
            return exchange / self.period + self.flag_bytes(world_size)
        return self.flag_bytes(world_size) + (exchange if (step + 1) % self.period == 0 else 0.0)

    def calls(self, shapes: Shapes, world_size: int) -> list[Call]:
        return int8_ring_calls(numel(shapes), world_size) if self.values == "int8" else [AllReduce(4 * numel(shapes))]

    def bind(self, ddp: DistributedDataParallel, optimizer: torch.optim.Optimizer) -> None:
        super().bind(ddp, optimizer)
        self.outer = Outer(self.trained, self.outer_lr, self.outer_momentum)

    @torch.no_grad()
    def exchange(self) -> None:
        with self.stopwatch("encode"):
            changes = self.outer.changes()
        mean = int8_ring_mean if self.values == "int8" else all_reduce_mean
        average_in_place(self, list(changes.values()), mean)
        with self.stopwatch("decode"):
            self.outer.step()


def diloco_hook(state: State, bucket: dist.GradBucket) -> Future[torch.Tensor]:
    """Leave the bucket as it is: this rank's own gradient."""
    return settled(bucket.buffer())
