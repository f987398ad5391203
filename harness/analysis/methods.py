"""What the trials of one method in one case say.

Only trials that are done enter a figure; how many were run stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from harness.analysis.byte_model import StepModel, step_models
from harness.analysis.estimates import Estimate, Spread, geometric_mean, quotient, spread
from harness.analysis.gains import Gain, gain
from harness.analysis.quality import Quality, confidence_of_a_look, quality
from harness.analysis.targets import TimeToTarget
from harness.analysis.trials import target_of
from harness.plan.status import DISTURBED, DONE, LEARNT
from harness.scenario.schema import MethodSpec, Scenario
from harness.scenario.target import FINAL_COLUMNS, Metric


@dataclass(frozen=True)
class MethodResult:
    """What the trials of one method in one case say."""

    label: str
    method: str
    params: dict[str, Any]
    trials: int
    """How many were run, without those that are left out as disturbed; ``len(done)`` of them finished."""
    done: pd.DataFrame
    """The finished ones, a row each in the columns of ``TRIAL_SCHEMA``."""
    ways_lost: tuple[str, ...]
    """The statuses of those that did not finish, such as ``crashed``."""
    samples_per_s: Estimate | None
    over: Mapping[str, Gain]
    """What it gains over each baseline, by label: over the 16-bit all-reduce first, if there is one."""
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

    @cached_property
    def step_models(self) -> dict[int, StepModel]:
        """The byte model of each finished trial that was timed, by round."""
        return step_models(self.done)

    @property
    def peak_memory_bytes(self) -> float:
        """The most that a worker held in any finished trial; NaN where none is known."""
        return float(self.done["peak_memory_bytes"].max())

    @property
    def fullest_queues(self) -> list[str]:
        """The link and direction in whose queue most waited, for each finished trial that knows."""
        return sorted(set(self.done["fullest_queue"].dropna()))

    @property
    def bytes_over_formula(self) -> float:
        """Payload that the kernel counted over what the method's formula says."""
        return quotient(self.mean("wire_bytes_per_step"), self.mean("formula_bytes_per_step"))

    @property
    def step_over_predicted(self) -> float:
        """The measured step over the predicted one; NaN where none was predicted."""
        return quotient(self.mean("step_time_median_s"), self.mean("predicted_step_s"))

    @property
    def step_over_least(self) -> float:
        """The measured step over ``at_least_s``."""
        return quotient(self.mean("step_time_median_s"), self.at_least_s)

    @property
    def step_over_serial(self) -> float:
        """The measured step over ``serial_s``."""
        return quotient(self.mean("step_time_median_s"), self.serial_s)

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


def method_result(
    frame: pd.DataFrame,
    alike: pd.DataFrame,
    method: MethodSpec,
    scenario: Scenario,
    times: Mapping[str, TimeToTarget],
) -> MethodResult:
    """The result of one method.

    Args:
        frame: the trials of one case, of all methods.
        alike: the same, and further trials of the same workload, which were run for accuracy alone.
        times: to the target in this case, by the labels of all methods.
    """
    label, baseline = method.label, scenario.baseline
    own = frame[frame["label"] == label]
    done, learnt = own[own["status"] == DONE], own["status"].isin(LEARNT)
    known = done["samples_per_s"].dropna()
    of_baseline = (frame["label"] == baseline) & (frame["status"] == DONE)
    saving = quotient(frame["wire_bytes_per_step"][of_baseline].mean(), done["wire_bytes_per_step"].mean())
    target = target_of(frame.iloc[0])
    metric: Metric = target.metric if target else "accuracy"
    over = {each: gain(frame, label, each, times) for each in scenario.baselines}
    confidence = confidence_of_a_look(scenario.rounds, scenario.accuracy_seeds)
    return MethodResult(
        label=label,
        method=method.name,
        params=method.params,
        trials=int((own["status"] != DISTURBED).sum()),
        done=done,
        ways_lost=tuple(sorted(set(own["status"]) - {*LEARNT})),
        samples_per_s=geometric_mean(known.to_numpy()) if len(known) else None,
        over=over,
        speedup=over[baseline].throughput,
        final=spread(own[FINAL_COLUMNS[metric]][learnt]),
        final_accuracy=spread(own["final_accuracy"][learnt]),
        quality=quality(alike, label, baseline, metric, scenario.tolerance, confidence),
        time_to_target=times[label],
        saving=saving if np.isfinite(saving) else None,
    )
