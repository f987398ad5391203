"""What a method gains over a baseline: in time to the target, and in throughput."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from harness.analysis.estimates import Estimate, geometric_mean
from harness.analysis.pairs import paired_ratios, paired_speedup
from harness.analysis.targets import time_to_target, trained_trials


class Gain(NamedTuple):
    """How many times better a method is than a baseline, paired within rounds; None where that is not known."""

    time_to_target: Estimate | None
    """None also where either missed the target in any round."""
    throughput: Estimate | None


def gain(trials: pd.DataFrame, label: str, baseline: str) -> Gain:
    """How many times better a method is than a baseline, in trials of one case.

    Of the time to the target no ratio is made where either missed it in any round: the rounds that are left would be
    the lucky ones.
    """
    times = [time_to_target(trained_trials(trials, each)) for each in (label, baseline)]
    ratios = paired_ratios(trials, baseline, label, "time_to_target_s")
    sooner = geometric_mean(ratios.to_numpy()) if all(each.surely for each in times) and len(ratios) else None
    return Gain(sooner, paired_speedup(trials, label, baseline))
