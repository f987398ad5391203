"""Random-k: all workers send the same random entries of their gradients, so that no index travels.

Wangni et al. (NeurIPS 2018, arXiv 1710.09854) and Stich et al. (arXiv 1809.07599). All ranks draw with the same seed,
so the chosen entries are one short dense tensor for an ordinary all-reduce. With error feedback, a = g + e: the chosen
entries of a are sent and the others remembered. Without it the chosen ones are multiplied by n / k, which makes the
result right on average but noisy.

An entry waits n / k steps on average, and an optimizer's momentum then adds to what is late already: with error
feedback, a ratio of 0.1 and a momentum of 0.9 training does not converge in ``scenarios/convergence.toml``.

Where it differs: one entry is drawn from each of k equal stretches of a bucket, not k from all of it. Each entry is
chosen as often as any other, and drawing costs k numbers rather than a permutation of n.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from baselines._memory import BucketMemory
from baselines._parameters import Seed, Share, parameters
from baselines._sparse import share
from baselines._state import MethodState, Shapes, numel, ring_all_reduce_bytes
from baselines._streams import used_here

LABEL = "Random-k"
COLOR = "#DDAA33"
MARKER = "p"
SENDS = "the same random entries on every worker, without indices"
ALL_REDUCE = True
SOURCE = "Stich et al., NeurIPS 2018 (arXiv 1809.07599)"
MOST_LOSS = 0.5
MOST_LOSS_AT_PLATEAU = 0.03
PAPER_SAYS = "theory, and logistic regression: with a memory the rate of SGD"


@parameters
class State(MethodState):
    """What random-k keeps on one rank.

    Args:
        ratio: the share of each bucket's entries that is sent.
        error_feedback: whether entries that were not sent are remembered and added to the next gradient.
        seed: of the choice, the same on every rank.
    """

    swept = ("ratio",)
    adjustable = ("ratio",)
    most_copies = 5.0

    ratio: Share = 0.01
    error_feedback: bool = True
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.residual = BucketMemory()

    @property
    def remembers(self) -> tuple[str, ...]:
        return ("residual", "dice") if self.error_feedback else ("dice",)

    def wire_bytes(self, shapes: Shapes, world_size: int, step: int | None = None) -> float:
        return ring_all_reduce_bytes(4 * self.ratio * numel(shapes), world_size)

    def bind(self, ddp: DistributedDataParallel, optimizer: torch.optim.Optimizer) -> None:
        super().bind(ddp, optimizer)
        self.dice = torch.Generator(self.device).manual_seed(self.seed)


def randomk_hook(state: State, bucket: dist.GradBucket) -> Future[torch.Tensor]:
    """Replace the bucket by the mean of all ranks' chosen entries, and by zero elsewhere."""
    gradient: torch.Tensor = bucket.buffer()
    with state.stopwatch("encode"):
        n = gradient.numel()
        k = share(state.ratio, n)
        indices = one_of_each_stretch(n, k, state.dice)
        if state.error_feedback:
            a = state.residual.draft(bucket).plus(gradient)
            chosen = a.index_select(0, indices)
            a.index_fill_(0, indices, 0)
        else:
            chosen = gradient.index_select(0, indices).mul_(n / k)
        chosen.div_(state.world_size)
    work = dist.all_reduce(chosen, group=state.process_group, async_op=True)

    def decode(done: Future[list[torch.Tensor]]) -> torch.Tensor:
        (mean,) = done.value()
        used_here(indices)
        with state.stopwatch("decode"):
            gradient.zero_()
            # What is drawn twice is one entry of a residual, but two draws of an estimate.
            put = gradient.index_copy_ if state.error_feedback else gradient.index_add_
            return put(0, indices, mean)

    return work.get_future().then(decode)


def one_of_each_stretch(n: int, k: int, dice: torch.Generator) -> torch.Tensor:
    """Indices (k,), int64, ascending: one from each of k equal stretches into which n entries are cut.

    Where n / k is no whole number, two stretches share an entry at their border, which both may draw; taken as often as
    it is drawn, each entry counts k / n times on average.
    """
    position = torch.rand(k, generator=dice, dtype=torch.float64, device=dice.device)
    position.add_(torch.arange(k, device=dice.device)).mul_(n / k)
    return position.long().clamp_(max=n - 1)
