"""INT8: a ring all-reduce whose hops carry one byte for every entry, read by a codebook of 256 means.

INTELLECT-1 (Jaghouar et al., 2024, arXiv 2412.01152). A bucket is cut into a shard for each worker. In the
ring's reduce-scatter each hop cuts its partial sum into 256 equal bins, six deviations wide together, and sends codes
and the bins' means; whoever receives them adds them up in fp32. The owner of a shard quantises its mean once more, and
an all-gather brings it to all, itself included, so that all hold the same.

A sum is so quantised p times on its way; errors are not remembered, as in the report. The authors' code overlaps two
rings and quantises on several threads. They quantise DiLoCo's changes rather than gradients, for 400 times fewer bytes:
that is ``diloco`` with ``values = "int8"``.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.futures import Future

from baselines._calls import Call
from baselines._lane import LaneState, settled
from baselines._parameters import parameters
from baselines._ring import int8_ring_bytes, int8_ring_calls, int8_ring_mean
from baselines._state import Shapes, numel

LABEL = "INT8 ring"
COLOR = "#AA7744"
MARKER = "$8$"
SENDS = "a code of one byte for every entry, hop by hop, and a codebook with each"
ALL_REDUCE = True
SOURCE = "Jaghouar et al., 2024 (arXiv 2412.01152)"
MOST_LOSS = 0.02
MOST_LOSS_AT_PLATEAU = 0.01
MOST_PERPLEXITY = 0.01
PAPER_SAYS = (
    "no impact on the loss of a model of 10 billion parameters, whose changes of 100 steps are quantised, not its "
    "gradients"
)


@parameters
class State(LaneState):
    """No parameters."""

    most_copies = 5.0

    def wire_bytes(self, shapes: Shapes, world_size: int, step: int | None = None) -> float:
        return int8_ring_bytes(numel(shapes), world_size)

    def calls(self, shapes: Shapes, world_size: int) -> list[Call]:
        return int8_ring_calls(numel(shapes), world_size)


def int8_hook(state: State, bucket: dist.GradBucket) -> Future[torch.Tensor]:
    """Replace the bucket by the mean of all ranks' gradients, quantised on its way."""
    gradient = bucket.buffer()
    return state.lane.submit(lambda: settled(int8_ring_mean(state, state.lane.process_group, gradient)))
