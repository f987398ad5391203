"""Gradient synchronisation methods for DistributedDataParallel, one file a method.

A method is a module of this package that defines

* ``LABEL``, ``COLOR``, ``MARKER``: how figures show it,
* ``State``: a dataclass (``@parameters``) whose fields are the method's parameters,
* ``<module name>_hook(state, bucket) -> Future[Tensor]``: a DDP communication hook,
* ``SENDS``, ``ALL_REDUCE``, ``SOURCE``, for the overview of METHODS.md: what a worker sends, whether an all-reduce sums
  it, and the paper or code that it follows,
* ``MOST_LOSS``, if it is known: the final accuracy that it may lose to dense in ``scenarios/convergence.toml``,
* ``MOST_LOSS_AT_PLATEAU``, if it is known: the same in ``scenarios/plateau.toml``, where trainings improve no more,
* ``MOST_PERPLEXITY``, if it is known: by what share final perplexity may be above that of dense in
  ``scenarios/language.toml``,
* ``PAPER_SAYS``, if it is known: what the paper, or its authors, say of that loss, and in which setting.

What else figures, reports and claims should know of a method its ``State`` says, by attributes of ``MethodState``:
``swept`` (which parameters a sweep goes over), ``saving_bound`` (what its parameters bound the saving by),
``warmup_parameters`` (what belongs to its warm-up alone), ``goodput_note`` (how it tells what it made a choice for),
``is_sixteen_bit`` (whether it is a plain all-reduce in 16 bits).

Every such file is found by itself; nothing is registered by hand. The same door serves anyone's own training::

    import baselines

    method = baselines.get("pactrain")
    state = method.State(density=0.2, values="ternary")
    handle = baselines.register(ddp_model, state, optimizer=optimizer)

What it remembers is saved and resumed, beside model and optimizer, by ``state.state_dict()`` on every rank and
``state.load_state_dict(saved)`` before or after ``register``. ``handle.flush()`` brings local methods' ranks together,
``handle.remove()`` lets the method go.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from baselines._door import Handle, checked, of_a_training
from baselines._parameters import ParameterError, parameters
from baselines._state import MethodState, SavingBound

__all__ = [
    "Handle",
    "Method",
    "MethodState",
    "ParameterError",
    "SavingBound",
    "describe",
    "get",
    "method_of",
    "names",
    "parameters",
    "register",
]


@dataclass(frozen=True)
class Method:
    """A method as its file declares it.

    ``summary`` is the first line of the file's docstring, ``details`` the rest of it; ``color`` and ``marker`` are
    matplotlib's; ``all_reduce`` tells whether an all-reduce sums what workers send, None where the file does not say;
    ``most_loss`` and ``most_loss_at_plateau`` are shares of all test samples, ``most_perplexity`` a share of dense's
    perplexity, each None where it was not measured; ``paper_says`` is empty where nothing was found.
    """

    name: str
    label: str
    color: str
    marker: str
    sends: str
    all_reduce: bool | None
    source: str
    summary: str
    details: str
    most_loss: float | None
    most_loss_at_plateau: float | None
    most_perplexity: float | None
    paper_says: str
    State: type[MethodState]
    hook: Callable[[Any, Any], Future[torch.Tensor]]


_DESCRIBED: dict[type[MethodState], Method] = {}
"""Methods by their ``State``: a module of another place may be called otherwise than its method."""


def names() -> list[str]:
    """The names of all methods, sorted. Imports none of them."""
    return [*_names_in(*__path__)]


@cache  # a plan asks for them thousands of times
def _names_in(*folders: str) -> tuple[str, ...]:
    found = (module.name for module in pkgutil.iter_modules(folders))
    return tuple(sorted(name for name in found if not name.startswith("_")))


def get(name: str) -> Method:
    """The method of that name.

    Raises:
        KeyError: no file of this package has that name.
    """
    if name not in names():
        raise KeyError(f"no method named {name!r}; there are {', '.join(names())}")
    return describe(importlib.import_module(f"{__name__}.{name}"), name)


def method_of(state: MethodState) -> Method:
    """The method that a state belongs to."""
    module = type(state).__module__
    return _DESCRIBED.get(type(state)) or describe(sys.modules[module], module.rpartition(".")[2])


def describe(module: ModuleType, name: str) -> Method:
    """The method of that name which a module defines as files of this package do, wherever it lies."""
    summary, _, details = inspect.cleandoc(module.__doc__ or "").partition("\n")
    method = _DESCRIBED[module.State] = Method(
        name=name,
        label=module.LABEL,
        color=module.COLOR,
        marker=module.MARKER,
        sends=getattr(module, "SENDS", ""),
        all_reduce=getattr(module, "ALL_REDUCE", None),
        source=getattr(module, "SOURCE", ""),
        summary=summary,
        details=details.strip(),
        most_loss=getattr(module, "MOST_LOSS", None),
        most_loss_at_plateau=getattr(module, "MOST_LOSS_AT_PLATEAU", None),
        most_perplexity=getattr(module, "MOST_PERPLEXITY", None),
        paper_says=getattr(module, "PAPER_SAYS", ""),
        State=module.State,
        hook=of_a_training(getattr(module, f"{name}_hook")),
    )
    return method


def register(
    ddp: DistributedDataParallel,
    state: MethodState,
    *,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[], torch.Tensor] | None = None,
) -> Handle:
    """Synchronise ``ddp``'s gradients by the method of ``state`` from the next backward pass on.

    Call it once, on every rank, before training. The optimizer is needed because methods act at step boundaries
    (pruning, averaging) and own some of its state (momentum correction, masks). It must hold all that the model trains.
    ``loss`` gives the loss, a scalar, of ``ddp.module`` on this rank's batch of the moment: for what gradients alone do
    not tell (GraSP's Hessian).

    The scale of a ``torch.amp.GradScaler`` is found out by itself, of each loss that leads back to the model, and some
    may be scaled and others not. A step that it skips, on all ranks as soon as one rank's gradient overflows, leaves
    what the method remembers as it was.

    Returns:
        A handle with ``remove()`` and ``flush()``; as a context it does both at its end.

    Raises:
        TypeError: this is no model in DDP (FSDP and bare modules are not), no optimizer or no state.
        ValueError: the method cannot run with this world size or optimizer; the state belongs to another training; the
            model has a method, or a communication hook, already. Nothing has changed then.
    """
    ddp, optimizer = checked(ddp, optimizer, state, loss)
    return Handle(ddp, state, method_of(state).hook, optimizer, loss)
