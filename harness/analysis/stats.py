"""Statistics on the frame of trials: paired speedups with intervals, spreads, and times that some never reached.

Everything is pure; intervals were chosen by simulation, which is kept as a test. Only trials that are done enter a
figure; how many were run stands beside it. Ratios are taken between trials of the same round and case, which share
their seed and their moment on the machine.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import stdtrit  # the quantile of Student's t, without the slow import of scipy.stats

from harness.errors import MeasurementError
from harness.plan.status import ACCURACY, DIVERGED, DONE, MISSES
from harness.record.store import WORKLOAD_COLUMNS
from harness.scenario.schema import MethodSpec, Scenario
from harness.scenario.target import EVENT_KINDS, FINAL_COLUMNS, Evaluation, Metric, Target, crossing
from harness.units import format_rate, format_size, format_time

CONFIDENCE = 0.95

FEWEST_ROUNDS = 5
"""Before which rounds are not ended because an interval looks narrow: after three, that is chance too often."""

FAKE = "fake"
"""The cluster whose numbers are scripted: whatever is made of them must say so."""

CASE_COLUMNS = ("rate_bps", "delay_s", "loss", "network", "dilation", *WORKLOAD_COLUMNS)
"""What trials must have in common to be compared."""

SWEPT_PARAMETERS = ("density", "ratio")
LEAST_SWEEP = 3
"""Points below which a line would show nothing."""

TARGETS = 81
"""Values of a metric at which a curve of times to any target is told."""


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
    """When a method reached the target, in seconds of training."""

    reached: int
    of: int
    """How many trained to their cap, diverged or timed out; those that missed are counted here, not dropped."""
    median_s: float | None
    """Over all of them, whoever never reached it being the slowest; None where that leaves the median unknown."""

    @property
    def surely(self) -> bool:
        """Whether every round reached it: of anything less no ratio is made."""
        return 0 < self.of == self.reached


class Gain(NamedTuple):
    """How many times better a method is than a baseline, paired within rounds; None where that is not known."""

    time_to_target: Estimate | None
    """None also where either missed the target in any round."""
    throughput: Estimate | None


Keeps = Literal["yes", "no", "unknown"]


class Quality(NamedTuple):
    """Whether a method's model is as good as the baseline's in the end, by pairs that share their seed."""

    metric: Metric
    difference: Estimate | None
    """Of the final metric to the baseline's: of accuracies as a share of all samples, of a loss or a perplexity as a
    share of the baseline's. None where no seed was trained by both."""
    keeps: Keeps


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
    over: Mapping[str, Gain]
    """By the label of a baseline: the 16-bit all-reduce first, if there is one."""
    speedup: Estimate | None
    """Samples per second over the baseline's; None where no round has both."""
    final: Spread | None
    """The last value of the metric that the target is about; accuracy where there is no target."""
    final_accuracy: Spread | None
    quality: Quality
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
    steps: int
    """How many the trials had to go: the cap."""
    methods: tuple[MethodResult, ...]

    @property
    def title(self) -> str:
        """For example ``100 Mbit/s, 4 workers, digits-cnn on digits``."""
        return ", ".join(self.parts)

    @property
    def target(self) -> Target | None:
        """How good a model had to be."""
        return target_of(self.key)

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
    frames = [frame for _, frame in on_links(trials).groupby(list(CASE_COLUMNS), dropna=False)]
    frames.sort(key=lambda frame: [(True, 0) if pd.isna(value) else (False, value) for value in _key(frame).values()])
    settings = [set(_told_where_cases_differ(_key(frame))) for frame in frames]
    shared = set.intersection(*settings)
    more_seeds = trials[trials["purpose"] == ACCURACY]
    return [_case_result(frame, more_seeds, shared, scenario) for frame in frames]


def reference(cases: Sequence[CaseResult], scenario: Scenario) -> str:
    """The label that a method must beat: the first of ``Scenario.baselines`` of which anything finished."""
    finished = {result.label for case in cases for result in case.methods if len(result.done)}
    return next((label for label in scenario.baselines if label in finished), scenario.baselines[0])


def on_links(trials: pd.DataFrame) -> pd.DataFrame:
    """Those that ran on the links that were asked for: all but further seeds for accuracy."""
    return trials[trials["purpose"] != ACCURACY]


def workload_of(row: Mapping[Any, Any] | pd.Series[Any]) -> tuple[Any, ...]:
    """A row's values of ``WORKLOAD_COLUMNS``, None where nothing is said."""
    return tuple(None if pd.isna(row[column]) else row[column] for column in WORKLOAD_COLUMNS)


