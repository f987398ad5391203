"""How many times slower than it is told a trial runs, and what is taken off its times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from harness.scenario.section import Section

LADDER = tuple(factor * 2.0**power for power in range(-7, 9) for factor in (1.0, 1.5) if factor * 2.0**power <= 256)
"""The dilations that a run chooses from: not too many, since each takes a network that is built and measured."""

AIM, CALM = 0.8, 0.6
"""Of what this machine may add to a step (``train.most_added``): the part up to which a greater dilation is chosen; and
up to which a guess, or a smaller one: a trial that is run again costs more than one that is somewhat slower."""

LITTLE = 0.05
"""Share of a step up to which what is added is about the same at a smaller dilation. What is more grows as workers get
less time: of 3.4 % at a dilation of 0.1875 it was 22 % at half of that (dense, ResNet152, eight workers)."""

TOLERATED, OF_MOST_ADDED = 0.01, 0.2
"""Share of a step by which what is taken off may be wrong, as one standard error; or, where that is more, a part of
what may be added. Trials differ by it, so what several of them tell has an interval that holds it."""

FAR, NEAR, LONG_S = 4, 2, 2.0
"""How many times slower the steps are that others are put beside: where they would take so long, only twice."""

LOOK_S, FEW, MANY = 2.4, 4, 8
"""The slower steps take about so long together, within these numbers: what is slowed much varies little."""

FEWEST = 2
"""Steps of which a spread can be told."""

BESIDE = 24
"""How many steps before them, and as many after them, they are put beside at most."""


PROBE_S, FEWEST_OF_PROBE, MOST_OF_PROBE = 4.0, 4, 48
"""The steady steps of a short trial take about so long together, within these numbers."""


class Phase(Section):
    """A part of a warm-up."""

    from_step: int = Field(ge=0)
    dilation: float = Field(gt=0)


class Look(Section):
    """Steps of the steady state that run slower still: beside the others they show what this machine adds to a step."""

    from_step: int = Field(ge=0)
    steps: int = Field(ge=1)
    dilation: float = Field(gt=0)
    beside: int = Field(ge=1)
    """How many steps before them, and as many after them, they are put beside."""

    @property
    def end(self) -> int:
        """The first step after all that are looked at."""
        return self.from_step + self.steps + self.beside


class Dilation(Section):
    """See the module."""

    steady: Annotated[float, Field(gt=0)] = 1.0
    """How many times slower everything runs in the steady state."""
    phases: Annotated[tuple[Phase, ...], Field(strict=False)] = ()
    """Where parts of the warm-up run at another one: all parts, from step 0 on, the steady state last."""
    look: Look | None = None
    far: float | None = Field(default=None, gt=0)
    """Where it is put beside another trial that runs slower still: how much that one is slowed."""

    @property
    def changes(self) -> bool:
        """Whether it is not the same in all steps."""
        return bool(self.phases or self.look)

    @property
    def greatest(self) -> float:
        """How many times slower its slowest step runs."""
        looked_at = self.look.dilation if self.look else 0.0
        return max(self.steady, looked_at, *(phase.dilation for phase in self.phases))

    @property
    def slows_by(self) -> float:
        """How many times slower than in the steady state links become, in it or in the trial that it is put beside."""
        return max(self.greatest, self.far or 0.0) / self.steady

    def at(self, step: int) -> float:
        """How many times slower a step runs."""
        if self.look and self.look.from_step <= step < self.look.from_step + self.look.steps:
            return self.look.dilation
        return next((phase.dilation for phase in reversed(self.phases) if phase.from_step <= step), self.steady)


def tolerated(most_added: float) -> float:
    """Share of a step by which what is taken off may be wrong, where so much of a step may be."""
    return max(TOLERATED, OF_MOST_ADDED * most_added)


def rung(dilation: float) -> float:
    """The least of ``LADDER`` that is not below it; infinite where none is."""
    return next((each for each in LADDER if each >= dilation), math.inf)


def phases_of_warmup(step_s: Sequence[float], steady: float, real_s: float) -> tuple[Phase, ...]:
    """The parts of a warm-up that need not be slowed as much as the steady state, since their steps are longer.

    Args:
        step_s: seconds of each of its steps, undilated.
        steady: the dilation of the steady state.
        real_s: what a step may take in real time at least.

    Returns:
        All parts, and the steady state after them; none where that differs nowhere.
    """
    slowed = [min(steady, rung(real_s / each_s)) for each_s in step_s]
    if set(slowed) <= {steady}:
        return ()
    changes = [step for step in range(len(slowed)) if step == 0 or slowed[step] != slowed[step - 1]]
    parts = [Phase(from_step=step, dilation=slowed[step]) for step in changes]
    return (*parts, Phase(from_step=len(slowed), dilation=steady))


def look(first: int, end: int, dilation: float, step_s: float, period: int = 1) -> Look | None:
    """Which steps of a steady state run slower still, so that they show what this machine adds.

    Args:
        first: where the steady state begins.
        end: the number of all steps.
        dilation: that of the others.
        step_s: seconds of a step, undilated.
        period: of a method that sends once in so many steps, each of which must be seen.

    Returns:
        None where there are too few steps: each needs one like it on both sides.
    """
    farther = FAR if FAR * dilation * step_s < LONG_S else NEAR
    steps = whole_periods(min(MANY, max(FEW, round(LOOK_S / (farther * dilation * step_s)))), period)
    while (end - first - steps) // 2 < max(FEWEST, period) and steps > max(FEWEST, period):
        steps -= period
    beside = (end - first - steps) // 2 // period * period
    if beside < max(FEWEST, period):
        return None
    beside = min(beside, whole_periods(BESIDE, period))
    return Look(from_step=first + beside, steps=steps, dilation=farther * dilation, beside=beside)


def probed_at(dilation: float) -> Dilation:
    """That of a trial whose dilation short trials find, and of the faster one of these."""
    return Dilation(steady=dilation, far=FAR * dilation)


def probe_steps(dilation: float, step_s: float, period: int) -> int:
    """How many steps of the steady state a short trial makes.

    Args:
        step_s: seconds of a step, undilated.
        period: of a method that sends once in so many steps.
    """
    wanted = round(PROBE_S / (dilation * step_s))
    return whole_periods(min(MOST_OF_PROBE, max(FEWEST_OF_PROBE, wanted)), period)


def whole_periods(steps: int, period: int) -> int:
    """So many steps, or what is lacking to the next whole period more."""
    return math.ceil(steps / period) * period
