"""Streaming DiLoCo: DiLoCo a fragment at a time, which travels while training goes on.

Douillard et al., 2025 (arXiv 2501.18512), algorithm 2. The parameters are cut into fragments, each of which is
synchronised every ``period`` steps, at moments of its own that lie evenly apart. With the change c of a fragment since
its last common parameters::

    at its moment           c is sent, in 4 bits; no worker waits for it
    ``delay`` steps later   common parameters -= outer Nesterov step by the mean of all workers' c
                            own parameters = mix * own + (1 - mix) * common

So the greatest rate that is asked of a link falls with the number of fragments, and an exchange may take as long as
``delay`` steps before anybody waits. Codes are E3M0: a sign and three bits of exponent. They are gathered, and each
worker adds up what they mean in fp32, as the paper asks for.

No worker has the common parameters as its own but by chance, so evaluations look at the common ones: see ``common``.

Where it differs: the paper's fragments are every third block of a transformer. Models at large have no blocks in
common, so parameters are dealt out by size: the largest first, each to the fragment that has the fewest entries; those
of equal blocks so go around, as in the paper. How codes are scaled the paper leaves open: here the greatest code is
each parameter's greatest change. The paper's inner optimizer is AdamW; here it is the training's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
import torch.distributed as dist
from pydantic import Field
from torch.futures import Future
from torch.nn.functional import pad
from torch.nn.parallel import DistributedDataParallel

from baselines._calls import AllGather, AllReduce, Call, sent_bytes
from baselines._lane import settled
from baselines._local import LocalState
from baselines._outer import Outer, wide_dtype
from baselines._parameters import Count, Decay, Positive, Steps, parameters
from baselines._quantise import by_byte, norms, numbers, packed_fields
from baselines._state import MethodState, Shapes, is_moving, numel

LABEL = "Streaming DiLoCo"
COLOR = "#225555"
MARKER = "$S$"
SENDS = "the change of a part of the parameters as codes of 4 bits, each part once in `period` steps"
ALL_REDUCE = False
SOURCE = "Douillard et al., 2025 (arXiv 2501.18512)"
MOST_LOSS = 0.04
MOST_LOSS_AT_PLATEAU = 0.01
MOST_PERPLEXITY = 0.09
PAPER_SAYS = (
    "none: 1 billion parameters, 25 to 250 billion tokens, loss 2.66, 2.51 and 2.45 against 2.67, 2.52 and 2.45 "
    "(table 1)"
)

MAGNITUDES = (0.0, *(2.0**exponent for exponent in range(-6, 1)))
"""What the three lower bits of a code mean, in shares of the greatest; the fourth is the sign."""

MIDDLES = tuple((lower + upper) / 2 for lower, upper in pairwise(MAGNITUDES))
"""From where on a magnitude is rounded up."""


@parameters
class State(LocalState):
    """What Streaming DiLoCo keeps on one rank.

    Args:
        period: steps from one synchronisation of a fragment to its next.
        fragments: how many there are; fewer where a model has fewer parameters.
        delay: steps that are made while a fragment travels; 0 to wait for it.
        mix: the share of its own parameters that a worker keeps when a fragment has arrived.
        outer_lr: the outer optimizer's rate.
        outer_momentum: its Nesterov momentum.
        values: how changes travel: as codes of 4 bits, or as they are.
    """

    most_copies = 7.0
    remembers = ("parts",)

    is_streaming = True

    period: Count = 100
    fragments: Count = 4
    delay: Steps = 1
    mix: Annotated[float, Field(ge=0, le=1)] = 0.5
    outer_lr: Positive = 0.4
    outer_momentum: Decay = 0.9
    values: Literal["e3m0", "fp32"] = "e3m0"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.delay >= self.period:
            raise ValueError(f"delay: {self.delay} steps, and a fragment is sent again after period={self.period}")

    @property
    def hidden_steps(self) -> int:
        return self.delay

    def wire_bytes(self, shapes: Shapes, world_size: int, step: int | None = None) -> float:
        """The fragments whose moment it is; with a loss scaler also a flag in each step."""
        calls = self.calls(shapes, world_size)
        if step is None:
            return sent_bytes(calls, world_size) / self.period + self.flag_bytes(world_size)
        due = [call for number, call in enumerate(calls) if self._is_moment_of(number, len(calls), step + 1)]
        return sent_bytes(due, world_size) + self.flag_bytes(world_size)

    def calls(self, shapes: Shapes, world_size: int) -> list[Call]:
        """One for each fragment."""
        return [self._call([shapes[place] for place in places]) for places in dealt(shapes, self.fragments)]

    def _call(self, shapes: Shapes) -> Call:
        if self.values == "fp32":
            return AllReduce(4 * numel(shapes))
        return AllGather(sum(message_bytes(numel(shapes), len(shapes))))

    def _is_moment_of(self, number: int, fragments: int, steps: int) -> bool:
        """Whether a fragment is sent after so many steps. The last one's moment is the end of the period."""
        return steps % self.period == (number + 1) * self.period // fragments % self.period

    def bind(self, ddp: DistributedDataParallel, optimizer: torch.optim.Optimizer) -> None:
        super().bind(ddp, optimizer)
        weights = self.trained
        places_of = dealt([weight.shape for weight in weights], self.fragments)
        self.parts = Parts([Part([weights[place] for place in places], self) for places in places_of])

    def leave(self) -> None:
        for part in self.parts:
            part.wait()

    def begin_step(self) -> None:
        super().begin_step()
        for weight in self.moving:
            if not any(weight in part.outer for part in self.parts):
                min(self.parts, key=lambda part: part.outer.entries).outer.take_in([weight])

    def have_moved(self, weights: list[torch.Tensor]) -> None:
        for part in self.parts:
            part.outer.have_moved(weights)

    def meet(self) -> None:
        for number, part in enumerate(self.parts):
            if part.is_due(self.step):
                part.arrive(self.mix)
            if self._is_moment_of(number, len(self.parts), self.step):
                part.send(self.step + self.delay)
                if not self.delay:
                    part.arrive(self.mix)

    def flush(self) -> None:
        """Synchronise now what has been trained since it was sent; workers take the common parameters as they are."""
        for part in self.parts:
            part.arrive(self.mix)
        for part in self.parts:
            if self.step > part.sent_at:
                part.send(self.step)
        for part in self.parts:
            part.arrive(mix=0.0)
            part.outer.hand_out()

    @contextmanager
    def common(self) -> Iterator[None]:
        with ExitStack() as shown:
            for part in self.parts:
                shown.enter_context(part.outer.shown())
            yield


