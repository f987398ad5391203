"""Ratios between trials of one round and case, which share their seed and their moment on the machine."""

from __future__ import annotations

import math

import pandas as pd

from harness.analysis.estimates import Estimate, geometric_mean
from harness.plan.status import DONE


def paired_ratios(trials: pd.DataFrame, label: str, baseline: str, column: str = "samples_per_s") -> pd.Series[float]:
    """The method's figure over the baseline's, by round: of rounds in which both finished, in order.

    Where one of them is 0, such as the time to a target that the first evaluation finds reached, there is no ratio.
    """
    done, labels = (trials["status"] == DONE).to_numpy(), trials["label"].to_numpy()
    figures = pd.Series(trials[column].to_numpy(dtype=float), trials["round"])
    own, base = (figures[done & (labels == each)] for each in (label, baseline))
    ratios: pd.Series[float] = own / base
    return ratios[(ratios > 0) & (ratios < math.inf)].sort_index()


def paired_speedup(trials: pd.DataFrame, label: str, baseline: str) -> Estimate | None:
    """How many times the samples per second of ``baseline`` the method ``label`` has, in trials of one case.

    The ratios are taken within each round in which both finished; None where there is no such round.
    """
    ratios = paired_ratios(trials, label, baseline)
    return geometric_mean(ratios.to_numpy()) if len(ratios) else None
