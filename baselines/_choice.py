"""Which way the buckets of a step travel: chosen from what steps were seen to take. Numbers only; no rank, no clock."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from enum import IntEnum
from itertools import combinations
from typing import NamedTuple

from baselines._state import ring_all_reduce_bytes

SAMPLED_STEPS, SAMPLED_COMPACT_STEPS = 3, 2
"""Steps of each way that is explored, after one that does not count; on a slow link a compact one takes four times as
long as a ternary one."""

WINDOW_STEPS, FIRST_STEPS = 5, 3
"""Steps from one look at the times to the next; and if the way was hardly ever seen, which may be a mistake."""

KEPT_TIMES, RECENT_TIMES = 9, 5
"""Of the chosen way, so many of its last times count; and of each other one, which is seen seldom."""

REVISIT_SHARE = 0.01
"""The share of time that looking at other ways again may cost, all of them together."""

REVISIT_WINDOWS = 4
"""Windows from one revisit to the next, at least, of ways that were seen since the last change."""

STEPS_AFTER_CHANGE = 2
"""At first, and when the times have changed, a look at each way may cost so many steps of the chosen way more."""

CHANGE, NOISES = 0.25, 3.0
"""A time is news if it differs from the expected one by that share of it, and by so many median deviations."""

MARGIN = 0.02
"""Another way is taken if it is expected to save that share of the time."""

LEAST_WIRE_SHARE = 0.01
"""The share of its time that the way with most bytes spends on them, at least: less cannot be told from noise."""


class Mode(IntEnum):
    """How a bucket travels."""

    DENSE = 0
    COMPACT = 1
    TERNARY = 2


Way = tuple[Mode, ...]
"""How all buckets of a step travel, in DDP's order; the last mode is also that of all buckets that follow."""

PURE: tuple[Way, ...] = tuple((mode,) for mode in Mode)

EXPLORATION: tuple[Way, ...] = (
    *[(Mode.TERNARY,)] * (1 + SAMPLED_STEPS),
    *[(Mode.COMPACT,)] * (1 + SAMPLED_COMPACT_STEPS),
)
"""The ways of the steps in which two are tried, once the mask is stable. Ternary comes first: on a slow link it is soon
over. Dense would take twenty times as long there, so it is looked at once it is expected not to be far off."""


def mode_of(way: Way, place: int) -> Mode:
    """How the bucket in that place travels."""
    return way[min(place, len(way) - 1)]


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
    """A step, as all ranks saw it together."""

    way: Way
    sync_s: float
    """From the first bucket's handing over to the end of the optimizer's step."""
    codec_s: float


