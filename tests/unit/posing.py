"""Tensors of a CPU that pose as a GPU's, and whoever would wait for one: what hooks do on a GPU, tried without it."""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch

OF_TENSORS = ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__")
OF_BOTH = (
    *("nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount", "repeat_interleave"),
    *("equal", "allclose", "is_nonzero"),
)
"""Methods of tensors, and functions of torch as well, for which the host waits: for a value, or for the size of what
comes out."""

_counting = threading.local()
"""Whether a thread is within one of them, which may call another."""


@contextmanager
def posing_as_a_gpu() -> Iterator[Counter[str]]:
    """Every tensor says that it is a GPU's. Counted is, on all threads, what would wait for one, by name."""
    waits: Counter[str] = Counter()
    with ExitStack() as stack:
        stack.enter_context(patch.object(torch.Tensor, "is_cuda", property(lambda tensor: True)))

        def watch(owner: Any, name: str, called: str, waiting: Callable[..., bool] = lambda *_, **__: True) -> None:
            stack.enter_context(patch.object(owner, name, counted(getattr(owner, name), called, waits, waiting)))

        for name in (*OF_TENSORS, *OF_BOTH):
            watch(torch.Tensor, name, name)
        for name in OF_BOTH:
            watch(torch, name, name)
        watch(torch, "tensor", "copied there")
        watch(torch, "where", "nonzero", lambda *given, **named: len(given) + len(named) == 1)
        watch(torch.Tensor, "to", "cpu", lambda _, *given, **named: names_a_cpu(*given, *named.values()))
        watch(torch.Tensor, "__getitem__", "a mask", lambda _, key: has_mask(key))
        watch(torch.Tensor, "__setitem__", "a mask", lambda _, key, value: has_mask(key) and has_many(value))
        yield waits


@contextmanager
def watched_gpu() -> Iterator[Counter[str]]:
    """The same of a GPU that is there, as torch counts it (``torch.cuda.set_sync_debug_mode``)."""
    waits: Counter[str] = Counter()

    def note(message: Warning | str, *_: Any) -> None:
        if "called a synchronizing CUDA operation" in str(message):
            waits["synchronised"] += 1

    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.synchronize()
    with warnings.catch_warnings(), patch.object(warnings, "showwarning", note):
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode(before)


def counted(
    original: Callable[..., Any], name: str, waits: Counter[str], waiting: Callable[..., bool]
) -> Callable[..., Any]:
    """The original, counted by name where it waits for what it is given; what it calls itself is not."""

    def count(*arguments: Any, **named: Any) -> Any:
        if getattr(_counting, "within", False):
            return original(*arguments, **named)
        _counting.within = True
        try:
            if waiting(*arguments, **named):
                waits[name] += 1
            return original(*arguments, **named)
        finally:
            _counting.within = False

    return count


def names_a_cpu(*given: Any) -> bool:
    """Whether one is the name of a CPU. A ``torch.device`` may be that of a tensor which poses as a GPU's."""
    return any(isinstance(each, str) and each.startswith("cpu") for each in given)


def has_mask(key: Any) -> bool:
    """Whether a key selects by flags, of which it is to be known how many are true."""
    each = key if isinstance(key, tuple) else (key,)
    return any(isinstance(part, torch.Tensor) and part.dtype in (torch.bool, torch.uint8) for part in each)


def has_many(value: Any) -> bool:
    """Whether what is to be put where flags are true is more than a number, with which they are filled at once."""
    return isinstance(value, torch.Tensor) and value.numel() != 1
