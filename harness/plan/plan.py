"""From a scenario to its ordered trials, each with an id.

Rounds are the outermost loop. Within a round the cases follow one another, and within a case every method runs once;
odd rounds run the methods in reverse, so that a machine that drifts favours nobody.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from harness.plan.check import check_methods, check_steps, check_workload
from harness.plan.code import code_of
from harness.plan.expected import state_of
from harness.plan.status import ACCURACY, DONE
from harness.plan.trial import Trial
from harness.provenance import trial_digest
from harness.scenario.links import Link
from harness.scenario.properties import UNSHAPED
from harness.scenario.schema import Case, MethodSpec, Scenario
from harness.workload import profile as profiles

if TYPE_CHECKING:
    import pandas as pd


FEWEST_SEEDS = 3
"""Rounds without which no more seeds are trained: with fewer, somebody wants a quick look."""


@dataclass(frozen=True)
class Plan:
    """The trials of a scenario, in the order in which they run."""

    scenario: Scenario
    trials: tuple[Trial, ...]
    left_out: frozenset[str] = frozenset()
    """Ids of the scenario's other trials, which are not to run now."""
    more_seeds: tuple[Trial, ...] = ()
    """Trainings on unshaped links of seeds beyond the rounds', for who must know more of a method's accuracy."""

    def only(self, wanted: Callable[[Trial], bool]) -> Plan:
        """The part of it that is wanted; it goes into the same store as the whole."""
        kept = tuple(trial for trial in self.trials if wanted(trial))
        others = {trial.id for trial in self.trials} - {trial.id for trial in kept}
        return Plan(self.scenario, kept, self.left_out | others, self.more_seeds)

    def renamed(self, id_of: Callable[[Trial], str]) -> Plan:
        """The same trials under other ids, without more seeds."""
        return Plan(self.scenario, tuple(trial.model_copy(update={"id": id_of(trial)}) for trial in self.trials))

    def pending(self, attempts: pd.DataFrame) -> list[Trial]:
        """The trials whose last attempt is not done, in order; ``attempts`` are those of the store."""
        return _not_done(self.trials, attempts)

    def pending_seeds(self, attempts: pd.DataFrame, wanted: Callable[[Trial], bool]) -> list[Trial]:
        """Likewise, those of ``more_seeds`` that are wanted."""
        return _not_done(filter(wanted, self.more_seeds), attempts)

    def foreign_trial_ids(self, attempts: pd.DataFrame) -> set[str]:
        """Ids of trials in a store that are none of this plan's: other code made them, or another kind of cluster."""
        on_links = attempts[attempts["purpose"] != ACCURACY]  # more seeds, whoever asked for them, are no trouble
        return set(on_links["trial_id"]) - {trial.id for trial in self.trials} - self.left_out


def _not_done(trials: Iterable[Trial], attempts: pd.DataFrame) -> list[Trial]:
    last = attempts.drop_duplicates("trial_id", keep="last")
    done = set(last.loc[last["status"] == DONE, "trial_id"])
    return [trial for trial in trials if trial.id not in done]


def make(scenario: Scenario, cluster: str, image: str = "") -> Plan:
    """Order the scenario's trials on a kind of cluster, such as ``"netns"``, whose workers may have an image.

    Raises:
        UsageError: a model, a data set, or their combination with the cluster, cannot be used.
    """
    for case in scenario.cases:
        check_workload(scenario, case)
        check_steps(scenario, case)
        check_methods(scenario, case)
    return Plan(
        scenario,
        tuple(
            _trial(scenario, cluster, image, case, method, round_number)
            for round_number in range(scenario.rounds)
            for case in scenario.cases
            for method in _alternating(scenario.methods, round_number)
        ),
        more_seeds=tuple(_more_seeds(scenario, cluster, image)),
    )


def _more_seeds(scenario: Scenario, cluster: str, image: str) -> Iterator[Trial]:
    """Once a workload, however many links it is tried on; none of methods that learn by what the links are."""
    if scenario.rounds < FEWEST_SEEDS:
        return
    workloads = dict.fromkeys(_on_unshaped_links(case) for case in scenario.cases if not case.train.replay)
    methods = [method for method in scenario.methods if not state_of(method).learns_by_the_links]
    for number in range(scenario.rounds, scenario.accuracy_seeds):
        for case in workloads:
            for method in methods:
                yield _trial(scenario, cluster, image, case, method, number, for_accuracy=True)


def _on_unshaped_links(case: Case) -> Case:
    """Nor does it matter how long a step takes: a paced training learns what an unpaced one learns."""
    link = Link.model_validate({"rate": UNSHAPED})
    train = case.train.model_copy(update={"pace": None, "dilation": None})
    return Case(cluster=case.cluster, link=link, train=train)


def _alternating(methods: tuple[MethodSpec, ...], round_number: int) -> tuple[MethodSpec, ...]:
    return methods[::-1] if round_number % 2 else methods


def _trial(
    scenario: Scenario,
    cluster: str,
    image: str,
    case: Case,
    method: MethodSpec,
    round_number: int,
    for_accuracy: bool = False,
) -> Trial:
    """The seed advances with the round, so that curves have a spread over seeds and methods are paired within one."""
    seed, plugins = scenario.seed + round_number, code_of(case, method)
    identity = {
        "cluster": cluster,
        "image": image,
        "case": case.model_dump(mode="json"),
        "method": method.model_dump(mode="json"),
        "seed": seed,
        "round": round_number,
        "for_accuracy": for_accuracy,
        "code": trial_digest(),
        "plugins": plugins.model_dump(),
        "checkpoint": _content_digest(case.train.checkpoint),
        "profile": profiles.digest(known) if (known := case.train.known_profile) else None,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return Trial(
        id=digest[:16],
        scenario=scenario.name,
        cluster=cluster,
        image=image,
        case=case,
        method=method,
        plugins=plugins,
        seed=seed,
        round=round_number,
        for_accuracy=for_accuracy,
    )


@cache
def _content_digest(checkpoint: str | None) -> str | None:
    """Digest of a checkpoint's content, which may change under the same name."""
    return hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest() if checkpoint else None
