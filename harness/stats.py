"""Statistics on the frame of trials: paired speedups with intervals, spreads, and times that some never reached.

Everything is pure; intervals were chosen by simulation, which is kept as a test. Only trials that are done enter a
figure; how many were run stands beside it. Ratios are taken between trials of the same round and case, which share
their seed and their moment on the machine.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import stdtrit  # the quantile of Student's t, without the slow import of scipy.stats

from harness.errors import MeasurementError
from harness.scenario import Scenario
from harness.store import DONE
from harness.units import format_rate, format_size, format_time

CONFIDENCE = 0.95

FEWEST_ROUNDS = 5
"""Before which rounds are not ended because an interval looks narrow: after three, that is chance too often."""

FAKE = "fake"
"""The cluster whose numbers are scripted: whatever is made of them must say so."""

CASE_COLUMNS = (
    "rate_bps",
    "delay_s",
    "loss",
    "network",
    "workers",
    "model",
    "dataset",
    "dilation",
    "batch_size",
    "target_accuracy",
    "cluster",
    "cpuset",
    "memory_limit_bytes",
    "device",
)
"""What trials must have in common to be compared."""


TOLERATED_LOSS = 0.02
"""Of final accuracy against the baseline: what PacTrain's authors say that pruning may cost."""

SWEPT_PARAMETERS = ("density", "ratio")
LEAST_SWEEP = 3
"""Points below which a line would show nothing."""


class Estimate(NamedTuple):
    """A mean over ``n`` rounds and its interval of ``CONFIDENCE``; one round gives no interval."""

    value: float
    low: float | None
    high: float | None
    n: int


class Noise(NamedTuple):
    """By how much a ratio to the baseline differs from itself when nothing has changed."""

    sd: float
    """Standard deviation of the ratio's logarithm in one round; 0.02 reads as 2 %."""
    pairs: int
    """A/A pairs it was taken from."""


class Spread(NamedTuple):
    """A mean over rounds, and the extremes."""

    mean: float
    low: float
    high: float


class TimeToTarget(NamedTuple):
    """When a method reached the target accuracy, in seconds of training."""

    reached: int
    of: int
    """How many finished; those that did not reach the target are counted here, not dropped."""
    median_s: float | None
    """Over all of them, whoever never reached it being the slowest; None where that leaves the median unknown."""


@dataclass(frozen=True)
class MethodResult:
    """What the trials of one method in one case say."""

    label: str
    method: str
    params: dict[str, Any]
    trials: int
    """How many were run; ``len(done)`` of them finished."""
    done: pd.DataFrame
    """The finished ones, a row each in the columns of ``TRIAL_SCHEMA``."""
    ways_lost: tuple[str, ...]
    """The statuses of those that did not finish, such as ``crashed``."""
    samples_per_s: Estimate | None
    speedup: Estimate | None
    """Over the baseline; None where no round has both."""
    final_accuracy: Spread | None
    time_to_target: TimeToTarget
    saving: float | None
    """The baseline's bytes over this method's."""

    def mean(self, column: str) -> float:
        """Mean over the finished trials; NaN where none of them knows."""
        return float(self.done[column].mean())

    @property
    def peak_memory_bytes(self) -> float:
        """The most that a worker held in any finished trial; NaN where none is known."""
        return float(self.done["peak_memory_bytes"].max())

    @property
    def fullest_queues(self) -> list[str]:
        """In which link's queue, and in which direction, most waited: of each finished trial that knows."""
        return sorted(set(self.done["fullest_queue"].dropna()))

    @property
    def bytes_over_formula(self) -> float:
        """Payload that the kernel counted over what the method's formula says."""
        return self.mean("wire_bytes_per_step") / self.mean("formula_bytes_per_step")

    @property
    def step_over_predicted(self) -> float:
        """The measured step over the predicted one; NaN where none was predicted."""
        return self.mean("step_time_median_s") / self.mean("predicted_step_s")

    @property
    def at_least_s(self) -> float:
        """What no step can beat, in seconds: its computation or its bytes on the link, whichever takes longer."""
        return float(np.fmax(self.mean("compute_s_per_step"), self.mean("lower_bound_s_per_step")))

    @property
    def serial_s(self) -> float:
        """What a step takes in seconds if nothing overlaps: computation, codec, payload and headers on the link."""
        on_link_s = np.nansum([self.mean("lower_bound_s_per_step"), self.headers_s_per_step])
        return float(self.mean("compute_s_per_step") + self.mean("codec_s_per_step") + on_link_s)

    @property
    def headers_s_per_step(self) -> float:
        """Seconds that a step's packet headers take on the link; NaN where it is unshaped."""
        return 8 * self.mean("header_bytes_per_step") / self.mean("rate_bps")


