"""Times to a target that some trials never reached."""

from __future__ import annotations

import math
from typing import NamedTuple

import pandas as pd

from harness.plan.status import DONE, MISSES


class TimeToTarget(NamedTuple):
    """When a method reached the target, in seconds of training."""

    reached: int
    of: int
    """How many trained to their cap, diverged or timed out; those that missed are counted here, not dropped."""
    median_s: float | None
    """The median over all. One that never reached it counts as slowest. None where the median is thus unknown."""

    @property
    def surely(self) -> bool:
        """Whether every round reached it: of anything less no ratio is made."""
        return 0 < self.of == self.reached


def time_to_target(trained: pd.DataFrame) -> TimeToTarget:
    """When trials reached the target; one that never did, diverged or timed out, counts as later than all that did."""
    times_s = trained["time_to_target_s"].where(~trained["status"].isin(MISSES)).astype(float)
    median_s = float(times_s.fillna(math.inf).median()) if len(times_s) else math.inf
    return TimeToTarget(int(times_s.notna().sum()), len(times_s), median_s if math.isfinite(median_s) else None)


def trained_trials(trials: pd.DataFrame, label: str) -> pd.DataFrame:
    """Status and times of a method's trials that tell whether it reaches the target: done, or one of ``MISSES``."""
    telling = (trials["label"] == label) & trials["target"].notna() & trials["status"].isin([DONE, *MISSES])
    return trials[["status", "time_to_target_s"]][telling]