class Part:
    """A fragment: its common parameters, and what of it is under way."""

    def __init__(self, weights: list[torch.Tensor], state: State) -> None:
        self._state = state
        self.outer = Outer(weights, state.outer_lr, state.outer_momentum)
        self._travelling: list[torch.Tensor] = []
        """The weights whose changes are under way."""
        self.sent_at = 0
        """After how many steps it was last sent."""
        self._due: int | None = None
        """After how many steps what is under way is taken; None if nothing is."""
        self._work: Any = None
        self._arriving: list[torch.Tensor] = []
        """What the collective fills."""

    def is_due(self, step: int) -> bool:
        return self._due == step

    @torch.no_grad()
    def send(self, due: int) -> None:
        """Let this rank's change set out. Nothing waits for it."""
        state = self._state
        with state.stopwatch("encode"):
            changes = self.outer.changes()
            if not changes:
                return
            self.sent_at = state.step
            self._due, self._travelling = due, list(changes)
            # What goes on alone keeps a share of its own when the mean arrives; a frozen weight is to be the same then.
            self.outer.apart.difference_update([weight for weight in changes if not is_moving(weight)])
            own = torch.cat([change.reshape(-1) for change in changes.values()])
            if state.values == "fp32":
                self._arriving = [own.div_(state.world_size)]
                begin = partial(dist.all_reduce, own)
            else:
                message = encoded(own, self._counts)
                self._arriving = [torch.empty_like(message) for _ in range(state.world_size)]
                begin = partial(dist.all_gather, self._arriving, message)
        self._work = begin(group=state.process_group, async_op=True)

    def wait(self) -> None:
        """Until what is under way is here."""
        if self._work is not None:
            self._work.wait()
            self._work = None

    @torch.no_grad()
    def arrive(self, mix: float) -> None:
        """Take what is under way: move the common parameters, and this rank's own towards them."""
        if self._due is None:
            return
        self.wait()
        self._state.stopwatch.waited()
        with self._state.stopwatch("decode"):
            parts = zip(self._travelling, self._mean().split(self._counts), strict=True)
            self.outer.take({weight: part.view(weight.shape) for weight, part in parts})
            self.outer.step(mix)
        self._due, self._travelling, self._arriving = None, [], []

    @property
    def _counts(self) -> list[int]:
        return [weight.numel() for weight in self._travelling]

    def _mean(self) -> torch.Tensor:
        """All ranks' mean change (n,) of what has travelled."""
        if self._state.values == "fp32":
            return self._arriving[0]
        dtype = wide_dtype(self._travelling)
        mean = torch.zeros(sum(self._counts), dtype=dtype, device=self._state.device)
        for message in self._arriving:
            mean.add_(decoded(message, self._counts, dtype))
        return mean.div_(len(self._arriving))

    def state_dict(self, names: Mapping[torch.Tensor, str]) -> dict[str, Any]:
        """The common parameters, and what has arrived or will."""
        self.wait()
        return {
            "outer": self.outer.state_dict(names),
            "sent_at": self.sent_at,
            "due": self._due,
            "travelling": [names[weight] for weight in self._travelling],
            "arriving": [*self._arriving],
        }

    def load_state_dict(self, saved: Mapping[str, Any], names: Mapping[torch.Tensor, str]) -> None:
        """Go on from what ``state_dict`` gave."""
        self.wait()
        self.outer.load_state_dict(saved["outer"], names)
        weights = {name: weight for weight, name in names.items()}
        self._travelling = [weights[name] for name in saved["travelling"]]
        self.sent_at = saved["sent_at"]
        self._due, self._arriving = saved["due"], [each.to(self._state.device).clone() for each in saved["arriving"]]