@dataclass(frozen=True)
class StepModel:
    """The byte model of a step: bytes take their time on the busiest link at any rate, all else stays as measured."""

    fixed_s: float
    """Seconds that do not depend on the rate: computation, codec, latency, waiting for one another."""
    link_bytes: float
    """Payload and headers on the busiest direction of any link."""

    def step_s(self, rate_bps: float) -> float:
        """The step's time where links have this rate."""
        return self.fixed_s + 8 * self.link_bytes / rate_bps


class Payoff(NamedTuple):
    """At which rates a method is faster than the baseline, by the byte model."""

    where: Literal["below", "above", "at every rate", "at no rate"]
    rate_bps: float | None
    """The crossover; None where there is none."""

    def __str__(self) -> str:
        return f"{self.where} {format_rate(self.rate_bps)}" if self.rate_bps else self.where


def payoff(method: StepModel, baseline: StepModel) -> Payoff:
    """Where a method's step is shorter than the baseline's."""
    extra_s = method.fixed_s - baseline.fixed_s
    saved_bytes = baseline.link_bytes - method.link_bytes
    if extra_s * saved_bytes > 0:
        return Payoff("below" if saved_bytes > 0 else "above", 8 * saved_bytes / extra_s)
    return Payoff("at every rate" if saved_bytes > 0 or extra_s < 0 else "at no rate", None)


def step_models(done: pd.DataFrame) -> list[StepModel]:
    """The model of each finished trial: its mean step without the time that its bytes need at the rate it ran at.

    On unshaped links that time is taken to be none, and the bytes to be the mean of what the workers sent.
    """
    rate_bps, payload = done["rate_bps"], done["wire_bytes_per_step"]
    headers = (done["header_bytes_per_step"] / payload).fillna(0.0)
    link_bytes = (done["lower_bound_s_per_step"] * rate_bps / 8).fillna(payload) * (1 + headers)
    step_s = done["workers"] * done["batch_size"] / done["samples_per_s"]
    fixed_s = step_s - (8 * link_bytes / rate_bps).fillna(0.0)
    return [StepModel(*each) for each in zip(fixed_s, link_bytes, strict=True) if all(map(math.isfinite, each))]


def mean_model(models: Sequence[StepModel]) -> StepModel | None:
    """The model of the mean trial; None where there is none."""
    if not models:
        return None
    return StepModel(
        float(np.mean([model.fixed_s for model in models])), float(np.mean([model.link_bytes for model in models]))
    )


@dataclass(frozen=True)
class CaseResult:
    """One combination of link, workers and workload, with each method's result in the scenario's order."""

    rate_bps: float | None
    """None: unshaped."""
    key: dict[str, Any]
    """``CASE_COLUMNS`` and their values, as every table that is written names the case."""
    parts: tuple[str, ...]
    """The case in words: rate first, delay and loss if any, workers, workload; of the rest, where cases differ."""
    trials: pd.DataFrame
    """All of them, finished or not."""
    methods: tuple[MethodResult, ...]

    @property
    def title(self) -> str:
        """For example ``100 Mbit/s, 4 workers, digits-cnn on digits``."""
        return ", ".join(self.parts)

    def method(self, label: str) -> MethodResult:
        """The result of the method with that label."""
        return next(result for result in self.methods if result.label == label)


def case_results(trials: pd.DataFrame, scenario: Scenario) -> list[CaseResult]:
    """The cases that the trials hold, sorted by link, workers and workload; unshaped links last.

    Args:
        trials: a row a trial, in the columns of ``TRIAL_SCHEMA``, of any status.

    Raises:
        MeasurementError: two trials of one method, case and round, which nothing in the frame tells apart.
    """
    frames = [frame for _, frame in trials.groupby(list(CASE_COLUMNS), dropna=False)]
    frames.sort(key=lambda frame: [(True, 0) if pd.isna(value) else (False, value) for value in _key(frame).values()])
    settings = [set(_told_where_cases_differ(_key(frame))) for frame in frames]
    shared = set.intersection(*settings)
    return [_case_result(frame, shared, scenario) for frame in frames]


@dataclass(frozen=True)
class Sweep:
    """Variants of one method that differ in nothing but the share of entries that they keep."""

    title: str
    parameter: str
    points: tuple[tuple[float, MethodResult], ...]
    """Share and result of each variant that finished, from the largest share down."""
    limit: float | None
    """The convergence limit: the share down to which the mean final accuracy stays within ``TOLERATED_LOSS`` of the
    baseline's; None where not even the largest does, or the baseline has none."""


def sweeps(case: CaseResult, baseline: str) -> list[Sweep]:
    """The sweeps over ``SWEPT_PARAMETERS`` that a case holds."""
    return [
        _sweep(parameter, family, case, baseline)
        for parameter in SWEPT_PARAMETERS
        for family in _families(case, parameter)
        if len(family) >= LEAST_SWEEP
    ]


