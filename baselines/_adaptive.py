"""Adaptive PacTrain on its ranks: every rank times its steps, and all choose the same from what all of them saw."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist

from baselines._choice import EXPLORATION, PURE, SAMPLED_STEPS, Contents, Mode, Policy, Sample, Way, mode_of
from baselines._state import MethodState, all_gather_bytes

GOODPUT_NOTE = "adaptive_goodput_bps"
"""Kind of the note of the rate that a choice was made for."""


class Telling(NamedTuple):
    """What a rank measured, on its way to all others."""

    work: dist.Work
    ways: list[Way]
    times: torch.Tensor
    """Of this rank: ``sync_s`` and ``codec_s`` of each step."""
    rows: list[torch.Tensor]
    """Likewise, of each rank, once ``work`` has ended."""


class Chooser:
    """Explores the modes once the mask is stable, then chooses between them, the same on every rank.

    Whatever decides is a function of numbers that an all-gather has brought to every rank, so no rank need tell the
    others. It is under way during a step, which it does not hold up: waiting for it would cost a short step more than
    what is chosen saves. What was measured is not part of a checkpoint: a resumed training may run elsewhere, and
    explores anew.
    """

    def __init__(self, state: MethodState) -> None:
        self.policy = Policy(state.world_size)
        self._state = state
        self._schedule: deque[Way] | None = None
        """The ways of the steps until the next decision; None until the mask is stable for the first time."""
        self._is_exploring = True
        self._stable = False
        self._dense_steps = 0
        self._warm: deque[Sample] = deque(maxlen=1 + SAMPLED_STEPS)
        """Of this rank, the last dense steps before the mask was stable."""
        self._samples: list[Sample] = []
        """Of this rank, not told to the others yet."""
        self._telling: Telling | None = None
        """What is under way to the others."""
        self.begin_step()

    def begin_step(self) -> None:
        """Forget what was handed over: the step was made, or the optimizer skipped it."""
        self._buckets: dict[tuple[int, ...], Contents] = {}
        """Buckets of this step, in the order in which DDP hands them over."""
        self._began_at = 0.0
        self._codec_s_before = self._state.stopwatch.codec_s

    @property
    def way(self) -> Way:
        """How the buckets of this step travel while the mask is stable."""
        return self._schedule[0] if self._schedule else (Mode.COMPACT,)

    def mode(self, bucket: dist.GradBucket) -> Mode:
        """How a bucket travels while the mask is stable."""
        layout = tuple(map(id, bucket.parameters()))
        known = list(self._buckets)
        return mode_of(self.way, known.index(layout) if layout in self._buckets else len(known))

    def sends(self, bucket: dist.GradBucket, contents: Contents) -> None:
        """Remember what a bucket is made of; before its codec begins."""
        if not self._buckets:
            self._began_at = self._state.stopwatch.host_s()
        self._buckets[tuple(map(id, bucket.parameters()))] = contents

    def end_step(self, stable: bool) -> None:
        """Look at the step; at its time, choose. Collective in the same steps on every rank.

        Args:
            stable: whether the mask will be so in the next step.
        """
        was_stable, self._stable = self._stable, stable
        if not self._buckets:  # nothing was synchronised
            return
        stopwatch = self._state.stopwatch
        sync_s, codec_s = stopwatch.host_s() - self._began_at, stopwatch.codec_s - self._codec_s_before
        if self._schedule is None:
            self._dense_steps += 1
            self._warm.append(Sample(PURE[Mode.DENSE], sync_s, codec_s))
            if stable:
                self._explore()
        elif was_stable:
            self._samples.append(Sample(self._schedule.popleft(), sync_s, codec_s))
            if self._telling is not None:
                self._decide(self._telling)
            elif not self._schedule:
                self._tell()
        self.begin_step()

    def _explore(self) -> None:
        self._schedule = deque(EXPLORATION)
        if self._dense_steps >= 2 + SAMPLED_STEPS:  # DDP regroups its buckets in the second
            self._samples.extend(self._warm)

    def _tell(self) -> None:
        """Begin to tell all ranks what was measured on this one; nobody waits in the next step, but for the first."""
        state, ways = self._state, [each.way for each in self._samples]
        own = [[each.sync_s, each.codec_s] for each in self._samples]
        times = torch.tensor(own, dtype=torch.float32, device=state.device)
        rows = [torch.empty_like(times) for _ in range(state.world_size)]
        work = dist.all_gather(rows, times, group=state.process_group, async_op=True)
        state.note("formula_bytes", all_gather_bytes(times.nbytes, state.world_size))
        self._telling, self._samples = Telling(work, ways, times, rows), []
        if self._is_exploring:
            self._decide(self._telling)
        else:
            self._schedule = deque([self.policy.way])

    def _decide(self, told: Telling) -> None:
        """Choose the ways of the next steps."""
        told.work.wait()
        samples, before = seen_together(told.ways, torch.stack(told.rows).tolist()), self.policy.way
        learn = self.policy.begin if self._is_exploring else self.policy.review
        learn(samples, tuple(self._buckets.values()))
        if self._is_exploring or self.policy.way != before:
            self._note_choice()
        self._is_exploring, self._telling = False, None
        self._schedule = deque(self.policy.schedule())

    def _note_choice(self) -> None:
        """Note a new choice, on rank 0, and the rate that it was made for."""
        if self._state.own_rank != 0:
            return
        self._state.note(GOODPUT_NOTE, 8 / self.policy.model.seconds_per_byte)
        modes = [mode_of(self.policy.way, place) for place in range(len(self._buckets))]
        for mode in Mode:
            self._state.note(f"adaptive_{mode.name.lower()}_buckets", modes.count(mode))


def seen_together(ways: Sequence[Way], rows: Sequence[Sequence[tuple[float, float]]]) -> list[Sample]:
    """Samples of steps from what each rank measured of them.

    The rank that hands over its buckets last waits for nobody, so the shortest ``sync_s`` of all ranks is free of
    waiting for peers. The longest ``codec_s`` is what all of them wait for.

    Args:
        rows: for each rank, ``sync_s`` and ``codec_s`` of each step.
    """
    steps = zip(*rows, strict=True)
    return [
        Sample(way, min(sync_s for sync_s, _ in step), max(codec_s for _, codec_s in step))
        for way, step in zip(ways, steps, strict=True)
    ]
