"""Parameter server: workers push their gradients to servers, which send back the mean. Not an all-reduce.

Li et al., OSDI 2014. The servers live on the first workers; each owns an equal shard of every bucket. With one server
all traffic of p workers meets on one link, which is what an all-reduce avoids; with as many servers as workers
(BytePS without extra machines, Jiang et al., OSDI 2020) each link carries what a ring would.

Synchronous: servers wait for all workers. A real server keeps the weights and sends those back: as many bytes.

Servers answer together. TCP does not share links evenly, so one of several has all gradients first. If it answered at
once, its answers would take the way of what it has itself to push to the other servers, and they would send one after
the other: on six workers of 66 Mbit/s with three servers the answers took 4.0 s instead of 2.1. On a GPU they do not
answer together, since the host would have to wait.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.futures import Future

from baselines._calls import Barrier, Call, Pull, Push
from baselines._exchange import shard_sizes
from baselines._lane import LaneState, settled
from baselines._parameters import Count, parameters
from baselines._state import Shapes, numel

LABEL = "Parameter server"
COLOR = "#BB5566"
MARKER = "1"
SENDS = "every entry to its server, as fp32, and the mean back"
ALL_REDUCE = False
SOURCE = "Li et al., OSDI 2014"
MOST_LOSS = 0.01
MOST_LOSS_AT_PLATEAU = 0.01


@parameters
class State(LaneState):
    """What a worker, and a server, keeps.

    Args:
        servers: how many workers are servers too, each of an equal share of every bucket.
    """

    most_copies = 6.0
    as_given = True

    servers: Count = 1

    def wire_bytes(self, shapes: Shapes, world_size: int, step: int | None = None) -> float:
        return 2 * (world_size - 1) / world_size * 4 * numel(shapes)

    def calls(self, shapes: Shapes, world_size: int) -> list[Call]:
        every_entry = 4 * numel(shapes)
        meeting = [Barrier()] if self.servers > 1 else []
        return [Push(every_entry, self.servers), *meeting, Pull(every_entry, self.servers)]

    def busiest_bytes(self, shapes: Shapes, world_size: int, step: int | None = None) -> float:
        shard = 4 * numel(shapes) / self.servers
        pushed, pulled = (self.servers - 1) * shard, (world_size - 1) * shard
        return pushed + pulled

    @property
    def accumulates(self) -> bool:
        return True

    def check_workers(self, world_size: int) -> None:
        if self.servers > world_size:
            raise ValueError(f"servers: {self.servers} of {world_size} workers cannot be; at most all of them")


def parameter_server_hook(state: State, bucket: dist.GradBucket) -> Future[torch.Tensor]:
    """Replace the bucket by the mean that the servers send."""
    gradient = bucket.buffer()
    return state.lane.submit(lambda: push_and_pull(state, gradient))


def push_and_pull(state: State, gradient: torch.Tensor) -> Future[torch.Tensor]:
    """The mean of ``gradient`` (n,), in place. Runs in the lane."""
    p, group = state.world_size, state.lane.process_group
    shards = shard_sizes(gradient.numel(), state.servers) + [0] * (p - state.servers)
    own = shards[state.own_rank]

    pushed = gradient.new_empty(p * own)
    dist.all_to_all_single(pushed, gradient, [own] * p, shards, group=group)
    with state.stopwatch("encode"):
        total = pushed.view(p, own)[0].to(torch.promote_types(gradient.dtype, torch.float32), copy=True)
        for other in pushed.view(p, own)[1:]:  # in the order of ranks
            total.add_(other)
        answers = total.div_(p).to(gradient.dtype).repeat(p)
    if state.servers > 1:
        state.lane.meet()
    dist.all_to_all_single(gradient, answers, shards, [own] * p, group=group)
    with state.stopwatch("decode"):
        return settled(gradient)