class StepModel:
    """The time of a step: one that does not depend on its bytes, its bytes over a rate, and what its modes cost beside.

    ``t = a + bytes / rate + codec + extra``. A mode's codec takes a bucket time by its entries. What its collectives
    take beside their bytes, ``extra``, is the same for every bucket.
    """

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.buckets: tuple[Contents, ...] = ()
        self.base_s = 0.0
        self.seconds_per_byte = 0.0
        self.codec_s = dict.fromkeys(Mode, 0.0)
        """Of each mode, if all buckets travel so."""
        self.extra_s = dict.fromkeys(Mode, 0.0)
        """Likewise."""

    def expected_s(self, way: Way) -> float:
        """What a step should take."""
        return self.base_s + sum(self._bucket_s(mode, each) for mode, each in self._with_modes(way))

    def best_way(self) -> Way:
        """For each bucket the mode that should take it least time."""
        modes = [self._best_mode(each) for each in self.buckets]
        return tuple(modes) if len(set(modes)) > 1 else (modes[0],)

    def fit(self, measured: Mapping[Way, float]) -> None:
        """Fit to the times of some ways: all there is if all modes are among them, else what can have changed.

        Of one way alone: the rate. Of two modes or three: rate and ``a``, by medians of slopes and rests (Theil and
        Sen), so that one time that is off does no harm. What is left over of three is extra.
        """
        all_known = set(PURE) <= measured.keys()
        if all_known:
            self.extra_s = dict.fromkeys(Mode, 0.0)
        sent = {way: self._sent_bytes(way) for way in measured}
        rest_s = {way: measured_s - self._beside_s(way) for way, measured_s in measured.items()}
        slopes = [
            (rest_s[one] - rest_s[other]) / (sent[one] - sent[other])
            for one, other in combinations([way for way in measured if way in PURE], 2)
            if sent[one] != sent[other]
        ] or [(rest_s[way] - self.base_s) / sent[way] for way in measured]
        least = max(LEAST_WIRE_SHARE * measured_s / sent[way] for way, measured_s in measured.items())
        self.seconds_per_byte = max(least, statistics.median(slopes))
        bases_s = {way: rest_s[way] - self.seconds_per_byte * sent[way] for way in measured}
        self.base_s = statistics.median(bases_s.values())
        if all_known:
            self.extra_s = {way[0]: bases_s[way] - self.base_s for way in PURE}

    def _with_modes(self, way: Way) -> list[tuple[Mode, Contents]]:
        return [(mode_of(way, place), each) for place, each in enumerate(self.buckets)]

    def _best_mode(self, bucket: Contents) -> Mode:
        return min(Mode, key=lambda mode: self._bucket_s(mode, bucket))

    def _bucket_s(self, mode: Mode, bucket: Contents) -> float:
        """What a bucket adds to a step."""
        entries = sum(each.entries for each in self.buckets)
        beside_s = self.codec_s[mode] * bucket.entries / entries + self.extra_s[mode] / len(self.buckets)
        return beside_s + self.seconds_per_byte * bucket.sent_bytes(mode, self.world_size)

    def _sent_bytes(self, way: Way) -> float:
        return sum(each.sent_bytes(mode, self.world_size) for mode, each in self._with_modes(way))

    def _beside_s(self, way: Way) -> float:
        """Codec and extra."""
        return self.expected_s(way) - self.base_s - self.seconds_per_byte * self._sent_bytes(way)


