"""Why a claim holds where it does: predicted speedups over the baseline, by the links' rate and the number of workers.

Predictions, not measurements: from the profile that a scenario replays, the methods' bytes and the graph of the links.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from harness.plan.plan import Plan
from harness.plan.trial import Trial

RATES_BPS = tuple(float(f"{rate:.3g}") for rate in np.geomspace(1e7, 2.5e10, 25))
"""Rates that are swept: 10 Mbit/s to 25 Gbit/s."""

WORKERS = (2, 4, 8, 16, 32)

RATE_OF_WORKERS_BPS = 1e9
"""The rate at which the number of workers varies."""


def speedups(plan: Plan) -> pd.DataFrame:
    """Predicted speedups of a replayed scenario's methods.

    Returns:
        A row a method, rate and number of workers: ``model``, ``replay``, ``label``, ``workers``, ``rate_bps``,
        ``step_s``, ``speedup`` over the scenario's baseline. Empty where the scenario trains for real.
    """
    some = next(iter(plan.trials), None)
    if some is None or not some.case.train.replay:
        return pd.DataFrame()
    trials = {method.label: some.model_copy(update={"method": method}) for method in plan.scenario.methods}
    own_workers = some.case.cluster.workers
    places = [(own_workers, rate_bps) for rate_bps in RATES_BPS]
    places += [(workers, RATE_OF_WORKERS_BPS) for workers in WORKERS if (workers, RATE_OF_WORKERS_BPS) not in places]
    return pd.DataFrame(row for place in places for row in _rows(trials, plan.scenario.baseline, *place))


def _rows(trials: dict[str, Trial], baseline: str, workers: int, rate_bps: float) -> Iterator[dict[str, object]]:
    moved = {label: _moved(trial, workers, rate_bps) for label, trial in trials.items()}
    steps_s = {label: trial.expected.predicted_step_s or math.nan for label, trial in moved.items()}
    for label, step_s in steps_s.items():
        yield {
            "model": trials[label].case.train.model,
            "replay": trials[label].case.train.replay,
            "label": label,
            "workers": workers,
            "rate_bps": rate_bps,
            "step_s": step_s,
            "speedup": steps_s[baseline] / step_s,
        }


def _moved(trial: Trial, workers: int, rate_bps: float) -> Trial:
    """The trial, whole, on so many workers with links of this rate, which really are as fast."""
    case = trial.case
    moved = {
        "cluster": case.cluster.model_copy(update={"workers": workers}),
        "link": case.link.model_copy(update={"rate_bps": round(rate_bps)}),
        "train": case.train.model_copy(update={"dilation": None, "shrink": 1}),
    }
    return trial.model_copy(update={"case": case.model_copy(update=moved)})
