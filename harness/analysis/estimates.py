"""A mean and how sure it is: estimates with their intervals, and spreads. Everything is pure.

Intervals were chosen by simulation, which is kept as a test.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import stdtrit  # the quantile of Student's t, without the slow import of scipy.stats

CONFIDENCE = 0.95

LARGEST_LOG = 700.0
"""Logarithms whose numbers a float can still hold, and their reciprocals."""


class Estimate(NamedTuple):
    """A mean over ``n`` rounds and its interval, of ``CONFIDENCE`` by default; one round gives no interval."""

    value: float
    low: float | None
    high: float | None
    n: int

    def exp(self) -> Estimate:
        """The geometric mean and its interval, where this is the mean of logarithms."""
        low, high = (None if end is None else _exp(end) for end in (self.low, self.high))
        return Estimate(_exp(self.value), low, high, self.n)

    def surely_exceeds_one(self, candidates: int = 1) -> bool:
        """Whether a geometric mean is above 1 beyond doubt, even if it was chosen as the best of so many.

        The best of many is above 1 by luck more often than one is. So its interval must hold with as many times less
        error (Bonferroni's inequality).
        """
        if not self.low or self.low <= 1:
            return False
        alone, chosen = (stdtrit(self.n - 1, 1 - (1 - CONFIDENCE) / 2 / many) for many in (1, candidates))
        return math.log(self.value) > math.log(self.value / self.low) * float(chosen / alone)


class Spread(NamedTuple):
    """A mean over rounds, and the extremes."""

    mean: float
    low: float
    high: float


def _exp(log: float) -> float:
    return math.exp(max(-LARGEST_LOG, min(log, LARGEST_LOG)))


def quotient(one: float, other: float) -> float:
    """One over the other; NaN over 0."""
    return float(one) / float(other) if other else math.nan


def geometric_mean(values: Sequence[float] | np.ndarray[Any, Any]) -> Estimate:
    """The geometric mean of positive values, with a t interval on their logarithms.

    With five values a t interval covers the truth at least as often as it says, also where single trials are much too
    slow and the machine drifts; the percentile bootstrap does so in five cases of six (``tests/unit/test_stats.py``).

    Raises:
        ValueError: there are no values, or one is not positive and finite.
    """
    values = np.asarray(values, dtype=float)
    if not len(values) or not np.all((values > 0) & np.isfinite(values)):
        raise ValueError(f"positive finite values are needed, not {values.tolist()}")
    found = mean(np.log(values))
    assert found
    return found.exp()


def mean(values: Sequence[float] | np.ndarray[Any, Any], confidence: float = CONFIDENCE) -> Estimate | None:
    """The mean of values of any sign, with a t interval of this confidence; None where there are none."""
    values = np.asarray(values, dtype=float)
    if not len(values):
        return None
    middle, n = float(values.mean()), len(values)
    if n == 1:
        return Estimate(middle, None, None, n)
    half = float(stdtrit(n - 1, (1 + confidence) / 2) * values.std(ddof=1) / math.sqrt(n))
    return Estimate(middle, middle - half, middle + half, n)


def spread(values: pd.Series[float]) -> Spread | None:
    """Mean and extremes of the values that are known; None where none is."""
    known = values.dropna()
    return Spread(float(known.mean()), float(known.min()), float(known.max())) if len(known) else None
