"""Segments that are passed on over one hop after the other, in time: token buckets, delays, two under way at once."""

from __future__ import annotations

import math
from typing import NamedTuple

SAME = 1e-9
"""Share of a segment's time by which two rhythms may differ and be the same."""


class Lane(NamedTuple):
    """One direction of a link."""

    bytes_per_s: float
    """Infinite where it has no rate."""
    saved_s: float
    """For how long its token bucket saves while nothing passes."""
    delay_s: float

    def bytes_saved(self, idle_s: float) -> float:
        """What passes at once after so long a silence."""
        return self.bytes_per_s * min(self.saved_s, idle_s) if self.saved_s else 0.0


class Hop(NamedTuple):
    """The way from a worker to its neighbour."""

    lanes: tuple[Lane, ...]
    there_s: float
    """Its delay, and that of the way back."""
    back_s: float

    @property
    def bytes_per_s(self) -> float:
        """Rate of the slowest lane."""
        return min(lane.bytes_per_s for lane in self.lanes)

    @property
    def saved_s(self) -> float:
        """For how long the slowest lane saves."""
        return min(self.lanes, key=lambda lane: lane.bytes_per_s).saved_s

    def longest_s(self, size: float) -> float:
        """Seconds that a message occupies the slowest lane."""
        return size / self.bytes_per_s


def pipeline(hop: Hop, size: float, segments: int, rounds: int, idle_s: float, message_s: float) -> tuple[float, float]:
    """When workers that all pass on segments over such hops have received the last one.

    A worker asks for a segment, and sends its own, as soon as the one before the last has arrived. A lane is a token
    bucket, told by its theoretical arrival time (ITU-T I.371, the generic cell rate algorithm): how late it would be,
    had it saved nothing.

    Args:
        size: bytes on the wire of a segment.
        segments: how many each worker receives in a round.
        rounds: how often; none begins before the last has ended.
        idle_s: for how long the lanes have been silent before.
        message_s: what waking processes costs a segment.

    Returns:
        Seconds; and for how long the slowest lane has been silent then, or might as well have been.
    """
    lanes = [(size / lane.bytes_per_s, lane.saved_s) for lane in hop.lanes if not math.isinf(lane.bytes_per_s)]
    late = [-min(saved_s, idle_s) for _, saved_s in lanes]
    ended_s = 0.0
    for _ in range(rounds):
        ended_s, late = _round(hop, lanes, late, ended_s, segments, message_s)
    rested_s = [
        ended_s - each for each, (takes_s, _) in zip(late, lanes, strict=True) if takes_s == hop.longest_s(size)
    ]
    return ended_s, min(rested_s, default=math.inf)


def _round(
    hop: Hop, lanes: list[tuple[float, float]], late: list[float], now_s: float, segments: int, message_s: float
) -> tuple[float, list[float]]:
    """When the last of so many segments has arrived, and how late the lanes are then."""
    before_last_s = last_s = now_s
    seen: list[float] = []
    left = segments
    while left:
        start_s = before_last_s + hop.back_s
        late = [max(each, start_s - saved_s) + takes_s for each, (takes_s, saved_s) in zip(late, lanes, strict=True)]
        arrived_s = max(start_s, *late, start_s) + hop.there_s + message_s
        before_last_s, last_s, left = last_s, max(arrived_s, last_s), left - 1
        # Two segments on, all may be as it was, only later; then it goes on like this.
        state = [last_s, before_last_s, *late]
        if left % 2 == 0:
            if seen and (more_s := _all_later_s(seen, state)) is not None:
                pairs = left // 2
                return last_s + pairs * more_s, [each + pairs * more_s for each in late]
            seen = state
    return last_s, late


def _all_later_s(before: list[float], now: list[float]) -> float | None:
    """By how much all moments are later, if that is the same for all."""
    more_s = [later - earlier for earlier, later in zip(before, now, strict=True)]
    return more_s[0] if max(more_s) - min(more_s) <= SAME * max(more_s) else None
