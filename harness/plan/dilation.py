"""How many times slower than it is told a trial runs, and what is taken off its times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from harness.scenario.section import Section

LADDER = tuple(factor * 2.0**power for power in range(-4, 7) for factor in (1.0, 1.5) if factor * 2.0**power <= 64)
"""The dilations that a run chooses from: not too many, since each takes a network that is built and measured."""

MOST_ADDED = 0.05
"""Share of a step that this machine may add to it, since it is taken off."""

LOOK_S, NEAR_STEPS, FAR_STEPS = 4.0, (4, 48), (3, 6)
"""Steps that are looked at take about so long together, within these numbers: those slowed much vary little."""

FAR, NEAR, LONG_S = 4, 2, 4.0
"""How many times slower the steps are that others are put beside: where they would take so long, only twice."""

FEWEST = 2
"""Steps of either kind where each takes so long: what varies are the same few milliseconds, a small share of them."""


class Phase(Section):
    """A part of a warm-up."""

    from_step: int = Field(ge=0)
    dilation: float = Field(gt=0)


class Dilation(Section):
    """See the module."""

    steady: Annotated[float, Field(gt=0)] = 1.0
    """How many times slower everything runs in the steady state."""
    phases: Annotated[tuple[Phase, ...], Field(strict=False)] = ()
    """Where parts of the warm-up run at another one: all parts, from step 0 on, the steady state last."""
    added_s: Annotated[float, Field(ge=0)] = 0.0
    """Real seconds that this machine adds to a step, however much slower it runs. They are taken off."""

    def at(self, step: int) -> float:
        """How many times slower a step runs."""
        return next((phase.dilation for phase in reversed(self.phases) if phase.from_step <= step), self.steady)

    def taken_off_s(self, step: int) -> float:
        """What is taken off a step, in the seconds that are told."""
        return self.added_s / self.at(step)


def on_the_ladder(dilation: float) -> float:
    """The least of ``LADDER`` that is not below it; the last where none is."""
    return next((rung for rung in LADDER if rung >= dilation), LADDER[-1])


def phases_of_warmup(step_s: Sequence[float], steady: float, real_s: float) -> tuple[Phase, ...]:
    """The parts of a warm-up that need not be slowed as much as the steady state, since their steps are longer.

    Args:
        step_s: seconds of each of its steps, undilated.
        steady: the dilation of the steady state.
        real_s: what a step may take in real time at least.

    Returns:
        All parts, and the steady state after them; none where that differs nowhere.
    """
    slowed = [min(steady, on_the_ladder(real_s / each_s)) for each_s in step_s]
    if set(slowed) <= {steady}:
        return ()
    changes = [step for step in range(len(slowed)) if step == 0 or slowed[step] != slowed[step - 1]]
    parts = [Phase(from_step=step, dilation=slowed[step]) for step in changes]
    return (*parts, Phase(from_step=len(slowed), dilation=steady))


def probe_steps(real_s: float, period: int = 1) -> tuple[int, int, int]:
    """How a run looks at a dilation: so many steps at it, and beside them at one so many times greater, so many.

    Args:
        real_s: what a step takes at the first one, in real time.
        period: of a method that sends once in so many steps, which must be seen.
    """
    if real_s > LONG_S:
        return max(FEWEST, period), NEAR, max(FEWEST, period)
    farther = FAR if FAR * real_s < LONG_S else NEAR
    return _within(NEAR_STEPS, real_s, period), farther, _within(FAR_STEPS, farther * real_s, period)


def _within(fewest_and_most: tuple[int, int], real_s: float, period: int) -> int:
    fewest, most = fewest_and_most
    steps = min(most, max(fewest, round(LOOK_S / real_s)))
    return math.ceil(steps / period) * period
