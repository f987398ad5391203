"""What changed between two runs of one scenario: ratios to the baseline, bytes, accuracy, each with its interval.

What is compared is a method's speedup over the baseline of its own run, so that the two runs need not come from one
machine or one hour. What the processor did in a step is first put to the pace of the earlier run's machine
(``at_pace``): a baseline that waits for its link does not tell how fast a machine computes. Within a run ratios are
paired by round; between runs there is no pairing but the seed, which accuracies share.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from harness.analysis.reference import Measured, require_comparable
from harness.analysis.stats import CONFIDENCE, CaseResult, Estimate, MethodResult, Noise, mean, paired_ratios
from harness.errors import EXIT_INCONCLUSIVE, EXIT_REGRESSION, MeasurementError
from harness.plan.status import DONE
from harness.report.text import points, ratio, time

FEWEST_ROUNDS = 2
"""Of either side: one value has no spread."""

Kind = Literal["faster", "slower", "no clear change", "unknown"]


class Shift(NamedTuple):
    """How the logarithm of a positive quantity differs between two runs."""

    log: float
    error: float | None
    """Standard error; None where a side has one round."""
    freedom: float
    """Degrees of freedom of the error."""
    n: int
    """Rounds, of the side that has fewer."""

    def estimate(self, confidence: float = CONFIDENCE) -> Estimate:
        """The quantity after as a multiple of that before, with an interval of this confidence."""
        if self.error is None:
            return Estimate(math.exp(self.log), None, None, self.n)
        half = float(stdtrit(self.freedom, (1 + confidence) / 2)) * self.error if self.error else 0.0
        return Estimate(math.exp(self.log), math.exp(self.log - half), math.exp(self.log + half), self.n)


@dataclass(frozen=True)
class Change:
    """One method in one case, before and after."""

    case: str
    label: str
    before: MethodResult | None
    """None: that side does not have the method."""
    after: MethodResult | None
    shift: Shift | None
    """Of the speedup over the baseline."""
    absolute: Estimate | None
    """Samples per second after, as a multiple of those before: of the method they tell on the same machine alone."""
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


def log_shift(
    before: np.ndarray[Any, Any], after: np.ndarray[Any, Any], noise: tuple[Noise | None, Noise | None]
) -> Shift:
    """How the logarithm of a positive quantity differs between two runs, with Welch's error and freedom (1947).

    No side is taken to be quieter than the machine was: few rounds that agree by chance would make the error too
    small.

    Args:
        before: one value a round.
        after: likewise.
        noise: of the machine, before and after, if it is known.
    """
    sides = [np.log(before), np.log(after)]
    log, n = float(sides[1].mean() - sides[0].mean()), min(map(len, sides))
    if n < FEWEST_ROUNDS:
        return Shift(log, None, 0.0, n)
    deviations = [
        max(float(side.std(ddof=1)), each.sd if each else 0.0) for side, each in zip(sides, noise, strict=True)
    ]
    variances = [deviation**2 / len(side) for deviation, side in zip(deviations, sides, strict=True)]
    weights = sum(variance**2 / (len(side) - 1) for variance, side in zip(variances, sides, strict=True))
    return Shift(log, math.sqrt(sum(variances)), sum(variances) ** 2 / weights if weights else math.inf, n)


def at_pace(trials: pd.DataFrame, yardstick_s: float) -> pd.DataFrame:
    """The same trials as a machine would have had them on which the yardstick takes so long (``meter.yardstick_s``).

    What the processor did in a step takes as many times longer as the yardstick does; all else stays as it was. Trials
    of which neither is known stay as they are.
    """
    pace = yardstick_s / trials["yardstick_s"]
    step_s = trials["workers"] * trials["batch_size"] / trials["samples_per_s"]
    longer = 1 + trials["processor_s_per_step"] / step_s * (pace - 1)
    computing = pace.where(trials["replay"].isna(), 1.0)
    return trials.assign(
        samples_per_s=trials["samples_per_s"] / longer.fillna(1.0),
        compute_s_per_step=trials["compute_s_per_step"] * computing.fillna(1.0),
    )


def pace_note(before: Measured, after: Measured) -> list[str]:
    """How much faster or slower the machine had become, in words; nothing where it is not known."""
    slower = after.trials["yardstick_s"].mean() / before.trials["yardstick_s"].mean()
    if not math.isfinite(slower):
        return []
    return [
        f"the processor took {slower:.2f} times as long for a fixed piece of work after as before; "
        "what it did in a step is compared at one pace"
    ]


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
        if len(found) < FEWEST_ROUNDS:
            rounds = f"{len(found)} round{'' if len(found) == 1 else 's'}"
            return (
                f"{where} has {rounds} in which both it and the baseline have a throughput; {FEWEST_ROUNDS} are needed"
            )
    return ""


def _result(case: CaseResult, label: str) -> MethodResult | None:
    return next((result for result in case.methods if result.label == label), None)


def _column(trials: pd.DataFrame, label: str, column: str) -> np.ndarray[Any, Any]:
    """Of the method's finished trials, where it is known."""
    done = trials[(trials["label"] == label) & (trials["status"] == DONE)]
    return done[column].dropna().to_numpy(dtype=float)


