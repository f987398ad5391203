"""Masks of pruned weights, the same on every rank, and where their survivors lie in DDP's buckets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from baselines._sparse import places_of


class Survivors:
    """The entries of a bucket that travel when its mask is stable."""

    def __init__(self, kept: torch.Tensor, counts: list[int], like: torch.Tensor) -> None:
        """``kept`` (n,), bool; ``counts``: of each parameter, in the bucket's order, those that have none left out."""
        self.counts = [count for count in counts if count]
        self.pruned = ~kept if sum(counts) < len(kept) else None
        self.indices = places_of(kept, sum(counts)).to(torch.int32)
        self._compact = torch.empty_like(self.indices, dtype=like.dtype)

    def gather(self, whole: torch.Tensor) -> torch.Tensor:
        """The survivors (kept,) of (n,), valid until the next call."""
        return torch.index_select(whole, 0, self.indices, out=self._compact)

    def scatter(self, compact: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
        """(n,), overwritten: the survivors where they belong, and zeros."""
        return whole.zero_().index_add_(0, self.indices, compact)

    def enforce(self, whole: torch.Tensor) -> torch.Tensor:
        """GSE: (n,) with zeros where weights are pruned, in place."""
        return whole if self.pruned is None else whole.masked_fill_(self.pruned, 0)


class MaskTracker:
    """Knows which gradient entries survive: per parameter, because DDP regroups its buckets."""

    def __init__(self, stable_after: int) -> None:
        self._stable_after = stable_after
        self._unchanged_steps = 0
        self._masks: dict[torch.Tensor, torch.Tensor] | None = None
        """None before the first pruning."""
        self._of_layout: dict[tuple[int, ...], Survivors] = {}
        self._places: dict[torch.Tensor, torch.Tensor] = {}

    @property
    def stable(self) -> bool:
        """Whether there is a mask that has not changed for long enough, so that sending survivors loses nothing."""
        return self._masks is not None and self._unchanged_steps >= self._stable_after

    def settle(self, masks: dict[torch.Tensor, torch.Tensor]) -> None:
        """From now on these are the masks (True: kept) of these parameters; all others are kept whole."""
        self._masks, self._unchanged_steps = masks, 0
        self._forget_places()

    def _forget_places(self) -> None:
        self._of_layout.clear()
        self._places.clear()

    def end_step(self) -> None:
        """A step has passed."""
        self._unchanged_steps += 1

    def mask_of(self, weight: torch.Tensor) -> torch.Tensor | None:
        """The weight's mask, shaped like it; None if it is kept whole."""
        return None if self._masks is None else self._masks.get(weight)

    def places_in(self, weight: torch.Tensor) -> torch.Tensor | None:
        """Where the weight's survivors are, in the order of its shape, as ``take`` and ``put_`` count.

        None: it is kept whole. They are listed once for each mask, which a GPU is waited for.
        """
        if (mask := self.mask_of(weight)) is None:
            return None
        if weight not in self._places:
            self._places[weight] = mask.flatten().nonzero().view(-1)
        return self._places[weight]

    def state_dict(self, names: Mapping[torch.Tensor, str]) -> dict[str, Any]:
        """Masks by name, None before the first pruning, and for how many steps they have been so."""
        masks = self._masks
        named = None if masks is None else {names[weight]: mask.clone() for weight, mask in masks.items()}
        return {"masks": named, "unchanged_steps": self._unchanged_steps}

    def load_state_dict(self, saved: Mapping[str, Any], names: Mapping[torch.Tensor, str]) -> None:
        """Go on from what ``state_dict`` gave."""
        masks, self._unchanged_steps = saved["masks"], saved["unchanged_steps"]
        weights = {name: weight for weight, name in names.items()}
        moved = {weights[name]: mask.to(weights[name].device) for name, mask in (masks or {}).items()}
        self._masks = None if masks is None else moved
        self._forget_places()

    def survivors(self, bucket: dist.GradBucket, enforced: bool = True) -> Survivors:
        """Where the bucket's survivors are, all if masks are not enforced; listed anew when its layout has changed."""
        members = bucket.parameters()
        layout = tuple(map(id, members))
        if layout not in self._of_layout:
            for stale in [old for old in self._of_layout if not set(layout).isdisjoint(old)]:
                del self._of_layout[stale]
            parts = [self._in_memory_order(parameter, enforced) for parameter in members]
            counts: list[int] = torch.stack([part.count_nonzero() for part in parts]).tolist()
            self._of_layout[layout] = Survivors(torch.cat(parts), counts, bucket.buffer())
        return self._of_layout[layout]

    def _in_memory_order(self, parameter: torch.Tensor, enforced: bool) -> torch.Tensor:
        """The parameter's mask, flat as DDP's buckets are: a channels-last weight is not in the order of its shape."""
        kept = torch.ones_like(parameter, dtype=torch.bool)
        if enforced and (mask := self.mask_of(parameter)) is not None:
            kept.copy_(mask)
        return kept.as_strided((kept.numel(),), (1,))
