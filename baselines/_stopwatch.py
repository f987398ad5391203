"""How long a method's work takes, for whoever wants to know: encoding and decoding, by step and in all."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import get_ident
from time import perf_counter
from typing import Any, Literal, NamedTuple

import torch


class Lap(NamedTuple):
    """What a method did since the lap before."""

    encode_s: float
    decode_s: float
    before_ready_s: float
    """Seconds of codec work within the backward pass, on its own thread, until the last bucket was ready."""
    end_step_s: float
    """Seconds from the optimizer's step to the method's end of it: averaging, pruning; codec work included."""
    buckets_ready_at: float
    """When, on the stopwatch's clock, DDP handed over the last bucket: here the backward computation ends."""


class Clock:
    """When is the work done that was asked for until now? On a CPU: now. A device that lags behind has its own."""

    def restart(self) -> Any:
        """A mark to count from."""
        return self.mark()

    def mark(self) -> Any:
        """The present place in the work of this thread."""
        return perf_counter()

    def seconds(self, mark: Any) -> float:
        """When that place was reached, on a clock that all marks since ``restart`` share."""
        return float(mark)


MOST_KEPT = 10_000
"""Spans and notes that are kept for whoever asks; in a training where nobody does, the oldest go."""


class Stopwatch:
    """Times what a method does, for whoever wants to know. Blocks may be timed on any thread."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.codec_s = 0.0
        """Seconds of encoding and decoding since the beginning, as the host saw them."""
        self._spans: deque[tuple[str, Any, Any, int]] = deque(maxlen=MOST_KEPT)
        self._bucket_ready: tuple[Any, int] | None = None

    @contextmanager
    def __call__(self, phase: Literal["encode", "decode", "end_step"]) -> Iterator[None]:
        """Time a block of codec work, in which waiting for a collective has no place; or all of the end of a step."""
        start, host_start = self.clock.mark(), self.host_s()
        try:
            yield
        finally:
            self._spans.append((phase, start, self.clock.mark(), get_ident()))
            if phase != "end_step":
                self.codec_s += self.host_s() - host_start

    def host_s(self) -> float:
        """The host's clock, in the seconds that the training tells: of use to who compares two moments of a step."""
        return perf_counter()

    def waited(self) -> None:
        """This thread has waited for what came over the network, outside of a hook."""

    def bucket_ready(self, entries: int, members: Sequence[torch.Tensor] = ()) -> None:
        """DDP hands over a bucket of so many entries, on the thread that runs the backward pass.

        Args:
            members: the parameters whose gradients are in it.
        """
        self._bucket_ready = (self.clock.mark(), get_ident())

    def by_thread(self) -> dict[str, float]:
        """A lap that tells apart what holds up the backward pass: seconds as ``encode_s``, ``beside_s`` (encoding on
        another thread) and ``decode_s``."""
        seconds = {"encode_s": 0.0, "beside_s": 0.0, "decode_s": 0.0}
        backward_thread = self._bucket_ready[1] if self._bucket_ready else None
        for phase, start, end, thread in self._spans:
            if phase == "encode" and thread != backward_thread:
                phase = "beside"
            if phase != "end_step":
                seconds[f"{phase}_s"] += self.clock.seconds(end) - self.clock.seconds(start)
        self.lap()
        return seconds

    def lap(self) -> Lap:
        """What happened since the last lap."""
        spans, self._spans = self._spans, deque(maxlen=MOST_KEPT)
        ready_at, backward_thread = 0.0, 0
        if self._bucket_ready:
            ready_at, backward_thread = self.clock.seconds(self._bucket_ready[0]), self._bucket_ready[1]
        seconds = {"encode": 0.0, "decode": 0.0, "end_step": 0.0}
        before_ready_s = 0.0
        for phase, start_mark, end_mark, thread in spans:
            start, end = self.clock.seconds(start_mark), self.clock.seconds(end_mark)
            seconds[phase] += end - start
            if thread == backward_thread and end <= ready_at:
                before_ready_s += end - start
        return Lap(seconds["encode"], seconds["decode"], before_ready_s, seconds["end_step"], ready_at)
