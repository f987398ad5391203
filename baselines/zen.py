"""Zen: non-zero entries are spread over all workers by a hash, summed there, and come back with a bitmap of places.

Wang et al., OSDI 2025 (arXiv 2309.13254). Sparse gradients cluster, so that contiguous shards would load one server
more than the others; a hash balances them. Each worker sends each non-zero entry, with its index, to the entry's
server; servers send all workers the sums and one bit for each entry they own, which costs less than indices. It loses
nothing. Meant for gradients that are sparse, such as embeddings'; where all ranks' non-zeros together show that a dense
all-reduce sends less, a bucket is all-reduced. With ``ratio`` below 1 the largest entries only are taken, with error
feedback, as with top-k.

Where it differs: the hash turns each group of p neighbours, so that every server owns one of them and knows its place
without a table; the paper's has several levels and resolves collisions on a GPU. The servers are the workers.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.futures import Future
from torch.nn.functional import pad

from baselines._calls import AllReduce, AllToAll, Call
from baselines._exchange import (
    SIZE_BYTES,
    OwnersState,
    agree_on_count,
    agree_on_counts,
    all_gather,
    all_gather_records_bytes,
    all_to_all,
    all_to_all_bytes,
    counts_by_owner,
    from_records,
    to_records,
)
from baselines._lane import settled
from baselines._memory import Draft
from baselines._parameters import Share, parameters
from baselines._quantise import packed_bits, unpacked_bits
from baselines._sparse import INDEX, places_of, sampled_top, share
from baselines._state import Shapes, numel, ring_all_reduce_bytes

LABEL = "Zen"
COLOR = "#6699CC"
MARKER = "$Z$"
SENDS = "non-zero entries to their owners, with indices, and their sums back, with a bitmap"
ALL_REDUCE = False
SOURCE = "Wang et al., OSDI 2025 (arXiv 2309.13254)"
MOST_LOSS = 0.03
MOST_LOSS_AT_PLATEAU = 0.01
PAPER_SAYS = "none, since it loses nothing"

SAMPLE_RATIO = 0.01
COUNT_BYTES = 8


@parameters
class State(OwnersState):
    """What Zen keeps on one rank.

    Args:
        ratio: the share of each bucket's entries that is taken; 1 takes all that are not zero.
    """

    swept = ("ratio",)
    most_copies = 5.0
    host_synchronisations_a_bucket = 3

    ratio: Share = 1.0

    def wire_bytes(self, shapes: Shapes, world_size: int, step: int | None = None) -> float:
        """For gradients without zeros, whose largest entries are anywhere."""
        n, p = numel(shapes), world_size
        union = (1 - (1 - self.ratio) ** p) * n
        return min(ring_all_reduce_bytes(4 * n, p), sparse_bytes(self.ratio * n, union, n, p))

    def calls(self, shapes: Shapes, world_size: int) -> list[Call]:
        n, p = numel(shapes), world_size
        union = (1 - (1 - self.ratio) ** p) * n
        count = AllReduce(COUNT_BYTES)
        if sparse_bytes(self.ratio * n, union, n, p) >= ring_all_reduce_bytes(4 * n, p):
            return [count, AllReduce(4 * n)]
        lengths, records = AllToAll(SIZE_BYTES * p), AllToAll((4 + INDEX.itemsize) * self.ratio * n)
        return [count, lengths, records, lengths, AllToAll(4 * union + n / 8)]


def sparse_bytes(entries: float, union: float, n: int, world_size: int) -> float:
    """Bytes each rank sends of n fp32 numbers if so many are its own non-zeros, and so many all ranks' together."""
    up, down = (4 + INDEX.itemsize) * entries, 4 * union + n / 8
    return (up + down) * (world_size - 1) / world_size


def zen_hook(state: State, bucket: dist.GradBucket) -> Future[torch.Tensor]:
    """Replace the bucket by the mean of all ranks' entries."""
    gradient = bucket.buffer()
    residual = state.draft_of(bucket)
    return state.lane.submit(lambda: hashed_all_reduce(state, gradient, residual))


