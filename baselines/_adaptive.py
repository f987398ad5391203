"""How each bucket of PacTrain travels: chosen by rank 0 from what links, codecs and collectives were seen to take."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from threading import Lock
from time import perf_counter
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.futures import Future

from baselines._state import MethodState, ring_all_reduce_bytes

UNSETTLED_STEPS, SAMPLED_STEPS = 1, 8
"""Steps of each mode that is explored: one in which it lists survivors and makes memory, then those that count."""

DECIDE_EVERY = 10
"""Steps from one look at the goodput to the next."""

CHANGE = 0.2
"""The relative change of the goodput that calls for a new choice."""


GOODPUT_NOTE = "adaptive_goodput_bps"
"""Kind of the note of the goodput that a choice was made for."""


class Mode(IntEnum):
    """How a bucket travels."""

    DENSE = 0
    COMPACT = 1
    TERNARY = 2


class Contents(NamedTuple):
    """What a bucket is made of."""

    entries: int
    survivors: int
    parts: int
    """Parameters that have survivors: each has a scale."""
    entry_bytes: int

    def sent_bytes(self, mode: Mode, world_size: int) -> float:
        """Bytes that a rank sends of it."""
        payload = {
            Mode.DENSE: self.entries * self.entry_bytes,
            Mode.COMPACT: self.survivors * self.entry_bytes,
            Mode.TERNARY: self.survivors + self.parts * self.entry_bytes,
        }
        return ring_all_reduce_bytes(payload[mode], world_size)


class Sample(NamedTuple):
    """A step in which all buckets travelled alike, on this rank."""

    sync_s: float
    """From the first bucket's handing over to the end of the optimizer's step."""
    busy_s: float
    """In which any bucket was under way."""
    codec_s: float
    sent_bytes: float


class Cost(NamedTuple):
    """What a mode takes beside the time of its bytes on the link."""

    codec_s_per_entry: float
    bucket_s: float
    """Latency of its collectives, waiting for threads and peers included; 0 for the mode that has least."""


def exploration(dense_steps: int) -> list[Mode]:
    """The modes of the steps in which they are tried, once the mask is stable after so many dense steps."""
    known = dense_steps >= 2 * UNSETTLED_STEPS + SAMPLED_STEPS  # DDP regroups its buckets, too
    modes = (Mode.COMPACT, Mode.TERNARY) if known else (Mode.DENSE, Mode.COMPACT, Mode.TERNARY)
    return [mode for mode in modes for _ in range(UNSETTLED_STEPS + SAMPLED_STEPS)]


def measured_goodput_bps(samples: Iterable[Sample]) -> float:
    """What collectives reached in the median: bits by formula over the time in which any was under way."""
    return statistics.median(8 * sample.sent_bytes / sample.busy_s for sample in samples)


def measured_costs(
    samples: Mapping[Mode, Sequence[Sample]], goodput_bps: float, entries: int, buckets: int
) -> dict[Mode, Cost]:
    """What each mode takes, so that the sum over buckets gives the steps' times again, but for a constant."""
    codec_s = {mode: statistics.median(sample.codec_s for sample in own) for mode, own in samples.items()}
    rest_s = {
        mode: statistics.median(sample.sync_s - 8 * sample.sent_bytes / goodput_bps for sample in own) - codec_s[mode]
        for mode, own in samples.items()
    }
    least_s = min(rest_s.values())
    return {mode: Cost(codec_s[mode] / entries, (rest_s[mode] - least_s) / buckets) for mode in samples}


def best_mode(contents: Contents, costs: Mapping[Mode, Cost], goodput_bps: float, world_size: int) -> Mode:
    """The mode that is expected to take a bucket least time."""

    def expected_s(mode: Mode) -> float:
        wire_s = 8 * contents.sent_bytes(mode, world_size) / goodput_bps
        return wire_s + costs[mode].codec_s_per_entry * contents.entries + costs[mode].bucket_s

    return min(costs, key=expected_s)


