"""Layers of a model, and a meter's move during each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import nn


class LayerWatch:
    """Tells how far a meter moves during the forward pass, layer by layer: modules that hold parameters themselves."""

    def __init__(self, network: nn.Module, meter: Callable[[], Any]) -> None:
        self._meter = meter
        self._marks: list[tuple[str, Any]] = []
        self._begun: list[str] = []
        for name, module in network.named_modules():
            if next(module.parameters(recurse=False), None) is not None:
                module.register_forward_pre_hook(partial(self._begin, name))
                module.register_forward_hook(partial(self._end, name))

    def _begin(self, name: str, *_: object) -> None:
        self._begun.append(name)

    def _end(self, name: str, *_: object) -> None:
        self._marks.append((name, self._meter()))

    def take(self, start: Any = 0, number: Callable[[Any], float] = float) -> dict[str, float]:
        """By layer, in the order in which they begin; then forget.

        Args:
            start: what the meter showed before the pass.
            number: how to read the meter's marks.
        """
        found = dict.fromkeys(self._begun, 0.0)
        before = number(start)
        for name, mark in self._marks:
            found[name] += number(mark) - before
            before = number(mark)
        self._marks, self._begun = [], []
        return found


def owner_of(parameter: str, layers: Iterable[str]) -> str:
    """The layer that a parameter belongs to: the module that holds it, or the nearest around that which is a layer."""
    known = set(layers)
    owner = parameter.rpartition(".")[0]
    while owner not in known and owner:
        owner = owner.rpartition(".")[0]
    return owner