def hashed_all_reduce(state: State, gradient: torch.Tensor, residual: Draft | None) -> Future[torch.Tensor]:
    """The mean of ``gradient`` (n,), in place, but for the ``residual`` (n,), if there is one. Runs in the lane."""
    n, p = gradient.numel(), state.world_size
    with state.stopwatch("encode"):
        if residual is not None:
            a = residual.plus(gradient)
            taken = sampled_top(a, share(state.ratio, n), SAMPLE_RATIO, start=state.step)
            gradient.zero_().index_copy_(0, taken, a.index_select(0, taken))
            a.index_fill_(0, taken, 0)
        own = gradient.count_nonzero()
        entries = own.clone()
    dist.all_reduce(entries, group=state.lane.process_group)
    state.note("formula_bytes", ring_all_reduce_bytes(COUNT_BYTES, p))
    non_zeros, total = torch.stack((own, entries)).tolist()
    if sparse_bytes(total / p, min(n, total), n, p) >= ring_all_reduce_bytes(4 * n, p):
        return dense_mean(state, gradient)
    return sparse_mean(state, gradient, non_zeros)


def dense_mean(state: State, gradient: torch.Tensor) -> Future[torch.Tensor]:
    """The mean of all ranks' gradients (n,), by an all-reduce; ``gradient`` is overwritten by it."""
    with state.stopwatch("encode"):
        gradient.div_(state.world_size)
    state.note("formula_bytes", ring_all_reduce_bytes(gradient.nbytes, state.world_size))
    dist.all_reduce(gradient, group=state.lane.process_group)
    with state.stopwatch("decode"):
        return settled(gradient)


def sparse_mean(state: State, gradient: torch.Tensor, non_zeros: int) -> Future[torch.Tensor]:
    """Likewise by their entries that are not 0: servers sum them, each its own part, and hand the sums to all.

    Args:
        non_zeros: how many of this rank's there are.
    """
    n, p, dtype = gradient.numel(), state.world_size, gradient.dtype
    groups = -(-n // p)
    with state.stopwatch("encode"):
        places = places_of(gradient, non_zeros)
        servers, order = server_of(places, p).sort(stable=True)
        going = counts_by_owner(servers, torch.arange(1, p + 1, device=servers.device))
        places = places.index_select(0, order)
        records = to_records(gradient.index_select(0, places), places.to(INDEX))
    counts, sources = agree_on_counts(state, going)
    arrived = all_to_all(state, records, counts, sources)
    with state.stopwatch("encode"):
        shard = gradient.new_zeros(groups)
        touched = torch.zeros(groups, dtype=torch.bool, device=gradient.device)
        for own in arrived.split(sources):  # rank by rank, for one order of additions
            values, their_places = from_records(own, (dtype, 1), (INDEX, 1))
            group = their_places.view(-1).long().div_(p, rounding_mode="floor")
            shard.index_add_(0, group, values.view(-1))
            touched.index_fill_(0, group, True)
        bitmap = packed_bits(pad(touched, (0, -groups % 8)))
        length = touched.count_nonzero().mul_(dtype.itemsize).add_(len(bitmap))
    own_length, lengths = agree_on_count(state, length)
    with state.stopwatch("encode"):
        union = places_of(touched, (own_length - len(bitmap)) // dtype.itemsize)
        sums = shard.index_select(0, union).div_(p)
        answer = torch.cat((bitmap, sums.view(torch.uint8))).unsqueeze_(1)
    answers = all_gather(state, answer, lengths)
    sent = all_to_all_bytes(state, counts, records.shape[1]) + all_gather_records_bytes(state, len(answer), 1)
    state.note("formula_bytes", sent)
    with state.stopwatch("decode"):
        gradient.zero_()
        for server, own in enumerate(answers.view(-1).split(lengths)):
            bits, values = own[: len(bitmap)], own[len(bitmap) :].clone().view(dtype)
            group = places_of(unpacked_bits(bits.clone()), len(values))
            gradient.index_copy_(0, place_in(group, server, p), values)
        return settled(gradient)


def turn(group: torch.Tensor) -> torch.Tensor:
    """By how much each group (int64) of neighbours is turned: Knuth's multiplicative hash."""
    return (group * 2654435761 >> 16) & 0x7FFFFFFF


def server_of(places: torch.Tensor, p: int) -> torch.Tensor:
    """The server, 0 to p - 1, that owns each place (int64)."""
    return (places % p + turn(places // p)) % p


def place_in(group: torch.Tensor, server: int, p: int) -> torch.Tensor:
    """The place (int64) that a server owns in each group: the inverse of ``server_of``."""
    return group * p + (server - turn(group)) % p