def target_of(row: Mapping[str, Any]) -> Target | None:
    """A row's target."""
    return None if pd.isna(row["target"]) else Target.parse(row["target"])


def undecided(trials: pd.DataFrame, scenario: Scenario) -> set[tuple[tuple[Any, ...], str]]:
    """Of which workloads and methods more seeds would tell whether accuracy is kept: as yet they leave it unknown."""
    if not (trials["status"] == DONE).any():
        return set()
    return {
        (workload_of(case.key), result.label)
        for case in case_results(trials, scenario)
        for result in case.methods
        if result.quality.keeps == "unknown" and result.quality.difference
    }


@dataclass(frozen=True)
class Sweep:
    """Variants of one method that differ in nothing but the share of entries that they keep."""

    title: str
    parameter: str
    points: tuple[tuple[float, MethodResult], ...]
    """Share and result of each variant that finished, from the largest share down."""
    limit: float | None
    """The convergence limit: the share down to which the mean final accuracy stays within the tolerance of the
    baseline's; None where not even the largest does, or the baseline has none."""


def sweeps(case: CaseResult, baseline: str, tolerance: float) -> list[Sweep]:
    """The sweeps over ``SWEPT_PARAMETERS`` that a case holds.

    Args:
        tolerance: by how much less accurate than the baseline a method may be, absolute.
    """
    return [
        _sweep(parameter, family, case, baseline, tolerance)
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


def _sweep(parameter: str, family: list[MethodResult], case: CaseResult, baseline: str, tolerance: float) -> Sweep:
    points = sorted(((float(result.params[parameter]), result) for result in family), key=lambda point: -point[0])
    reference = case.method(baseline).final_accuracy
    limit = None
    for share, result in points:
        if not (reference and result.final_accuracy):
            break
        if result.final_accuracy.mean < reference.mean - tolerance:
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
    done = on_links(trials[trials["status"] == DONE])
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
    found = mean(np.log(values))
    assert found
    low, high = (None if end is None else math.exp(end) for end in (found.low, found.high))
    return Estimate(math.exp(found.value), low, high, found.n)


def mean(values: Sequence[float] | np.ndarray[Any, Any]) -> Estimate | None:
    """The mean of values of any sign, with a t interval; None where there are none."""
    values = np.asarray(values, dtype=float)
    if not len(values):
        return None
    middle, n = float(values.mean()), len(values)
    if n == 1:
        return Estimate(middle, None, None, n)
    half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2) * values.std(ddof=1) / math.sqrt(n))
    return Estimate(middle, middle - half, middle + half, n)


def spread(values: pd.Series[float]) -> Spread | None:
    """Mean and extremes of the values that are known; None where none is."""
    known = values.dropna()
    return Spread(float(known.mean()), float(known.min()), float(known.max())) if len(known) else None


def time_to_target(trained: pd.DataFrame) -> TimeToTarget:
    """When trials reached the target; one that never did, diverged or timed out, counts as later than all that did."""
    times_s = trained["time_to_target_s"].where(~trained["status"].isin(MISSES)).astype(float)
    median_s = float(times_s.fillna(math.inf).median()) if len(times_s) else math.inf
    return TimeToTarget(int(times_s.notna().sum()), len(times_s), median_s if math.isfinite(median_s) else None)


def quality(trials: pd.DataFrame, label: str, baseline: str, metric: Metric, tolerance: float) -> Quality:
    """Whether a method's final metric is within the tolerance of the baseline's, by all seeds that both trained.

    ``yes`` and ``no`` are said only where the whole interval of the mean difference agrees; of one seed nothing is
    said. A method that diverged with any seed does not keep accuracy.

    Args:
        trials: of one workload, further seeds included.
    """
    own, base = (
        trials[(trials["label"] == each) & (trials["status"] == DONE)].set_index("round")[FINAL_COLUMNS[metric]]
        for each in (label, baseline)
    )
    pairs = pd.DataFrame({"own": own, "base": base}, dtype=float).dropna()
    differences = pairs["own"] - pairs["base"]
    found = mean((differences if metric == "accuracy" else differences / pairs["base"]).to_numpy())
    diverged = ((trials["label"] == label) & (trials["status"] == DIVERGED)).any()
    return Quality(metric, found, "no" if diverged else _keeps(found, metric, tolerance))


def _keeps(difference: Estimate | None, metric: Metric, tolerance: float) -> Keeps:
    if difference is None or difference.low is None or difference.high is None:
        return "unknown"
    worse = (-difference.high, -difference.low) if metric == "accuracy" else (difference.low, difference.high)
    if worse[1] <= tolerance:
        return "yes"
    return "no" if worse[0] > tolerance else "unknown"


