"""Bfloat16: gradients travel as bf16, half the bytes of dense, with fp32's range and 8 bits of precision.

Divides by the world size before it sums. Nothing overflows or vanishes that did not in fp32, unlike with fp16, but each
addition rounds to about three decimal digits. (torch's own ``bf16_compress_hook`` refuses Gloo by name; Gloo's sum of
bf16 works.)
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.futures import Future

from baselines._parameters import parameters
from baselines._state import MethodState, Shapes, numel, ring_all_reduce_bytes
from baselines.fp16 import half_all_reduce

LABEL = "BF16"
COLOR = "#56B4E9"
MARKER = "P"
SENDS = "every entry, as bf16"
ALL_REDUCE = True
SOURCE = "torch's `bf16_compress_hook`"
MOST_LOSS = 0.01
MOST_LOSS_AT_PLATEAU = 0.01
MOST_PERPLEXITY = 0.01


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


def bf16_hook(state: State, bucket: dist.GradBucket) -> Future[torch.Tensor]:
    """All-reduce the mean of the bucket in bfloat16."""
    return half_all_reduce(state, bucket, torch.bfloat16)
