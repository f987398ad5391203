"""Which optimizer a script has for a model, found by the parameters that it holds."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import torch
from torch import nn
from torch.optim import Optimizer


def holds_parameters_of(optimizer: Optimizer, model: nn.Module) -> bool:
    """Whether it holds any of the model's parameters."""
    own = {id(weight) for weight in model.parameters()}
    return any(id(weight) in own for weight in _parameters(optimizer))


def optimizers_of(model: nn.Module) -> list[Optimizer]:
    """All optimizers that hold parameters of a model, without those that wrap another one.

    Accelerate and Lightning wrap what the script made: steps end, and momentum is kept, in what is inside.
    """
    found = [optimizer for optimizer in _all_optimizers() if holds_parameters_of(optimizer, model)]
    return [optimizer for optimizer in found if not _wraps_one_of(optimizer, found)]


def _all_optimizers() -> Iterator[Optimizer]:
    gc.collect()  # what the script has dropped, but is part of a circle
    for thing in gc.get_objects():
        if issubclass(
            type(thing), Optimizer
        ):  # isinstance asks __class__, which proxies answer by making what they are
            yield thing


def _wraps_one_of(optimizer: Optimizer, others: list[Optimizer]) -> bool:
    return any(held is other for held in vars(optimizer).values() for other in others if other is not optimizer)


def _parameters(optimizer: Optimizer) -> Iterator[torch.Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]