def gain(trials: pd.DataFrame, label: str, baseline: str) -> Gain:
    """How many times better a method is than a baseline, in trials of one case.

    Of the time to the target no ratio is made where either missed it in any round: the rounds that are left would be
    the lucky ones.
    """
    times = [time_to_target(_trained(trials, each)) for each in (label, baseline)]
    ratios = paired_ratios(trials, baseline, label, "time_to_target_s")
    sooner = geometric_mean(ratios.to_numpy()) if all(each.surely for each in times) and len(ratios) else None
    return Gain(sooner, paired_speedup(trials, label, baseline))


def _trained(trials: pd.DataFrame, label: str) -> pd.DataFrame:
    """Those of a method that tell whether it reaches the target: trained to their cap, or one of ``MISSES``."""
    own = trials[trials["label"] == label]
    return own[own["target"].notna() & own["status"].isin([DONE, *MISSES])]


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
    return per_case(cases, lambda case: _times_to_targets_of(case, events))


def _times_to_targets_of(case: CaseResult, events: pd.DataFrame) -> pd.DataFrame:
    metric: Metric = case.target.metric if case.target else "accuracy"
    evaluations = events[events["kind"] == EVENT_KINDS[metric]]
    trained = case.trials[case.trials["status"].isin([DONE, *MISSES])]
    curves = {
        str(trial.trial_id): [
            Evaluation(*each)
            for each in evaluations.loc[evaluations["trial_id"] == trial.trial_id, ["step", "time_s", "value"]]
            .sort_values("step")
            .itertuples(index=False, name=None)
            if trial.status == DONE
        ]
        for trial in trained.itertuples()
    }
    found = [each.value for curve in curves.values() for each in curve]
    rows = []
    for value in np.linspace(min(found), max(found), TARGETS) if found else ():
        for result in case.methods:
            own = trained.loc[trained["label"] == result.label, "trial_id"]
            reached = [crossing(Target(metric, float(value)), curves[str(trial_id)]) for trial_id in own]
            times_s = [each.time_s for each in reached if each]
            if len(times_s) == len(reached) and any(times_s):  # not where all are as good from the start
                median_s = float(np.median(times_s))
                rows.append((result.label, metric, float(value), median_s, len(reached)))
    return pd.DataFrame(rows, columns=["label", "metric", "value", "time_s", "rounds"])


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
        f"target {target.words}" if (target := target_of(key)) else "no target",
        str(key["cluster"]),
        "any CPU" if pd.isna(key["cpuset"]) else f"CPUs {key['cpuset']}",
        "all memory" if pd.isna(key["memory_limit_bytes"]) else f"{format_size(key['memory_limit_bytes'])} a worker",
        str(key["device"]),
    ]


def _case_result(
    frame: pd.DataFrame, more_seeds: pd.DataFrame, shared_settings: set[str], scenario: Scenario
) -> CaseResult:
    key = _key(frame)
    alike = more_seeds[[workload_of(row) == workload_of(key) for _, row in more_seeds.iterrows()]]
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
        steps=scenario.cases[0].train.steps,
        methods=tuple(_method_result(frame, alike, method, scenario) for method in scenario.methods),
    )


def _method_result(
    frame: pd.DataFrame, more_seeds: pd.DataFrame, method: MethodSpec, scenario: Scenario
) -> MethodResult:
    label, baseline = method.label, scenario.baseline
    own = frame[frame["label"] == label]
    done = own[own["status"] == DONE]
    base = frame[(frame["label"] == baseline) & (frame["status"] == DONE)]
    known = done["samples_per_s"].dropna()
    saving = base["wire_bytes_per_step"].mean() / done["wire_bytes_per_step"].mean()
    target = target_of(_key(frame))
    metric: Metric = target.metric if target else "accuracy"
    return MethodResult(
        label=label,
        method=method.name,
        params=method.params,
        trials=len(own),
        done=done,
        ways_lost=tuple(sorted(set(own["status"]) - {DONE})),
        samples_per_s=geometric_mean(known.to_numpy()) if len(known) else None,
        over={each: gain(frame, label, each) for each in scenario.baselines},
        speedup=paired_speedup(frame, label, baseline),
        final=spread(done[FINAL_COLUMNS[metric]]),
        final_accuracy=spread(done["final_accuracy"]),
        quality=quality(pd.concat([frame, more_seeds]), label, baseline, metric, scenario.tolerance),
        time_to_target=time_to_target(_trained(frame, label)),
        saving=float(saving) if np.isfinite(saving) else None,
    )
