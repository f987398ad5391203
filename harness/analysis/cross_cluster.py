"""Runs of one scenario on different kinds of cluster, side by side: the same speed, the same curve, the same bits?

A curve is the same when the trials of a method in a round, which share their seed, show the same accuracies after the
same steps, to the last bit. That is to be expected of the same build of torch on the same CPU, and of nothing less; so
the builds stand beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.errors import UsageError
from harness.record.store import Store, require_done

PAIRED_BY = ["rate_bps", "workers", "model", "dataset", "label"]
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
    same_curves: int
    """How many rounds had exactly the same accuracies."""
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
    if first.scenario() != second.scenario():
        raise UsageError(f"{second.folder}: not a run of the same scenario as {first.folder}")
    left, right = (require_done(store.trials(), store.folder) for store in (first, second))
    curves = _curves(first) | _curves(second)
    pairs = left.merge(right, on=[*PAIRED_BY, "round", "seed"], suffixes=("_1", "_2"))
    if pairs.empty:
        raise UsageError(f"{second.folder}: no trial finished both here and in {first.folder}")
    return [
        Line(
            case=f"{rows['workers'].iloc[0]} workers, {rows['model'].iloc[0]}",
            label=str(rows["label"].iloc[0]),
            rounds=len(rows),
            samples_per_s=(float(rows["samples_per_s_1"].median()), float(rows["samples_per_s_2"].median())),
            same_curves=sum(
                curves[one] == curves[two] for one, two in zip(rows["trial_id_1"], rows["trial_id_2"], strict=True)
            ),
            same_parameters=int((rows["parameter_hash_1"] == rows["parameter_hash_2"]).sum()),
        )
        for _, rows in pairs.groupby(PAIRED_BY, dropna=False, sort=False)
    ]


def _curves(store: Store) -> dict[str, list[tuple[int, float]]]:
    """The accuracies of each trial by step, exactly."""
    events = store.events()
    accuracies = events[events["kind"] == "accuracy"].sort_values("step")
    return {
        str(trial_id): list(rows[["step", "value"]].itertuples(index=False, name=None))
        for trial_id, rows in accuracies.groupby("trial_id")
    }
