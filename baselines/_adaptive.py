"""How each bucket of PacTrain travels: chosen by rank 0 from what links and codecs were seen to do."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from enum import IntEnum
from threading import Lock
from time import perf_counter
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.futures import Future

from baselines._quantise import add_scaled, own_scales, ternarise
from baselines._state import ring_all_reduce_bytes

if TYPE_CHECKING:
    from baselines.pactrain import State

DECIDE_EVERY = 10
"""Steps from one look at the goodput to the next."""

CHANGE = 0.2
"""The relative change of the goodput that calls for a new choice."""

TRIAL_ENTRIES, TRIALS = 1 << 20, 3


class Mode(IntEnum):
    """How a bucket travels."""

    DENSE = 0
    COMPACT = 1
    TERNARY = 2


class Chooser:
    """Chooses between the modes on rank 0, and holds what it chose on every rank.

    The goodput is what the collectives of a step reached: bytes by formula over the time in which any of them was under
    way. Few bytes reach less of it than many, so after each choice the next window is what later ones are compared
    with, and a change is applied, as a factor, to the goodput that the choice was made from.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._modes: dict[tuple[int, ...], Mode] = {}
        self._seen: dict[tuple[int, ...], tuple[int, int, int]] = {}
        """Each bucket's entries, survivors and parts, in the order in which DDP hands them over."""
        self._lock = Lock()
        self._spans: list[tuple[float, float]] = []
        self._bytes = 0.0
        self._goodputs_bps: list[float] = []
        self._believed_bps: float | None = None
        self._reference_bps: float | None = None
        self._codec_s_per_entry: dict[Mode, float] = {}
        self._round_trip_s = 0.0
        self._stable_steps = 0

    def mode(self, bucket: dist.GradBucket) -> Mode:
        """How a bucket travels; compact until there was a choice."""
        return self._modes.get(tuple(map(id, bucket.parameters())), Mode.COMPACT)

    def sends(self, bucket: dist.GradBucket, mode: Mode) -> None:
        """Remember what a bucket is made of, and what it sends."""
        from baselines.pactrain import mode_bytes

        gradient, survivors = bucket.buffer(), self._state.tracker.survivors(bucket)
        layout = tuple(map(id, bucket.parameters()))
        with self._lock:
            self._seen[layout] = gradient.numel(), survivors.indices.numel(), len(survivors.counts)
            self._bytes += mode_bytes(mode, survivors, gradient, self._state.world_size)

    def watch(self, bucket: dist.GradBucket, done: Future[torch.Tensor]) -> Future[torch.Tensor]:
        """Time a bucket from now until it is synchronised."""
        start = perf_counter()

        def ended(done: Future[torch.Tensor]) -> torch.Tensor:
            with self._lock:
                self._spans.append((start, perf_counter()))
            return done.value()

        return done.then(ended)

    def end_step(self, stable: bool) -> None:
        """Look at the step; at its time, choose. Collective in the same steps on every rank."""
        busy_s = covered(self._spans)
        if busy_s > 0:
            self._goodputs_bps.append(8 * self._bytes / busy_s)
        self._spans, self._bytes = [], 0.0
        if not stable:
            return
        if self._stable_steps % DECIDE_EVERY == 0:
            self._decide()
        self._stable_steps += 1

    def _decide(self) -> None:
        if not self._codec_s_per_entry:
            self._try_codecs()
        goodput_bps = statistics.median(self._goodputs_bps) if self._goodputs_bps else None
        self._goodputs_bps = []
        choice = torch.zeros(1 + len(self._seen), dtype=torch.int64, device=self._device)
        if self._state.own_rank == 0 and goodput_bps is not None and self._changed(goodput_bps):
            modes = [self._best(*each) for each in self._seen.values()]
            choice = torch.tensor([1, *modes], device=self._device)
        group = self._state.process_group
        dist.broadcast(choice, dist.get_global_rank(group, 0), group=group)
        changed, *chosen = choice.tolist()
        if changed:
            self._modes = dict(zip(self._seen, map(Mode, chosen), strict=True))
            if self._state.own_rank == 0 and self._believed_bps is not None:
                self._state.note("adaptive_goodput_bps", self._believed_bps)
                for mode in Mode:
                    self._state.note(f"adaptive_{mode.name.lower()}_buckets", chosen.count(mode))
        self._seen.clear()  # DDP may regroup its buckets; the next step tells them anew

    def _changed(self, goodput_bps: float) -> bool:
        """Whether to choose anew; takes note of the goodput."""
        if self._believed_bps is None:
            self._believed_bps = goodput_bps
            return True
        if self._reference_bps is None:
            self._reference_bps = goodput_bps
            return False
        factor = goodput_bps / self._reference_bps
        if abs(factor - 1) <= CHANGE:
            return False
        self._believed_bps *= factor
        self._reference_bps = None
        return True

    def _best(self, entries: int, kept: int, parts: int) -> Mode:
        """The mode that is expected to take least."""
        payload = {Mode.DENSE: 4 * entries, Mode.COMPACT: 4 * kept, Mode.TERNARY: kept + 4 * parts}
        collectives = {Mode.DENSE: 1, Mode.COMPACT: 1, Mode.TERNARY: 2}
        believed_bps = self._believed_bps or 1.0

        def expected_s(mode: Mode) -> float:
            wire_s = 8 * ring_all_reduce_bytes(payload[mode], self._state.world_size) / believed_bps
            return wire_s + collectives[mode] * self._round_trip_s + self._codec_s_per_entry[mode] * entries

        return min(Mode, key=expected_s)

    def _try_codecs(self) -> None:
        """Time each codec, and the smallest all-reduce, on all ranks at once, as they will run."""
        n = TRIAL_ENTRIES
        survivors = max(1, round(self._state.density * n))
        gradient = torch.randn(n, device=self._device)
        indices = torch.randperm(n, device=self._device)[:survivors].sort().values.int()
        pruned = torch.ones(n, dtype=torch.bool, device=self._device).index_fill_(0, indices.long(), False)
        compact = torch.empty(survivors, device=self._device)

        def dense() -> None:
            gradient.masked_fill_(pruned, 0).div_(2)

        def gathered() -> None:
            torch.index_select(gradient, 0, indices, out=compact).div_(2)
            gradient.zero_().index_add_(0, indices, compact)

        def ternary() -> None:
            torch.index_select(gradient, 0, indices, out=compact)
            scales = own_scales(compact, [survivors])
            codes = ternarise(compact, [survivors], scales, self._state.dice)
            gradient.zero_().index_add_(0, indices, add_scaled(compact.zero_(), codes, [survivors], scales))

        codecs = {Mode.DENSE: dense, Mode.COMPACT: gathered, Mode.TERNARY: ternary}
        self._codec_s_per_entry = {mode: median_s(codec) / n for mode, codec in codecs.items()}
        little = torch.zeros(1, device=self._device)
        self._round_trip_s = median_s(lambda: dist.all_reduce(little, group=self._state.process_group))

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


def median_s(action: Callable[[], object]) -> float:
    """Seconds that an action takes, once it is warm."""
    times = []
    for _ in range(1 + TRIALS):
        start = perf_counter()
        action()
        times.append(perf_counter() - start)
    return statistics.median(times[1:])
