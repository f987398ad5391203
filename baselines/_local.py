"""What methods share whose ranks train alone, each by its own gradients, and meet once in a while."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from baselines._state import MethodState, ring_all_reduce_bytes

FLAG_BYTES = 4


class LocalState(MethodState):
    """Base of a ``State`` whose ranks keep their gradients to themselves.

    A scaler looks at this rank's gradients alone, so that one rank would skip a step that the others make, and they
    would never meet again. So with a scaler the ranks all-reduce a flag in each step, and skip it together.
    """

    as_given = True
    syncs_in_end_step = True
    remembers: tuple[str, ...] = ("met_at",)
    period: int
    met_at = 0
    """After how many steps the ranks last met."""

    @property
    def may_join(self) -> bool:
        return False

    @property
    def accumulates(self) -> bool:
        return True

    @property
    def agrees_every(self) -> int:
        return self.period

    def flag_bytes(self, world_size: int) -> float:
        """Of the flag, in each step; 0 where no scaler was used."""
        return flag_bytes(self, world_size)

    def check(
        self,
        ddp: DistributedDataParallel,
        optimizer: torch.optim.Optimizer,
        loss: Callable[[], torch.Tensor] | None,
    ) -> None:
        super().check(ddp, optimizer, loss)
        refuse_sharded(self, optimizer)

    def agree(self, found: torch.Tensor) -> None:
        agree_on_skipping(self, found)

    def end_step(self) -> None:
        super().end_step()
        self.have_moved(self.moving)
        self.meet()

    def have_moved(self, weights: list[torch.Tensor]) -> None:
        """Each rank has moved these weights by itself."""

    def meet(self) -> None:
        """Meet the other ranks if it is time; after each step."""
        if self.step % self.period == 0:
            self.flush()

    def flush(self) -> None:
        if self.step > self.met_at:  # else a momentum would move the common parameters by itself
            self.met_at = self.step
            self.exchange()

    def exchange(self) -> None:
        """Bring all ranks to the same parameters by what each has trained since they met."""


def flag_bytes(state: MethodState, world_size: int) -> float:
    """What a worker sends of the flag in each step; 0 where no scaler was used."""
    return ring_all_reduce_bytes(FLAG_BYTES, world_size) if state.loss_scale.was_heard else 0.0


def agree_on_skipping(state: MethodState, found: torch.Tensor) -> None:
    """Make the flag ``found``, whether a gradient is not finite, that of all ranks together; collective."""
    dist.all_reduce(found, op=dist.ReduceOp.MAX, group=state.process_group)


def refuse_sharded(state: MethodState, optimizer: torch.optim.Optimizer) -> None:
    """Raises:
    ValueError: each rank's optimizer has a share of the parameters only, and sends the rest after each step.
    """
    if type(optimizer).__name__ == "ZeroRedundancyOptimizer":
        raise ValueError(
            f"{state.name} acts on all of a rank's optimizer, and ZeroRedundancyOptimizer holds a share of it: use the "
            "optimizer itself"
        )


Mean = Callable[[MethodState, dist.ProcessGroup, torch.Tensor], torch.Tensor]
"""What replaces a tensor (n,) by its mean over all ranks of a group, in place, and times itself."""


def all_reduce_mean(state: MethodState, group: dist.ProcessGroup, values: torch.Tensor) -> torch.Tensor:
    """The plain one: divided first, lest a sum overflow."""
    with state.stopwatch("encode"):
        values.div_(state.world_size)
    dist.all_reduce(values, group=group)
    return values


@torch.no_grad()
def average_in_place(state: MethodState, tensors: list[torch.Tensor], mean: Mean = all_reduce_mean) -> None:
    """Replace each tensor by its mean over all ranks, taken in at least fp32; one exchange for each such dtype."""
    wide = [torch.promote_types(tensor.dtype, torch.float32) for tensor in tensors]
    for dtype in dict.fromkeys(wide):
        alike = [tensor for tensor, its in zip(tensors, wide, strict=True) if its == dtype]
        with state.stopwatch("encode"):
            together = torch.cat([tensor.reshape(-1).to(dtype) for tensor in alike])
        mean(state, state.process_group, together)
        with state.stopwatch("decode"):
            for tensor, part in zip(alike, together.split([tensor.numel() for tensor in alike]), strict=True):
                tensor.copy_(part.view(tensor.shape))
