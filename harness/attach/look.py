"""A look at a script's own step: when each gradient is ready, what gradients are like, what methods make of them.

Steps come one after the other: some in which DDP settles, some that are timed, some whose gradients are copied. Then
the script is over for us, and each method synchronises the copies, by a shadow of the model: parameters like the
model's under a DDP of their own, whose gradients are whatever is put there. So every method does all that it would do
in the script, with its own collectives among the script's ranks, while nothing of the script waits or changes.
"""

from __future__ import annotations

import inspect
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

import baselines
from baselines import MethodState
from baselines._regroup import bucket_caps, closes_first_early
from baselines._stopwatch import Clock
from harness import methods
from harness.attach.findings import Distribution, Gradients, Looked
from harness.attach.orders import COPIED_STEPS, SETTLING_STEPS, TIMED_STEPS, Orders, Viewed
from harness.attach.watch import Clock as DeviceClock

HELD_SHARES = (0.9, 0.99)
"""Of the squared norm: how many entries hold so much of it is told."""


class Look:
    """What is seen of one rank's gradients, step by step.

    Args:
        ddp: the model.
        clock: of its device.
        names: of its parameters, as DDP numbers them.
    """

    def __init__(self, ddp: DistributedDataParallel, clock: DeviceClock, names: dict[str, Tensor]) -> None:
        self._ddp, self.clock = ddp, clock
        self._weights = list(names.values())
        self._names = list(names)
        self._step = 0
        self._began: Any = None
        self._marks: dict[int, Any] = {}
        self._timed: list[tuple[Any, dict[int, Any]]] = []
        """When the last backward pass of each step began, and when the gradients of it were ready, by place."""
        self._copies: list[list[Tensor | None]] = []
        self._samples = 0
        self._batches: list[int] = []
        self._handles = [
            weight.register_hook(partial(self._on_gradient, place)) for place, weight in enumerate(self._weights)
        ]

    def begin_forward(self, inputs: Sequence[Any]) -> None:
        """A forward pass begins on these inputs: the first tensor's first dimension counts samples."""
        first = next((given for given in _tensors(inputs)), None)
        self._samples += first.shape[0] if first is not None and first.ndim else 1

    def begin_backward(self) -> None:
        """A backward pass begins; of several in a step the last one counts, in which gradients travel."""
        self._marks = {}
        self._began = self.clock.mark()

    def end_step(self) -> None:
        """The optimizer's step is over."""
        if self._is_timed and self._began is not None:
            self._timed.append((self._began, self._marks))
            self._batches.append(self._samples)
        self._samples = 0
        self._step += 1
        if self._is_copied:
            self._copies.append([None] * len(self._weights))

    def take(self) -> Gradients:
        """What was seen. The model is left alone from here on."""
        for handle in self._handles:
            handle.remove()
        ready_s: dict[int, list[float]] = {}
        for began, marks in self._timed:
            for place, mark in marks.items():
                ready_s.setdefault(place, []).append(self.clock.seconds(began, mark))
        typical_s = {place: statistics.median(times) for place, times in ready_s.items()}
        return Gradients(
            batch_size=round(statistics.median(self._batches)) if self._batches else 1,
            bucket_bytes=int(self._ddp.bucket_bytes_cap),
            first_bucket_bytes=bucket_caps(self._ddp)[0],
            parameters=[
                (self._names[place], list(self._weights[place].shape), max(0.0, typical_s[place]))
                for place in sorted(typical_s, key=lambda each: typical_s[each])
            ],
        )

    def copies(self) -> list[list[Tensor]]:
        """The gradients of this rank in the steps that were copied, by step and parameter."""
        return [
            [
                torch.zeros_like(weight) if copy is None else copy
                for weight, copy in zip(self._weights, of_step, strict=True)
            ]
            for of_step in self._copies[:COPIED_STEPS]
        ]

    @property
    def _is_timed(self) -> bool:
        return SETTLING_STEPS <= self._step < SETTLING_STEPS + TIMED_STEPS

    @property
    def _is_copied(self) -> bool:
        return self._step >= SETTLING_STEPS + TIMED_STEPS

    def _on_gradient(self, place: int, gradient: Tensor) -> None:
        if self._is_timed:
            self._marks[place] = self.clock.mark()
        elif self._is_copied and self._copies:
            found = gradient.detach()
            found = found.to_dense() if found.is_sparse else found
            before = self._copies[-1][place]
            self._copies[-1][place] = found.clone() if before is None else before.add_(found)


