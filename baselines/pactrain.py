"""PacTrain: prune the model, keep the pruned gradients at zero, and all-reduce the survivors as one short dense tensor.

Arxiv 2505.18563 (DAC 2025). Its parts, by the paper's names:

* **Pruning**: unstructured, global, by magnitude, once, after ``warmup_steps`` dense steps. Weights of two or more
  dimensions are pruned; biases and norms stay.
* **GSE**, gradient sparsity enforcement: a gradient is zero wherever its weight is pruned. The optimizer's memory is
  cleared there too, so that neither momentum nor weight decay brings a weight back.
* **Mask Tracker**: knows whether the mask is stable and where each bucket's survivors are. Before: dense all-reduce.
* **Compact all-reduce**: all workers hold the same mask, so no index ever travels. It loses nothing: the result is the
  masked mean of the gradients.
* **Ternary quantisation** (optional) of the survivors, as TernGrad (Wen et al., NeurIPS 2017, arXiv 1705.07878) does
  it: each parameter's gradient becomes a scale times -1, 0 or +1, rounded at random so that it is right on average.
  The scale, min(largest entry, 2.5 sigma), is the largest of all workers': with private scales the mean of the codes
  would mean nothing. Entries beyond it saturate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import torch
import torch.distributed as dist
from pydantic import Field
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from baselines._lane import Lane
from baselines._quantise import Dice, add_scaled, own_scales, refuse_overflow, ternarise
from baselines._state import MethodState, Shapes, numel, parameters, ring_all_reduce_bytes
from baselines.dense import dense_hook

LABEL = "PacTrain"
COLOR = "#009E73"
MARKER = "D"


@parameters
class State(MethodState):
    """What PacTrain keeps on one rank.

    Args:
        density: the share of prunable weights that is kept.
        values: how survivors travel: as they are, or as ternary codes of one byte.
        warmup_steps: dense steps before pruning; 0 prunes the model as it is given.
        seed: of the random rounding; each rank adds its own number to it.
    """

    density: Annotated[float, Field(gt=0, le=1)] = 0.2
    values: Literal["fp32", "ternary"] = "fp32"
    warmup_steps: Annotated[int, Field(ge=0)] = 20
    seed: Annotated[int, Field(ge=0)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.tracker = MaskTracker()

    @property
    def steady_from_step(self) -> int:
        # The first compact step lists the survivors; so does step 1, for which DDP regroups its buckets.
        return max(self.warmup_steps, 1) + 1

    def wire_bytes(self, shapes: Shapes, world_size: int, step: int | None = None) -> float:
        if step is not None and step < self.warmup_steps:
            return ring_all_reduce_bytes(4 * numel(shapes), world_size)
        prunable = numel([shape for shape in shapes if len(shape) >= 2])
        survivors = self.density * prunable + numel(shapes) - prunable
        payload = 4 * survivors if self.values == "fp32" else survivors + 4 * len(shapes)
        return ring_all_reduce_bytes(payload, world_size)

    def bind(self, ddp: DistributedDataParallel, optimizer: torch.optim.Optimizer) -> None:
        super().bind(ddp, optimizer)
        if self.values == "ternary":
            refuse_overflow(self.world_size)
            device = next(self.model.parameters()).device
            self.lane = Lane(self.process_group, device)
            self.dice = Dice(device, self.seed + dist.get_rank(self.process_group))
        if self.warmup_steps == 0:
            self.prune()

    def end_step(self) -> None:
        super().end_step()
        if self.step == self.warmup_steps:
            self.prune()

    @torch.no_grad()
    def prune(self) -> None:
        """Set all but the largest weights to zero, for good.

        Raises:
            RuntimeError: the ranks would not prune the same weights.
        """
        weights = [weight for weight in self.model.parameters() if weight.requires_grad and weight.ndim >= 2]
        masks = largest(weights, self.density)
        prove_equal(masks, self.process_group)
        for weight, mask in zip(weights, masks, strict=True):
            memory = self.optimizer.state.get(weight, {}).values()
            for tensor in (weight, *memory):
                if isinstance(tensor, torch.Tensor) and tensor.shape == mask.shape:
                    tensor.masked_fill_(~mask, 0)
        self.tracker.settle(dict(zip(weights, masks, strict=True)))


class Survivors(NamedTuple):
    """The entries of a bucket that are not pruned."""

    indices: torch.Tensor
    """(kept,) int32: their places in the bucket."""
    counts: list[int]
    """How many each parameter has, in the bucket's order; parameters that have none are left out."""
    compact: torch.Tensor
    """(kept,), of the bucket's dtype: what ``gather`` fills, step after step."""

    def gather(self, whole: torch.Tensor) -> torch.Tensor:
        """The survivors of (n,), valid until the next call."""
        return torch.index_select(whole, 0, self.indices, out=self.compact)


