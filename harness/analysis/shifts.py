"""How much a quantity has shifted: means of logarithms, with Welch's error and degrees of freedom (1947)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from harness.analysis.estimates import CONFIDENCE, Estimate
from harness.analysis.noise import Noise
from harness.analysis.spreads import Usual, Variance

FEWEST_VALUES = 2
"""Rounds that each side must have: one value has no spread."""


class Shift(NamedTuple):
    """How the logarithm of a positive quantity differs between two sides."""

    log: float
    error: float | None
    """Standard error; None where a side has one round."""
    freedom: float
    """Degrees of freedom of the error."""
    n: int
    """Rounds on the side that has fewer."""

    def estimate(self, confidence: float = CONFIDENCE) -> Estimate:
        """The quantity after as a multiple of that before, with an interval of this confidence."""
        return Difference(self.log, self.error, self.freedom, self.n).estimate(confidence).exp()


class Difference(NamedTuple):
    """The mean of a quantity of any sign."""

    mean: float
    error: float | None
    """Standard error; None of one value."""
    freedom: float
    """Degrees of freedom of the error."""
    n: int
    """Values."""

    def estimate(self, confidence: float = CONFIDENCE) -> Estimate:
        """The mean, with an interval of this confidence."""
        if self.error is None:
            return Estimate(self.mean, None, None, self.n)
        half = half_width(self.error, self.freedom, confidence)
        return Estimate(self.mean, self.mean - half, self.mean + half, self.n)


def half_width(error: float, freedom: float, confidence: float) -> float:
    """How far a t interval reaches to either side of a mean with this standard error."""
    return float(stdtrit(freedom, (1 + confidence) / 2)) * error if error else 0.0


def log_shift(
    before: np.ndarray[Any, Any], after: np.ndarray[Any, Any], noise: tuple[Noise | None, Noise | None]
) -> Shift:
    """How the logarithm of a positive quantity differs between two runs.

    No side is taken to be quieter than the machine was: few rounds that agree by chance would make the error too
    small.

    Args:
        before: one value a round.
        after: likewise.
        noise: the machine's, before and after, if it is known.
    """
    sides = [np.log(before), np.log(after)]
    log, n = float(sides[1].mean() - sides[0].mean()), min(map(len, sides))
    if n < FEWEST_VALUES:
        return Shift(log, None, 0.0, n)
    deviations = [
        max(float(side.std(ddof=1)), each.sd if each else 0.0) for side, each in zip(sides, noise, strict=True)
    ]
    variances = [deviation**2 / len(side) for deviation, side in zip(deviations, sides, strict=True)]
    return Shift(log, *_welch(variances, [len(side) - 1 for side in sides]), n)


def paired_shift(ratios: np.ndarray[Any, Any], usual: Usual | None = None) -> Shift:
    """The shift that ratios of pairs show.

    Args:
        ratios: one a round.
        usual: what is known of the variance of logarithms of such ratios.
    """
    return Shift(*mean_difference(np.log(ratios), usual))


def mean_difference(values: np.ndarray[Any, Any], usual: Usual | None = None) -> Difference:
    """The mean of values, such as the differences of pairs.

    Args:
        values: one a round.
        usual: what is known of the variance of such values.
    """
    mean, n = float(values.mean()), len(values)
    if n < FEWEST_VALUES:
        return Difference(mean, None, 0.0, n)
    own = variance_of(values)
    variance = usual.beside(own) if usual else own
    return Difference(mean, math.sqrt(variance.value / n), variance.freedom, n)


def variance_of(values: np.ndarray[Any, Any]) -> Variance:
    """The variance of one of two or more values."""
    return Variance(float(values.var(ddof=1)), len(values) - 1)


def product(one: Shift, two: Shift) -> Shift:
    """The shift of the product of two independent quantities."""
    log, n = one.log + two.log, min(one.n, two.n)
    if one.error is None or two.error is None:
        return Shift(log, None, 0.0, n)
    return Shift(log, *_welch([one.error**2, two.error**2], [one.freedom, two.freedom]), n)


def _welch(variances: Sequence[float], freedoms: Sequence[float]) -> tuple[float, float]:
    """Error and degrees of freedom of a sum of two independent means; infinitely many where nothing varies."""
    weights = sum(variance**2 / freedom for variance, freedom in zip(variances, freedoms, strict=True))
    return math.sqrt(sum(variances)), sum(variances) ** 2 / weights if weights else math.inf
