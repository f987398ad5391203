"""Local SGD: each worker trains alone for some steps, then all average their parameters.

Not an all-reduce of gradients. Stich, ICLR 2019 (arXiv 1805.09767); Lin et al., ICLR 2020 (arXiv 1808.07217). With
``period`` steps between averages, the bytes of dense training are divided by it. Workers drift apart meanwhile: with
unlike data or a long period it converges worse per step. What the optimizer remembers (momentum) stays each worker's
own. Lin et al.'s post-local SGD averages gradients, as dense training does, in its first steps: ``warmup_steps``.

Between two averages the ranks hold different parameters, so accuracies are measured right after one.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.futures import Future

from baselines._lane import settled
from baselines._local import LocalState, average_in_place
from baselines._memory import Weights
from baselines._parameters import Count, Steps, parameters
from baselines._state import MethodState, Shapes, numel, ring_all_reduce_bytes
from baselines.dense import dense_hook

LABEL = "Local SGD"
COLOR = "#004488"
MARKER = "2"
SENDS = "every parameter, once in `period` steps"
ALL_REDUCE = True
SOURCE = "Stich, ICLR 2019 (arXiv 1805.09767)"
MOST_LOSS = 0.03
MOST_LOSS_AT_PLATEAU = 0.01
MOST_PERPLEXITY = 0.08
PAPER_SAYS = "theory alone: on convex problems the rate of SGD with large batches"


@parameters
class State(LocalState):
    """What local SGD keeps on one rank.

    Args:
        period: steps from one average to the next.
        warmup_steps: dense steps at first.
    """

    warmup_parameters = ("warmup_steps",)
    adjustable = ("period",)
    remembers = ("met_at", "apart")

    period: Count = 8
    warmup_steps: Steps = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.apart = Weights()
        """Those that ranks may hold differently; see ``Outer.apart``."""

    @property
    def steady_from_step(self) -> int:
        return self.warmup_steps

    @property
    def trains_alone(self) -> bool:
        return super().trains_alone and self.step >= self.warmup_steps

    def wire_bytes(self, shapes: Shapes, world_size: int, step: int | None = None) -> float:
        """An average of all parameters in every ``period``-th step; with a loss scaler also a flag in each step."""
        average = ring_all_reduce_bytes(4 * numel(shapes), world_size)
        if step is None:
            return average / self.period + self.flag_bytes(world_size)
        travels = step < self.warmup_steps or (step + 1) % self.period == 0
        return self.flag_bytes(world_size) + (average if travels else 0.0)

    def end_step(self) -> None:
        if self.step < self.warmup_steps:
            MethodState.end_step(self)  # all ranks hold the same parameters
        else:
            super().end_step()

    def have_moved(self, weights: list[torch.Tensor]) -> None:
        self.apart.update(weights)

    def exchange(self) -> None:
        average_in_place(self, [weight for weight in self.names if weight in self.apart])
        self.apart.clear()


def local_sgd_hook(state: State, bucket: dist.GradBucket) -> Future[torch.Tensor]:
    """Leave the bucket as it is, this rank's own gradient; in the warm-up, replace it by the mean."""
    return dense_hook(state, bucket) if state.step < state.warmup_steps else settled(bucket.buffer())
