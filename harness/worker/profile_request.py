"""What a profile is to be made of."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from baselines._stopwatch import Clock
from harness.scenario.optimisation import Optimizer
from harness.scenario.schema import MethodSpec
from harness.worker.meter import CudaClock
from harness.workload import optimizers

WARM_UP_STEPS = 3
"""DDP regroups its buckets, and memory is found."""

BUCKET_BYTES = 25_000_000
LR, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 5e-4


@dataclass(frozen=True)
class ProfileRequest:
    """What is to be measured."""

    model: str
    batch_size: int
    device: str
    """``cpu`` or ``cuda``."""
    workers: int
    steps: int
    repeats: int = field(default=1, kw_only=True)
    """How often all of it is timed, each time in new processes: where memory came to lie, and what neighbours on the
    same hardware do, bend the times of a whole process."""
    methods: tuple[MethodSpec, ...]
    made_by: str
    dataset: str | None = None
    """Data set whose samples are computed; None for made-up ones."""
    in_processor_time: bool = False
    """Whether to tell the processor's time of one worker alone, the best of all steps: what a worker takes that has a
    core of its own, however busy this machine is. Else the time that passes, the median of all steps."""
    data_dir: str | None = None
    """A folder that holds the data set; None looks in the usual places."""
    optimizer: Literal["sgd", "nesterov", "adamw"] = field(default="sgd", kw_only=True)
    autocast: Literal["bf16"] | None = field(default=None, kw_only=True)

    def build_optimizer(self, weights: Iterable[Tensor], own: Optimizer | None = None) -> torch.optim.Optimizer:
        """The optimizer that is timed, or a method's own."""
        asked = own or Optimizer.model_validate({"name": self.optimizer})
        return optimizers.build(asked, weights, optimizers.settings_of(asked, LR, MOMENTUM, WEIGHT_DECAY))

    @property
    def clock(self) -> Clock:
        """A clock for what is to be timed."""
        if self.device == "cuda":
            return CudaClock()
        return ThreadClock() if self.in_processor_time else Clock()

    def typical(self, seconds: Iterable[float]) -> float:
        """Of many steps' times the one that counts."""
        return min(seconds) if self.in_processor_time else float(statistics.median(seconds))


class ThreadClock(Clock):
    """Tells the processor's time of the thread that asks; marks compare within one thread alone."""

    def mark(self) -> float:
        """See ``Clock.mark``."""
        return time.thread_time()


Timed = dict[str, Any]
"""Seconds by the profile's fields."""
