"""Ok-Topk: a sparse all-reduce whose bytes do not grow with the number of workers.

Li and Hoefler, PPoPP 2022 (arXiv 2201.07598). With a = g + e, each worker selects its own top k by a threshold and
sends each selected entry to the worker that owns its region of the bucket (split and reduce); the owners sum, select by
a second threshold what belongs to the top k of the sum, and send that to all. Regions are cut so that they hold equally
many selected entries. An entry of e is cleared only if it was both selected and in the final top k.

The global threshold and the regions are computed exactly in every 32nd step. Regions are reused in between, because
they change slowly. The threshold is not: entries wait until their sums are just above it, so that a few percent more or
less of it let 0.1 or 1.8 times k pass, and no steering by the step before follows that. So owners tell each other 32
quantiles of their sums in each step, one small all-gather more than in the paper, and what comes out is near k. The
authors' code moves a reused threshold by a fixed share, from 0.8 % to 3.6 %, once less than two thirds of k or more
than four thirds pass. The paper reuses the local threshold as well; a sample finds it in each step for less than it
costs when entries that wait have outgrown it. Where one owner has more than four times the mean, the entries that
passed are spread evenly before all gather them, as in the paper.

The authors' code for BERT begins with 512 dense steps, that for VGG and LSTM with none: here there are
``warmup_steps`` of them.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch.futures import Future
from torch.nn.functional import pad

from baselines._calls import AllGather, AllToAll, Call
from baselines._exchange import (
    SIZE_BYTES,
    agree_on_count,
    agree_on_counts,
    all_gather,
    all_gather_records_bytes,
    all_to_all,
    all_to_all_bytes,
    counts_by_owner,
    from_records,
    records_bytes,
    shard_sizes,
    to_records,
)
from baselines._lane import LaneState, settled
from baselines._memory import BucketMemory, Drafts
from baselines._parameters import Share, Steps, parameters
from baselines._sparse import INDEX, at_most_places_of, exact_top, places_of, sampled_top, share, sparse_bytes
from baselines._state import Shapes, all_gather_bytes, numel, ring_all_reduce_bytes
from baselines.dense import dense_hook

LABEL = "Ok-Topk"
COLOR = "#44AA99"
MARKER = "*"
SENDS = "the largest entries to their owners, and the largest sums back, with their indices"
ALL_REDUCE = False
SOURCE = "Li and Hoefler, PPoPP 2022 (arXiv 2201.07598)"
MOST_LOSS = 0.04
MOST_LOSS_AT_PLATEAU = 0.01
PAPER_SAYS = "similar to dense; the authors' scripts send 2 % (VGG-16, an LSTM) and 1 % (BERT)"

SAMPLE_RATIO = 0.01
REUSED_STEPS = 32

QUANTILES = 32
"""Of an owner's sums, by which all find the threshold of a step."""

SAMPLED = 4096
"""Sums, evenly apart, of which an owner takes them."""

SKETCH_BYTES = 4 * (1 + QUANTILES)
"""What an owner tells each other of its sums: how many there are, and their quantiles."""

BORDER_BYTES = 8
"""Where a region ends."""

UNEVEN = 4.0
"""Times the mean that one owner may have of the entries that passed, before they are spread evenly."""


class Cut(NamedTuple):
    """What is computed anew in every 32nd step for a bucket."""

    age: int
    ends: torch.Tensor
    """Where the regions end (p,), int64, in the order of their owners."""


@parameters
class State(LaneState):
    """What Ok-Topk keeps on one rank.

    Args:
        ratio: the share of each bucket's entries that is selected, by each worker and in the end.
        selection: by each worker: of exactly its largest entries, or by a threshold from a strided sample of 1 %.
        warmup_steps: dense steps at first.
    """

    swept = ("ratio",)
    adjustable = ("ratio", "selection")
    most_copies = 5.0
    host_synchronisations_a_bucket = 2
    remembers = ("residual", "cuts")
    warmup_parameters = ("warmup_steps",)

    ratio: Share = 0.01
    selection: Literal["sampled", "exact"] = "sampled"
    warmup_steps: Steps = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.residual = BucketMemory()
        self.cuts: Drafts[tuple[int, torch.Tensor]] = Drafts()

    @property
    def steady_from_step(self) -> int:
        return self.warmup_steps

    def wire_bytes(self, shapes: Shapes, world_size: int, step: int | None = None) -> float:
        """If thresholds fit: k entries but for a p-th leave for their owners, and a p-th of k goes to p - 1 others.

        Once in 32 steps all gather the sums instead of quantiles, as many as if the selected were anywhere: that is
        spread over the steps. Quantiles and borders are counted once, as of a single bucket.
        """
        n, p = numel(shapes), world_size
        if step is not None and step < self.warmup_steps:
            return ring_all_reduce_bytes(4 * n, p)
        entries = 2 * sparse_bytes(self.ratio, shapes, p) / p
        sums = 4 * n * (1 - (1 - self.ratio) ** p)
        renewal = all_gather_bytes(sums / p, p) + ring_all_reduce_bytes(BORDER_BYTES * (p - 1), p)
        sketch = all_gather_bytes(SKETCH_BYTES, p)
        return entries + (renewal + (REUSED_STEPS - 1) * sketch) / REUSED_STEPS

    def calls(self, shapes: Shapes, world_size: int) -> list[Call]:
        """But for what 31 of 32 steps leave out."""
        selected = AllToAll(self.ratio * numel(shapes) * (4 + INDEX.itemsize))
        counts = AllToAll(SIZE_BYTES * world_size)
        return [counts, selected, AllGather(SKETCH_BYTES), counts, selected]


