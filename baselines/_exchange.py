"""Uneven exchanges between all ranks, of records that are rows of bytes."""

from __future__ import annotations

import torch
import torch.distributed as dist

from baselines._lane import LaneState

SIZE_BYTES = 8
"""What one count costs that is told to a peer."""


def all_to_all(state: LaneState, records: torch.Tensor, counts: list[int]) -> tuple[torch.Tensor, list[int]]:
    """Send the first ``counts[0]`` of the records (n, width), uint8, to rank 0, and so on. Runs in the lane.

    Returns:
        What arrived, in the order of ranks, and how many came from each. This rank's own share is among it.
    """
    group = state.lane.process_group
    sizes = torch.tensor(counts, dtype=torch.int64, device=records.device)
    arriving = torch.empty_like(sizes)
    dist.all_to_all_single(arriving, sizes, group=group)
    sources = arriving.tolist()
    arrived = records.new_empty(sum(sources), records.shape[1])
    dist.all_to_all_single(arrived, records, sources, counts, group=group)
    return arrived, sources


def all_gather(state: LaneState, records: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """Send all records (n, width), uint8, to all ranks; otherwise as ``all_to_all``."""
    return all_to_all(state, records.repeat(state.world_size, 1), [len(records)] * state.world_size)


def all_to_all_bytes(state: LaneState, counts: list[int], width: int) -> int:
    """What this rank sends to others when it does so."""
    return width * (sum(counts) - counts[state.own_rank]) + SIZE_BYTES * (state.world_size - 1)


def all_gather_records_bytes(state: LaneState, count: int, width: int) -> int:
    """What this rank sends to others when it has ``count`` records."""
    return (state.world_size - 1) * (width * count + SIZE_BYTES)


def to_records(*columns: torch.Tensor) -> torch.Tensor:
    """Rows of bytes (n, width), uint8, each with what the columns, (n,) or (n, m), have in that row."""
    tables = [column if column.ndim == 2 else column.unsqueeze(1) for column in columns]
    return torch.cat([table.view(torch.uint8) for table in tables], dim=1)


def from_records(records: torch.Tensor, *columns: tuple[torch.dtype, int]) -> list[torch.Tensor]:
    """The columns (n, m) of records, each asked for by its dtype and m."""
    parts = records.split([dtype.itemsize * m for dtype, m in columns], dim=1)
    # Copied, because a view as a wider type must be without gaps and start at a multiple of its size.
    copies = [part.clone(memory_format=torch.contiguous_format) for part in parts]
    return [copy.view(dtype) for copy, (dtype, _) in zip(copies, columns, strict=True)]


def shard_sizes(n: int, owners: int) -> list[int]:
    """Sizes of as many shards of n entries, as equal as can be, in order."""
    return [n // owners + (owner < n % owners) for owner in range(owners)]


def counts_by_owner(places: torch.Tensor, shards: list[int]) -> list[int]:
    """How many of the places (k,), ascending, lie in each shard."""
    ends = torch.tensor(shards, device=places.device).cumsum(0)
    below = torch.searchsorted(places, ends)
    return below.diff(prepend=below.new_zeros(1)).tolist()
