"""A run's trials, sorted into cases: combinations of link, workers and workload, each with its methods' results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from harness.analysis.methods import MethodResult, method_result
from harness.analysis.targets import time_to_target, trained_trials
from harness.analysis.trials import CASE_COLUMNS, FAKE, leave_out_disturbed, on_links, target_of, workload_of
from harness.errors import MeasurementError
from harness.plan.status import ACCURACY
from harness.scenario.schema import Scenario
from harness.scenario.target import Target
from harness.units import format_rate, format_size, format_time


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
    """All of them, finished or not; those that are left out as disturbed have that status."""
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
    frames = [frame for _, frame in leave_out_disturbed(on_links(trials)).groupby(list(CASE_COLUMNS), dropna=False)]
    frames.sort(key=lambda frame: [(True, 0) if pd.isna(value) else (False, value) for value in _key(frame).values()])
    settings = [set(_describe_extras(_key(frame))) for frame in frames]
    shared = set.intersection(*settings)
    more_seeds = trials[trials["purpose"] == ACCURACY]
    return [_case_result(frame, more_seeds, shared, scenario) for frame in frames]


def label_to_beat(cases: Sequence[CaseResult], scenario: Scenario) -> str:
    """The label that a method must beat: the first of ``Scenario.baselines`` of which anything finished."""
    finished = {result.label for case in cases for result in case.methods if len(result.done)}
    return next((label for label in scenario.baselines if label in finished), scenario.baselines[0])


def per_case(cases: Sequence[CaseResult], frame_of: Callable[[CaseResult], pd.DataFrame]) -> pd.DataFrame:
    """The frames of all cases as one, each row naming its case in the columns of ``CASE_COLUMNS``."""
    frames = [(case, frame_of(case)) for case in cases]
    named = [pd.concat([pd.DataFrame(case.key, frame.index), frame], axis="columns") for case, frame in frames]
    return pd.concat(named, ignore_index=True)


def _key(frame: pd.DataFrame) -> dict[str, Any]:
    first = frame.iloc[0]
    return {column: first[column] for column in CASE_COLUMNS}


def _describe(key: dict[str, Any]) -> list[str]:
    return [
        format_rate(key["rate_bps"]) if key["rate_bps"] > 0 else "unshaped links",
        *([f"{format_time(key['delay_s'])} delay"] if key["delay_s"] > 0 else []),
        *([f"{100 * key['loss']:g} % loss"] if key["loss"] > 0 else []),
        *([str(key["network"])] if key["network"] and not pd.isna(key["network"]) else []),
        f"{key['workers']} workers",
        f"{key['model']} on {key['dataset']}",
        *([] if pd.isna(key["training"]) else [str(key["training"])]),
        *([] if pd.isna(key["pace"]) else [f"paced by {key['pace']}"]),
        *([] if pd.isna(key["dilation"]) or key["dilation"] == 1 else [f"time dilated by {key['dilation']:g}"]),
        *(["SCRIPTED"] if key["cluster"] == FAKE else []),
    ]


def _describe_extras(key: dict[str, Any]) -> list[str]:
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
    alike = pd.concat([frame, more_seeds[[workload_of(row) == workload_of(key) for _, row in more_seeds.iterrows()]]])
    parts = _describe(key) + [part for part in _describe_extras(key) if part not in shared_settings]
    repeated = frame[frame.duplicated(["label", "round"])]
    if not repeated.empty:
        twice = repeated.iloc[0]
        raise MeasurementError(
            f"{twice['label']} has several trials in round {twice['round']} of one case ({', '.join(parts)}): "
            "the run varies something by which trials cannot be told apart"
        )
    labels = {*scenario.baselines, *(method.label for method in scenario.methods)}
    times = {label: time_to_target(trained_trials(frame, label)) for label in labels}
    return CaseResult(
        rate_bps=float(key["rate_bps"]) if key["rate_bps"] > 0 else None,
        key=key,
        parts=tuple(parts),
        trials=frame,
        steps=scenario.cases[0].train.steps,
        methods=tuple(method_result(frame, alike, method, scenario, times) for method in scenario.methods),
    )