class MaskTracker:
    """Knows which gradient entries survive: per parameter, because DDP regroups its buckets."""

    def __init__(self) -> None:
        self._masks: dict[torch.Tensor, torch.Tensor] = {}
        self._of_layout: dict[tuple[int, ...], Survivors] = {}

    @property
    def stable(self) -> bool:
        """Whether the mask is settled, so that compact synchronisation loses nothing."""
        return bool(self._masks)

    def settle(self, masks: dict[torch.Tensor, torch.Tensor]) -> None:
        """From now on these are the masks (True: kept) of these parameters; all others are kept whole."""
        self._masks = masks
        self._of_layout.clear()

    def survivors(self, bucket: dist.GradBucket) -> Survivors:
        """Where the bucket's survivors are; listed anew when its layout or the mask has changed."""
        members = bucket.parameters()
        layout = tuple(map(id, members))
        if layout not in self._of_layout:
            for stale in [old for old in self._of_layout if not set(layout).isdisjoint(old)]:
                del self._of_layout[stale]
            parts = [self._in_memory_order(parameter) for parameter in members]
            counts = [int(part.sum()) for part in parts]
            indices = torch.cat(parts).nonzero().view(-1).to(torch.int32)
            compact = torch.empty_like(indices, dtype=bucket.buffer().dtype)
            self._of_layout[layout] = Survivors(indices, [count for count in counts if count], compact)
        return self._of_layout[layout]

    def _in_memory_order(self, parameter: torch.Tensor) -> torch.Tensor:
        """The parameter's mask, flat as DDP's buckets are: a channels-last weight is not in the order of its shape."""
        kept = torch.ones_like(parameter, dtype=torch.bool)
        if (mask := self._masks.get(parameter)) is not None:
            kept.copy_(mask)
        return kept.as_strided((kept.numel(),), (1,))


def pactrain_hook(state: State, bucket: dist.GradBucket) -> Future[torch.Tensor]:
    """Replace the bucket by the mean of all ranks' gradients where weights survive, and by zero elsewhere."""
    if not state.tracker.stable:
        return dense_hook(state, bucket)
    gradient = bucket.buffer()
    with state.stopwatch("encode"):
        survivors = state.tracker.survivors(bucket)
    if state.values == "ternary":
        return state.lane.submit(lambda: ternary_all_reduce(state, gradient, survivors))
    return compact_all_reduce(state, gradient, survivors)


def compact_all_reduce(state: State, gradient: torch.Tensor, survivors: Survivors) -> Future[torch.Tensor]:
    """The masked mean of ``gradient`` (n,), in place."""
    with state.stopwatch("encode"):
        compact = survivors.gather(gradient).div_(state.world_size)
    work = dist.all_reduce(compact, group=state.process_group, async_op=True)

    def decode(done: Future[list[torch.Tensor]]) -> torch.Tensor:
        (mean,) = done.value()
        with state.stopwatch("decode"):
            return gradient.zero_().index_add_(0, survivors.indices, mean)

    return work.get_future().then(decode)


def ternary_all_reduce(state: State, gradient: torch.Tensor, survivors: Survivors) -> Future[torch.Tensor]:
    """The masked mean of ``gradient`` (n,), in place, right on average. Runs in the lane: its collectives depend."""
    with state.stopwatch("encode"):
        compact = survivors.gather(gradient)
        scales = own_scales(compact, survivors.counts)
    dist.all_reduce(scales, op=dist.ReduceOp.MAX, group=state.lane.process_group)
    with state.stopwatch("encode"):
        codes = ternarise(compact, survivors.counts, scales, state.dice)
    work = dist.all_reduce(codes, group=state.lane.process_group, async_op=True)

    def decode(done: Future[list[torch.Tensor]]) -> torch.Tensor:
        (total,) = done.value()
        with state.stopwatch("decode"):
            mean = add_scaled(compact.zero_(), total, survivors.counts, scales / state.world_size)
            return gradient.zero_().index_add_(0, survivors.indices, mean)

    return work.get_future().then(decode)


def largest(weights: Sequence[torch.Tensor], density: float) -> list[torch.Tensor]:
    """Masks (bool, shaped like the weights) of that share of all entries together whose magnitude is largest."""
    magnitude = torch.cat([weight.detach().abs().flatten() for weight in weights])
    kept = magnitude.topk(max(1, round(density * magnitude.numel())), sorted=False).indices
    mask = torch.zeros_like(magnitude, dtype=torch.bool).index_fill_(0, kept, True)
    parts = mask.split([weight.numel() for weight in weights])
    return [part.view(weight.shape) for part, weight in zip(parts, weights, strict=True)]


def prove_equal(masks: Sequence[torch.Tensor], process_group: dist.ProcessGroup) -> None:
    """Compare the masks of all ranks, by a hash; collective.

    Raises:
        RuntimeError: they differ. Were they used, ranks would add up gradients of different weights.
    """
    digest = hashlib.blake2b(digest_size=7)
    for mask in masks:
        digest.update(mask.cpu().numpy().data)
    own = int.from_bytes(digest.digest(), "big")
    extremes = torch.tensor([own, -own], device=masks[0].device)
    dist.all_reduce(extremes, op=dist.ReduceOp.MAX, group=process_group)
    greatest, least = extremes[0], -extremes[1]
    if greatest != least:
        raise RuntimeError("the ranks' pruning masks differ, because their weights do: they must start from the same")
