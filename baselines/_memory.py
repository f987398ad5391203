"""What methods remember between steps, as transactions: a step that the optimizer skips leaves it as it was.

A gradient that overflows is an everyday event under a loss scaler: all ranks skip the step, and the next one must begin
from what was remembered before. So a hook never overwrites what it remembers. It writes a draft beside it; the step of
the optimizer commits the drafts of all buckets, and a backward pass that begins without it discards them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from typing import Any, Generic, NamedTuple, TypeVar

import torch
import torch.distributed as dist

Layout = tuple[int, ...]
V = TypeVar("V")


class Draft(NamedTuple):
    """A bucket's memory, before this step and after it: flat tensors of the bucket's layout."""

    before: torch.Tensor
    after: torch.Tensor
    """To be filled by the hook; its contents until then mean nothing."""

    def plus(self, gradient: torch.Tensor) -> torch.Tensor:
        """``after``, filled with ``before + gradient``."""
        return torch.add(self.before, gradient, out=self.after)


class Flat:
    """A bucket's memory, and room for the next one."""

    def __init__(self, members: Sequence[torch.Tensor], now: torch.Tensor) -> None:
        self.members = list(members)
        self.now = now
        self.next: torch.Tensor | None = None

    def draft(self) -> Draft:
        if self.next is None:
            self.next = torch.empty_like(self.now)
        return Draft(self.now, self.next)

    def commit(self, without: Set[torch.Tensor]) -> None:
        if self.next is None:
            return
        if not without.isdisjoint(self.members):
            kept = self.next.split([member.numel() for member in self.members])
            for (member, before), after in zip(self.parts(), kept, strict=True):
                if member in without:
                    after.copy_(before)
        self.now, self.next = self.next, self.now

    def parts(self) -> zip[tuple[torch.Tensor, torch.Tensor]]:
        """Each member with its part, flat in the order of memory."""
        return zip(self.members, self.now.split([member.numel() for member in self.members]), strict=True)


class BucketMemory:
    """Tensors aligned with DDP's buckets whose contents belong to parameters, not to buckets.

    DDP rebuilds its buckets after the first step, so what a method remembers (residuals, momentum) must follow the
    parameter. After a rebuild the contents have moved along. They start as zeros.
    """

    def __init__(self) -> None:
        self._flats: dict[Layout, Flat] = {}
        self._drafted: list[Flat] = []
        self._loose: dict[torch.Tensor, torch.Tensor] = {}
        """Contents whose bucket is not known (any more): flat, of each parameter."""

    def like(self, bucket: dist.GradBucket) -> torch.Tensor:
        """A tensor of the bucket's numel, dtype and device, the same one until the layout changes or a commit."""
        return self._flat(bucket).now

    def draft(self, bucket: dist.GradBucket) -> Draft:
        """Memory of the bucket as it is, and where to write what is to be remembered of this step."""
        flat = self._flat(bucket)
        self._drafted.append(flat)
        return flat.draft()

    def commit(self, without: Set[torch.Tensor] = frozenset()) -> None:
        """The step was made: its drafts are what is remembered from now on.

        Args:
            without: parameters that the step left as they were; of them nothing is forgotten.
        """
        for flat in self._drafted:
            flat.commit(without)
        self._drafted.clear()

    def discard(self) -> None:
        """The step was not made: forget its drafts."""
        self._drafted.clear()

    def tensors(self) -> list[torch.Tensor]:
        """What is remembered, a flat tensor for each bucket."""
        return [flat.now for flat in self._flats.values()]

    def of_weights(self) -> dict[torch.Tensor, torch.Tensor]:
        """Views of what is remembered of each parameter, in its shape; to be changed at the end of a step alone."""
        parts = [*self._loose.items(), *(pair for flat in self._flats.values() for pair in flat.parts())]
        return {weight: shaped(part, weight) for weight, part in parts}

    def state_dict(self, names: Mapping[torch.Tensor, str]) -> dict[str, torch.Tensor]:
        """What is remembered of each parameter, by its name and in its shape; what was not used yet is left out."""
        return {names[weight]: part.clone() for weight, part in self.of_weights().items()}

    def load_state_dict(self, saved: Mapping[str, torch.Tensor], names: Mapping[torch.Tensor, str]) -> None:
        """Remember what ``state_dict`` gave, in whatever buckets the parameters come."""
        self._flats.clear()
        self._drafted.clear()
        weights = {name: weight for weight, name in names.items()}
        self._loose = {weights[name]: in_memory_order(value, weights[name]) for name, value in saved.items()}

    def _flat(self, bucket: dist.GradBucket) -> Flat:
        members = bucket.parameters()
        layout = tuple(map(id, members))
        if layout not in self._flats:
            self._flats[layout] = self._regrouped(bucket, members, layout)
        return self._flats[layout]

    def _regrouped(self, bucket: dist.GradBucket, members: list[torch.Tensor], layout: Layout) -> Flat:
        for stale in [old for old in self._flats if not set(layout).isdisjoint(old)]:
            self._loose |= dict(self._flats.pop(stale).parts())
        flat = Flat(members, torch.zeros_like(bucket.buffer()))
        for member, part in flat.parts():
            if (remembered := self._loose.pop(member, None)) is not None:
                part.copy_(remembered)
        return flat


