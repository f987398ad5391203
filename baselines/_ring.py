"""A ring all-reduce in one byte an entry, and one parcel to the next rank of a ring."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.nn.functional import pad

from baselines._bins import add_binned, binned
from baselines._calls import AllGather, Call, Shift, sent_bytes
from baselines._exchange import shard_sizes
from baselines._state import MethodState

BINS = 256


@torch.no_grad()
def int8_ring_mean(state: MethodState, group: dist.ProcessGroup, values: torch.Tensor) -> torch.Tensor:
    """Replace ``values`` (n,) by their mean over all ranks, quantised on its way. Waits for what it sends.

    Every hop of the ring sends a partial sum as codes and what they mean, and adds in the dtype of ``values``.
    """
    p, rank = state.world_size, state.own_rank
    sizes = shard_sizes(values.numel(), p)
    shards = values.split(sizes)
    for hop in range(p - 1):
        with state.stopwatch("encode"):
            parcel = _packed(shards[(rank - hop) % p], sizes[0])
        arrived = exchange(state, group, parcel, to=(rank + 1) % p, source=(rank - 1) % p)
        with state.stopwatch("decode"):
            _add(shards[(rank - hop - 1) % p], arrived, sizes[0])
    with state.stopwatch("encode"):
        own = _packed(shards[(rank + 1) % p].div_(p), sizes[0])
        parcels = [torch.empty_like(own) for _ in range(p)]
    dist.all_gather(parcels, own, group=group)
    with state.stopwatch("decode"):
        values.zero_()
        for sender, parcel in enumerate(parcels):
            _add(shards[(sender + 1) % p], parcel, sizes[0])
    return values


def int8_ring_calls(entries: int, world_size: int) -> list[Call]:
    """The collectives of ``int8_ring_mean`` of so many fp32 numbers."""
    if world_size < 2:
        return []
    parcel_bytes = entries / world_size + 4 * BINS
    return [*[Shift(parcel_bytes, 1)] * (world_size - 1), AllGather(parcel_bytes)]


def int8_ring_bytes(entries: int, world_size: int) -> float:
    """Bytes each rank sends in them."""
    return sent_bytes(int8_ring_calls(entries, world_size), world_size)


def _packed(values: torch.Tensor, length: int) -> torch.Tensor:
    """Codes of ``values``, lengthened to ``length``, and what they mean (uint8)."""
    codes, means = binned(values, BINS)
    return torch.cat((pad(codes, (0, length - len(codes))), means.view(torch.uint8)))


def _add(values: torch.Tensor, parcel: torch.Tensor, length: int) -> None:
    codes, means = parcel.split((length, BINS * values.itemsize))
    add_binned(values, codes[: len(values)], means.clone().view(values.dtype))  # a view must start at a multiple


def exchange(
    state: MethodState, group: dist.ProcessGroup, parcel: torch.Tensor, *, to: int, source: int
) -> torch.Tensor:
    """Send a parcel to one rank and receive one of the same size from another."""
    arrived = torch.empty_like(parcel)
    if parcel.is_cuda:  # Gloo sends none of a GPU's memory by itself, and of NCCL's ranks each might wait for the other
        going, coming = ([len(parcel) * (rank == peer) for rank in range(state.world_size)] for peer in (to, source))
        dist.all_to_all_single(arrived, parcel, coming, going, group=group)
        return arrived
    sending = dist.isend(parcel, dist.get_global_rank(group, to), group=group)
    receiving = dist.irecv(arrived, dist.get_global_rank(group, source), group=group)
    for work in (sending, receiving):
        if work is not None:  # a rank outside the group, as torch has it
            work.wait()
    return arrived
