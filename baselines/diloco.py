"""DiLoCo: long stretches of local training, whose mean change is a gradient for an outer Nesterov optimizer.

Douillard et al., 2023 (arXiv 2311.08105). Every ``period`` steps each worker's change since the last common parameters
is averaged; an outer SGD with Nesterov momentum applies the mean as if it were a gradient, and all go on from there.
Not an all-reduce of gradients: the bytes of dense training are divided by ``period``.

The paper's inner optimizer is AdamW and its period 500; here the inner optimizer is the training's own, whose memory
stays each worker's. Without outer momentum and with an outer rate of 1 it is local SGD.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
import torch.distributed as dist
from pydantic import Field
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from baselines._lane import settled
from baselines._local import LocalState, average_in_place
from baselines._state import Shapes, numel, parameters, ring_all_reduce_bytes

LABEL = "DiLoCo"
COLOR = "#997700"
MARKER = "3"
SENDS = "the change of every parameter, once in `period` steps"
ALL_REDUCE = True
SOURCE = "Douillard et al., 2023 (arXiv 2311.08105)"
MOST_LOSS = 0.02


@parameters
class State(LocalState):
    """What DiLoCo keeps on one rank.

    Args:
        period: steps from one synchronisation to the next.
        outer_lr: the outer optimizer's rate.
        outer_momentum: its Nesterov momentum.
    """

    most_copies = 6.0
    adjustable = ("period",)
    remembers = ("outer",)

    syncs_in_end_step = True

    period: Annotated[int, Field(ge=1)] = 20
    outer_lr: Annotated[float, Field(gt=0)] = 0.7
    outer_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9

    def wire_bytes(self, shapes: Shapes, world_size: int, step: int | None = None) -> float:
        """A change of all parameters in every ``period``-th step; with a loss scaler also a flag in each step."""
        exchange = ring_all_reduce_bytes(4 * numel(shapes), world_size)
        if step is None:
            return exchange / self.period + self.flag_bytes(world_size)
        return self.flag_bytes(world_size) + (exchange if (step + 1) % self.period == 0 else 0.0)

    def bind(self, ddp: DistributedDataParallel, optimizer: torch.optim.Optimizer) -> None:
        super().bind(ddp, optimizer)
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.outer = Outer(weights, self.outer_lr, self.outer_momentum)

    @torch.no_grad()
    def flush(self) -> None:
        with self.stopwatch("encode"):
            changes = self.outer.changes()
        average_in_place(self, changes)
        with self.stopwatch("decode"):
            self.outer.step()


class Outer:
    """The common parameters, in at least fp32, and the optimizer that moves them. A frozen weight stays where it is."""

    def __init__(self, weights: list[torch.Tensor], lr: float, momentum: float) -> None:
        self._common = {
            weight: weight.detach().to(torch.promote_types(weight.dtype, torch.float32), copy=True)
            for weight in weights
        }
        self._sgd = torch.optim.SGD(self._common.values(), lr=lr, momentum=momentum, nesterov=momentum > 0)

    def changes(self) -> list[torch.Tensor]:
        """By how much this rank's weights have fallen, as the gradients of the common ones."""
        moving = {weight: common for weight, common in self._common.items() if weight.requires_grad}
        for weight, common in moving.items():
            common.grad = common.to(weight.dtype).to(common.dtype) - weight
        return [common.grad for common in moving.values() if common.grad is not None]

    def step(self) -> None:
        """Move the common parameters by their gradients, and this rank's weights to them."""
        self._sgd.step()
        for weight, common in self._common.items():
            if common.grad is not None:
                weight.copy_(common)
                common.grad = None

    def state_dict(self, names: Mapping[torch.Tensor, str]) -> dict[str, dict[str, torch.Tensor]]:
        """Common parameters, and their momenta where there are any, by name."""
        momenta = {weight: self._momentum(common) for weight, common in self._common.items()}
        return {
            "common": {names[weight]: common.clone() for weight, common in self._common.items()},
            "momentum": {names[weight]: each.clone() for weight, each in momenta.items() if each is not None},
        }

    def load_state_dict(
        self, saved: Mapping[str, Mapping[str, torch.Tensor]], names: Mapping[torch.Tensor, str]
    ) -> None:
        """Go on from what ``state_dict`` gave."""
        for weight, common in self._common.items():
            common.copy_(saved["common"][names[weight]])
            momentum = saved["momentum"].get(names[weight])
            self._sgd.state[common] = (
                {} if momentum is None else {"momentum_buffer": momentum.to(common.device).clone()}
            )

    def _momentum(self, common: torch.Tensor) -> torch.Tensor | None:
        momentum: torch.Tensor | None = self._sgd.state.get(common, {}).get("momentum_buffer")
        return momentum


def diloco_hook(state: State, bucket: dist.GradBucket) -> Future[torch.Tensor]:
    """Leave the bucket as it is: this rank's own gradient."""
    return settled(bucket.buffer())