def oktopk_hook(state: State, bucket: dist.GradBucket) -> Future[torch.Tensor]:
    """Replace the bucket by the mean of all ranks' entries that belong to the top of the sum."""
    if state.step < state.warmup_steps:
        return dense_hook(state, bucket)
    gradient = bucket.buffer()
    with state.stopwatch("encode"):
        a = state.residual.draft(bucket).plus(gradient)
    layout = " ".join(state.names[weight] for weight in bucket.parameters())
    return state.lane.submit(lambda: sparse_all_reduce(state, a, layout, gradient))


def sparse_all_reduce(state: State, a: torch.Tensor, layout: str, out: torch.Tensor) -> Future[torch.Tensor]:
    """Fill ``out`` (n,) with the sparse mean of all ranks' ``a`` (n,), which becomes the residual. Runs in the lane."""
    k, cut = share(state.ratio, a.numel()), state.cuts.get(layout)
    age, ends = Cut(*cut) if cut is not None else Cut(0, a.new_empty(0))
    renew = age % REUSED_STEPS == 0
    with state.stopwatch("encode"):
        exact = state.selection == "exact"
        selected = exact_top(a, k) if exact else sampled_top(a, k, SAMPLE_RATIO, start=state.step)
        # Zeros need not travel: they go behind the last place, as how many there are is not known to the host.
        selected = torch.where(a.index_select(0, selected).ne(0), selected, a.numel()).sort().values
    if renew:
        ends = agree_on_regions(state, selected, a.numel())
    selected, places, sums, touched = split_and_reduce(state, a, selected, ends)
    threshold = (agree_on_threshold if renew else estimate_threshold)(state, sums, touched, k)
    with state.stopwatch("encode"):
        passes = sums.abs().lt(threshold).logical_not_()  # so that a NaN does, lest it hide
        passing = passes.count_nonzero()
    count, of_owners = agree_on_count(state, passing)
    state.cuts.draft(layout, (age + 1, ends))
    with state.stopwatch("encode"):
        top = places_of(passes, count)
        records = to_records(sums.index_select(0, top).div_(state.world_size), places.index_select(0, top).to(INDEX))
    records, of_owners = spread_evenly(state, records, of_owners)
    gathered = all_gather(state, records, of_owners)
    state.note("formula_bytes", all_gather_records_bytes(state, len(records), records.shape[1]))
    with state.stopwatch("decode"):
        values, places = (column.view(-1) for column in from_records(gathered, (a.dtype, 1), (INDEX, 1)))
        places = places.long()
        a.index_copy_(0, places, a.index_select(0, places).masked_fill_(are_among(places, selected), 0))
        return settled(out.zero_().index_copy_(0, places, values))


def are_among(places: torch.Tensor, selected: torch.Tensor) -> torch.Tensor:
    """Of each of the places (m,), int64, whether it is among the selected (k,), which ascend (bool)."""
    if not len(selected):
        return torch.zeros_like(places, dtype=torch.bool)
    nearest = torch.searchsorted(selected, places).clamp_(max=len(selected) - 1)
    return selected.index_select(0, nearest) == places


def kth_largest(values: torch.Tensor, k: int) -> torch.Tensor:
    """The least magnitude of the top k of (n,), but more than zero."""
    top = values.abs().topk(min(k, values.numel()), sorted=False).values
    return above_zero(top.min() if len(top) else values.new_zeros(()))


def above_zero(threshold: torch.Tensor) -> torch.Tensor:
    """The threshold, in place, but more than zero: zeros need not travel."""
    return threshold.clamp_(min=torch.finfo(threshold.dtype).tiny)


