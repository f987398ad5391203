"""Block sign: the sign of every entry as one byte, and one scale for a block; what that misses waits for the next step.

Per bucket, with a = g + e: each block is sent as sign(a) times the largest mean of abs(a) that any worker has for it.
An all-reduce sums the signs; e = a - what was sent.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.distributed as dist
from pydantic import Field
from torch.futures import Future

from baselines import MethodState, parameters
from baselines._state import BucketMemory, Shapes, numel, ring_all_reduce_bytes

LABEL, COLOR, MARKER = "Block sign", "#882255", "P"
SENDS = "the sign of every entry, as one byte, and a scale for each block"
ALL_REDUCE = True
SOURCE = "an example"


@parameters
class State(MethodState):
    """What block sign keeps on one rank.

    Args:
        block: entries that share a scale.
    """

    block: Annotated[int, Field(ge=8, le=65536)] = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        self.residual = BucketMemory()

    def wire_bytes(self, shapes: Shapes, world_size: int, step: int | None = None) -> float:
        """One byte for an entry and four for a block, each in a ring; the last block of a bucket may be shorter."""
        return ring_all_reduce_bytes(numel(shapes) * (1 + 4 / self.block), world_size)


def block_sign_hook(state: State, bucket: dist.GradBucket) -> Future[torch.Tensor]:
    """Replace the bucket by the mean of all ranks' signs times the blocks' scales."""
    gradient = bucket.buffer()
    with state.stopwatch("encode"):
        a = state.residual.like(bucket).add_(gradient)
        scales = torch.stack([block.abs().mean() for block in a.split(state.block)])
    # The same scale on all ranks: the sum of the signs is then all that is missing. DDP hands buckets over in one
    # order on all ranks, so both collectives may start here; never in a callback.
    dist.all_reduce(scales, op=dist.ReduceOp.MAX, group=state.process_group)
    with state.stopwatch("encode"):
        each = scales.repeat_interleave(state.block)[: a.numel()]
        signs = a.sign().to(torch.int8)
        a.sub_(each * signs)  # a is now the residual: what was not sent
    work = dist.all_reduce(signs, group=state.process_group, async_op=True)

    def decode(done: Future[list[torch.Tensor]]) -> torch.Tensor:
        with state.stopwatch("decode"):
            return gradient.copy_(done.value()[0]).mul_(each).div_(state.world_size)

    return work.get_future().then(decode)
