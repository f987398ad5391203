"""Ranks that train alone under masks which all of them hold, and meet as DiLoCo's do: pruned entries never travel."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.nn.parallel import DistributedDataParallel

from baselines._lane import LaneState
from baselines._local import agree_on_skipping, average_in_place, flag_bytes
from baselines._masks import MaskTracker
from baselines._outer import Outer
from baselines._state import MethodState, ring_all_reduce_bytes

PlacesIn = Callable[[torch.Tensor], torch.Tensor | None]
"""Where a weight's survivors are, in the order of its shape; None if it is kept whole."""

ALONE_COPIES = 6.5
"""What ranks that train alone hold instead of ``most_copies``: what DiLoCo's do, and the survivors that travel."""


class MaskedLocalState(LaneState):
    """Base of a ``State`` with masks whose ranks may train alone; they do not where ``local_period`` is None."""

    local_period: int | None
    outer_lr: float
    outer_momentum: float
    tracker: MaskTracker

    def __post_init__(self) -> None:
        super().__post_init__()
        self.outer: MaskedOuter | None = None
        self.met_at = 0
        """After how many steps the ranks last met."""

    @property
    def syncs_in_end_step(self) -> bool:  # type: ignore[override]
        return self.local_period is not None

    @property
    def agrees_every(self) -> int:
        return self.local_period or 1

    def meeting_bytes(self, change_bytes: float, world_size: int, step: int | None) -> float:
        """The changes in each ``local_period``-th step; with a loss scaler also a flag in each step."""
        period = self.agrees_every
        share = 1 / period if step is None else (step + 1) % period == 0
        return flag_bytes(self, world_size) + share * ring_all_reduce_bytes(change_bytes, world_size)

    def bind(self, ddp: DistributedDataParallel, optimizer: torch.optim.Optimizer) -> None:
        super().bind(ddp, optimizer)
        if self.local_period is not None:
            self.outer = MaskedOuter(self.trained, self.outer_lr, self.outer_momentum)

    def agree(self, found: torch.Tensor) -> None:
        if self.outer is not None:
            agree_on_skipping(self, found)

    def begin_step(self) -> None:
        super().begin_step()
        if self.outer is not None:
            self.outer.take_in(self.moving)

    def end_step(self) -> None:
        super().end_step()
        if self.outer is not None:
            self.outer.have_moved(self.moving)
        if self.step % self.agrees_every == 0:
            self.flush()

    def flush(self) -> None:
        if self.outer is not None and self.step > self.met_at:
            self.met_at = self.step
            self.outer.exchange(self, self.tracker.places_in)


class MaskedOuter(Outer):
    """Common parameters of which some entries are pruned, and the optimizer that moves the others."""

    @torch.no_grad()
    def exchange(self, state: MethodState, places_in: PlacesIn) -> None:
        """Bring all ranks to the same parameters; collective. A pruned entry has not moved on any rank."""
        with state.stopwatch("encode"):
            changes = self.changes()
            pairs = [(change, places_in(weight)) for weight, change in changes.items()]
            sent = [change if places is None else change.take(places) for change, places in pairs]
        average_in_place(state, sent)
        with state.stopwatch("decode"):
            for (change, places), mean in zip(pairs, sent, strict=True):
                if places is not None:
                    change.put_(places, mean)
            self.step()

    def prune(self, masks: Mapping[torch.Tensor, torch.Tensor]) -> None:
        """Set to zero what is not kept of the common parameters and of their momenta."""
        for weight, mask in masks.items():
            if (common := self._common.get(weight)) is not None:
                common.masked_fill_(~mask, 0)
                if (momentum := self._momentum(common)) is not None:
                    momentum.masked_fill_(~mask, 0)
