"""Half precision: gradients travel as fp16, half the bytes of dense.

Divides by the world size before it sums, so that the sum of many workers does not overflow (fp16 ends at 65504), as
torch's own ``fp16_compress_hook`` does. Gradients below 6e-8 vanish; pair it with loss scaling if yours are that small.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.futures import Future

from baselines._parameters import parameters
from baselines._pieces import pieces
from baselines._state import MethodState, Shapes, numel, ring_all_reduce_bytes

LABEL = "FP16"
COLOR = "#0072B2"
MARKER = "s"
SENDS = "every entry, as fp16"
ALL_REDUCE = True
SOURCE = "torch's `fp16_compress_hook`"
MOST_LOSS = 0.01
MOST_LOSS_AT_PLATEAU = 0.01


@parameters
class State(MethodState):
    """No parameters."""

    is_sixteen_bit = True
    as_given = True

    @property
    def accumulates(self) -> bool:
        return True

    def wire_bytes(self, shapes: Shapes, world_size: int, step: int | None = None) -> float:
        return ring_all_reduce_bytes(2 * numel(shapes), world_size)


def fp16_hook(state: State, bucket: dist.GradBucket) -> Future[torch.Tensor]:
    """All-reduce the mean of the bucket in half precision."""
    return half_all_reduce(state, bucket, torch.float16)


def half_all_reduce(state: MethodState, bucket: dist.GradBucket, dtype: torch.dtype) -> Future[torch.Tensor]:
    """All-reduce the mean of the bucket as numbers of a narrower type."""
    gradient: torch.Tensor = bucket.buffer()
    with state.stopwatch("encode"):
        half = torch.empty_like(gradient, dtype=dtype)
        for some, some_half in pieces(gradient, half):
            some_half.copy_(some).div_(state.world_size)
    work = dist.all_reduce(half, group=state.process_group, async_op=True)

    def decode(done: Future[list[torch.Tensor]]) -> torch.Tensor:
        (mean,) = done.value()
        with state.stopwatch("decode"):
            gradient.copy_(mean)
        return gradient

    return work.get_future().then(decode)
