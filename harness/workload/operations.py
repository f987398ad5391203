"""What is known of a model without training it: modes of torch that count operations, or leave out values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


class OperationCounter(TorchDispatchMode):
    """Adds up the formulas of all operators that run inside it.

    It counts what torch's ``FlopCounterMode`` counts. That one imports ``torch._dynamo`` with its first operator, which
    takes as long as importing torch itself.
    """

    def __init__(self) -> None:
        from torch.utils.flop_counter import flop_registry  # it imports triton

        super().__init__()
        self.total = 0
        """Operations so far."""
        self._formulas: Mapping[Any, Callable[..., int]] = flop_registry

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Tell torch to leave this class as it is: nothing is compiled here, so nothing must be kept from compiling."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operator, and count it if there is a formula for it."""
        result = func(*args, **(kwargs or {}))
        if formula := self._formulas.get(func._overloadpacket):
            self.total += int(formula(*args, **(kwargs or {}), out_val=result))
        return result


class WithoutValues(TorchFunctionMode):
    """Leaves weights as they were made: on the meta device there is nothing to fill.

    Some of torch's initialisers would import its compiler there.
    """

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function, unless all it does is to fill a tensor."""
        arguments = dict(kwargs or {})
        if func in (Tensor.normal_, Tensor.uniform_) or getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else arguments["tensor"]
        return func(*args, **arguments)
