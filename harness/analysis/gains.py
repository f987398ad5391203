"""What a method gains over a baseline: in time to the target, and in throughput."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd

from harness.analysis.estimates import Estimate, geometric_mean
from harness.analysis.pairs import paired_ratios, paired_speedup
from harness.analysis.targets import TimeToTarget


class Gain(NamedTuple):
    """How many times better a method is than a baseline, paired within rounds; None where that is not known."""

    time_to_target: Estimate | None
    """None also where either missed the target in any round."""
    throughput: Estimate | None


def gain(trials: pd.DataFrame, label: str, baseline: str, times: Mapping[str, TimeToTarget]) -> Gain:
    """How many times better a method is than a baseline, in trials of one case.

    Of the time to the target no ratio is made where either missed it in any round: the rounds that are left would be
    the lucky ones.

    Args:
        times: to the target, by label.
    """
    ratios = paired_ratios(trials, baseline, label, "time_to_target_s")
    sooner = (
        geometric_mean(ratios.to_numpy()) if times[label].surely and times[baseline].surely and len(ratios) else None
    )
    return Gain(sooner, paired_speedup(trials, label, baseline))