class WeightMemory:
    """A tensor of each weight's shape, in at least fp32, that is changed in place; zeros at first.

    For what happens at the end of a step that was made, where nothing has to be taken back.
    """

    def __init__(self) -> None:
        self._past: dict[torch.Tensor, torch.Tensor] = {}

    def of(self, weight: torch.Tensor) -> torch.Tensor:
        """A weight's."""
        if weight not in self._past:
            self._past[weight] = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
        return self._past[weight]

    def state_dict(self, names: Mapping[torch.Tensor, str]) -> dict[str, torch.Tensor]:
        """By name, where there is any."""
        return {names[weight]: past.clone() for weight, past in self._past.items()}

    def load_state_dict(self, saved: Mapping[str, torch.Tensor], names: Mapping[torch.Tensor, str]) -> None:
        """Go on from what ``state_dict`` gave."""
        self._past.clear()
        for weight, name in names.items():
            if name in saved:
                self.of(weight).copy_(saved[name])


class Weights(set[torch.Tensor]):
    """Some of the parameters, which are saved by their names."""

    def state_dict(self, names: Mapping[torch.Tensor, str]) -> list[str]:
        """Their names."""
        return [name for weight, name in names.items() if weight in self]

    def load_state_dict(self, saved: Sequence[str], names: Mapping[torch.Tensor, str]) -> None:
        """Go on from what ``state_dict`` gave."""
        self.clear()
        self.update(weight for weight, name in names.items() if name in saved)


class Drafts(Generic[V]):
    """Values by key, which are replaced and never changed in place."""

    def __init__(self) -> None:
        self.now: dict[str, V] = {}
        self._next: dict[str, V] = {}

    def get(self, key: str) -> V | None:
        """The value of the last step that was made; None if there is none."""
        return self.now.get(key)

    def draft(self, key: str, value: V) -> None:
        """The value if this step is made."""
        self._next[key] = value

    def commit(self, without: Set[str] = frozenset()) -> None:
        """See ``BucketMemory.commit``; by key."""
        self.now |= {key: value for key, value in self._next.items() if key not in without}
        self._next.clear()

    def discard(self) -> None:
        """See ``BucketMemory.discard``."""
        self._next.clear()

    def state_dict(self, names: Mapping[torch.Tensor, str]) -> dict[str, V]:
        """The values."""
        return dict(self.now)

    def load_state_dict(self, saved: Mapping[str, Any], names: Mapping[torch.Tensor, str]) -> None:
        """Take these values."""
        device = next(iter(names)).device
        self.now = {key: _moved(value, device) for key, value in saved.items()}
        self._next = {}


def _moved(value: Any, device: torch.device) -> Any:
    """A tensor, or a tuple that may hold some, on that device."""
    if isinstance(value, tuple):
        return tuple(_moved(each, device) for each in value)
    return value.to(device) if torch.is_tensor(value) else value


def shaped(part: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A view of ``part`` (n,), in the order of memory, that is shaped like its parameter, also a channels-last one."""
    return part.as_strided(weight.shape, weight.stride()) if is_dense(weight) else part.view(weight.shape)


def as_matrix(part: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A view (rows, columns) of ``part`` (n,), in the order of memory, of a parameter of two dimensions or more.

    Its first dimension gives the rows. A matrix may lie column by column, as one that was transposed.
    """
    if weight.dim() == 2:
        return shaped(part, weight)
    return part.view(weight.shape[0], math.prod(weight.shape[1:]))


def in_memory_order(value: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``value``, shaped like its parameter, as (n,) in the order of memory: the inverse of ``shaped``."""
    part = torch.empty(weight.numel(), dtype=value.dtype, device=weight.device)
    shaped(part, weight).copy_(value)
    return part


def is_dense(weight: torch.Tensor) -> bool:
    """Whether its entries fill a stretch of memory without gaps, in some order of its dimensions."""
    expected = 1
    for stride, size in sorted(zip(weight.stride(), weight.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
