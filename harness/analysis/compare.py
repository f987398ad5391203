"""What changed between two runs of one scenario: ratios to the baseline, bytes, accuracy, each with its interval.

What is compared is a method's speedup over the baseline of its own run, so that the two runs need not come from one
machine or one hour. What the processor did in a step is first put to the pace of the earlier run's machine
(``at_pace``): a baseline that waits for its link does not tell how fast a machine computes. Within a run ratios are
paired by round; between runs there is no pairing but the seed, which accuracies share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from harness.analysis.cases import CaseResult
from harness.analysis.estimates import Estimate, mean, quotient
from harness.analysis.methods import MethodResult
from harness.analysis.pairs import paired_ratios
from harness.analysis.reference import Measured, require_comparable
from harness.analysis.shifts import FEWEST_VALUES, Shift, log_shift
from harness.errors import EXIT_INCONCLUSIVE, EXIT_REGRESSION, MeasurementError
from harness.plan.status import DONE, LEARNT

Kind = Literal["faster", "slower", "no clear change", "unknown"]


@dataclass(frozen=True)
class Change:
    """One method in one case, before and after."""

    case: str
    label: str
    before: MethodResult | None
    """None: that side does not have the method."""
    after: MethodResult | None
    shift: Shift | None
    """How the speedup over the baseline has shifted."""
    absolute: Estimate | None
    """Samples per second after, as a multiple of those before: they speak of the method on the same machine alone."""
    accuracy: Estimate | None
    """Final accuracy after minus before, as a share, paired by seed; one seed gives no interval."""
    bytes_ratio: float | None
    """Payload a step after over before."""
    computing: float
    """How much longer the machine surely computes after than before, by the baseline's steps, beyond what the yardstick
    accounts for; 1: no difference seen."""
    unfinished: tuple[str, ...]
    """Trials after that did not finish, each as round, status and reason."""
    problem: str = ""
    """Why nothing can be said of the speedup, where that is so."""

    @property
    def speedup(self) -> Estimate | None:
        """The speedup over the baseline after, as a multiple of that before."""
        return self.shift.estimate() if self.shift else None

    @property
    def kind(self) -> Kind:
        """What the speedup's interval says, apart from what the machine explains."""
        if self.speedup is None or self.speedup.low is None or self.speedup.high is None:
            return "unknown"
        if self.speedup.high * max(self.computing, 1.0) < 1:
            return "slower"
        return "faster" if self.speedup.low * min(self.computing, 1.0) > 1 else "no clear change"


def changes(before: Measured, after: Measured) -> list[Change]:
    """All methods of all cases, the baseline first shown as it is: its speedup over itself cannot change.

    Raises:
        UsageError: the two are of different scenarios.
        MeasurementError: they have no case in common.
    """
    require_comparable(before, after)
    old_cases = {_hashable(case): case for case in before.cases}
    pairs = [(old_cases[_hashable(case)], case) for case in after.cases if _hashable(case) in old_cases]
    if not pairs:
        raise MeasurementError(f"{after.where} and {before.where} have measured no case in common")
    labels = dict.fromkeys(
        [method.label for method in after.scenario.methods] + [method.label for method in before.scenario.methods]
    )
    return [_change(before, after, case_pair, label) for case_pair in pairs for label in labels]


def exit_code(found: Sequence[Change], baseline: str) -> int:
    """0: nothing is clearly slower; 3: something is; 5: a method never finished; 4: of nothing can it be said."""
    kinds = {change.kind for change in found if change.label != baseline}
    if "slower" in kinds:
        return EXIT_REGRESSION
    if any(change.unfinished and change.after and change.after.done.empty for change in found):
        return MeasurementError.exit_code
    return EXIT_INCONCLUSIVE if kinds <= {"unknown"} else 0


def at_pace(trials: pd.DataFrame, yardstick_s: float) -> pd.DataFrame:
    """The same trials as a machine would have had them on which the yardstick takes so long (``meter.yardstick_s``).

    What the processor did in a step takes as many times longer as the yardstick does; all else stays as it was, and so
    does computation that a profile keeps the time of. Trials of which neither is known stay as they are.
    """
    pace = yardstick_s / trials["yardstick_s"]
    step_s = trials["workers"] * trials["batch_size"] / trials["samples_per_s"]
    longer = 1 + trials["processor_s_per_step"] / step_s * (pace - 1)
    computing = pace.where(trials["replay"].isna() & trials["pace"].isna(), 1.0)
    return trials.assign(
        samples_per_s=trials["samples_per_s"] / longer.fillna(1.0),
        compute_s_per_step=trials["compute_s_per_step"] * computing.fillna(1.0),
    )


