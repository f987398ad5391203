"""0/1 Adam: 1-bit Adam whose variance is refreshed ever more rarely, and whose workers then train alone in between.

Lu et al., ICLR 2023 (arXiv 2202.06009), algorithm 1, with what DeepSpeed does until the variance is frozen. In the
first ``warmup_steps`` all workers make Adam of their mean gradient g::

    m = beta1 m + (1 - beta1) g         gradient <- m / (sqrt(v) + eps)

In steps that refresh the variance, v = beta2 v + (1 - beta2) g^2 comes first, and g is dense; in all others g travels
as signs, with error feedback at workers and owners, as 1-bit Adam sends its momentum. The first step refreshes; the gap
to the next doubles after every ``gap_doubles_after`` of them (the paper's kappa).

From then on v stays as it is, and each worker makes Adam of its own gradients. Every ``period`` steps, with the change
of each parameter since the last common ones::

    u = (sqrt(v) + eps) (common - own)              what was moved, without what is not linear in it
    u = mean of all workers' u, as signs            with error feedback, which begins anew
    common = own = common - u / (sqrt(v) + eps)     m = u / sum of the learning rates

The training's optimizer is to be plain SGD, as for ``onebit_adam``, and what is said there of ``eps`` and of a short
warm-up holds here too. As in DeepSpeed, weight decay is part of what u gathers.

Clipping scales updates, and so the momentum that a meeting makes of them. A weight that is unfrozen after the warm-up
has no variance, and is refused.

Where it differs: DeepSpeed's default is 100,000 steps until the variance is frozen, more than the trainings here have;
here it is 20, and it is to be given. The paper lets the workers' steps alone grow in number as the rate falls, up to
16; here ``period`` is one number. The scale of signs is the mean magnitude, with which they never miss more than there
was (Karimireddy et al., ICML 2019, arXiv 1901.09847). DeepSpeed takes the root of the mean square. Where few entries
are far larger than most, as in a language model's head, that is several times as much, and the error can grow: in the
scenario `language` the training diverged with two of three seeds.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from baselines._adam import AdamState, dense_step, signs_calls, signs_mean
from baselines._calls import Call, sent_bytes
from baselines._lane import settled
from baselines._memory import BucketMemory, Draft, Drafts, WeightMemory
from baselines._names import refuse_sparse_embeddings
from baselines._outer import Outer, OuterState, wide_dtype
from baselines._parameters import Count, Decay, Positive, Steps, parameters
from baselines._state import Shapes, numel, ring_all_reduce_bytes

LABEL = "0/1 Adam"
COLOR = "#CC3311"
MARKER = "$0$"
SENDS = "the sign of what moved every parameter to its owner, and the sign of the mean back, once in `period` steps"
ALL_REDUCE = False
SOURCE = "Lu et al., ICLR 2023 (arXiv 2202.06009)"
MOST_LOSS = 0.01
MOST_LOSS_AT_PLATEAU = 0.01
MOST_PERPLEXITY = 0.05
PAPER_SAYS = "none on GLUE and ImageNet: what 1-bit Adam comes to"


@parameters
class State(OuterState, AdamState):
    """What 0/1 Adam keeps on one rank.

    Args:
        warmup_steps: steps that all workers make together, after which the variance is frozen; at least one is made.
        gap_doubles_after: refreshes of the variance, until the gap between them doubles; 0: it never does.
        period: steps from one synchronisation to the next, after the warm-up.
        beta1: what is left of the momentum from step to step.
        beta2: what is left of the variance from refresh to refresh.
        eps: added to the root of the variance.
    """

    as_given = False
    most_copies = 12.0
    warmup_parameters = ("warmup_steps", "gap_doubles_after")
    adjustable = ("period",)
    remembers = ("m", "v", "error", "owner_error", "outer", "local_error", "local_steps", "rates")
    scale_order = 1
    takes_sparse_embeddings = False

    warmup_steps: Steps = 20
    gap_doubles_after: Steps = 16
    period: Count = 16
    beta1: Decay = 0.9
    beta2: Decay = 0.999
    eps: Positive = 1e-8

    @property
    def accumulates(self) -> bool:
        return False

    @property
    def steady_from_step(self) -> int:
        return max(self.warmup_steps, 1)

    def refreshes(self, step: int) -> bool:
        """Whether the variance is refreshed in a step of the warm-up."""
        begin, gap = 0, 1
        while 0 < gap * self.gap_doubles_after <= step - begin:
            begin, gap = begin + gap * self.gap_doubles_after, 2 * gap
        return (step - begin) % gap == 0

    def wire_bytes(self, shapes: Shapes, world_size: int, step: int | None = None) -> float:
        """Signs in every ``period``-th step, or dense or signs in the warm-up; with a loss scaler also a flag."""
        signs = sent_bytes(self.calls(shapes, world_size), world_size)
        flag = self.flag_bytes(world_size)
        if step is None:
            return flag + signs / self.period
        if step < self.steady_from_step:
            return flag + (ring_all_reduce_bytes(4 * numel(shapes), world_size) if self.refreshes(step) else signs)
        return flag + (signs if (step + 1) % self.period == 0 else 0.0)

    def calls(self, shapes: Shapes, world_size: int) -> list[Call]:
        return signs_calls(shapes, world_size)

    def check(
        self,
        ddp: DistributedDataParallel,
        optimizer: torch.optim.Optimizer,
        loss: Callable[[], torch.Tensor] | None,
    ) -> None:
        super().check(ddp, optimizer, loss)
        refuse_sparse_embeddings(ddp.module, "zeroone_adam cannot make Adam of")

    def bind(self, ddp: DistributedDataParallel, optimizer: torch.optim.Optimizer) -> None:
        super().bind(ddp, optimizer)
        self._begin_alone()

    def _begin_alone(self) -> None:
        """All ranks hold the same parameters, from which they may part."""
        self.outer = Outer(self.trained, lr=1.0, momentum=0.0)
        self.local_error = WeightMemory()
        self._forget_steps()

    def _forget_steps(self) -> None:
        self.local_steps = 0
        """Since the ranks held the same parameters."""
        self.rates: list[float] = [0.0 for _ in self.optimizer.param_groups]
        """The sum of the learning rates of these steps, of each group."""

    def begin_step(self) -> None:
        if self.step >= self.steady_from_step:
            self.refuse_without_variance([weight for weight in self.trained if weight not in self.outer])

    def end_step(self) -> None:
        if self.step >= self.steady_from_step:
            self.local_steps += 1
            groups = self.optimizer.param_groups
            self.rates = [rate + float(group["lr"]) for rate, group in zip(self.rates, groups, strict=True)]
        super().end_step()
        if self.step == self.steady_from_step:
            self.error, self.owner_error = BucketMemory(), Drafts()
            self._begin_alone()

    @torch.no_grad()
    def flush(self) -> None:
        if self.local_steps == 0:
            return
        rates = {
            weight: rate
            for rate, group in zip(self.rates, self.optimizer.param_groups, strict=True)
            for weight in group["params"]
        }
        with self.stopwatch("encode"):
            m, v = self.m.of_weights(), self.v.of_weights()
            changes = {weight: change for weight, change in self.outer.changes().items() if weight in v}
            if not changes:
                return
            roots = {weight: v[weight].sqrt().add_(self.eps) for weight in changes}
            errors = [self.local_error.of(weight) for weight in changes]
            dtype = wide_dtype(list(changes))
            parts = [
                torch.addcmul(error, change, root).reshape(-1).to(dtype)
                for error, change, root in zip(errors, changes.values(), roots.values(), strict=True)
            ]
        means = signs_mean(self, self.process_group, [self.names[weight] for weight in changes], parts)
        self.owner_error.commit()
        with self.stopwatch("decode"):
            for error, part in zip(errors, parts, strict=True):  # what is left is the error
                error.copy_(part.view(error.shape))
            for (weight, change), mean in zip(changes.items(), means, strict=True):
                u = mean.view(change.shape).to(change.dtype)
                torch.div(u, roots[weight], out=change)
                if rates.get(weight):
                    torch.div(u, rates[weight], out=m[weight])
            self.outer.step()
            self._forget_steps()


def zeroone_adam_hook(state: State, bucket: dist.GradBucket) -> Future[torch.Tensor]:
    """Replace the bucket by Adam's update, of the mean gradient in the warm-up, and of this rank's own after it."""
    gradient, m = bucket.buffer(), state.m.draft(bucket)
    if state.step >= state.steady_from_step:
        return settled(local_step(state, gradient, m, state.v.like(bucket)))
    if state.refreshes(state.step):
        fresh = state.v.draft(bucket)
        return state.lane.submit(lambda: settled(dense_step(state, gradient, m, fresh)))
    names = [state.names[weight] for weight in bucket.parameters()]
    counts = [weight.numel() for weight in bucket.parameters()]
    v, error = state.v.like(bucket), state.error.draft(bucket)

    def signs_step() -> Future[torch.Tensor]:
        with state.stopwatch("encode"):
            own = error.plus(gradient)
        means = signs_mean(state, state.lane.process_group, names, own.split(counts))
        return settled(local_step(state, torch.cat(means, out=gradient), m, v))

    return state.lane.submit(signs_step)


def local_step(state: State, gradient: torch.Tensor, m: Draft, v: torch.Tensor) -> torch.Tensor:
    """The update by ``gradient`` (n,) as it is, and a variance that stays, in place."""
    with state.stopwatch("decode"):
        torch.lerp(gradient, m.before, state.beta1, out=m.after)
        return state.update(m.after, v, out=gradient)
