"""What methods share that have a momentum of their own, in place of the optimizer's."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch.nn.parallel import DistributedDataParallel

from baselines._state import MethodState


class MomentumState(MethodState):
    """Base of a ``State`` that takes the momentum of plain SGD over; it is 0 there meanwhile."""

    does_to_momentum: ClassVar[str] = "replaces"
    """The verb of a refusal."""

    takes_nesterov: ClassVar[bool] = False
    """Whether Nesterov's momentum may be taken over as well."""

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        self.common_momentum(optimizer)

    def bind(self, ddp: DistributedDataParallel, optimizer: torch.optim.Optimizer) -> None:
        super().bind(ddp, optimizer)
        self.taken = self.take_momentum(optimizer)
        self._watching = optimizer.register_step_pre_hook(self._before_step)

    def leave(self) -> None:
        self._watching.remove()
        for group in self.optimizer.param_groups:  # it gathers its momentum anew
            group["momentum"] = group.pop(self._key, self.taken)
            for weight in group["params"]:  # not on from what it had gathered before
                self.optimizer.state.get(weight, {}).pop("momentum_buffer", None)
        super().leave()

    def _before_step(self, _: object, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Call ``before_step``, or have the step do so once its closure, if it is given one, has made the gradients."""
        optimizer, *others = given
        closure = named.get("closure", others[0] if others else None)
        if closure is None:
            self.before_step()
            return None

        def closure_and_more() -> Any:
            loss = closure()
            self.before_step()
            return loss

        return (optimizer, closure_and_more, *others[1:]), {k: v for k, v in named.items() if k != "closure"}

    def before_step(self) -> None:
        """Called before each step of the optimizer, when its gradients are there.

        Raises:
            RuntimeError: the optimizer has a momentum again.
        """
        if any(group["momentum"] != 0 for group in self.optimizer.param_groups):
            raise RuntimeError(
                f"{self.name} applies the momentum itself, but the optimizer's was set again since "
                "(by a scheduler that cycles it, or a loaded checkpoint); keep it at 0"
            )

    def common_momentum(self, optimizer: torch.optim.Optimizer) -> float:
        """The momentum of all groups, also if it was taken already.

        Raises:
            ValueError: it is not plain SGD with one momentum.
        """
        name, verb = self.name, self.does_to_momentum
        if not isinstance(optimizer, torch.optim.SGD):
            kind = type(optimizer).__name__
            raise ValueError(f"{name} {verb} the momentum of torch.optim.SGD; it cannot do so for {kind}")
        groups = optimizer.param_groups
        if any(group.get("fused") for group in groups):
            raise ValueError(f"{name} changes gradients that a fused step may still have to unscale; use fused=False")
        for setting in ("nesterov", "dampening", "maximize"):
            if any(group[setting] for group in groups) and not (setting == "nesterov" and self.takes_nesterov):
                raise ValueError(f"{name} {verb} heavy-ball momentum only; switch the optimizer's {setting} off")
        if len({bool(group["nesterov"]) for group in groups}) > 1:
            raise ValueError(
                f"{name} needs one kind of momentum for all parameters: nesterov in all groups, or in none"
            )
        momenta = {group["momentum"] or group.get(self._key, 0.0) for group in groups}
        if len(momenta) > 1:
            raise ValueError(f"{name} needs one momentum for all parameters, not {sorted(momenta)}")
        return float(momenta.pop())

    def take_momentum(self, optimizer: torch.optim.Optimizer) -> float:
        """The optimizer's momentum, which is 0 from now on."""
        momentum = self.common_momentum(optimizer)
        for group in optimizer.param_groups:
            group["momentum"], group[self._key] = 0.0, momentum
        return momentum

    @property
    def _key(self) -> str:
        """Where the optimizer's groups keep, also in its checkpoints, the momentum that was taken from them."""
        return f"{self.name}_momentum"