def _accuracy_change(old: pd.DataFrame, new: pd.DataFrame, label: str) -> Estimate | None:
    by_seed = [
        frame[(frame["label"] == label) & (frame["status"] == DONE)].set_index("seed")["final_accuracy"].astype(float)
        for frame in (old, new)
    ]
    return mean((by_seed[1] - by_seed[0]).dropna().to_numpy())


def _bytes_ratio(before: MethodResult | None, after: MethodResult | None) -> float | None:
    if before is None or after is None:
        return None
    ratio = after.mean("wire_bytes_per_step") / before.mean("wire_bytes_per_step")
    return ratio if math.isfinite(ratio) else None


def machine_factor(before_s: np.ndarray[Any, Any], after_s: np.ndarray[Any, Any]) -> float:
    """By what factor a machine surely computes longer after than before: the end of the interval that is nearer to 1.

    1 where the interval holds it, or there are too few rounds to tell.

    Args:
        before_s: what the baseline computed in a step, a value a round.
        after_s: likewise.
    """
    if min(len(before_s), len(after_s)) < FEWEST_ROUNDS:
        return 1.0
    found = log_shift(before_s, after_s, (None, None)).estimate()
    assert found.low is not None
    assert found.high is not None
    return min(max(found.low, 1.0), found.high)


def unfinished(trials: pd.DataFrame, label: str) -> tuple[str, ...]:
    """The method's trials that did not finish, each as round, status and reason."""
    ended = trials[(trials["label"] == label) & (trials["status"] != DONE)].fillna({"reason": "no reason was recorded"})
    return tuple(f"round {row['round']} {row['status']}: {row['reason']}" for _, row in ended.iterrows())


def _hashable(case: CaseResult) -> tuple[Any, ...]:
    return tuple(None if pd.isna(value) else value for value in case.key.values())


def cells(change: Change) -> dict[str, str]:
    """A row for a terminal: column -> text."""
    return {
        "method": change.label,
        "speedup before": ratio(change.before.speedup if change.before else None),
        "after": ratio(change.after.speedup if change.after else None),
        "after ÷ before": ratio(change.speedup),
        "": change.problem or ("" if change.speedup is None else change.kind),
        "samples/s, after ÷ before": ratio(change.absolute),
        "time to target before": _to_target(change.before),
        "after ": _to_target(change.after),
        "accuracy": points(change.accuracy),
        "keeps accuracy": change.after.quality.keeps if change.after else "–",
        "bytes, after ÷ before": "–" if change.bytes_ratio is None else f"{change.bytes_ratio:.3f}",
    }


def _to_target(result: MethodResult | None) -> str:
    """The median; of a method that missed the target in any round, that it did."""
    found = result.time_to_target if result else None
    if not found or not found.of:
        return "–"
    return time(found.median_s) if found.surely else f"missed ({found.reached} of {found.of})"


def notes(before: Measured, after: Measured, found: Sequence[Change]) -> list[str]:
    """One sentence on what changed, and what a reader should know beside it."""
    counts = Counter(change.kind for change in found if change.label != after.scenario.baseline)
    lines = [f"{change.label}, {unfinished} (in {after.where})" for change in found for unfinished in change.unfinished]
    lines += [
        f"{case}: the machine computed {factor:.2f} times as long after as before; what that explains is no change"
        for case, factor in dict.fromkeys((change.case, change.computing) for change in found)
        if factor != 1
    ]
    for name, side in (("before", before), ("after", after)):
        noise = f", noise {100 * side.noise.sd:.1f} % a round" if side.noise else ""
        lines.append(f"{name}: {side.where}, commit {', '.join(side.commits) or 'unknown'}, {side.machine}{noise}")
    lines += pace_note(before, after)
    lines.append(f"speedups over {after.scenario.baseline}: " + ", ".join(f"{n} {kind}" for kind, n in counts.items()))
    return lines


def as_json(before: Measured, after: Measured, found: Sequence[Change]) -> dict[str, Any]:
    """All of it, for programs."""
    return {
        "exit_code": exit_code(found, after.scenario.baseline),
        "before": str(before.where),
        "after": str(after.where),
        "changes": [
            {
                "case": change.case,
                "label": change.label,
                "kind": change.kind,
                "problem": change.problem,
                "speedup": change.speedup and change.speedup._asdict(),
                "samples_per_s": change.absolute and change.absolute._asdict(),
                "final_accuracy": change.accuracy and change.accuracy._asdict(),
                "bytes_ratio": change.bytes_ratio,
                "computing": change.computing,
                "unfinished": list(change.unfinished),
            }
            for change in found
        ],
    }