def _families(case: CaseResult, parameter: str) -> list[list[MethodResult]]:
    """The methods that have such a parameter and an accuracy, grouped by all else."""
    families: dict[str, list[MethodResult]] = {}
    for result in case.methods:
        if parameter in result.params and result.final_accuracy:
            families.setdefault(repr((result.method, {**result.params, parameter: None})), []).append(result)
    return list(families.values())


def _sweep(parameter: str, family: list[MethodResult], case: CaseResult, baseline: str) -> Sweep:
    points = sorted(((float(result.params[parameter]), result) for result in family), key=lambda point: -point[0])
    reference = case.method(baseline).final_accuracy
    limit = None
    for share, result in points:
        if not (reference and result.final_accuracy):
            break
        if result.final_accuracy.mean < reference.mean - TOLERATED_LOSS:
            break
        limit = share
    title = re.sub(rf"-?{parameter}=[^-]*", "", family[0].label)
    return Sweep(title, parameter, tuple(points), limit)


def paired_ratios(trials: pd.DataFrame, label: str, baseline: str, column: str = "samples_per_s") -> pd.Series[float]:
    """The method's figure over the baseline's, by round: of rounds in which both finished, in order."""
    done = trials[trials["status"] == DONE]
    own, base = (done[done["label"] == each].set_index("round")[column] for each in (label, baseline))
    return (own / base).dropna().sort_index()


def paired_speedup(trials: pd.DataFrame, label: str, baseline: str) -> Estimate | None:
    """How many times the samples per second of ``baseline`` the method ``label`` has, in trials of one case.

    The ratios are taken within each round in which both finished; None where there is no such round.
    """
    ratios = paired_ratios(trials, label, baseline)
    return geometric_mean(ratios.to_numpy()) if len(ratios) else None


def noise(cases: Sequence[CaseResult], baseline: str) -> Noise | None:
    """The machine's noise, from A/A pairs: each method's ratio to the baseline against the same a round later.

    Neighbours in time differ by noise alone, also where a machine drifts over the whole run. Of the methods' noise the
    median is taken: a method that is restless by nature says nothing of the machine. None where nothing has two rounds.
    """
    return noise_of(
        [
            paired_ratios(case.trials, result.label, baseline).to_numpy()
            for case in cases
            for result in case.methods
            if result.label != baseline
        ]
    )


def noise_of(ratios: Sequence[np.ndarray[Any, Any]]) -> Noise | None:
    """See ``noise``; the ratios of each method, in the order of their rounds."""
    jumps = [np.diff(np.log(each)) for each in ratios]
    own = [math.sqrt(float(np.mean(each**2)) / 2) for each in jumps if len(each)]
    return Noise(float(np.median(own)), sum(map(len, jumps))) if own else None


def widest(cases: Sequence[CaseResult]) -> float | None:
    """The widest of all speedups' intervals, as the share by which its ends lie beside its middle.

    None where a method that has finished trials has no interval yet.
    """
    speedups = [result.speedup for case in cases for result in case.methods if len(result.done)]
    if not speedups or any(each is None or each.low is None for each in speedups):
        return None
    return max(math.sqrt(each.high / each.low) - 1 for each in speedups if each and each.low and each.high)


def narrow_enough(trials: pd.DataFrame, scenario: Scenario, share: float) -> bool:
    """Whether there are at least ``FEWEST_ROUNDS`` and every speedup's interval reaches no further than ``share``."""
    done = trials[trials["status"] == DONE]
    if done.empty or done["round"].nunique() < FEWEST_ROUNDS:
        return False
    widest_share = widest(case_results(trials, scenario))
    return widest_share is not None and widest_share <= share


def geometric_mean(values: Sequence[float] | np.ndarray[Any, Any]) -> Estimate:
    """The geometric mean of positive values, with a t interval on their logarithms.

    With five values a t interval covers the truth as often as it says, also where single trials are much too slow and
    the machine drifts; the percentile bootstrap does so in five cases of six (``tests/unit/test_stats.py``).

    Raises:
        ValueError: there are no values, or one is not positive and finite.
    """
    values = np.asarray(values, dtype=float)
    if not len(values) or not np.all((values > 0) & np.isfinite(values)):
        raise ValueError(f"positive finite values are needed, not {values.tolist()}")
    logs, n = np.log(values), len(values)
    middle = float(logs.mean())
    if n == 1:
        return Estimate(math.exp(middle), None, None, n)
    half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2) * logs.std(ddof=1) / math.sqrt(n))
    return Estimate(math.exp(middle), math.exp(middle - half), math.exp(middle + half), n)


def spread(values: pd.Series[float]) -> Spread | None:
    """Mean and extremes of the values that are known; None where none is."""
    known = values.dropna()
    return Spread(float(known.mean()), float(known.min()), float(known.max())) if len(known) else None