class Parts(list[Part]):
    """All fragments, of which a checkpoint holds each by its number."""

    def state_dict(self, names: Mapping[torch.Tensor, str]) -> list[dict[str, Any]]:
        """See ``Part.state_dict``."""
        return [part.state_dict(names) for part in self]

    def load_state_dict(self, saved: list[Mapping[str, Any]], names: Mapping[torch.Tensor, str]) -> None:
        """Go on from what ``state_dict`` gave."""
        for part, own in zip(self, saved, strict=True):
            part.load_state_dict(own, names)


def dealt(shapes: Shapes, fragments: int) -> list[list[int]]:
    """Places of the parameters in each fragment, of about as many entries each: the largest is dealt out first."""
    piles: list[list[int]] = [[] for _ in range(min(fragments, len(shapes)))]
    for place in sorted(range(len(shapes)), key=lambda place: -numel([shapes[place]])):
        min(piles, key=lambda pile: numel([shapes[each] for each in pile])).append(place)
    return [sorted(pile) for pile in piles]


def message_bytes(entries: int, counts: int, itemsize: int = 4) -> tuple[int, int]:
    """Codes, and scales, of so many entries of so many parameters."""
    return -(-entries // 2), itemsize * counts


def encoded(values: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """Values (n,) as a message (uint8): a code of 4 bits each, and each part's greatest magnitude."""
    greatest = norms(values, counts, float("inf"))
    codes = [
        torch.bucketize(part.abs().div_(scale), numbers(MIDDLES, values.device, values.dtype), right=True).to(
            torch.uint8
        )
        | part.lt(0).to(torch.uint8).mul_(len(MAGNITUDES))
        for part, scale in zip(values.split(counts), greatest.clamp(min=torch.finfo(values.dtype).tiny), strict=True)
    ]
    together = torch.cat(codes)
    return torch.cat((packed_fields(pad(together, (0, len(together) % 2)), 4), greatest.view(torch.uint8)))


def decoded(message: torch.Tensor, counts: list[int], dtype: torch.dtype) -> torch.Tensor:
    """The values (n,) that a message stands for."""
    codes, scale_bytes = message.split(message_bytes(sum(counts), len(counts), dtype.itemsize))
    scales = scale_bytes.clone().view(dtype)  # a view must start at a multiple of its item size
    meant = by_byte(numbers((*MAGNITUDES, *(-each for each in MAGNITUDES)), message.device, dtype), bits=4)
    values = meant.index_select(0, codes.int()).view(-1)[: sum(counts)]
    for part, scale in zip(values.split(counts), scales, strict=True):
        part.mul_(scale)
    return values


def streaming_diloco_hook(state: MethodState, bucket: dist.GradBucket) -> Future[torch.Tensor]:
    """Leave the bucket as it is: this rank's own gradient."""
    return settled(bucket.buffer())
