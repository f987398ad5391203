"""PacTrain: prune the model, keep the pruned gradients at zero, and all-reduce the survivors as one short dense tensor.

Arxiv 2505.18563 (DAC 2025). Its parts, by the paper's names, each with the parameter that switches it off:

* **Pruning** (``density = 1``): unstructured, global, after ``warmup_steps`` dense steps; at once, or in
  ``prune_steps`` events on a cubic schedule (Zhu and Gupta, arXiv 1710.01878), so that the density follows the stage of
  training. Weights of two or more dimensions are pruned; biases and norms stay. Kept are the largest weights, or by
  GraSP (Wang et al., ICLR 2020, arXiv 2002.07376) those with the greatest theta * H g, whose removal would hurt the
  gradient's flow most. That is meant for weights at their start: those that have trained it prunes until nothing is
  left of what they learnt (``nox -s pruning_scores``). By the size of the same score, ``grasp-magnitude`` (Frankle et
  al., ICLR 2021, arXiv 2009.08576), it does not.
* **GSE**, gradient sparsity enforcement (``gse = false``): a gradient is zero wherever its weight is pruned. The
  optimizer's memory is cleared there too, so that neither momentum nor weight decay brings a weight back. Without it,
  pruned weights come back, their gradients are not zero, and nothing can be left out of what travels.
* **Mask Tracker**: knows where a bucket's survivors are, and whether the mask is stable: it is ``stable_after`` steps
  after it last changed. Until then all entries travel.
* **Compact all-reduce** (``compact = false``): all workers hold the same mask, so no index ever travels. It loses
  nothing: the result is the masked mean of the gradients. Without it the zeros travel too.
* **Ternary quantisation** (``values = "fp32"``) of the survivors, as TernGrad (Wen et al., NeurIPS 2017, arXiv
  1705.07878) does it: each parameter's gradient becomes a scale times -1, 0 or +1, rounded at random so that it is
  right on average. The scale, min(largest entry, 2.5 sigma), is the largest of all workers'. Entries beyond it
  saturate.
* **Adaptive** (``adaptive = false``): each bucket travels whole, compact, or compact and ternary, whichever is expected
  to take least. Every rank times its steps: dense ones of the warm-up, some of either other way when the mask gets
  stable, then windows of five steps. The times of all ranks travel in one all-gather a window, beside a step, and all
  ranks choose the same from them. A model is fitted to them: a time that does not depend on the bytes, the bytes over a
  rate, and what a mode's codec and collectives take beside. When steps get slower or faster than expected, beyond their
  noise, it says which mode now takes least. The other modes are looked at again from time to time, for at most about 1
  % of the time. What was measured is not saved: a resumed training explores anew.

Four variants name sets of these parameters, which others given beside them override:

* ``faithful``, the default: as the paper describes it, ternary only where it is asked for.
* ``prototype``, what public prototype code of this shape does: largest weights of each layer by itself, at once;
  ternary codes rounded to the nearest, each worker with a scale of its own, of which the mean is applied; sums that are
  not divided by the number of workers; a mask that counts as stable after 10 steps. Its result is biased and p times as
  large: it shows what such shortcuts cost.
* ``best``, what is thought right: ternary codes with error feedback, which is not in the paper. Codes are then rounded
  to the nearest: an error of random rounding may exceed what was rounded, and fed back it would grow without end.
* ``local``, which is in no paper: masks in the rhythm of DiLoCo (``diloco``). Workers train alone, their gradients zero
  where weights are pruned. Every ``local_period`` steps the change of each survivor is averaged, and an outer optimizer
  applies it; then, where it is due, the model is pruned. With ``density = 1`` it is DiLoCo, and it costs as much
  accuracy as that: 4.7 points where that costs 4.5 (``results/README.md``).

Micro-batches that are synchronised one by one are refused with ternary codes, ``adaptive``, and sums that are not
divided: what is synchronised already would be compressed, or summed, again.

The density of weights is not that of all parameters; formulas count what is never pruned.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from pydantic import ValidationInfo, field_validator, model_validator
from pydantic_core import ArgsKwargs
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from baselines._adaptive import GOODPUT_NOTE, Chooser
from baselines._calls import AllReduce, Call
from baselines._choice import EXPLORATION, Contents, Mode
from baselines._lane import settled
from baselines._local import refuse_sharded
from baselines._masked_local import ALONE_COPIES, MaskedLocalState
from baselines._masks import MaskTracker, Survivors
from baselines._memory import BucketMemory, Draft
from baselines._names import sparse_embeddings
from baselines._parameters import Count, Decay, Positive, Seed, Share, Steps, parameters
from baselines._pruning import cubic_density, hessian_gradient, mean_over_ranks, most_important, prove_equal
from baselines._quantise import Dice, add_scaled, own_scales, refuse_overflow, ternarise
from baselines._state import SavingBound, Shapes, numel, ring_all_reduce_bytes
from baselines._streams import used_here

LABEL = "PacTrain"
COLOR = "#009E73"
MARKER = "D"
SENDS = "the entries of weights that were not pruned, as fp32 or as ternary codes"
ALL_REDUCE = True
SOURCE = "Wang et al., DAC 2025 (arXiv 2505.18563)"
MOST_LOSS = 0.02
MOST_LOSS_AT_PLATEAU = 0.01
MOST_PERPLEXITY = 0.95
PAPER_SAYS = (
    "none; a note on the paper says that pruning up to 80 % costs less than 2 points with VGG19, ResNet152 and ViT"
)

VARIANTS: dict[str, dict[str, Any]] = {
    "faithful": {},
    "prototype": {
        "values": "ternary",
        "warmup_steps": 0,
        "scope": "layer",
        "rounding": "nearest",
        "scales": "private",
        "average": False,
        "stable_after": 10,
    },
    "best": {"values": "ternary", "rounding": "nearest", "error_feedback": True},
    "local": {"local_period": 500},
}


@parameters
class State(MaskedLocalState):
    """What PacTrain keeps on one rank.

    Args:
        density: the share of prunable weights that is kept in the end.
        values: how survivors travel: as they are, or as ternary codes of one byte.
        warmup_steps: dense steps before pruning; 0 prunes the model as it is given.
        prune: by which weights are kept: the largest, or those that matter most to the gradient's flow.
        scope: whether weights compete with all others, or with those of their own layer.
        prune_steps: pruning events in which the density comes down.
        prune_every: steps from one of them to the next.
        gse: whether the gradients of pruned weights are kept at zero. If not, everything travels.
        compact: whether survivors travel alone. If not, with zeros in between.
        stable_after: steps without a change after which the mask counts as stable.
        rounding: of ternary codes.
        scales: of ternary codes: one for all workers, or each worker's own, whose mean is applied.
        average: whether sums are divided by the number of workers.
        error_feedback: whether what ternary codes missed is added to the next gradient.
        adaptive: whether each bucket travels as it is expected to take least; ``values`` is then not looked at.
        local_period: steps from one synchronisation of weights to the next; None synchronises gradients in each step.
        outer_lr: the outer optimizer's rate, where weights are synchronised.
        outer_momentum: its Nesterov momentum.
        seed: of the random rounding; each rank adds its own number to it.
        variant: a name for a set of the others, which apply unless given.
    """

    swept = ("density",)
    remembers = ("residual", "dice", "tracker", "outer", "met_at")
    shows_non_finite = True
    warmup_parameters = ("warmup_steps",)
    goodput_note = GOODPUT_NOTE

    density: Share = 0.2
    values: Literal["fp32", "ternary"] = "fp32"
    warmup_steps: Steps = 20
    prune: Literal["magnitude", "grasp", "grasp-magnitude"] = "magnitude"
    scope: Literal["global", "layer"] = "global"
    prune_steps: Count = 1
    prune_every: Count = 10
    gse: bool = True
    compact: bool = True
    stable_after: Steps = 0
    rounding: Literal["random", "nearest"] = "random"
    scales: Literal["shared", "private"] = "shared"
    average: bool = True
    error_feedback: bool = False
    adaptive: bool = False
    local_period: Count | None = None
    outer_lr: Positive = 0.7
    outer_momentum: Decay = 0.9
    seed: Seed = 0
    variant: Literal["faithful", "prototype", "best", "local"] = "faithful"

    @model_validator(mode="before")
    @classmethod
    def _as_the_variant_has_it(cls, given: ArgsKwargs) -> ArgsKwargs:
        explicit = given.kwargs or {}
        return ArgsKwargs(given.args, {**VARIANTS.get(explicit.get("variant", ""), {}), **explicit})

    @field_validator("error_feedback")
    @classmethod
    def _has_an_error_that_shrinks(cls, error_feedback: bool, others: ValidationInfo) -> bool:
        if error_feedback and (others.data.get("values"), others.data.get("rounding")) != ("ternary", "nearest"):
            raise ValueError("true goes with values='ternary' and rounding='nearest' only: other errors vanish or grow")
        return error_feedback

    @field_validator("adaptive")
    @classmethod
    def _has_a_choice(cls, adaptive: bool, others: ValidationInfo) -> bool:
        if adaptive and not (others.data.get("gse") and others.data.get("compact")):
            raise ValueError("true goes with gse=true and compact=true only: else there is nothing to choose from")
        if adaptive and others.data.get("error_feedback"):
            raise ValueError("true goes with error_feedback=false only: a bucket may not always be ternary")
        return adaptive

    @field_validator("local_period")
    @classmethod
    def _has_changes_of_survivors(cls, local_period: int | None, others: ValidationInfo) -> int | None:
        plain = {"values": "fp32", "gse": True, "compact": True, "average": True, "adaptive": False}
        if local_period is not None and any(others.data.get(name, value) != value for name, value in plain.items()):
            allowed = ", ".join(f"{name}={value!r}".lower() for name, value in plain.items())
            raise ValueError(f"a number goes with {allowed} only: changes of survivors travel as they are")
        return local_period

    def __post_init__(self) -> None:
        super().__post_init__()
        self.chooser: Chooser | None = None
        self.residual = BucketMemory()

    def _checked(self, name: str, value: Any) -> Any:
        checked = super()._checked(name, value)
        if name == "variant" and checked != self.variant:
            raise ValueError(
                f"{self.name}.variant: {value!r} comes too late: it names values of other parameters, which this state "
                f"has already; make a new one: State(variant={value!r})"
            )
        return checked

    @property
    def most_copies(self) -> float:  # type: ignore[override]
        return 3.5 if self.local_period is None else ALONE_COPIES

    @property
    def pruning_steps(self) -> Sequence[int]:
        """The steps before which the model is pruned: of ranks that train alone, when they next meet."""
        events = range(self.warmup_steps, self.warmup_steps + self.prune_steps * self.prune_every, self.prune_every)
        period = self.local_period
        return events if period is None else [-(-step // period) * period for step in events]

    def density_at(self, step: int) -> float:
        """The share of prunable weights that is kept during a step."""
        return cubic_density(self.density, bisect_right(self.pruning_steps, step), self.prune_steps)

    def stable_at(self, step: int) -> bool:
        """Whether only survivors travel in a step."""
        events = bisect_right(self.pruning_steps, step)
        return events > 0 and step >= self.pruning_steps[events - 1] + self.stable_after

    @property
    def steady_from_step(self) -> int:
        if self.local_period is not None:
            return self.pruning_steps[-1]
        # The first compact step lists the survivors; so does step 1, for which DDP regroups its buckets.
        listed = max(self.pruning_steps[-1] + self.stable_after, 1) + 1
        return listed + len(EXPLORATION) if self.adaptive else listed

    @property
    def learns_by_the_links(self) -> bool:
        return self.adaptive

    @property
    def steps_as(self) -> Mapping[str, Any]:
        """Where buckets of a step travel in several ways, that of the dearest codec. Whole ones have none."""
        if not self.adaptive:
            return {}
        ternary = self.chooser is None or Mode.TERNARY in self.chooser.way
        return {"adaptive": False, "values": "ternary" if ternary else "fp32"}

    @property
    def saving_bound(self) -> SavingBound | None:
        """Where survivors travel as fp32, their share is the bound."""
        if self.adaptive or self.values != "fp32" or self.density == 1:
            return None
        why = f"keeps a share of {self.density:g} of the weights and sends them as fp32"
        seldom = f", once in {self.agrees_every} steps" if self.agrees_every > 1 else ""
        return SavingBound(self.agrees_every / self.density, why + seldom)

    def wire_bytes(self, shapes: Shapes, world_size: int, step: int | None = None) -> float:
        """If adaptive, of the least that a bucket may choose to send: ternary codes."""
        if self.local_period is not None:
            return self.meeting_bytes(4 * self._survivors(shapes, step), world_size, step)
        if step is not None and not self.stable_at(step):
            return ring_all_reduce_bytes(4 * numel(shapes), world_size)
        sent = self._survivors(shapes, step) if self.gse and self.compact else numel(shapes)
        ternary = self.adaptive or self.values == "ternary"
        return ring_all_reduce_bytes(sent + 4 * len(shapes) if ternary else 4 * sent, world_size)

    def _survivors(self, shapes: Shapes, step: int | None) -> float:
        """Entries of a model of these shapes that are not pruned."""
        density = self.density if step is None else self.density_at(step)
        return numel(shapes) - (1 - density) * numel([shape for shape in shapes if len(shape) >= 2])

    def calls(self, shapes: Shapes, world_size: int) -> list[Call]:
        scales, (both,) = 4 * len(shapes), super().calls(shapes, world_size)
        if not (self.adaptive or self.values == "ternary"):
            return [both]
        return [AllReduce(scales), AllReduce(both.payload_bytes - scales)]

    @property
    def has_residuals(self) -> bool:
        return self.error_feedback

    @property
    def accumulates(self) -> bool:
        return self.average and self.values == "fp32" and not self.adaptive

    def check(
        self,
        ddp: DistributedDataParallel,
        optimizer: torch.optim.Optimizer,
        loss: Callable[[], torch.Tensor] | None,
    ) -> None:
        super().check(ddp, optimizer, loss)
        refuse_sharded(self, optimizer)
        if self.prune != "magnitude" and loss is None:
            needed = "needs the Hessian: register the state with loss=..., or prune by magnitude"
            raise ValueError(f"prune={self.prune!r} {needed}")

    def check_workers(self, world_size: int) -> None:
        if self.adaptive or self.values == "ternary":
            refuse_overflow(world_size)

    def bind(self, ddp: DistributedDataParallel, optimizer: torch.optim.Optimizer) -> None:
        super().bind(ddp, optimizer)
        self.tracker = MaskTracker(self.stable_after)
        self.dice = Dice(self.device, self.seed + self.own_rank)
        if self.adaptive and self.world_size > 1:  # alone, nothing travels
            self.chooser = Chooser(self)
        if not self.was_loaded:
            self._prune_if_due()

    def discard(self) -> None:
        super().discard()
        if self.chooser is not None:
            self.chooser.begin_step()

    def end_step(self) -> None:
        super().end_step()
        self.tracker.end_step()
        self._prune_if_due()
        if self.chooser is not None:
            self.chooser.end_step(self.tracker.stable)

    def mode(self, bucket: dist.GradBucket) -> Mode:
        """How a bucket travels now."""
        if not self.tracker.stable:
            return Mode.DENSE
        if self.chooser is not None:
            return self.chooser.mode(bucket)
        return Mode.TERNARY if self.values == "ternary" else Mode.COMPACT

    @torch.no_grad()
    def _prune_if_due(self) -> None:
        """At a pruning step, set all but the most important weights to zero.

        Raises:
            RuntimeError: the ranks would not prune the same weights.
        """
        if self.step not in self.pruning_steps:
            return
        sparse = sparse_embeddings(self.model)
        dense = [weight for weight in self.trained if weight not in sparse]
        weights = [weight for weight in dense if weight.ndim >= 2 and weight.numel()]
        if not weights:
            self.tracker.settle({})
            return
        importance = self._importance(weights)
        for each, weight in zip(importance, weights, strict=True):
            if (kept := self.tracker.mask_of(weight)) is not None:
                each.masked_fill_(~kept, -math.inf)  # pruned stays pruned, even beside survivors that happen to be 0
        groups = [importance] if self.scope == "global" else [[each] for each in importance]
        masks = [mask for group in groups for mask in most_important(group, self.density_at(self.step))]
        prove_equal(masks, self.process_group)
        for weight, mask in zip(weights, masks, strict=True):
            memory = self.optimizer.state.get(weight, {}).values() if self.gse else ()
            for tensor in (weight, *memory):
                if isinstance(tensor, torch.Tensor) and tensor.shape == mask.shape:
                    tensor.masked_fill_(~mask, 0)
        of_weights = dict(zip(weights, masks, strict=True))
        self.tracker.settle(of_weights)
        if self.outer is not None:
            self.outer.prune(of_weights)

    def _importance(self, weights: list[torch.Tensor]) -> list[torch.Tensor]:
        """How much each entry of the weights matters, in their shapes and the same on every rank."""
        if self.prune == "magnitude" or self.loss is None:
            return [weight.abs() for weight in weights]
        with torch.enable_grad():
            own = hessian_gradient(self.loss(), weights, self.process_group)
        means = mean_over_ranks(own, self.process_group)
        scores = [weight * mean for weight, mean in zip(weights, means, strict=True)]
        return scores if self.prune == "grasp" else [score.abs() for score in scores]


def pactrain_hook(state: State, bucket: dist.GradBucket) -> Future[torch.Tensor]:
    """Replace the bucket by the mean of all ranks' gradients where weights survive, and by zero elsewhere.

    Of ranks that train alone, by their own gradients where weights survive.
    """
    gradient, mode = bucket.buffer(), state.mode(bucket)
    with state.stopwatch("encode"):
        survivors = state.tracker.survivors(bucket, state.gse)
        if state.outer is not None:
            return settled(survivors.enforce(gradient))
        residual = state.residual.draft(bucket) if state.error_feedback and mode is Mode.TERNARY else None
    if state.chooser is not None:
        contents = Contents(gradient.numel(), survivors.indices.numel(), len(survivors.counts), gradient.itemsize)
        state.note("formula_bytes", contents.sent_bytes(mode, state.world_size))
        state.chooser.sends(bucket, contents)
    if mode is Mode.TERNARY:
        return state.lane.submit(lambda: ternary_all_reduce(state, gradient, survivors, residual))
    if mode is Mode.COMPACT and state.compact:
        return compact_all_reduce(state, gradient, survivors)
    return whole_all_reduce(state, gradient, survivors)


def whole_all_reduce(state: State, gradient: torch.Tensor, survivors: Survivors) -> Future[torch.Tensor]:
    """The masked mean of ``gradient`` (n,), in place; all of it travels."""
    with state.stopwatch("encode"):
        survivors.enforce(gradient)
        if state.average:
            gradient.div_(state.world_size)
    work = dist.all_reduce(gradient, group=state.process_group, async_op=True)

    def decode(done: Future[list[torch.Tensor]]) -> torch.Tensor:
        (mean,) = done.value()
        with state.stopwatch("decode"):
            return mean

    return work.get_future().then(decode)


def compact_all_reduce(state: State, gradient: torch.Tensor, survivors: Survivors) -> Future[torch.Tensor]:
    """The masked mean of ``gradient`` (n,), in place."""
    with state.stopwatch("encode"):
        compact = survivors.gather(gradient)
        if state.average:
            compact.div_(state.world_size)
    work = dist.all_reduce(compact, group=state.process_group, async_op=True)

    def decode(done: Future[list[torch.Tensor]]) -> torch.Tensor:
        (mean,) = done.value()
        with state.stopwatch("decode"):
            return survivors.scatter(mean, gradient)

    return work.get_future().then(decode)


def ternary_all_reduce(
    state: State, gradient: torch.Tensor, survivors: Survivors, residual: Draft | None
) -> Future[torch.Tensor]:
    """The masked mean of ``gradient`` (n,), in place: right on average, or but for the ``residual`` (n,), if any.

    Runs in the lane: its second collective depends on its first.
    """
    counts, dice = survivors.counts, state.dice if state.rounding == "random" else None
    with state.stopwatch("encode"):
        if residual is not None:
            gradient.add_(residual.before)
        compact = survivors.gather(gradient)
        scales = own_scales(compact, counts)
        agreed = scales.clone()
    op = dist.ReduceOp.MAX if state.scales == "shared" else dist.ReduceOp.SUM
    dist.all_reduce(agreed, op=op, group=state.lane.process_group)
    with state.stopwatch("encode"):
        if state.scales == "shared":
            scales = agreed
        else:
            agreed.div_(state.world_size)
        codes = ternarise(compact, counts, scales, dice)
        if residual is not None:
            missed = add_scaled(compact, codes, counts, -scales)
            survivors.scatter(missed.nan_to_num_(nan=0, posinf=0, neginf=0), residual.after)
        sent = codes if state.compact else survivors.scatter(codes, codes.new_empty(len(gradient)))
    work = dist.all_reduce(sent, group=state.lane.process_group, async_op=True)

    def decode(done: Future[list[torch.Tensor]]) -> torch.Tensor:
        (total,) = done.value()
        used_here(agreed)
        with state.stopwatch("decode"):
            if not state.compact:
                total = total.index_select(0, survivors.indices)
            weight = agreed / state.world_size if state.average else agreed
            mean = add_scaled(compact.zero_(), total, counts, weight)
            return survivors.scatter(mean, gradient)

    return work.get_future().then(decode)
