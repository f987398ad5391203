"""Top-k: each worker sends its largest gradient entries and remembers the rest (error feedback).

Per bucket, with a = g + e: the top k of abs(a) are sent, e = a - sent. Entries that several workers send add up; the
mean over all workers is applied (Stich et al., Sparsified SGD with Memory, arXiv 1809.07599).

An exact selection is the dear part: on a CPU about as long as a dense all-reduce at 1 Gbit/s. So the default takes a
threshold from a sample, as DGC does, and takes 0.8 to 1 times as many. The message is padded, and what is missed waits
in e. On a GPU an exact selection is fast, and how many pass a threshold would have to be waited for: there it is always
exact.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
from torch.futures import Future

from baselines._calls import AllGather, Call
from baselines._memory import BucketMemory
from baselines._parameters import Share, parameters
from baselines._sparse import all_gather_mean, exact_top, padded, sampled_top, share, sparse_bytes
from baselines._state import MethodState, Shapes

LABEL = "Top-k"
COLOR = "#E69F00"
MARKER = "^"
SENDS = "the largest entries, with their indices"
ALL_REDUCE = False
SOURCE = "Stich et al., NeurIPS 2018 (arXiv 1809.07599)"
MOST_LOSS = 0.03
MOST_LOSS_AT_PLATEAU = 0.01
MOST_PERPLEXITY = 0.3
PAPER_SAYS = "theory, and logistic regression: with a memory the rate of SGD"

SAMPLE_RATIO = 0.01


@parameters
class State(MethodState):
    """What top-k keeps on one rank.

    Args:
        ratio: the share of each bucket's entries that is sent.
        selection: of exactly the largest entries, or by a threshold from a strided sample of 1 % of them.
        error_feedback: whether entries that were not sent are remembered and added to the next gradient.
    """

    swept = ("ratio",)
    adjustable = ("ratio", "selection")
    most_copies = 5.0

    ratio: Share = 0.01
    selection: Literal["sampled", "exact"] = "sampled"
    error_feedback: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.residual = BucketMemory()

    @property
    def remembers(self) -> tuple[str, ...]:
        return ("residual",) if self.error_feedback else ()

    def wire_bytes(self, shapes: Shapes, world_size: int, step: int | None = None) -> float:
        return sparse_bytes(self.ratio, shapes, world_size)

    def calls(self, shapes: Shapes, world_size: int) -> list[Call]:
        return [AllGather(self.wire_bytes(shapes, world_size) / (world_size - 1))]


def topk_hook(state: State, bucket: dist.GradBucket) -> Future[torch.Tensor]:
    """Replace the bucket by the mean of what all ranks sent of theirs."""
    gradient = bucket.buffer()
    with state.stopwatch("encode"):
        a = state.residual.draft(bucket).plus(gradient) if state.error_feedback else gradient
        k = share(state.ratio, a.numel())
        exact = state.selection == "exact"
        indices = exact_top(a, k) if exact else sampled_top(a, k, SAMPLE_RATIO, start=state.step)
        values = a.index_select(0, indices)
        a.index_fill_(0, indices, 0)  # a is now the residual: what was not sent
    return all_gather_mean(state, *padded(values, indices, k), out=gradient)