def time_to_target(done: pd.DataFrame) -> TimeToTarget:
    """When finished trials reached the target; one that never did counts as later than any that did."""
    times_s = done["time_to_target_s"].astype(float)
    median_s = float(times_s.fillna(math.inf).median()) if len(times_s) else math.inf
    return TimeToTarget(int(times_s.notna().sum()), len(times_s), median_s if math.isfinite(median_s) else None)


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


def per_case(cases: Sequence[CaseResult], frame_of: Callable[[CaseResult], pd.DataFrame]) -> pd.DataFrame:
    """The frames of all cases as one, each row naming its case in the columns of ``CASE_COLUMNS``."""
    frames = [(case, frame_of(case)) for case in cases]
    return pd.concat(
        [frame.assign(**case.key)[[*CASE_COLUMNS, *frame.columns]] for case, frame in frames], ignore_index=True
    )


def _curves_of(case: CaseResult, evaluations: pd.DataFrame, kind: str) -> pd.DataFrame:
    done = case.trials.loc[case.trials["status"] == DONE, ["trial_id", "label"]]
    grouped = evaluations.merge(done, on="trial_id").groupby(["label", "step"])
    over_rounds = grouped["value"].agg(["mean", "min", "max", "size"])
    over_rounds.columns = pd.Index([kind, f"{kind}_min", f"{kind}_max", "rounds"])
    return grouped["time_s"].mean().to_frame().join(over_rounds).reset_index()


def _key(frame: pd.DataFrame) -> dict[str, Any]:
    first = frame.iloc[0]
    return {column: first[column] for column in CASE_COLUMNS}


def _always_told(key: dict[str, Any]) -> list[str]:
    return [
        format_rate(key["rate_bps"]) if key["rate_bps"] > 0 else "unshaped links",
        *([f"{format_time(key['delay_s'])} delay"] if key["delay_s"] > 0 else []),
        *([f"{100 * key['loss']:g} % loss"] if key["loss"] > 0 else []),
        *([str(key["network"])] if key["network"] and not pd.isna(key["network"]) else []),
        f"{key['workers']} workers",
        f"{key['model']} on {key['dataset']}",
        *([f"time dilated by {key['dilation']:g}"] if key["dilation"] > 1 else []),
        *(["SCRIPTED"] if key["cluster"] == FAKE else []),
    ]


def _told_where_cases_differ(key: dict[str, Any]) -> list[str]:
    return [
        f"batch {key['batch_size']}",
        f"target {100 * key['target_accuracy']:g} %",
        str(key["cluster"]),
        "any CPU" if pd.isna(key["cpuset"]) else f"CPUs {key['cpuset']}",
        "all memory" if pd.isna(key["memory_limit_bytes"]) else f"{format_size(key['memory_limit_bytes'])} a worker",
        str(key["device"]),
    ]


def _case_result(frame: pd.DataFrame, shared_settings: set[str], scenario: Scenario) -> CaseResult:
    key = _key(frame)
    parts = _always_told(key) + [part for part in _told_where_cases_differ(key) if part not in shared_settings]
    repeated = frame[frame.duplicated(["label", "round"])]
    if not repeated.empty:
        twice = repeated.iloc[0]
        raise MeasurementError(
            f"{twice['label']} has several trials in round {twice['round']} of one case ({', '.join(parts)}): "
            "the run varies something by which trials cannot be told apart"
        )
    return CaseResult(
        rate_bps=float(key["rate_bps"]) if key["rate_bps"] > 0 else None,
        key=key,
        parts=tuple(parts),
        trials=frame,
        methods=tuple(
            _method_result(frame, method.label, method.name, method.params, scenario.baseline)
            for method in scenario.methods
        ),
    )


def _method_result(frame: pd.DataFrame, label: str, method: str, params: dict[str, Any], baseline: str) -> MethodResult:
    own = frame[frame["label"] == label]
    done = own[own["status"] == DONE]
    base = frame[(frame["label"] == baseline) & (frame["status"] == DONE)]
    known = done["samples_per_s"].dropna()
    saving = base["wire_bytes_per_step"].mean() / done["wire_bytes_per_step"].mean()
    return MethodResult(
        label=label,
        method=method,
        params=params,
        trials=len(own),
        done=done,
        ways_lost=tuple(sorted(set(own["status"]) - {DONE})),
        samples_per_s=geometric_mean(known.to_numpy()) if len(known) else None,
        speedup=paired_speedup(frame, label, baseline),
        final_accuracy=spread(done["final_accuracy"]),
        time_to_target=time_to_target(done[done["final_accuracy"].notna()]),  # replays have no target
        saving=float(saving) if np.isfinite(saving) else None,
    )
