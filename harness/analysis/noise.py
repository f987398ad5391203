"""How noisy the machine was: a ratio held against itself a round later."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from harness.analysis.cases import CaseResult
from harness.analysis.pairs import paired_ratios


class Noise(NamedTuple):
    """How much a ratio to the baseline differs from itself when nothing has changed."""

    sd: float
    """Standard deviation of the ratio's logarithm in one round; 0.02 reads as 2 %."""
    pairs: int
    """A/A pairs it was taken from."""


def noise_of_cases(cases: Sequence[CaseResult], baseline: str) -> Noise | None:
    """The machine's noise, from A/A pairs: each method's ratio to the baseline against the same a round later.

    Neighbours in time differ by noise alone, also where a machine drifts over the whole run. Of the methods' noise the
    median is taken: a method that is restless by nature says nothing of the machine. None where nothing has two rounds.
    """
    return noise_of_ratios(
        [
            paired_ratios(case.trials, result.label, baseline).to_numpy()
            for case in cases
            for result in case.methods
            if result.label != baseline
        ]
    )


def noise_of_ratios(ratios: Sequence[np.ndarray[Any, Any]]) -> Noise | None:
    """The same, given the ratios of each method in the order of their rounds."""
    jumps = [np.diff(np.log(each)) for each in ratios]
    own = [math.sqrt(float(np.mean(each**2)) / 2) for each in jumps if len(each)]
    return Noise(float(np.median(own)), sum(map(len, jumps))) if own else None
