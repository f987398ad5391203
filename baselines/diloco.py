"""DiLoCo: long stretches of local training, whose mean change is a gradient for an outer Nesterov optimizer.

Douillard et al., 2023 (arXiv 2311.08105). Every ``period`` steps each worker's change since the last common parameters
is averaged; an outer SGD with Nesterov momentum applies the mean as if it were a gradient, and all go on from there.
Not an all-reduce of gradients: the bytes of dense training are divided by ``period``.

The paper's inner optimizer is AdamW and its period 500; here the inner optimizer is the training's own, whose memory
stays each worker's. Without outer momentum and with an outer rate of 1 it is local SGD.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.distributed as dist
from pydantic import Field
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from baselines._lane import settled
from baselines._state import MethodState, Shapes, numel, parameters, ring_all_reduce_bytes
from baselines.local_sgd import average_in_place

LABEL = "DiLoCo"
COLOR = "#997700"
MARKER = "3"
SENDS = "the change of every parameter, once in `period` steps"
ALL_REDUCE = True
SOURCE = "Douillard et al., 2023 (arXiv 2311.08105)"
MOST_LOSS = 0.02


@parameters
class State(MethodState):
    """What DiLoCo keeps on one rank.

    Args:
        period: steps from one synchronisation to the next.
        outer_lr: the outer optimizer's rate.
        outer_momentum: its Nesterov momentum.
    """

    most_copies = 6.0

    syncs_in_end_step = True

    period: Annotated[int, Field(ge=1)] = 20
    outer_lr: Annotated[float, Field(gt=0)] = 0.7
    outer_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9

    @property
    def agrees_every(self) -> int:
        return self.period

    def wire_bytes(self, shapes: Shapes, world_size: int, step: int | None = None) -> float:
        exchange = ring_all_reduce_bytes(4 * numel(shapes), world_size)
        if step is None:
            return exchange / self.period
        return exchange if (step + 1) % self.period == 0 else 0.0

    def bind(self, ddp: DistributedDataParallel, optimizer: torch.optim.Optimizer) -> None:
        super().bind(ddp, optimizer)
        self.weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.common = [weight.detach().clone() for weight in self.weights]
        self.outer = torch.optim.SGD(
            self.common, lr=self.outer_lr, momentum=self.outer_momentum, nesterov=self.outer_momentum > 0
        )

    @torch.no_grad()
    def end_step(self) -> None:
        super().end_step()
        if self.step % self.period:
            return
        with self.stopwatch("encode"):
            for common, weight in zip(self.common, self.weights, strict=True):
                common.grad = common - weight
        average_in_place(self, [common.grad for common in self.common if common.grad is not None])
        with self.stopwatch("decode"):
            self.outer.step()
            for common, weight in zip(self.common, self.weights, strict=True):
                weight.copy_(common)
                common.grad = None


def diloco_hook(state: State, bucket: dist.GradBucket) -> Future[torch.Tensor]:
    """Leave the bucket as it is: this rank's own gradient."""
    return settled(bucket.buffer())
