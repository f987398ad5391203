"""The outer optimizer of methods whose ranks train alone and meet once in a while."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from typing import Any

import torch

from baselines._local import LocalState
from baselines._memory import Weights


class Outer:
    """The common parameters, in at least fp32, and the optimizer that moves them. A frozen weight stays where it is."""

    def __init__(self, weights: list[torch.Tensor], lr: float, momentum: float) -> None:
        self._common = {weight: wide_copy(weight) for weight in weights}
        self._sgd = torch.optim.SGD(self._common.values(), lr=lr, momentum=momentum, nesterov=momentum > 0)
        self.apart = Weights()
        """Those that ranks may hold differently: each has moved them by itself since they last met. A weight may be
        frozen between two meetings. It is averaged once more then, and stays where it is."""

    def __contains__(self, weight: torch.Tensor) -> bool:
        return weight in self._common

    @property
    def entries(self) -> int:
        """Of all its parameters."""
        return sum(weight.numel() for weight in self._common)

    def take_in(self, weights: Iterable[torch.Tensor]) -> None:
        """Have weights from now on that were frozen: all ranks hold them alike."""
        for weight in weights:
            if weight not in self:
                self._common[weight] = wide_copy(weight)
                self._sgd.add_param_group({"params": [self._common[weight]]})

    def have_moved(self, weights: Iterable[torch.Tensor]) -> None:
        """This rank has moved these weights by itself, as far as they are here."""
        self.apart.update(weight for weight in weights if weight in self)

    def changes(self) -> dict[torch.Tensor, torch.Tensor]:
        """By how much each of this rank's weights has fallen: the gradient of the common one, to be made common too."""
        moving = {weight: common for weight, common in self._common.items() if weight in self.apart}
        fallen = {weight: common.to(weight.dtype).to(common.dtype) - weight for weight, common in moving.items()}
        for weight, common in moving.items():
            common.grad = fallen[weight]
        return fallen

    def take(self, changes: Mapping[torch.Tensor, torch.Tensor]) -> None:
        """Let these changes of weights, which all ranks have, be the gradients of the next step."""
        for weight, change in changes.items():
            self._common[weight].grad = change.to(self._common[weight].dtype)

    def step(self, mix: float = 0.0) -> None:
        """Move the common parameters by their gradients, and this rank's weights to them.

        Args:
            mix: the share of its own that a weight keeps which is apart.
        """
        self._sgd.step()
        for weight, common in self._common.items():
            if common.grad is None:
                continue
            if mix and weight in self.apart:
                weight.copy_(common.lerp(weight.to(common.dtype), mix))
            else:
                weight.copy_(common)
                self.apart.discard(weight)
            common.grad = None

    def hand_out(self) -> None:
        """Let this rank's weights be the common ones."""
        copy_into(self._common)
        self.apart.clear()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Put the common parameters, as the weights' dtype has them, in this rank's weights' place, and then back."""
        own = {weight: weight.detach().clone() for weight in self._common}
        copy_into(self._common)
        try:
            yield
        finally:
            copy_into(own)

    def state_dict(self, names: Mapping[torch.Tensor, str]) -> dict[str, Any]:
        """Common parameters, and their momenta where there are any, by name; and which are apart."""
        momenta = {weight: self._momentum(common) for weight, common in self._common.items()}
        return {
            "common": {names[weight]: common.clone() for weight, common in self._common.items()},
            "momentum": {names[weight]: each.clone() for weight, each in momenta.items() if each is not None},
            "apart": self.apart.state_dict(names),
        }

    def load_state_dict(self, saved: Mapping[str, Any], names: Mapping[torch.Tensor, str]) -> None:
        """Go on from what ``state_dict`` gave, with the same parameters, whichever are frozen now."""
        weights = {name: weight for weight, name in names.items()}
        self._common = {weights[name]: wide_copy(weights[name]).copy_(each) for name, each in saved["common"].items()}
        self._sgd = torch.optim.SGD(self._common.values(), **self._sgd.defaults)
        self.apart.load_state_dict(saved["apart"], names)
        for weight, common in self._common.items():
            momentum = saved["momentum"].get(names[weight])
            self._sgd.state[common] = (
                {} if momentum is None else {"momentum_buffer": momentum.to(common.device).clone()}
            )

    def _momentum(self, common: torch.Tensor) -> torch.Tensor | None:
        momentum: torch.Tensor | None = self._sgd.state.get(common, {}).get("momentum_buffer")
        return momentum


class OuterState(LocalState):
    """Base of a ``State`` whose ranks meet by one outer optimizer."""

    outer: Outer

    def begin_step(self) -> None:
        super().begin_step()
        self.outer.take_in(self.moving)

    def have_moved(self, weights: list[torch.Tensor]) -> None:
        self.outer.have_moved(weights)


@torch.no_grad()
def copy_into(values: Mapping[torch.Tensor, torch.Tensor]) -> None:
    """Give each weight its value."""
    for weight, value in values.items():
        weight.copy_(value)


def wide_copy(weight: torch.Tensor) -> torch.Tensor:
    """The weight as it is now, in at least fp32."""
    return weight.detach().to(torch.promote_types(weight.dtype, torch.float32), copy=True)


def wide_dtype(weights: list[torch.Tensor]) -> torch.dtype:
    """What holds the changes of all of them: at least fp32."""
    return reduce(torch.promote_types, [weight.dtype for weight in weights], torch.float32)
