"""Runs of one scenario on different kinds of cluster, side by side: the same speed, the same curve, the same bits?

A curve is the same when the trials of a method in a round, which share their seed, show the same accuracies after the
same steps, to the last bit. That is to be expected of the same build of torch on the same CPU, and of nothing less; so
the builds stand beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from harness.analysis.cases import case_results
from harness.analysis.trials import CASE_COLUMNS, on_links
from harness.errors import UsageError
from harness.record.store import Store, require_done

Curves = dict[str, list[tuple[int, float]]]
"""The accuracies of each trial by step, exactly."""

PAIRED_BY = [*(column for column in CASE_COLUMNS if column != "cluster"), "label"]
"""Columns in which trials of the two runs must agree, beside round and seed."""


@dataclass(frozen=True)
class Line:
    """One method in one case, on the second cluster against the first."""

    case: str
    label: str
    rounds: int
    """How many rounds finished on both."""
    samples_per_s: tuple[float, float]
    """Medians over those rounds, on either cluster."""
    same_curves: int | None
    """How many rounds had exactly the same accuracies; None: there are none, as in replays."""
    same_parameters: int
    """How many rounds ended with the same parameters."""

    @property
    def ratio(self) -> float:
        """The second's samples/s over the first's."""
        return self.samples_per_s[1] / self.samples_per_s[0]


def compare(first: Store, second: Store) -> list[Line]:
    """Line up what finished in both runs, method by method.

    Raises:
        UsageError: they are runs of different scenarios, or share no trial.
        MeasurementError: one of them measured nothing.
    """
    scenario = first.scenario()
    if scenario != second.scenario():
        raise UsageError(f"{second.folder}: not a run of the same scenario as {first.folder}")
    left, right = (on_links(require_done(store.trials(), store.folder)) for store in (first, second))
    pairs = left.merge(right, on=[*PAIRED_BY, "round", "seed"], suffixes=("_1", "_2"))
    if pairs.empty:
        raise UsageError(f"{second.folder}: no trial finished both here and in {first.folder}")
    curves = _curves(first) | _curves(second)
    lines = []
    for case in case_results(first.trials(), scenario):
        for method in scenario.methods:
            own = case.trials.loc[case.trials["label"] == method.label, "trial_id"]
            if len(rows := pairs[pairs["trial_id_1"].isin(own)]):
                lines.append(_line(case.title, method.label, rows, curves))
    return lines


def _line(case: str, label: str, pairs: pd.DataFrame, curves: Curves) -> Line:
    return Line(
        case=case,
        label=label,
        rounds=len(pairs),
        samples_per_s=(float(pairs["samples_per_s_1"].median()), float(pairs["samples_per_s_2"].median())),
        same_curves=_same_curves(pairs, curves),
        same_parameters=int((pairs["parameter_hash_1"] == pairs["parameter_hash_2"]).sum()),
    )


def _same_curves(pairs: pd.DataFrame, curves: Curves) -> int | None:
    both = [
        (curves.get(one), curves.get(two)) for one, two in zip(pairs["trial_id_1"], pairs["trial_id_2"], strict=True)
    ]
    return sum(one == two for one, two in both) if any(one or two for one, two in both) else None


def _curves(store: Store) -> Curves:
    events = store.events()
    accuracies = events[events["kind"] == "accuracy"].sort_values("step")
    return {
        str(trial_id): list(rows[["step", "value"]].itertuples(index=False, name=None))
        for trial_id, rows in accuracies.groupby("trial_id")
    }
