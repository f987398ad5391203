"""Replay: a model that waits for as long as a device would compute, and whose gradients are made up.

Everything else is real: parameters at their true shapes, DDP with its buckets and hooks, methods, bytes, links. Time is
kept by a ``Pace``, which may dilate it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor, nn

from harness.workload import profile as profiles
from harness.workload.pace import Pace
from harness.workload.profile import Gradient, Profile

SPARE = 1 << 20
"""Entries by which the pool of gradients is longer than the largest of them: so many places to begin at."""

WEIGHT_SCALE = 0.02

WORKER_STRIDE, STEP_STRIDE, PARAMETER_STRIDE = 104_729, 7_919, 1_299_709
"""How far apart gradients begin in the pool; primes, so that no two of a run's begin at the same place."""


@dataclass(frozen=True)
class Materials:
    """What all workers of a replay share and only read: made once, before they are forked.

    Gradients are N(0, 1), each entry by itself, and zero but for a share ``density`` of the places.
    """

    weights: tuple[Tensor, ...]
    """In the order of the profile's gradients."""
    pool: Tensor
    """(largest gradient + SPARE,), fp32: a gradient is a part of it."""

    def on(self, device: torch.device) -> Materials:
        """The same in a device's memory."""
        return Materials(tuple(weight.to(device) for weight in self.weights), self.pool.to(device))

    def with_own_weights(self) -> Materials:
        """The same with weights that may be changed."""
        return replace(self, weights=tuple(weight.clone() for weight in self.weights))

    def gradient(self, gradient: Gradient, place: int, worker: int, step: int) -> Tensor:
        """One worker's gradient of a parameter in a step, without a copy.

        Args:
            place: of the parameter in the profile.
        """
        far = WORKER_STRIDE * worker + STEP_STRIDE * step + PARAMETER_STRIDE * place
        return self.pool.narrow(0, far % SPARE, gradient.numel).view(gradient.shape)


def materials(name_or_path: str, density: float, shrink: int = 1) -> Materials:
    """Those of a profile; kept, so that forked workers share their pages, and so do shares of one device."""
    return _kept(tuple(profiles.read(name_or_path).shrunk(shrink).shapes), density)


def make_materials(profile: Profile, density: float = 1.0) -> Materials:
    """Weights and gradients of a profile's shapes, the same whenever they are made."""
    return _made(tuple(profile.shapes), density)


def _made(shapes: tuple[tuple[int, ...], ...], density: float) -> Materials:
    dice = torch.Generator().manual_seed(0)
    sizes = [math.prod(shape) for shape in shapes]
    pool = torch.randn(max(sizes) + SPARE, generator=dice)
    if density < 1:
        pool[torch.rand(len(pool), generator=dice) >= density] = 0
    weights = torch.randn(sum(sizes), generator=dice).mul_(WEIGHT_SCALE)
    parts = zip(weights.split(sizes), shapes, strict=True)
    return Materials(tuple(part.view(shape) for part, shape in parts), pool)


_kept = cache(_made)


class Replayed(nn.Module):
    """A model that takes the profile's time, and whose parameters get made-up gradients when they would get real ones.

    Its parameters share memory with ``materials``: they must not be changed where others rely on them.

    Args:
        overlap: whether all workers' gradients are the same, and so are not zero at the same places, or each its own.
    """

    def __init__(
        self, profile: Profile, made: Materials, pace: Pace, worker: int, overlap: Literal["random", "full"] = "random"
    ) -> None:
        super().__init__()
        self._profile, self._materials, self._pace = profile, made, pace
        self._worker = worker if overlap == "random" else 0
        self.step = 0
        self.weights = nn.ParameterList(nn.Parameter(weight) for weight in reversed(made.weights))
        numbered = list(enumerate(profile.gradients))
        self._groups = [list(group) for _, group in groupby(numbered, key=lambda each: each[1].ready_s)]
        parameters = [*reversed(list(self.weights))]
        self._members = [[parameters[place] for place, _ in group] for group in self._groups]

    def forward(self) -> Tensor:
        """A scalar, always zero, after the time of the forward pass."""
        self._pace.work(self._profile.forward_s)
        signal = torch.zeros((), device=self._materials.pool.device)
        for number in reversed(range(len(self._groups))):
            signal = _Ready.apply(signal, self, number, *self._members[number])
        self.step += 1
        return signal

    def gradients(self, number: int) -> list[Tensor]:
        """Those that are ready together, after the time from the ones before them."""
        group = self._groups[number]
        before_s = self._groups[number - 1][0][1].ready_s if number else 0.0
        self._pace.work(group[0][1].ready_s - before_s)
        return [self._materials.gradient(each, place, self._worker, self.step) for place, each in group]


class _Ready(torch.autograd.Function):
    """A link of the chain that the backward pass runs along: it gives the gradients of one group."""

    @staticmethod
    def forward(ctx: Any, signal: Tensor, model: Replayed, number: int, *members: Tensor) -> Tensor:
        ctx.model, ctx.number = model, number
        return signal.clone()

    @staticmethod
    def backward(ctx: Any, signal: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return signal, None, None, *ctx.model.gradients(ctx.number)


PROCESS_BYTES = 120_000_000
"""What a worker holds of its own beside tensors, about."""


def memory_bytes(profile: Profile, workers: int, most_copies: float, gathered_bytes: int = 0) -> int:
    """What all workers of a replay need together: an estimate, rather too high.

    Args:
        most_copies: of the model, in each worker; see ``MethodState.most_copies``.
        gathered_bytes: what each worker holds besides, of what all of them sent to all.
    """
    model = 4 * profile.numel
    pool = 4 * (max(gradient.numel for gradient in profile.gradients) + SPARE)
    return round(model + pool + workers * (PROCESS_BYTES + most_copies * model + gathered_bytes))
