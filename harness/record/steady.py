"""Where the steps of a trial have settled, and whether enough are left to tell a throughput by.

What follows a declared warm-up and is still unlike the rest is left out.

A method declares where its steady state begins. A machine may need longer: caches, TCP's pace, a burst that the token
bucket had saved. The rule looks at the steps' times alone, so that it favours no method.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

WINDOW = 3
FENCE = 1.5
FEWEST = 12
"""Steps below which the quartiles of one half say too little."""

FEWEST_STEPS, FEWEST_S = 10, 0.25
"""Steady steps and seconds on the training clock below which no throughput is told, since single timer
ticks and segments sent again would decide it."""

FEWEST_REPLAYED = 3
"""Steps of a replay, whose computation takes equally long each time; however short they are told."""


def is_long_enough(steps: int, seconds: float, is_replay: bool) -> bool:
    """Whether so much of a steady state tells a throughput."""
    return steps >= FEWEST_REPLAYED if is_replay else steps >= FEWEST_STEPS and seconds >= FEWEST_S


def settling_steps(step_s: Sequence[float], period: int = 1) -> int:
    """How many of the first steps have not settled; at most half of them.

    The second half of the steps sets two fences, 1.5 interquartile ranges outside its quartiles (Tukey, 1977). Steps
    have settled with the first one that lies between them, and with it the median of it and the next two. So one step
    that is late by chance, further on, drops nothing.

    Args:
        step_s: the steps' times in their order, from where the steady state is declared to begin.
        period: of a method that sends once in so many steps; whole periods are dropped, so that what is left holds
            as many sending steps as it should.
    """
    times_s = np.asarray(step_s, dtype=float)
    half = len(times_s) // 2
    if len(times_s) < FEWEST:
        return 0
    first_quartile, third_quartile = np.percentile(times_s[half:], [25, 75])
    margin = FENCE * (third_quartile - first_quartile)

    def usual(time_s: float) -> bool:
        return bool(first_quartile - margin <= time_s <= third_quartile + margin)

    settled = (
        step
        for step in range(0, half, period)
        if usual(times_s[step]) and usual(float(np.median(times_s[step : step + WINDOW])))
    )
    return next(settled, half // period * period)
