"""How models became good: figures of evaluations over training, and times to any target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from harness.analysis.cases import CaseResult, per_case
from harness.plan.status import DONE, MISSES
from harness.scenario.target import EVENT_KINDS, Evaluation, Metric, Target, crossing

TARGETS = 81
"""Values of a metric at which a curve of times to any target is told."""


def learning_curves(cases: Sequence[CaseResult], events: pd.DataFrame, kind: str = "accuracy") -> pd.DataFrame:
    """A figure of evaluations over training, per case and method: mean, least and greatest over the finished rounds.

    Args:
        events: in the columns of ``EVENT_SCHEMA``.
        kind: of the events: ``accuracy``, or a language's ``perplexity``.

    Returns:
        A row a case, label and step, with ``step`` (done), ``time_s`` (mean training clock), the figure under the name
        of its kind, its ``_min`` and ``_max``, and ``rounds``.
    """
    evaluations = events.loc[events["kind"] == kind, ["trial_id", "step", "time_s", "value"]]
    return per_case(cases, lambda case: _curves_of(case, evaluations, kind))


def times_to_targets(cases: Sequence[CaseResult], events: pd.DataFrame) -> pd.DataFrame:
    """When each method would have reached any target: per case, method and value of the metric, the median of rounds.

    A value that some round missed has no row: where it misses, a method has no time.

    Args:
        events: in the columns of ``EVENT_SCHEMA``.

    Returns:
        A row a case, label and value, with ``metric``, ``value``, ``time_s`` (median training clock) and ``rounds``.
    """
    curves = {metric: _curves_by_trial(events, EVENT_KINDS[metric]) for metric in set(map(_metric_of, cases))}
    return per_case(cases, lambda case: _times_to_targets_of(case, curves[_metric_of(case)]))


def _metric_of(case: CaseResult) -> Metric:
    return case.target.metric if case.target else "accuracy"


def _curves_by_trial(events: pd.DataFrame, kind: str) -> dict[str, list[Evaluation]]:
    """What the evaluations of each trial found, in the order of their steps."""
    found = events.loc[events["kind"] == kind, ["trial_id", "step", "time_s", "value"]].sort_values("step")
    curves: dict[str, list[Evaluation]] = {}
    for trial_id, *evaluation in found.itertuples(index=False, name=None):
        curves.setdefault(trial_id, []).append(Evaluation(*evaluation))
    return curves


def _times_to_targets_of(case: CaseResult, curves: Mapping[str, Sequence[Evaluation]]) -> pd.DataFrame:
    metric = _metric_of(case)
    trained = case.trials.loc[case.trials["status"].isin([DONE, *MISSES]), ["trial_id", "label", "status"]]
    own = [
        (label, curves.get(trial_id, []) if status == DONE else [])
        for trial_id, label, status in trained.itertuples(index=False, name=None)
    ]
    of_methods = {result.label: [curve for label, curve in own if label == result.label] for result in case.methods}
    found = [each.value for _, curve in own for each in curve]
    rows = []
    for value in np.linspace(min(found), max(found), TARGETS) if found else ():
        target = Target(metric, float(value))
        for label, of_rounds in of_methods.items():
            reached = [crossing(target, curve) for curve in of_rounds]
            times_s = [each.time_s for each in reached if each]
            if len(times_s) == len(reached) and any(times_s):  # not where all are as good from the start
                rows.append((label, metric, target.value, float(np.median(times_s)), len(reached)))
    return pd.DataFrame(rows, columns=["label", "metric", "value", "time_s", "rounds"])


def _curves_of(case: CaseResult, evaluations: pd.DataFrame, kind: str) -> pd.DataFrame:
    done = case.trials.loc[case.trials["status"] == DONE, ["trial_id", "label"]]
    grouped = evaluations.merge(done, on="trial_id").groupby(["label", "step"])
    over_rounds = grouped["value"].agg(["mean", "min", "max", "size"])
    over_rounds.columns = pd.Index([kind, f"{kind}_min", f"{kind}_max", "rounds"])
    return grouped["time_s"].mean().to_frame().join(over_rounds).reset_index()