def pace(before: Measured, after: Measured) -> float | None:
    """How many times as long the processor took for a fixed piece of work after as before; None where unknown."""
    slower = float(after.trials["yardstick_s"].mean() / before.trials["yardstick_s"].mean())
    return slower if math.isfinite(slower) else None


def _at_one_pace(cases: tuple[CaseResult, CaseResult]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The trials of both, at the mean pace of the earlier ones."""
    before, after = (case.trials for case in cases)
    yardstick_s = float(before["yardstick_s"].mean())
    return at_pace(before, yardstick_s), at_pace(after, yardstick_s)


def _change(before: Measured, after: Measured, cases: tuple[CaseResult, CaseResult], label: str) -> Change:
    baseline, is_baseline = after.scenario.baseline, label == after.scenario.baseline
    old, new = (_result(case, label) for case in cases)
    paced = _at_one_pace(cases)
    ratios = [paired_ratios(trials, label, baseline).to_numpy() for trials in paced]
    rates = [_column(case.trials, label, "samples_per_s") for case in cases]
    noise = before.noise, after.noise
    return Change(
        case=cases[1].title,
        label=label,
        before=old,
        after=new,
        shift=log_shift(ratios[0], ratios[1], noise) if all(map(len, ratios)) and not is_baseline else None,
        absolute=log_shift(rates[0], rates[1], (None, None)).estimate() if all(map(len, rates)) else None,
        accuracy=_accuracy_change(cases[0].trials, cases[1].trials, label),
        bytes_ratio=_bytes_ratio(old, new),
        computing=machine_factor(*(_column(trials, baseline, "compute_s_per_step") for trials in paced)),
        unfinished=unfinished(cases[1].trials, label),
        problem="" if is_baseline else _problem([old, new], [before.where, after.where], ratios),
    )


def _problem(
    results: Sequence[MethodResult | None], wheres: Sequence[Path], ratios: Sequence[np.ndarray[Any, Any]]
) -> str:
    for result, where, found in zip(results, wheres, ratios, strict=True):
        if result is None:
            return f"{where} does not have it"
        if len(found) < FEWEST_VALUES:
            rounds = f"{len(found)} round{'' if len(found) == 1 else 's'}"
            return (
                f"{where} has {rounds} in which both it and the baseline have a throughput; {FEWEST_VALUES} are needed"
            )
    return ""


def _result(case: CaseResult, label: str) -> MethodResult | None:
    return next((result for result in case.methods if result.label == label), None)


def _column(trials: pd.DataFrame, label: str, column: str) -> np.ndarray[Any, Any]:
    """A column of the method's finished trials, where it is known and above 0."""
    figures = trials[column][(trials["label"] == label) & (trials["status"] == DONE)].to_numpy(dtype=float)
    return figures[figures > 0]


def _accuracy_change(old: pd.DataFrame, new: pd.DataFrame, label: str) -> Estimate | None:
    by_seed = [
        frame[(frame["label"] == label) & frame["status"].isin(LEARNT)]
        .set_index("seed")["final_accuracy"]
        .astype(float)
        for frame in (old, new)
    ]
    return mean((by_seed[1] - by_seed[0]).dropna().to_numpy())


def _bytes_ratio(before: MethodResult | None, after: MethodResult | None) -> float | None:
    if before is None or after is None:
        return None
    ratio = quotient(after.mean("wire_bytes_per_step"), before.mean("wire_bytes_per_step"))
    return ratio if math.isfinite(ratio) else None


def machine_factor(before_s: np.ndarray[Any, Any], after_s: np.ndarray[Any, Any]) -> float:
    """The factor by which a machine surely computes longer after than before: the interval's end that is nearer to 1.

    1 where the interval holds it, or there are too few rounds to tell.

    Args:
        before_s: what the baseline computed in a step, a value a round.
        after_s: likewise.
    """
    if min(len(before_s), len(after_s)) < FEWEST_VALUES:
        return 1.0
    found = log_shift(before_s, after_s, (None, None)).estimate()
    assert found.low is not None
    assert found.high is not None
    return min(max(found.low, 1.0), found.high)


def unfinished(trials: pd.DataFrame, label: str) -> tuple[str, ...]:
    """The method's trials that did not finish, each as round, status and reason."""
    ended = trials[(trials["label"] == label) & ~trials["status"].isin(LEARNT)].fillna(
        {"reason": "no reason was recorded"}
    )
    return tuple(f"round {row['round']} {row['status']}: {row['reason']}" for _, row in ended.iterrows())


def _hashable(case: CaseResult) -> tuple[Any, ...]:
    return tuple(None if pd.isna(value) else value for value in case.key.values())
