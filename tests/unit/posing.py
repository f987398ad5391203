"""Tensors of a CPU that pose as a GPU's, and whoever would wait for one: what hooks do on a GPU, tried without it."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch

WAITING = (
    *("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__"),
    *("nonzero", "masked_select", "unique", "bincount", "repeat_interleave"),
)
"""Methods of tensors for which the host waits: for a value, or for the size of what comes out."""


@contextmanager
def posing_as_a_gpu() -> Iterator[Counter[str]]:
    """Every tensor says that it is a GPU's. Counted is, on all threads, what would wait for one, by name."""
    waits: Counter[str] = Counter()
    with ExitStack() as stack:
        stack.enter_context(patch.object(torch.Tensor, "is_cuda", property(lambda tensor: True)))
        for name in WAITING:
            stack.enter_context(patch.object(torch.Tensor, name, counted(getattr(torch.Tensor, name), name, waits)))
        stack.enter_context(patch.object(torch.Tensor, "__getitem__", counted_masks(torch.Tensor.__getitem__, waits)))
        stack.enter_context(patch.object(torch, "tensor", counted(torch.tensor, "copied there", waits)))
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


def counted(original: Callable[..., Any], name: str, waits: Counter[str]) -> Callable[..., Any]:
    def count(*arguments: Any, **named: Any) -> Any:
        waits[name] += 1
        return original(*arguments, **named)

    return count


def counted_masks(original: Callable[..., Any], waits: Counter[str]) -> Callable[..., Any]:
    def get(tensor: torch.Tensor, key: Any) -> Any:
        if isinstance(key, torch.Tensor) and key.dtype is torch.bool:
            waits["a mask"] += 1
        return original(tensor, key)

    return get
