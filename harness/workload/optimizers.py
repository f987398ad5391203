"""Optimizers by the names that scenarios use, and those of replays, which only wait."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from harness.scenario.optimisation import Optimizer
from harness.workload.pace import Pace


def settings_of(optimizer: Optimizer, lr: float, momentum: float, weight_decay: float) -> dict[str, Any]:
    """The arguments that torch's class takes."""
    common: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
    if optimizer.name == "adamw":
        return {**common, "betas": optimizer.betas, "eps": optimizer.eps}
    return {**common, "momentum": momentum, "nesterov": optimizer.name == "nesterov"}


def build(optimizer: Optimizer, parameters: Iterable[Tensor], settings: dict[str, Any]) -> torch.optim.Optimizer:
    """torch's optimizer, with settings of ``settings_of``."""
    kind = torch.optim.AdamW if optimizer.name == "adamw" else torch.optim.SGD
    return kind(parameters, **settings)


class _Described(torch.optim.Optimizer):
    """Makes no step, for whoever asks what it is. Adding parameters as torch does imports its compiler: a second."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.param_groups.append({**self.defaults, **param_group})


class DescribedSgd(_Described, torch.optim.SGD):
    """What SGD would be."""


class DescribedAdamW(_Described, torch.optim.AdamW):
    """What AdamW would be."""


def described(optimizer: Optimizer, settings: dict[str, Any]) -> torch.optim.Optimizer:
    """What ``build`` would make, of one number, which must not make a step."""
    kind = DescribedAdamW if optimizer.name == "adamw" else DescribedSgd
    return kind([torch.zeros(1, requires_grad=True)], **settings)


class _Waiting(torch.optim.Optimizer):
    """Changes nothing: its time is waited for. Methods find the class and the settings that they look for."""

    def __init__(self, parameters: Any, pace: Pace, seconds: float, **settings: Any) -> None:
        super().__init__(parameters, **settings)
        self._pace, self._seconds = pace, seconds
        self.register_step_pre_hook(lambda *_: pace.waited())

    def step(self, closure: Any = None) -> Any:
        """Wait for as long as the device would take."""
        self._pace.work(self._seconds)


class WaitingSgd(_Waiting, torch.optim.SGD):
    """SGD that changes nothing."""


class WaitingAdamW(_Waiting, torch.optim.AdamW):
    """AdamW that changes nothing."""


def waiting(
    optimizer: Optimizer, parameters: Iterable[Tensor], pace: Pace, seconds: float, settings: dict[str, Any]
) -> torch.optim.Optimizer:
    """The same, of a replay: a step takes ``seconds`` of the profile's device."""
    kind = WaitingAdamW if optimizer.name == "adamw" else WaitingSgd
    return kind(parameters, pace, seconds, **settings)
