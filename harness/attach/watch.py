"""Times the phases of a script's steps, with a few marks a step, and reads them when nobody waits for it.

DDP is not touched: a communication hook of ours would change what it sends. Gradients are ready when the backward pass
has computed the last of them. A callback that is given to autograd's engine as the pass begins runs right then, before
DDP's own, which waits for the collectives (``Engine::queue_callback``: callbacks run in the order in which they came).
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from harness.attach.findings import Step

FLUSH_S = 1.0
"""How often steps are read and written."""

DEVICES = Path("/proc/net/dev")
"""Counters of the interfaces of the reader's network namespace (proc_pid_net(5))."""

MOST_BYTES = 1 << 20


class Counters:
    """Counters of the interfaces, read with as little as possible while a script waits, and understood later."""

    def __init__(self) -> None:
        self._file = os.open(DEVICES, os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> bytes:
        """All of them as they are now."""
        return os.pread(self._file, MOST_BYTES, 0)


def sent_by(interface: str, counters: bytes) -> tuple[int, int] | None:
    """Bytes, headers included, and packets that had left an interface; None where there was none of that name.

    What offloads send down as one packet counts as one, with its headers once.
    """
    for line in counters.decode().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == interface:
            sent_bytes, packets = numbers.split()[8:10]
            return int(sent_bytes), int(packets)
    return None


class HostClock:
    """Work is done when the host comes to it."""

    @staticmethod
    def mark() -> Any:
        """The present place in the work of this thread."""
        return perf_counter()

    @staticmethod
    def seconds(start: Any, end: Any) -> float:
        """Time between two marks."""
        return float(end - start)


class CudaClock:
    """Work is done when the device's current stream comes to it."""

    @staticmethod
    def mark() -> Any:
        """See ``HostClock.mark``; the host does not wait."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @staticmethod
    def seconds(start: Any, end: Any) -> float:
        """See ``HostClock.seconds``; waits until the device has come there."""
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3


Clock = type[HostClock] | type[CudaClock]


@dataclass(frozen=True)
class Codec:
    """What a method's stopwatch told of a step, seconds."""

    encode_s: float
    decode_s: float


@dataclass
class Marks:
    """A step as it was marked; its times are read later."""

    begin: Any
    forwards: list[tuple[Any, Any]] = field(default_factory=list)
    backwards: list[tuple[Any, Any]] = field(default_factory=list)
    """When all gradients were ready, and when ``backward`` returned."""
    losses: list[Tensor | float] = field(default_factory=list)
    end: Any = None
    at_s: float = 0.0
    codec: Codec | None = None
    counters: bytes = b""


class StepWatch:
    """The steps of one model on one rank.

    Args:
        clock: of the device that the model is on.
        write: takes steps that are read.
        interface: the rank's own, whose bytes are counted.
    """

    def __init__(self, clock: Clock, write: Callable[..., None], interface: str | None = None) -> None:
        self._clock = clock
        self._write = write
        self._interface = interface
        self._counters = Counters() if interface else None
        self._step: Marks | None = None
        self._forward_begin: Any = None
        self._ready: Any = None
        self._pending: list[Marks] = []
        self._last_end: Any = None
        self._read_steps = 0
        self._read_at = perf_counter()

    def begin_forward(self) -> None:
        """A forward pass begins; the first after a step begins the next one."""
        self._forward_begin = self._clock.mark()
        if self._step is None:
            self._step = Marks(self._forward_begin)

    def end_forward(self) -> None:
        """It has returned."""
        if self._step is not None:
            self._step.forwards.append((self._forward_begin, self._clock.mark()))

    def begin_backward(self, root: Tensor) -> Callable[[], None]:
        """``backward`` is called on this tensor, within a step. Call what this returns when it has returned."""
        step = self._step
        assert step is not None
        self._ready = None
        if root.numel() == 1:
            waits = not root.is_cuda  # a device is not waited for
            step.losses.append(root.item() if waits else root.detach().to("cpu", non_blocking=True, copy=True))
        # Either goes with the tensor. A node's hook costs less; a leaf has no node.
        (root.grad_fn.register_prehook if root.grad_fn else root.register_hook)(self._when_backward_begins)

        def end() -> None:
            end_mark = self._clock.mark()
            step.backwards.append((self._ready or end_mark, end_mark))

        return end

    @property
    def is_in_step(self) -> bool:
        """Whether a forward pass has begun a step that has not ended."""
        return self._step is not None

    def end_step(self, codec: Codec | None) -> None:
        """The optimizer's step is over."""
        if self._step is None:
            return
        step, self._step = self._step, None
        step.end, step.at_s, step.codec = self._clock.mark(), time.monotonic(), codec
        if self._counters:
            step.counters = self._counters.read()
        self._pending.append(step)
        if perf_counter() - self._read_at > FLUSH_S:
            self._read(len(self._pending) - 1)  # a device has long done all but the last

    def close(self) -> None:
        """Read all that is left."""
        self._read(len(self._pending))

    def _when_backward_begins(self, gradient: Any) -> None:
        """Autograd's engine takes callbacks from within a backward pass only."""
        torch.autograd.Variable._execution_engine.queue_callback(self._mark_ready)

    def _mark_ready(self) -> None:
        self._ready = self._clock.mark()

    def _read(self, count: int) -> None:
        steps, self._pending = self._pending[:count], self._pending[count:]
        self._write(*map(self._as_finding, steps))
        self._read_at = perf_counter()

    def _as_finding(self, marks: Marks) -> Step:
        seconds = self._clock.seconds
        step_s = seconds(marks.begin, marks.end)  # the first that is read: on a device, all before it is then done
        between_s = None if self._last_end is None else seconds(self._last_end, marks.begin)
        ready = marks.backwards[-1][0] if marks.backwards else marks.end
        number, self._last_end = self._read_steps, marks.end
        self._read_steps += 1
        return Step(
            step=number,
            at_s=marks.at_s,
            step_s=step_s,
            between_s=between_s,
            forward_s=sum(seconds(*forward) for forward in marks.forwards),
            ready_s=seconds(marks.begin, ready),
            exposed_s=sum(seconds(*backward) for backward in marks.backwards),
            backwards=len(marks.backwards),
            loss=statistics.fmean(map(float, marks.losses)) if marks.losses else None,
            encode_s=marks.codec.encode_s if marks.codec else None,
            decode_s=marks.codec.decode_s if marks.codec else None,
            sent=sent_by(self._interface, marks.counters) if self._interface else None,
        )