def agree_on_regions(state: State, selected: torch.Tensor, n: int) -> torch.Tensor:
    """Where p regions of n entries end (p,), int64, that have about equally many of all ranks' selected places.

    Args:
        selected: ascending; those from n on do not count.
    """
    p = state.world_size
    number = selected.lt(n).sum()
    owner = torch.arange(1, p, device=selected.device)
    borders = torch.where(number > 0, selected.index_select(0, owner * number // p), owner * n // p)
    dist.all_reduce(borders, group=state.lane.process_group)
    state.note("formula_bytes", ring_all_reduce_bytes(borders.nbytes, p))
    return torch.cat((borders.div_(p, rounding_mode="floor"), borders.new_full((1,), n)))


def split_and_reduce(
    state: State, a: torch.Tensor, selected: torch.Tensor, ends: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Send what was selected to its owners, and add up what arrives.

    Args:
        selected: ascending; those behind the last region's end do not travel.

    Returns:
        The selected places without those; the places (int64) in this rank's region that any rank selected, and the sums
        of what those ranks have there; how many these are, a scalar. A GPU fills up both by zeros behind the region.
    """
    with state.stopwatch("encode"):
        going, sizes = counts_by_owner(selected, ends), ends.diff(prepend=ends.new_zeros(1))
    counts, sources, regions = agree_on_counts(state, going, sizes)
    with state.stopwatch("encode"):
        selected = selected[: sum(counts)]
        records = to_records(a.index_select(0, selected), selected.to(INDEX))
    arrived = all_to_all(state, records, counts, sources)
    state.note("formula_bytes", all_to_all_bytes(state, counts, records.shape[1]))
    with state.stopwatch("encode"):
        first = sum(regions[: state.own_rank])
        region = a.new_zeros(regions[state.own_rank] + 1)
        touched = torch.zeros_like(region[:-1], dtype=torch.bool)
        for own in arrived.split(sources):  # rank by rank, for one order of additions
            values, places = (column.view(-1) for column in from_records(own, (a.dtype, 1), (INDEX, 1)))
            within = places.long().sub_(first)
            region.index_add_(0, within, values)
            touched.index_fill_(0, within, True)
        union = at_most_places_of(touched, sum(sources))
        return selected, union + first, region.index_select(0, union), touched.count_nonzero()


def agree_on_threshold(state: State, sums: torch.Tensor, count: torch.Tensor, k: int) -> torch.Tensor:
    """The least magnitude of the top k of all ranks' sums, of which this one's first ``count``, a scalar, are told."""
    own, of_owners = agree_on_count(state, count)
    sums = sums[:own]
    gathered = all_gather(state, to_records(sums), of_owners)
    state.note("formula_bytes", all_gather_records_bytes(state, len(sums), sums.itemsize))
    (everything,) = from_records(gathered, (sums.dtype, 1))
    return kth_largest(everything.view(-1), k)


def estimate_threshold(state: State, sums: torch.Tensor, count: torch.Tensor, k: int) -> torch.Tensor:
    """About what ``agree_on_threshold`` gives, by quantiles of each rank's sums. No device is waited for."""
    with state.stopwatch("encode"):
        middles = torch.arange(0.5, SAMPLED, device=sums.device, dtype=torch.float64)
        sample = pad(sums, (0, 1)).index_select(0, (middles * count / SAMPLED).long())  # of none, the zero behind them
        falling = sample.abs().nan_to_num_(nan=torch.inf).sort(descending=True).values
        stride, p = SAMPLED // QUANTILES, state.world_size
        first = (2 * state.own_rank + 1) * stride // (2 * p)  # ranks' sums are spread alike: each tells other quantiles
        own = torch.cat((count.view(1).to(sums.dtype), falling[first::stride]))
        of_owners = [torch.empty_like(own) for _ in range(p)]
    dist.all_gather(of_owners, own, group=state.lane.process_group)
    state.note("formula_bytes", all_gather_bytes(own.nbytes, p))
    with state.stopwatch("encode"):
        counts, quantiles = torch.stack(of_owners).split((1, QUANTILES), dim=1)
        falling, order = quantiles.flatten().sort(descending=True, stable=True)
        stands_for = (counts.double() / QUANTILES).expand_as(quantiles).flatten().index_select(0, order)
        above = stands_for.cumsum(0) - stands_for / 2
        place = above.lt(k).count_nonzero().clamp_(max=len(falling) - 1)
        return above_zero(falling.index_select(0, place.view(1)).view(()))


def spread_evenly(state: State, records: torch.Tensor, of_owners: list[int]) -> tuple[torch.Tensor, list[int]]:
    """The records of this rank, and how many each rank has, after the even ones where they are far from even.

    All ranks' records together keep their order. Runs in the lane.

    Args:
        records: this rank's, rows of bytes (n, width), uint8.
        of_owners: how many each rank has.
    """
    total = sum(of_owners)
    if max(of_owners) * state.world_size <= UNEVEN * total:
        return records, of_owners
    even = shard_sizes(total, state.world_size)
    counts, sources = overlaps(state.own_rank, of_owners, even), overlaps(state.own_rank, even, of_owners)
    state.note("formula_bytes", records_bytes(state, counts, records.shape[1]))
    return all_to_all(state, records, counts, sources), even


def overlaps(rank: int, sizes: list[int], others: list[int]) -> list[int]:
    """How many places one run of a division of a row shares with each run of another division, by all runs' sizes."""
    end = sum(sizes[: rank + 1])
    start = end - sizes[rank]
    runs = zip(accumulate(others), others, strict=True)
    return [max(0, min(end, other_end) - max(start, other_end - other)) for other_end, other in runs]
