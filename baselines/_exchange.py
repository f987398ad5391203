"""Uneven exchanges between all ranks, of records that are rows of bytes."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist

from baselines._lane import LaneState
from baselines._memory import BucketMemory, Draft

SIZE_BYTES = 8
"""What one count costs that is told to a peer."""


class OwnersState(LaneState):
    """Base of a ``State`` that sends a share of its entries to their owners; at a ``ratio`` of 1 nothing is lost."""

    ratio: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self.residual = BucketMemory()

    @property
    def remembers(self) -> tuple[str, ...]:
        return ("residual",) if self.ratio < 1 else ()

    @property
    def accumulates(self) -> bool:
        return self.ratio == 1

    def draft_of(self, bucket: dist.GradBucket) -> Draft | None:
        """What is to be remembered of a bucket, if anything is."""
        return self.residual.draft(bucket) if self.ratio < 1 else None


def agree_on_counts(state: LaneState, counts: torch.Tensor, *others: torch.Tensor) -> list[list[int]]:
    """Tell every rank how many records it will get. Runs in the lane.

    Lengths must be known to the host, so here, and nowhere else in an exchange, it waits for the device.

    Args:
        counts: (p,), int64: how many go to each rank.
        others: more of that shape and dtype that the host is to know.

    Returns:
        The counts, how many come from each rank, and the others.
    """
    counts = counts.contiguous()
    arriving = torch.empty_like(counts)
    dist.all_to_all_single(arriving, counts, group=state.lane.process_group)
    known: list[list[int]] = torch.stack((counts, arriving, *others)).tolist()
    return known


def all_to_all(state: LaneState, records: torch.Tensor, counts: list[int], sources: list[int]) -> torch.Tensor:
    """Send the first ``counts[0]`` of the records (n, width), uint8, to rank 0, and so on. Runs in the lane.

    Args:
        sources: how many come from each rank, by ``agree_on_counts``.

    Returns:
        What arrived, in the order of ranks. This rank's own share is among it.
    """
    arrived = records.new_empty(sum(sources), records.shape[1])
    dist.all_to_all_single(arrived, records, sources, counts, group=state.lane.process_group)
    return arrived


def agree_on_count(state: LaneState, count: torch.Tensor) -> tuple[int, list[int]]:
    """Tell all ranks of how many records, a scalar (int64), this one has, for ``all_gather``. Runs in the lane.

    Returns:
        That number, and each rank's. The host waits for the device.
    """
    (own, *_), of_ranks = agree_on_counts(state, count.expand(state.world_size))
    return own, of_ranks


def all_gather(state: LaneState, records: torch.Tensor, sources: list[int]) -> torch.Tensor:
    """Send all records (n, width), uint8, to all ranks; otherwise as ``all_to_all``."""
    p = state.world_size
    return all_to_all(state, records.repeat(p, 1), [len(records)] * p, sources)


def reduced_by_owners(
    state: LaneState, records: torch.Tensor, counts: list[int], answer: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """A reduce-scatter of codes and an all-gather: each rank's records go to their owners, which answer all ranks.

    Sums of codes are no codes, so what arrives is added up by the owner, and what it answers may be codes again. Runs
    in the lane.

    Args:
        counts: how many of the records (n, width), uint8, belong to each rank, in order.
        answer: what an owner makes of all ranks' records (p, own count, width): as many rows (own count, any width).

    Returns:
        All owners' answers, in order (n, any width).
    """
    own, p = counts[state.own_rank], state.world_size
    arrived = all_to_all(state, records, counts, [own] * p)
    return all_gather(state, answer(arrived.view(p, own, records.shape[1])), counts)


def all_to_all_bytes(state: LaneState, counts: list[int], width: int) -> int:
    """What this rank sends to others when it does so, with the counts that go before."""
    return records_bytes(state, counts, width) + SIZE_BYTES * (state.world_size - 1)


def records_bytes(state: LaneState, counts: list[int], width: int) -> int:
    """The same where all ranks know the counts."""
    return width * (sum(counts) - counts[state.own_rank])


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


def shard_ends(n: int, owners: int, device: torch.device) -> torch.Tensor:
    """Where the shards of ``shard_sizes`` end (owners,), int64: computed there, as a copy would be waited for."""
    owner = torch.arange(1, owners + 1, device=device)
    return owner * (n // owners) + owner.clamp(max=n % owners)


def counts_by_owner(places: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """How many of the places (k,), ascending, lie in each of the shards that end there (p,), int64."""
    below = torch.searchsorted(places, ends)
    return below.diff(prepend=below.new_zeros(1))
