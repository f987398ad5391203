"""The outer optimizer of methods whose ranks train alone and meet once in a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import reduce

import torch


class Outer:
    """The common parameters, in at least fp32, and the optimizer that moves them. A frozen weight stays where it is."""

    def __init__(self, weights: list[torch.Tensor], lr: float, momentum: float) -> None:
        self._common = {
            weight: weight.detach().to(torch.promote_types(weight.dtype, torch.float32), copy=True)
            for weight in weights
        }
        self._sgd = torch.optim.SGD(self._common.values(), lr=lr, momentum=momentum, nesterov=momentum > 0)

    def changes(self) -> dict[torch.Tensor, torch.Tensor]:
        """By how much each of this rank's weights has fallen: the gradient of the common one, to be made common too."""
        moving = {weight: common for weight, common in self._common.items() if weight.requires_grad}
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
            mix: the share of its own that a weight keeps.
        """
        self._sgd.step()
        for weight, common in self._common.items():
            if common.grad is not None:
                weight.copy_(common if not mix else common.lerp(weight.to(common.dtype), mix))
                common.grad = None

    def hand_out(self) -> None:
        """Let this rank's weights be the common ones."""
        copy_into(self._common)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Put the common parameters, as the weights' dtype has them, in this rank's weights' place, and then back."""
        own = {weight: weight.detach().clone() for weight in self._common}
        copy_into(self._common)
        try:
            yield
        finally:
            copy_into(own)

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


@torch.no_grad()
def copy_into(values: Mapping[torch.Tensor, torch.Tensor]) -> None:
    """Give each weight its value."""
    for weight, value in values.items():
        weight.copy_(value)


def wide_dtype(weights: list[torch.Tensor]) -> torch.dtype:
    """What holds the changes of all of them: at least fp32."""
    return reduce(torch.promote_types, [weight.dtype for weight in weights], torch.float32)
