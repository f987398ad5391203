"""Top-k: each worker sends its largest gradient entries and remembers the rest (error feedback).

Per bucket, with a = g + e: the top k of abs(a) are sent, e = a - sent. Entries that several workers send add up; the
mean over all workers is applied (Stich et al., Sparsified SGD with Memory, arXiv 1809.07599).

The selection is exact, and on a CPU that is the dear part: about as long as a dense all-reduce at 1 Gbit/s.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.distributed as dist
from pydantic import Field
from torch.futures import Future

from baselines._sparse import all_gather_mean, share, sparse_bytes
from baselines._state import BucketMemory, MethodState, Shapes, parameters

LABEL = "Top-k"
COLOR = "#E69F00"
MARKER = "^"


@parameters
class State(MethodState):
    """What top-k keeps on one rank.

    Args:
        ratio: the share of each bucket's entries that is sent.
        error_feedback: whether entries that were not sent are remembered and added to the next gradient.
    """

    ratio: Annotated[float, Field(gt=0, le=1)] = 0.01
    error_feedback: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.residual = BucketMemory()

    def wire_bytes(self, shapes: Shapes, world_size: int, step: int | None = None) -> float:
        return sparse_bytes(self.ratio, shapes, world_size)


def topk_hook(state: State, bucket: dist.GradBucket) -> Future[torch.Tensor]:
    """Replace the bucket by the mean of what all ranks sent of theirs."""
    gradient = bucket.buffer()
    with state.stopwatch("encode"):
        a = state.residual.like(bucket).add_(gradient) if state.error_feedback else gradient
        indices = a.abs().topk(share(state.ratio, a.numel()), sorted=False).indices
        values = a.index_select(0, indices)
        a.index_fill_(0, indices, 0)  # a is now the residual: what was not sent
    return all_gather_mean(state, values, indices, out=gradient)