def distribution(copies: Sequence[Sequence[Tensor]]) -> Distribution:
    """How a rank's gradients are spread over their entries: means over the steps that were copied."""
    flat = [torch.cat([gradient.float().flatten() for gradient in of_step]) for of_step in copies]
    held = [_holding(each) for each in flat]
    return Distribution(
        non_zero=statistics.fmean(float((each != 0).float().mean()) for each in flat),
        holding_90=statistics.fmean(each[0] for each in held),
        holding_99=statistics.fmean(each[1] for each in held),
    )


def _holding(entries: Tensor) -> list[float]:
    """The least shares of all entries that hold these shares of their squared norm."""
    held = entries.square().sort(descending=True).values.cumsum(0, dtype=torch.float64)
    bounds = held.new_tensor(HELD_SHARES) * held[-1]
    return [(int(place) + 1) / len(entries) for place in torch.searchsorted(held, bounds)]


def look_at_methods(
    ddp: DistributedDataParallel,
    optimizer: Optimizer,
    clock: DeviceClock,
    orders: Orders,
    copies: Sequence[Sequence[Tensor]],
    weights: Sequence[Tensor],
) -> Iterator[Looked]:
    """What each method makes of copied gradients; collective.

    Args:
        ddp: the script's model, whose process group and buckets the shadow has.
        optimizer: the script's, of whose kind the shadow's is.
        copies: this rank's gradients, by step and parameter.
        weights: the parameters that they belong to.
    """
    assert orders.look is not None
    exact = [[_mean(gradient, ddp.process_group) for gradient in of_step] for of_step in copies]
    for place, viewed in enumerate(orders.look):
        shadow = Shadow(ddp, weights)
        try:
            own = _like(optimizer, shadow.weights)
            state, remove = _registered(viewed, shadow.ddp, own, clock)
        except (ImportError, RuntimeError, ValueError) as error:
            yield Looked(place, " ".join(str(error).split()))
            continue
        yield _looked(place, state, shadow, own, clock, copies, exact)
        remove()


class Shadow:
    """Parameters like a model's, whose gradients are what is put there.

    The gradient of the sum of products w g is g, exactly.
    """

    def __init__(self, ddp: DistributedDataParallel, weights: Sequence[Tensor]) -> None:
        self.weights = [nn.Parameter(weight.detach().clone()) for weight in weights]
        self.ddp = DistributedDataParallel(
            _Products(self.weights),
            process_group=ddp.process_group,
            bucket_cap_mb=None if closes_first_early(ddp) else ddp.bucket_bytes_cap / 2**20,
            gradient_as_bucket_view=True,
        )

    def backward(self, gradients: Sequence[Tensor]) -> None:
        """Have these gradients synchronised."""
        torch.autograd.backward(self.ddp(gradients))


