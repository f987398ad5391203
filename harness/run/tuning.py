"""Learning rates, found for each method at the same cost: the same number of rates, seeds and steps.

A first stage tries a grid. Where a method's best rate is at the edge of what was tried, the next stage tries a rate
beyond it; of any other method, one between its best and the better neighbour. So all have had as many trials. Links are
unshaped and nothing is paced: only what is learnt counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from harness.errors import MeasurementError, UsageError
from harness.methods import method_named
from harness.plan.status import DIVERGED, DONE
from harness.scenario.links import Link
from harness.scenario.properties import UNSHAPED
from harness.scenario.schema import Case, MethodSpec, Scenario
from harness.scenario.section import explain
from harness.scenario.target import FINAL_COLUMNS
from harness.scenario.writing import entries

GRID = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Times the scenario's own rate."""

MOST_STAGES = 4
"""Stages after which a best rate at an edge is only told."""


@dataclass(frozen=True)
class Tried:
    """What was found of one method: rate -> the mean over seeds of what it is judged by, less being better."""

    label: str
    scores: Mapping[float, float]

    @property
    def best(self) -> float:
        """The rate with the best score."""
        return min(self.scores, key=lambda rate: (self.scores[rate], rate))

    @property
    def is_at_edge(self) -> bool:
        """Whether a rate beyond those that were tried may be better."""
        return self.best in (min(self.scores), max(self.scores))

    def next_rate(self) -> float:
        """The rate to try next: beyond the edge, or between the best and its better neighbour."""
        rates = sorted(self.scores)
        place = rates.index(self.best)
        if place == 0:
            return rates[0] ** 2 / rates[1]
        if place == len(rates) - 1:
            return rates[-1] ** 2 / rates[-2]
        neighbour = min(rates[place - 1], rates[place + 1], key=lambda rate: self.scores[rate])
        return math.sqrt(self.best * neighbour)


def check(scenario: Scenario, grid: Sequence[float], steps: int | None = None) -> None:
    """Refuse what cannot be tuned.

    Args:
        steps: of each trial; None: the scenario's own.

    Raises:
        UsageError: the scenario trains several workloads, or none; or the grid is none, or the steps are too few.
    """
    unpaced = {"pace": None, "dilation": None}
    workloads = {(case.cluster, case.train.model_copy(update=unpaced)) for case in scenario.cases}
    if len(workloads) > 1:
        raise UsageError.at(scenario.name, "train", f"{len(workloads)} workloads", "one: rates belong to a workload")
    if scenario.cases[0].train.replay:
        raise UsageError.at(scenario.name, "train.replay", scenario.cases[0].train.replay, "none: nothing is learnt")
    if len(set(grid)) < 3 or min(grid) <= 0:
        raise UsageError.at("command line", "--grid", list(grid), "three rates or more, above 0")
    if len({label_of("", rate) for rate in grid}) < len(grid):
        raise UsageError.at("command line", "--grid", list(grid), "rates that differ in their first four digits")
    warmup_steps = scenario.cases[0].train.schedule.warmup_steps
    if steps is not None and steps <= warmup_steps:
        allowed = f"more than the scenario's schedule.warmup_steps, {warmup_steps}"
        raise UsageError.at("command line", "--steps", steps, allowed)


def stage(scenario: Scenario, rates: Mapping[str, Sequence[float]], seeds: int, steps: int) -> Scenario:
    """The scenario whose trials are those of a stage: each method with each of its rates, on unshaped links.

    Raises:
        UsageError: it is none, since a rate or a label is beyond what a scenario may have.
    """
    methods = tuple(
        method.model_copy(update={"lr": rate, "label": label_of(method.label, rate)})
        for method in scenario.methods
        for rate in rates[method.label]
    )
    case = scenario.cases[0]
    updates = {"pace": None, "dilation": None, "steps": steps, "eval_every": steps}
    train = case.train.model_copy(update=updates)
    link = Link.model_validate({"rate": UNSHAPED})
    made = scenario.model_copy(
        update={
            "rounds": seeds,
            "accuracy_seeds": 0,
            "cases": (Case(cluster=case.cluster, link=link, train=train),),
            "methods": methods,
            "baseline": methods[0].label,
            "baseline_16bit": None,
        }
    )
    try:
        return Scenario.model_validate_json(made.model_dump_json(by_alias=True))  # a copy is not checked
    except ValidationError as error:
        raise UsageError(explain(error, f"{scenario.name}, a stage of tune", model=Scenario)) from None


def label_of(label: str, rate: float) -> str:
    """A method with a rate, in a stage."""
    return f"{label} lr={rate:.4g}"


def judge(scenario: Scenario, trials: pd.DataFrame, rates: Mapping[str, Sequence[float]]) -> list[Tried]:
    """What the trials of a stage found, by the target's metric; by the final loss where there is no target.

    A rate with which any seed diverged is no rate.

    Raises:
        MeasurementError: a trial did not finish, for another reason than that.
    """
    target = scenario.cases[0].train.target
    column, sign = (FINAL_COLUMNS[target.metric] if target else "final_loss"), 1.0
    if target and target.metric == "accuracy":
        sign = -1.0
    found = []
    for method in scenario.methods:
        scores = {}
        for rate in rates[method.label]:
            own = trials[trials["label"] == label_of(method.label, rate)]
            if not own["status"].isin([DONE, DIVERGED]).all() or own.empty:
                which = label_of(method.label, rate)
                raise MeasurementError(f"{which}: not every trial finished; the same command goes on")
            scores[rate] = sign * own[column].mean() if (own["status"] == DONE).all() else math.inf
        found.append(Tried(method.label, scores))
    return found


def together(one: Sequence[Tried], other: Sequence[Tried]) -> list[Tried]:
    """What two stages found of the same methods."""
    return [Tried(a.label, {**a.scores, **b.scores}) for a, b in zip(one, other, strict=True)]


def best_rates(tried: Sequence[Tried]) -> dict[str, float]:
    """The best rate of each method, by its label.

    Raises:
        MeasurementError: a method has none with which it converges.
    """
    for each in tried:
        if not math.isfinite(each.scores[each.best]):
            raise MeasurementError(f"{each.label}: it diverged with every rate; give --grid smaller ones")
    return {each.label: each.best for each in tried}


def as_toml(raw: Mapping[str, Any], methods: Sequence[MethodSpec], rates: Mapping[str, float], tuned: str) -> str:
    """A scenario file: ``raw``, the tables of the scenario that was tuned, with these methods and their rates."""
    top = {key: value for key, value in raw.items() if not isinstance(value, dict) and key != "methods"}
    lines = [*entries({**top, "tuned": tuned})]
    for name, table in raw.items():
        if isinstance(table, dict):
            lines += ["", f"[{name}]", *entries(table)]
    for method in methods:
        defaults = method_named(method.name).State().parameters
        params = {key: value for key, value in method.params.items() if value != defaults[key] and value is not None}
        if method.optimizer:
            params["optimizer"] = method.optimizer.model_dump(exclude_defaults=True) or method.optimizer.name
        own = {"name": method.name, "label": method.label, **params, "lr": rates[method.label]}
        lines += ["", "[[methods]]", *entries(own)]
    return "\n".join(lines) + "\n"


def stage_folder(folder: Path, number: int) -> Path:
    """Where the trials of a stage are stored."""
    return folder / f"stage-{number}"
