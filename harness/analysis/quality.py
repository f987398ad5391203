"""Whether a method's model is as good as the baseline's in the end.

Where the rounds leave that unknown, further seeds may be trained: then it is looked at twice, after the rounds and
after the last seed. With intervals of 95 % at both, a method whose truth lies at the tolerance would be told to keep
accuracy in more runs than the 2.5 % that are meant, and in as many not to. So the error is spent evenly over the looks.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import pandas as pd

from harness.analysis.estimates import CONFIDENCE, Estimate, mean
from harness.plan.status import DIVERGED, LEARNT
from harness.scenario.target import FINAL_COLUMNS, Metric

Keeps = Literal["yes", "no", "unknown"]


class Quality(NamedTuple):
    """Whether a method's model is as good as the baseline's in the end, by pairs that share their seed."""

    metric: Metric
    difference: Estimate | None
    """The final metric minus the baseline's. For accuracies it is a share of all samples, for a loss or a perplexity a
    share of the baseline's size. None where no seed was trained by both."""
    keeps: Keeps


def confidence_of_a_look(rounds: int, most_seeds: int) -> float:
    """That of the interval at each look, so that all together err as seldom as one of ``CONFIDENCE`` (Bonferroni).

    Args:
        rounds: seeds at the first look.
        most_seeds: those at the second one; no more than the rounds: there is one look.
    """
    return 1 - (1 - CONFIDENCE) / (2 if most_seeds > rounds else 1)


def quality(
    trials: pd.DataFrame,
    label: str,
    baseline: str,
    metric: Metric,
    tolerance: float,
    confidence: float = CONFIDENCE,
) -> Quality:
    """Whether a method's final metric is within the tolerance of the baseline's, by all seeds that both trained.

    ``yes`` and ``no`` are said only where the whole interval of the mean difference agrees; of one seed nothing is
    said. A method that diverged with any seed does not keep accuracy.

    Args:
        trials: of one workload, further seeds included.
        confidence: of the interval, see ``confidence_of_a_look``.
    """
    column = FINAL_COLUMNS[metric]
    learnt = trials[["label", "round", column]][trials["status"].isin(LEARNT)]
    own, base = (learnt[learnt["label"] == each].set_index("round")[column] for each in (label, baseline))
    pairs = pd.DataFrame({"own": own, "base": base}, dtype=float).dropna()
    differences = pairs["own"] - pairs["base"]
    relative = differences if metric == "accuracy" else differences / pairs["base"].abs()
    found = mean(relative.to_numpy(), confidence)
    diverged = ((trials["label"] == label) & (trials["status"] == DIVERGED)).any()
    return Quality(metric, found, "no" if diverged else kept(found, metric, tolerance))


def kept(difference: Estimate | None, metric: Metric, tolerance: float) -> Keeps:
    """What a difference to the baseline's final metric says, see ``quality``."""
    if difference is None or difference.low is None or difference.high is None:
        return "unknown"
    worse = (-difference.high, -difference.low) if metric == "accuracy" else (difference.low, difference.high)
    if worse[1] <= tolerance:
        return "yes"
    return "no" if worse[0] > tolerance else "unknown"