class _Products(nn.Module):
    def __init__(self, weights: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(weights)

    def forward(self, gradients: Sequence[Tensor]) -> Tensor:
        products = [(weight * gradient).sum().float() for weight, gradient in zip(self.weights, gradients, strict=True)]
        return torch.stack(products).sum()


def _looked(
    place: int,
    state: MethodState,
    shadow: Shadow,
    optimizer: Optimizer,
    clock: DeviceClock,
    copies: Sequence[Sequence[Tensor]],
    exact: Sequence[Sequence[Tensor]],
) -> Looked:
    """Steps until the method is in its steady state, then as many as were copied."""
    warm_up = max(state.steady_from_step, SETTLING_STEPS)
    steps = len(copies) * state.agrees_every
    rows: list[dict[str, float]] = []
    errors, cosines = [], []
    applied: list[Tensor] | None = None
    for step, number in enumerate(islice(cycle(range(len(copies))), warm_up + steps)):
        dist.barrier(shadow.ddp.process_group)
        state.stopwatch.clock.restart()
        shadow.backward(copies[number])
        found = [weight.grad.detach().clone() for weight in shadow.weights if weight.grad is not None]
        resumed = clock.mark()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        ended = clock.mark()
        codec = state.stopwatch.by_thread()
        if step < warm_up:
            continue
        rows.append({**codec, "optimizer_s": clock.seconds(resumed, ended)})
        if not state.syncs_in_end_step:
            errors.append(_nmse(found, exact[number]))
            cosines.append(_cosine(found, exact[number]))
            applied = found if applied is None else [a.add_(f) for a, f in zip(applied, found, strict=True)]
    means = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    if state.agrees_every > 1:  # it encodes in some steps only
        means |= {name: sum(row[name] for row in rows) / len(copies) for name in ("encode_s", "beside_s", "decode_s")}
    seen = Looked(
        place=place,
        nmse=statistics.fmean(errors) if errors else None,
        cosine=statistics.fmean(cosines) if cosines else None,
        progress=_progress(applied, exact) if applied else None,
        held_bytes=state.held_bytes(),
    )
    return replace(seen, **means)  # type: ignore[arg-type]  # all of them are seconds


def _registered(
    viewed: Viewed, ddp: DistributedDataParallel, optimizer: Optimizer, clock: DeviceClock
) -> tuple[MethodState, Callable[[], None]]:
    """A state at work on the shadow, without a warm-up where it can do so, and what lets it go."""
    name, params, code = viewed
    if methods.digest(name) != code:
        raise ValueError("its code here is not that which was checked when the command was given")
    state = methods.method_named(name).State(**params).without_warmup()
    state.stopwatch.clock = _ClockOf(clock)
    handle = baselines.register(ddp, state, optimizer=optimizer)
    return state, handle.remove


class _ClockOf(Clock):
    """A method's clock that is a device's."""

    def __init__(self, clock: DeviceClock) -> None:
        self._clock = clock
        self._start = clock.mark()

    def restart(self) -> Any:
        self._start = self._clock.mark()
        return self._start

    def mark(self) -> Any:
        return self._clock.mark()

    def seconds(self, mark: Any) -> float:
        return self._clock.seconds(self._start, mark)


def _like(optimizer: Optimizer, weights: Sequence[nn.Parameter]) -> Optimizer:
    """An optimizer of the same kind with the same settings, those of its first group, for other parameters."""
    kind = type(optimizer)
    known = inspect.signature(kind).parameters
    settings = {name: value for name, value in optimizer.defaults.items() if name in known}
    try:
        return kind(weights, **settings)
    except TypeError as error:
        raise ValueError(f"its optimizer cannot be made again for a copy: {error}") from None


def _mean(gradient: Tensor, group: Any) -> Tensor:
    found = gradient.detach().float().clone()
    dist.all_reduce(found, group=group)
    return found / dist.get_world_size(group)


def _nmse(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The squared error over the squared norm of what is exact."""
    missed = sum(float((f.float() - e).square().sum()) for f, e in zip(found, exact, strict=True))
    return missed / max(_dot(exact, exact), torch.finfo(torch.float32).tiny)


def _cosine(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    norms = (_dot(found, found) * _dot(exact, exact)) ** 0.5
    return _dot(found, exact) / norms if norms else 0.0


def _progress(applied: Sequence[Tensor], exact: Sequence[Sequence[Tensor]]) -> float:
    """How far all that was applied has come along the sum of all exact gradients; 1: as far as they would."""
    whole = [torch.stack(list(of_weight)).sum(0) for of_weight in zip(*exact, strict=True)]
    return _dot(applied, whole) / max(_dot(whole, whole), torch.finfo(torch.float32).tiny)


def _dot(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    return sum(float((a.float() * b.float()).sum()) for a, b in zip(one, other, strict=True))


def _tensors(inputs: Any) -> Iterator[Tensor]:
    if isinstance(inputs, Tensor):
        yield inputs
    elif isinstance(inputs, dict):
        yield from _tensors(list(inputs.values()))
    elif isinstance(inputs, (list, tuple)):
        for each in inputs:
            yield from _tensors(each)