class Chooser:
    """Explores the modes once the mask is stable, then chooses between them, the same on every rank.

    Few bytes reach less goodput than many, so after each choice the next window is what later ones are compared with,
    and a change is applied, as a factor, to the goodput that the choice was made from. What modes cost beside it is
    believed to stay.
    """

    def __init__(self, state: MethodState) -> None:
        self._state = state
        self._modes: dict[tuple[int, ...], Mode] = {}
        self._schedule: deque[Mode] | None = None
        self._samples: dict[Mode, deque[Sample]] = {mode: deque(maxlen=SAMPLED_STEPS) for mode in Mode}
        self._costs: dict[Mode, Cost] = {}
        self._believed_bps = 0.0
        self._reference_bps: float | None = None
        self._goodputs_bps: list[float] = []
        self._stable = False
        self._dense_steps = 0
        self._steps_since_choice = 0
        self._lock = Lock()
        self._begin_step()

    def mode(self, bucket: dist.GradBucket) -> Mode:
        """How a bucket travels; compact until there is a schedule or a choice."""
        if self._schedule:
            return self._schedule[0]
        return self._modes.get(tuple(map(id, bucket.parameters())), Mode.COMPACT)

    def sends(self, bucket: dist.GradBucket, mode: Mode, contents: Contents) -> None:
        """Remember what a bucket is made of, and how it travels; before its codec begins."""
        if not self._buckets:
            self._began_at = perf_counter()
        self._buckets[tuple(map(id, bucket.parameters()))] = contents
        self._used.add(mode)
        self._sent_bytes += contents.sent_bytes(mode, self._state.world_size)

    def watch(self, done: Future[torch.Tensor]) -> Future[torch.Tensor]:
        """Time a bucket from now until it is synchronised."""
        start = perf_counter()

        def ended(done: Future[torch.Tensor]) -> torch.Tensor:
            with self._lock:
                self._spans.append((start, perf_counter()))
            return done.value()

        return done.then(ended)

    def end_step(self, stable: bool) -> None:
        """Look at the step; at its time, choose. Collective in the same steps on every rank.

        Args:
            stable: whether the mask will be so in the next step.
        """
        self._take_sample()
        was_stable, self._stable = self._stable, stable
        if self._schedule is None:
            self._dense_steps += 1
            if stable:
                self._schedule = deque(exploration(self._dense_steps))
        elif was_stable:
            self._advance()
        self._begin_step()

    def _begin_step(self) -> None:
        self._buckets: dict[tuple[int, ...], Contents] = {}
        """Buckets of this step, in the order in which DDP hands them over."""
        self._used: set[Mode] = set()
        self._spans: list[tuple[float, float]] = []
        self._began_at = self._sent_bytes = 0.0
        self._codec_s_before = self._state.stopwatch.codec_s

    def _take_sample(self) -> None:
        busy_s = covered(self._spans)
        if busy_s <= 0:
            return
        self._goodputs_bps.append(8 * self._sent_bytes / busy_s)
        if len(self._used) == 1:
            codec_s = self._state.stopwatch.codec_s - self._codec_s_before
            sample = Sample(perf_counter() - self._began_at, busy_s, codec_s, self._sent_bytes)
            self._samples[next(iter(self._used))].append(sample)

    def _advance(self) -> None:
        """A step with a stable mask has passed."""
        if self._schedule:
            self._schedule.popleft()
            if not self._schedule:
                self._learn()
                self._choose(news=True)
            return
        self._steps_since_choice += 1
        if self._steps_since_choice % DECIDE_EVERY == 0:
            self._choose(news=self._changed(statistics.median(self._goodputs_bps)))
            self._goodputs_bps = []

    def _learn(self) -> None:
        """Costs from what the exploration saw."""
        self._believed_bps = measured_goodput_bps(self._samples[Mode.DENSE])
        entries = sum(contents.entries for contents in self._buckets.values())
        self._costs = measured_costs(self._samples, self._believed_bps, entries, len(self._buckets))
        self._goodputs_bps = []

    def _choose(self, news: bool) -> None:
        """Take over rank 0's choice, which is a new one if it has news."""
        choice = torch.zeros(1 + len(self._buckets), dtype=torch.int64, device=self._device)
        if self._state.own_rank == 0 and news:
            p = self._state.world_size
            modes = [best_mode(each, self._costs, self._believed_bps, p) for each in self._buckets.values()]
            choice = torch.tensor([1, *modes], device=self._device)
        group = self._state.process_group
        dist.broadcast(choice, dist.get_global_rank(group, 0), group=group)
        is_new, *chosen = choice.tolist()
        if not is_new:
            return
        self._modes = dict(zip(self._buckets, map(Mode, chosen), strict=True))
        if self._state.own_rank == 0:
            self._state.note(GOODPUT_NOTE, self._believed_bps)
            for mode in Mode:
                self._state.note(f"adaptive_{mode.name.lower()}_buckets", chosen.count(mode))

    def _changed(self, goodput_bps: float) -> bool:
        """Whether the goodput of a window calls for a new choice; takes note of it."""
        if self._reference_bps is None:
            self._reference_bps = goodput_bps
            return False
        factor = goodput_bps / self._reference_bps
        if abs(factor - 1) <= CHANGE:
            return False
        self._believed_bps *= factor
        self._reference_bps = None
        return True

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(self._state.model.parameters()).device
        return device


def covered(spans: list[tuple[float, float]]) -> float:
    """Seconds that lie in at least one of the spans."""
    total_s, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total_s += max(0.0, end - max(start, until))
        until = max(until, end)
    return total_s
