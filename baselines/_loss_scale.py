"""By what a ``torch.amp.GradScaler`` has multiplied the loss, and so every gradient.

Methods remember parts of gradients, whose unit must not change when the scale does. Hooks are handed scaled gradients
and nobody tells them the scale, so it is overheard: what a scaler's ``scale`` returns, and leads back to a model's
weights, tells it when a backward pass comes by. It holds until the next forward pass, after which a loss may not be
scaled. A loss that is multiplied by hand is not noticed. Where ranks keep their gradients to themselves, they agree in
the same way on whether a step is skipped, as FSDP's own scaler does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakSet

import torch
from torch.amp import GradScaler


class LossScale:
    """What the loss of a model's last backward pass was multiplied by, if it was by a scaler's ``scale``."""

    def __init__(self) -> None:
        self.factor: torch.Tensor | None = None
        """A scalar, which the scaler changes in place; None if the loss was not scaled."""
        self.was_heard = False
        """Whether a loss was ever scaled."""
        self._optimizer: torch.optim.Optimizer | None = None
        self._weights: frozenset[torch.Tensor] = frozenset()
        self._agree: Callable[[torch.Tensor], None] = _keep

    def listen(
        self,
        weights: Iterable[torch.Tensor],
        optimizer: torch.optim.Optimizer,
        agree: Callable[[torch.Tensor], None],
    ) -> None:
        """Be told from now on.

        Args:
            weights: the model's. What a scaler does to losses of other models is not this one's.
            agree: called with what the scaler found in the optimizer's gradients, a scalar, 0 if all are finite; it may
                change it.
        """
        self._weights, self._optimizer, self._agree = frozenset(weights), optimizer, agree
        if not _listeners:
            GradScaler.scale = _scale_and_tell  # type: ignore[method-assign,assignment]
            GradScaler._unscale_grads_ = _look_and_agree  # type: ignore[method-assign,assignment]
        _listeners.add(self)

    def ignore(self) -> None:
        """Be told no more."""
        self._weights = frozenset()
        _listeners.discard(self)
        if not _listeners:
            GradScaler.scale, GradScaler._unscale_grads_ = _scale, _look  # type: ignore[method-assign,assignment]

    def heard(self, scaler: GradScaler, loss: torch.Tensor) -> None:
        """A scaler has multiplied a loss, maybe another model's."""
        if leads_back(loss, self._weights):
            self.was_heard = True
            loss.register_hook(lambda _: self._holds(scaler))  # called before the gradients of any weight are there

    def _holds(self, scaler: GradScaler) -> None:
        self.factor = scaler._scale

    def found(self, optimizer: torch.optim.Optimizer, flags: Iterable[torch.Tensor]) -> None:
        """A scaler has looked for overflows."""
        if unwrapped(optimizer) is self._optimizer:
            for flag in flags:
                self._agree(flag)


def unwrapped(optimizer: Any) -> Any:
    """The optimizer within Accelerate's, or any wrapper that keeps it in the same way."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner
    return optimizer


def leads_back(loss: torch.Tensor, weights: frozenset[torch.Tensor]) -> bool:
    """Whether a backward pass from a loss would come to one of the weights.

    So it may be, for all that can be known, where a checkpoint hides what it computes again.
    """
    pending, seen = [loss.grad_fn], set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if "Checkpoint" in node.name() or getattr(node, "variable", None) in weights:
            return True
        pending.extend(following for following, _ in node.next_functions)
    return False


def _keep(found: torch.Tensor) -> None:
    """All ranks have found the same."""


_listeners: WeakSet[LossScale] = WeakSet()
_scale: Any = GradScaler.scale
_look: Any = GradScaler._unscale_grads_


@functools.wraps(_scale)
def _scale_and_tell(scaler: GradScaler, outputs: Any) -> Any:
    scaled = _scale(scaler, outputs)
    return _told(scaler, scaled) if scaler.is_enabled() else scaled


def _told(scaler: GradScaler, scaled: Any) -> Any:
    """The scaled losses, each as soon as all listeners know of it: a generator may be drawn from once only."""
    if isinstance(scaled, torch.Tensor):
        for listener in _listeners:
            listener.heard(scaler, scaled)
        return scaled
    told = (_told(scaler, each) for each in scaled)
    return type(scaled)(told) if isinstance(scaled, (list, tuple)) else told


@functools.wraps(_look)
def _look_and_agree(scaler: GradScaler, optimizer: torch.optim.Optimizer, *rest: Any) -> dict[Any, torch.Tensor]:
    flags: dict[Any, torch.Tensor] = _look(scaler, optimizer, *rest)
    for listener in _listeners:
        listener.found(optimizer, flags.values())
    return flags
