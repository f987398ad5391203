"""1-bit Adam: Adam with dense gradients at first, then with a frozen variance and signs of the momentum.

Tang et al., ICML 2021 (arXiv 2102.02888), algorithm 1, as DeepSpeed does it. For ``warmup_steps`` all workers make Adam
of their mean gradient g::

    m = beta1 m + (1 - beta1) g         v = beta2 v + (1 - beta2) g^2         gradient <- m / (sqrt(v) + eps)

From then on v stays as it is, and what travels is the momentum, which each worker updates by its own gradient. It is
compressed twice, with error feedback both times: each worker sends a shard of every parameter to the shard's owner, as
signs and one scale, and the owner sends back the mean in the same way. A scale is the root of the mean square of what
it is of: a parameter at the worker, a parameter's shard at the owner.

The method is an optimizer, so the training's is to be plain SGD, whose rate is Adam's rate and whose weight decay is
added to the update as DeepSpeed adds it. SGD's momentum is taken over and set to 0. As in DeepSpeed, m and v are not
corrected for their start at zero, so in a short warm-up the first updates are too large for a rate tuned for Adam.

What is not there: DeepSpeed's mask for entries of a momentum that are always zero. Signs have no zero, so where v is
almost zero (inputs that are always dark, few warm-up steps) an update is a whole scale over eps: there eps must be of
the size of gradients, or the training diverges. The paper freezes v when it changes little; here, as in DeepSpeed, a
number of steps is given. The first step is always dense, because v must be something. DeepSpeed's default is 100,000
dense steps, more than the trainings here have, so that nothing would be compressed. The paper takes 15 to 20 % of all
steps: give as many. A weight that is unfrozen after the warm-up has no variance, and is refused.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.futures import Future

from baselines._adam import AdamState, dense_step, signs_calls, signs_mean
from baselines._calls import Call, sent_bytes
from baselines._lane import settled
from baselines._memory import Draft, Weights
from baselines._parameters import Decay, Positive, Steps, parameters
from baselines._state import Shapes, numel, ring_all_reduce_bytes

LABEL = "1-bit Adam"
COLOR = "#DDCC77"
MARKER = "x"
SENDS = "the sign of every entry of the momentum to its owner, and the sign of the mean back, with scales"
ALL_REDUCE = False
SOURCE = "Tang et al., ICML 2021 (arXiv 2102.02888)"
MOST_LOSS = 0.01
MOST_LOSS_AT_PLATEAU = 0.01
MOST_PERPLEXITY = 0.01
PAPER_SAYS = (
    "none: BERT-Large on GLUE 0.5 points below to 1.7 above Adam, after 15 % of dense steps (DeepSpeed's account, "
    "table 1)"
)


@parameters
class State(AdamState):
    """What 1-bit Adam keeps on one rank.

    Args:
        warmup_steps: dense steps, after which the variance is frozen; at least one is made.
        beta1: what is left of the momentum from step to step.
        beta2: what is left of the variance.
        eps: added to the root of the variance.
    """

    most_copies = 10.0
    warmup_parameters = ("warmup_steps",)
    remembers = ("m", "v", "error", "owner_error", "of_warmup")
    scale_order = 2

    warmup_steps: Steps = 20
    beta1: Decay = 0.9
    beta2: Decay = 0.999
    eps: Positive = 1e-8

    @property
    def steady_from_step(self) -> int:
        return max(self.warmup_steps, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.of_warmup = Weights()
        """Those that a step of the warm-up has moved: no other one has a variance."""

    def begin_step(self) -> None:
        super().begin_step()
        if self.step >= self.steady_from_step:
            self.refuse_without_variance([weight for weight in self.trained if weight not in self.of_warmup])

    def end_step(self) -> None:
        if self.step < self.steady_from_step:
            self.of_warmup.update(self.moving)
        super().end_step()

    def wire_bytes(self, shapes: Shapes, world_size: int, step: int | None = None) -> float:
        if step is not None and step < self.steady_from_step:
            return ring_all_reduce_bytes(4 * numel(shapes), world_size)
        return sent_bytes(self.calls(shapes, world_size), world_size)

    def calls(self, shapes: Shapes, world_size: int) -> list[Call]:
        return signs_calls(shapes, world_size)


def onebit_adam_hook(state: State, bucket: dist.GradBucket) -> Future[torch.Tensor]:
    """Replace the bucket by Adam's update."""
    gradient = bucket.buffer()
    names = [state.names[weight] for weight in bucket.parameters()]
    counts = [weight.numel() for weight in bucket.parameters()]
    m = state.m.draft(bucket)
    if state.step < state.steady_from_step:
        v = state.v.draft(bucket)
        return state.lane.submit(lambda: settled(dense_step(state, gradient, m, v)))
    frozen, error = state.v.like(bucket), state.error.draft(bucket)
    return state.lane.submit(lambda: settled(signs_step(state, gradient, names, counts, m, frozen, error)))


def signs_step(
    state: State, gradient: torch.Tensor, names: list[str], counts: list[int], m: Draft, v: torch.Tensor, error: Draft
) -> torch.Tensor:
    """The update by the frozen variance ``v`` (n,) and the mean of all ranks' momenta, in place. Runs in the lane.

    Args:
        names: of the bucket's parameters.
        counts: their entries.
    """
    with state.stopwatch("encode"):
        own = torch.lerp(gradient, m.before, state.beta1, out=error.after).add_(error.before)
    means = signs_mean(state, state.lane.process_group, names, own.split(counts))
    with state.stopwatch("decode"):
        return state.update(torch.cat(means, out=m.after), v, out=gradient)
