"""Dense fp32 all-reduce: what DDP does by itself, and what every speedup is measured against.

The hook divides by the world size before it sums, as torch's own ``allreduce_hook`` does.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.futures import Future

from baselines._parameters import parameters
from baselines._state import MethodState, Shapes, numel, ring_all_reduce_bytes

LABEL = "Dense"
COLOR = "#555555"
MARKER = "o"
SENDS = "every entry, as fp32"
ALL_REDUCE = True
SOURCE = "torch's `allreduce_hook`"
MOST_LOSS = 0.0
MOST_LOSS_AT_PLATEAU = 0.0
MOST_PERPLEXITY = 0.0


@parameters
class State(MethodState):
    """No parameters."""

    most_copies = 1.0
    as_given = True

    @property
    def accumulates(self) -> bool:
        return True

    def wire_bytes(self, shapes: Shapes, world_size: int, step: int | None = None) -> float:
        return ring_all_reduce_bytes(4 * numel(shapes), world_size)


def dense_hook(state: MethodState, bucket: dist.GradBucket) -> Future[torch.Tensor]:
    """All-reduce the mean of the bucket, in place."""
    gradient = bucket.buffer().div_(state.world_size)
    work = dist.all_reduce(gradient, group=state.process_group, async_op=True)
    return work.get_future().then(lambda future: future.value()[0])