class Policy:
    """Chooses a way, stays with it while nothing better is in sight, and looks at the others from time to time.

    A way is expected to take what it took since links and computation last changed; what the model says, if it was not
    taken since then. A change is seen in the way that is taken, whether its steps get slower or faster. The model lays
    it to the links. Where that is wrong, the way that is then taken shows it within a window, because it is compared
    with what the one before it has really taken.

    Another way is looked at again when what that should cost, and all that it has cost so far, is within its part of
    ``REVISIT_SHARE``: a way that is nearly as good often, one that is far off seldom. After a change little is known of
    the others, least of all after a slow link, on which bytes hide all else; so a little more is granted then.
    """

    def __init__(self, world_size: int) -> None:
        self.model = StepModel(world_size)
        self.way: Way = (Mode.COMPACT,)
        self._times: dict[Way, deque[float]] = {}
        """Since the last change."""
        self._credit_s = dict.fromkeys(PURE, 0.0)
        self._visited_at = dict.fromkeys(PURE, 0)
        self._windows = 0
        self._last_way: Way | None = None

    def begin(self, samples: Sequence[Sample], buckets: Sequence[Contents]) -> None:
        """Learn from the steps of the exploration, and of the warm-up before it, and make the first choice."""
        counted = self._settled(samples)
        self.model.buckets = tuple(buckets)
        for way in {each.way for each in counted}:
            self.model.codec_s[way[0]] = statistics.median(each.codec_s for each in counted if each.way == way)
        self._remember(counted)
        self.model.fit(self._measured())
        self.way = min(self._candidates(), key=self.expected_s)
        self._grant(STEPS_AFTER_CHANGE * self.expected_s(self.way))

    def review(self, samples: Sequence[Sample], buckets: Sequence[Contents]) -> None:
        """Look at the steps since the last review, and choose."""
        self._windows += 1
        if self.model.buckets != tuple(buckets):  # pruned again, or regrouped
            self.model.buckets = tuple(buckets)
            self._times.clear()
        counted = self._settled(samples)
        own_s = [each.sync_s for each in counted if each.way == self.way]
        if self._has_changed(own_s):
            self._times.clear()
            self._grant(STEPS_AFTER_CHANGE * statistics.median(own_s))
            counted = [each for each in counted if each.way == self.way]  # a revisit may have been before the change
        self._remember(counted)
        if self._times:
            self.model.fit(self._measured())
        self._book(samples)
        best = min(self._candidates(), key=self.expected_s)
        if self.expected_s(best) < (1 - MARGIN) * self.expected_s(self.way):
            self.way = best

    def schedule(self) -> list[Way]:
        """The ways of the steps until the next review."""
        if len(self._times.get(self.way, ())) < FIRST_STEPS:
            return [self.way] * FIRST_STEPS
        usual = [self.way] * WINDOW_STEPS
        due = [way for way in PURE if way != self.way and self._is_due(way)]
        if not due:
            return usual
        visited = min(due, key=lambda way: self._visited_at[way])
        self._visited_at[visited] = self._windows
        return [visited, visited, *usual]

    def expected_s(self, way: Way) -> float:
        """What a step of that way should take."""
        return self._measured().get(way) or self.model.expected_s(way)

    def _candidates(self) -> list[Way]:
        return [self.way, *PURE, self.model.best_way()]

    def _measured(self) -> dict[Way, float]:
        return {
            way: statistics.median(times if way == self.way else list(times)[-RECENT_TIMES:])
            for way, times in self._times.items()
        }

    def _settled(self, samples: Sequence[Sample]) -> list[Sample]:
        """Those that follow one of the same way: the first in another makes memory and wakes connections."""
        before = [self._last_way, *(each.way for each in samples)]
        self._last_way = before[-1]
        return [each for each, way in zip(samples, before, strict=False) if each.way == way]

    def _remember(self, samples: Sequence[Sample]) -> None:
        for each in samples:
            self._times.setdefault(each.way, deque(maxlen=KEPT_TIMES)).append(each.sync_s)

    def _has_changed(self, own_s: Sequence[float]) -> bool:
        """Whether the chosen way's times say that what was measured before does not hold any more.

        That it is slower than expected says so only if it was expected from a window of its own. If it was just
        chosen, it may be the expectation that was wrong.
        """
        if not own_s:
            return False
        known_s = self._times.get(self.way, deque())
        seen_s, expected_s = statistics.median(own_s), self.expected_s(self.way)
        noise_s = statistics.median(abs(each - expected_s) for each in known_s) if known_s else 0.0
        if abs(seen_s - expected_s) <= max(CHANGE * expected_s, NOISES * noise_s):
            return False
        return seen_s < expected_s or len(known_s) >= WINDOW_STEPS - 1

    def _is_due(self, way: Way) -> bool:
        """Whether a revisit is due and should not cost too much: one step that does not count, and one that does."""
        if way in self._times and self._windows < max(self._visited_at.values()) + REVISIT_WINDOWS:
            return False
        return 2 * (self.expected_s(way) - self.expected_s(self.way)) <= self._credit_s[way]

    def _grant(self, seconds: float) -> None:
        """Let a look at each way cost so much more."""
        for way in PURE:
            self._credit_s[way] += seconds

    def _book(self, samples: Sequence[Sample]) -> None:
        """Grant every way its part of the time that has passed; charge it what its revisit has cost."""
        others = [way for way in PURE if way != self.way]
        for way in others:
            self._credit_s[way] += REVISIT_SHARE * sum(each.sync_s for each in samples) / len(others)
        for each in samples:
            if each.way in others:
                self._credit_s[each.way] -= max(0.0, each.sync_s - self.expected_s(self.way))
