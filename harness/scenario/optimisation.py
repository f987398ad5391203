"""What ``[train]`` may say of optimizer, learning-rate schedule and pre-training."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator
from typing_extensions import Self

from harness.scenario.section import Section

Share = Annotated[float, Field(ge=0, lt=1)]

MOST_STEPS, MOST_LR = 1_000_000, 1_000_000_000
"""Beyond which a number of steps, or a learning rate, is a slip."""

NONE = "none"
"""What files and command lines say for None, which TOML has no word for."""

BETAS, EPS = (0.9, 0.999), 1e-8
"""torch's for AdamW."""

ADAMW_DEFAULTS = {"lr": 1e-3, "momentum": 0.0, "weight_decay": 1e-2}
"""torch's, for what ``[train]`` does not say. Those of SGD are the defaults of ``Train``."""


class Optimizer(Section):
    """The optimizer of every worker. ``"adamw"`` stands for a table with that name alone."""

    name: Literal["sgd", "nesterov", "adamw"] = "sgd"
    """SGD with heavy-ball momentum, SGD with Nesterov's, or Adam with decoupled weight decay (Loshchilov and Hutter,
    ICLR 2019)."""
    betas: Annotated[tuple[Share, Share], Field(strict=False)] = BETAS
    """Of AdamW: decay rates of the two moments."""
    eps: float = Field(EPS, gt=0, le=1)
    """Of AdamW: what is added to the denominator."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.name != "adamw" and (self.betas, self.eps) != (BETAS, EPS):
            raise ValueError(f"betas, eps: found with {self.name!r}; allowed: with 'adamw' alone")
        return self


class Schedule(Section):
    """The learning rate over the steps, as a factor. ``"cosine"`` stands for a table with that kind alone."""

    kind: Literal["constant", "cosine", "step"] = "constant"
    """Constant; down to 0 at ``train.steps`` along half a cosine; or times ``decay`` after every ``decay_every``."""
    warmup_steps: int = Field(0, ge=0, le=MOST_STEPS)
    """First steps, in which the rate rises linearly; the last of them has all of it."""
    decay_every: int = Field(100, ge=1, le=MOST_STEPS)
    """Of kind ``step``: steps from one decay to the next, counted from the start."""
    decay: float = Field(0.1, gt=0, le=1)
    """Of kind ``step``: the factor of one decay."""

    def factor(self, step: int, steps: int) -> float:
        """The share of the learning rate that a step has, of a training of so many steps."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.kind == "cosine":
            done = (step - self.warmup_steps) / max(steps - self.warmup_steps, 1)
            return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        if self.kind == "step":
            return float(self.decay ** (step // self.decay_every))
        return 1.0


class Pretrain(Section):
    """A dense training before all trials, from which every method starts; off the clock."""

    steps: int = Field(ge=1, le=MOST_STEPS)
    """Steps, each on as many samples as a step of all workers together."""
    lr: float = Field(gt=0, le=MOST_LR)
    """Learning rate, which is constant."""


DECIDE_PRETRAINING = {
    "model",
    "dataset",
    "data_dir",
    "batch_size",
    "accumulate",
    "augment",
    "optimizer",
    "momentum",
} | {*("weight_decay", "autocast", "pretrain")}
"""Fields of ``[train]`` that decide what comes of it."""


def _by_name(key: str, given: object) -> object:
    return {key: given} if isinstance(given, str) else given


OptimizerField = Annotated[Optimizer, BeforeValidator(lambda given: _by_name("name", given))]
ScheduleField = Annotated[Schedule, BeforeValidator(lambda given: _by_name("kind", given))]


def none_or(given: object) -> object:
    """See ``NONE``."""
    return None if given == NONE else given


PretrainField = Annotated[Pretrain | None, BeforeValidator(none_or)]
AutocastField = Annotated[Literal["bf16"] | None, BeforeValidator(none_or)]
SavesField = Annotated[Annotated[int, Field(ge=1, le=MOST_STEPS)] | None, BeforeValidator(none_or)]
AugmentField = Annotated[Literal["crop-flip"] | None, BeforeValidator(none_or)]
