"""What adaptive PacTrain would do, and what a fixed choice takes, where the time of a step follows from its way."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Protocol

from baselines._choice import EXPLORATION, SAMPLED_STEPS, Contents, Mode, Policy, Sample, Way

DENSE: Way = (Mode.DENSE,)


class Links(Protocol):
    """Steps over some links."""

    buckets: Sequence[Contents]
    now_s: float
    """What has passed so far."""

    def step(self, way: Way) -> Sample:
        """Make one, as all ranks see it together."""


def adaptive_steps(links: Links, policy: Policy, warmup_steps: int) -> Iterator[Way]:
    """Train for as long as anyone asks; the way of each step. What is told travels beside one more step."""
    warm = []
    for _ in range(warmup_steps):
        warm.append(links.step(DENSE))
        yield DENSE
    samples = warm[-1 - SAMPLED_STEPS :] if warmup_steps >= 2 + SAMPLED_STEPS else []
    for way in EXPLORATION:
        samples.append(links.step(way))
        yield way
    policy.begin(samples, links.buckets)
    samples = []
    while True:
        for way in policy.schedule():
            samples.append(links.step(way))
            yield way
        told, samples = samples, [links.step(policy.way)]
        yield policy.way
        policy.review(told, links.buckets)


def fixed_steps(links: Links, way: Way, warmup_steps: int) -> Iterator[Way]:
    """The same with one way from the end of the warm-up on."""
    for step in itertools.count():
        now = DENSE if step < warmup_steps else way
        links.step(now)
        yield now


def seconds_of(steps: int, ways: Iterator[Way], links: Links) -> float:
    """How long so many steps take."""
    for _ in itertools.islice(ways, steps):
        pass
    return links.now_s
