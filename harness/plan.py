"""From a scenario to its ordered trials, each with an id, the bytes it will send and the time it cannot beat.

Rounds are the outermost loop. Within a round the cases follow one another, and within a case every method runs once;
odd rounds run the methods in reverse, so that a machine that drifts favours nobody.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import baselines
from baselines import MethodState
from baselines._state import numel
from harness import predict
from harness import profile as profiles
from harness.errors import UsageError
from harness.network import Topology
from harness.provenance import code_digest
from harness.scenario import UNSHAPED, Case, Link, MethodSpec, Scenario, Section
from harness.status import ACCURACY, DONE
from harness.workload.data import DATASETS, Dataset
from harness.workload.models import MODELS, Model
from harness.workload.replay import memory_bytes as replay_bytes

if TYPE_CHECKING:
    import pandas as pd  # a worker reads a Trial and needs none of it

ASSUMED_FLOPS_PER_CORE = 2e10
"""For estimates before anything has run; what a trial computes in is measured, never assumed."""

BRING_UP_S = 6.0
TRIAL_OVERHEAD_S = 0.6

FEWEST_SEEDS = 3
"""Rounds without which no more seeds are trained: with fewer, somebody wants a quick look."""

UNSETTLED_STEPS = 2
"""DDP regroups its buckets after the first step, and TCP finds its pace: never part of a steady state."""


class Trial(Section):
    """One training run of one method on one case, in one round. It is what a worker receives."""

    id: str
    scenario: str
    cluster: str
    """The kind of cluster it runs on: trials on different kinds are different trials."""
    image: str = ""
    """The digest of the workers' image, where they have one."""
    case: Case
    method: MethodSpec
    seed: int
    round: int
    for_accuracy: bool = False
    """Whether it is one more seed for accuracy alone: on unshaped links, and part of no figure of time."""

    @property
    def dilation(self) -> float:
        """How many times slower than it is told everything runs: as its case says, or more, as its method needs."""
        rate_bps, slowed_to_bps = self.case.link.rate_bps, self.method.slowed_to_bps
        return max(self.case.train.dilation, rate_bps / slowed_to_bps if rate_bps and slowed_to_bps else 1.0)


@dataclass(frozen=True)
class Estimate:
    """What is known of a trial before it runs."""

    wire_bytes_per_step: float
    """Payload that each worker sends in a step of the steady state, by the method's formula."""
    lower_bound_s_per_step: float
    """The least time those bytes need on the case's links; 0 where they are unshaped."""
    time_s: float
    """Estimated wall time of the trial."""
    predicted_step_s: float | None
    """What a step of the steady state is expected to take, overlap included; None without a profile."""
    memory_bytes: int | None
    """Of all workers of a replay; None for real training."""


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

    def pending(self, attempts: pd.DataFrame) -> list[Trial]:
        """The trials whose last attempt is not done, in order; ``attempts`` are those of the store."""
        return _not_done(self.trials, attempts)

    def pending_seeds(self, attempts: pd.DataFrame, wanted: Callable[[Trial], bool]) -> list[Trial]:
        """Likewise, those of ``more_seeds`` that are wanted."""
        return _not_done(filter(wanted, self.more_seeds), attempts)

    def strangers(self, attempts: pd.DataFrame) -> set[str]:
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
        _check_workload(scenario, case)
        _check_steps(scenario, case)
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
    link = Link.model_validate({"rate": UNSHAPED})
    return Case(cluster=case.cluster, link=link, train=case.train)


def wire_bytes(trial: Trial, step: int | None = None) -> float:
    """Payload bytes that each worker sends in a step, by the method's formula; in the steady state without a step."""
    return state_of(trial.method).wire_bytes(_shapes(trial.case.train.model), trial.case.cluster.workers, step)


def lower_bound_s(trial: Trial, step: int | None = None) -> float:
    """The least time that a step's bytes need on the trial's network; 0 where nothing limits them."""
    busiest_bytes = state_of(trial.method).busiest_bytes(
        _shapes(trial.case.train.model), trial.case.cluster.workers, step
    )
    return topology_of(trial.case).bound_s(wire_bytes(trial, step), busiest_bytes)


@cache
def topology_of(case: Case) -> Topology:
    """The network that a case asks for."""
    return Topology(workers=case.cluster.workers, link=case.link, fabric=case.fabric)


def built_topology_of(trial: Trial) -> Topology:
    """The network that is built for a trial: the one that its case asks for, or a slower one, where time is dilated."""
    return _slowed(trial.case, trial.dilation)


@cache
def _slowed(case: Case, dilation: float) -> Topology:
    return topology_of(case).slowed(dilation)


def profile_of(case: Case) -> profiles.Profile | None:
    """The profile that a case replays; None where it trains."""
    return profiles.read(case.train.replay) if case.train.replay else None


def estimate(trial: Trial, cpu_count: int) -> Estimate:
    """Bytes, lower bound and time of a trial, from the method's byte formula and the model's operation count."""
    train, replayed = trial.case.train, profile_of(trial.case)
    ramp = min(state_of(trial.method).steady_from_step, train.steps)
    wire_s = sum(lower_bound_s(trial, step) for step in range(ramp)) + (train.steps - ramp) * lower_bound_s(trial)
    if replayed:
        compute_s = train.steps * (replayed.forward_s + replayed.backward_s + replayed.optimizer_s)
        evaluation_s = 0.0
    else:
        compute_s, evaluation_s = _training_s(trial, cpu_count)
    return Estimate(
        wire_bytes_per_step=wire_bytes(trial),
        lower_bound_s_per_step=lower_bound_s(trial),
        time_s=TRIAL_OVERHEAD_S + trial.dilation * (wire_s + compute_s) + evaluation_s,
        predicted_step_s=predicted_step_s(trial),
        memory_bytes=memory_bytes(trial),
    )


def memory_bytes(trial: Trial) -> int | None:
    """What the workers of a replay need together, about; None for real training."""
    replayed = profile_of(trial.case)
    if replayed is None:
        return None
    return replay_bytes(replayed, trial.case.cluster.workers, state_of(trial.method).most_copies)


def predicted_step_s(trial: Trial) -> float | None:
    """What a step of the steady state is expected to take; None without a profile.

    Where time is dilated, it is told as measured: what wakes processes is this machine, which dilation does not slow.
    """
    replayed = profile_of(trial.case)
    if replayed is None:
        return None
    state, topology = state_of(trial.method), topology_of(trial.case)
    message_s = predict.MESSAGE_S / trial.dilation
    return predict.step_s(replayed, trial.method, state, topology, trial.case.train.bucket_bytes, message_s)


def _training_s(trial: Trial, cpu_count: int) -> tuple[float, float]:
    """Seconds of all steps' computation and of all evaluations, from the model's operation count."""
    train, workers = trial.case.train, trial.case.cluster.workers
    flops = _flops_per_sample(train.model)
    flops_per_s = ASSUMED_FLOPS_PER_CORE * min(cpu_count, workers)
    compute_s = train.steps * flops * train.batch_size * workers / flops_per_s
    evaluations = math.ceil(train.steps / train.eval_every)
    forward_share = 1 / 3  # of the operations of a forward and backward pass
    return compute_s, evaluations * forward_share * flops * DATASETS[train.dataset].test_size / flops_per_s


def total_s(trials: Iterable[Trial], cpu_count: int) -> float:
    """Estimated wall time of these trials on a fresh cluster."""
    return BRING_UP_S + sum(estimate(trial, cpu_count).time_s for trial in trials)


def state_of(method: MethodSpec) -> MethodState:
    """A fresh, unbound state with the method's parameters."""
    return baselines.get(method.name).State(**method.params)


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
    seed = scenario.seed + round_number
    identity = {
        "cluster": cluster,
        "image": image,
        "case": case.model_dump(mode="json"),
        "method": method.model_dump(mode="json"),
        "seed": seed,
        "round": round_number,
        "for_accuracy": for_accuracy,
        "code": code_digest(),
        "checkpoint": _content_digest(case.train.checkpoint),
        "profile": profiles.digest(case.train.replay) if case.train.replay else None,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return Trial(
        id=digest[:16],
        scenario=scenario.name,
        cluster=cluster,
        image=image,
        case=case,
        method=method,
        seed=seed,
        round=round_number,
        for_accuracy=for_accuracy,
    )


@cache
def _content_digest(checkpoint: str | None) -> str | None:
    """Of a checkpoint's content, which may change under the same name."""
    return hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest() if checkpoint else None


@cache
def _shapes(model: str) -> list[tuple[int, ...]]:
    """Of the model's parameters."""
    return MODELS[model].shapes()


@cache
def _flops_per_sample(model: str) -> int:
    return MODELS[model].flops_per_sample()


def _check_workload(scenario: Scenario, case: Case) -> None:
    if case.train.replay:
        _check_replay(scenario, case, profiles.read(case.train.replay))
    else:
        _check_training(scenario, case)


def _check_replay(scenario: Scenario, case: Case, replayed: profiles.Profile) -> None:
    train = case.train
    model = _known(scenario, "model", train.model, MODELS)
    if replayed.model != train.model or Counter(replayed.shapes) != Counter(_shapes(model.name)):
        found = f"{train.replay}, of {replayed.model} with {replayed.numel} parameters"
        allowed = f"a profile of {train.model} (train.model) with {numel(_shapes(model.name))}"
        raise UsageError.at(scenario.name, "train.replay", found, allowed)
    if replayed.batch_size != train.batch_size:
        allowed = f"{replayed.batch_size}, with which {train.replay} was made"
        raise UsageError.at(scenario.name, "train.batch_size", train.batch_size, allowed)
    if train.checkpoint:
        raise UsageError.at(
            scenario.name, "train.checkpoint", train.checkpoint, "none with train.replay: nothing is learnt"
        )
    if case.cluster.device != "cpu":
        raise UsageError.at(
            scenario.name, "cluster.device", case.cluster.device, "cpu with train.replay: nothing is computed"
        )
    if train.target:
        raise UsageError.at(
            scenario.name, "train.target", str(train.target), "'none' with train.replay: nothing is learnt or evaluated"
        )


def _check_training(scenario: Scenario, case: Case) -> None:
    train = case.train
    model, data = _known(scenario, "model", train.model, MODELS), _known(scenario, "dataset", train.dataset, DATASETS)
    if not model.fits(data):
        fitting = [name for name, other in MODELS.items() if other.fits(data)]
        raise UsageError.at(scenario.name, "train.model", train.model, f"for {train.dataset}: {', '.join(fitting)}")
    if train.target and train.target.metric == "perplexity" and not data.is_text:
        allowed = f"accuracy or loss on {data.name}: only a language has a perplexity"
        raise UsageError.at(scenario.name, "train.target", str(train.target), allowed)
    if train.checkpoint:
        model.build_from(Path(train.checkpoint))
    if case.cluster.workers * train.batch_size > data.train_size:
        found = f"{train.batch_size} x {case.cluster.workers} workers"
        raise UsageError.at(
            scenario.name, "train.batch_size", found, f"at most {data.train_size} samples a step ({train.dataset})"
        )


def _check_steps(scenario: Scenario, case: Case) -> None:
    for method in scenario.methods:
        warmup = max(state_of(method).steady_from_step, UNSETTLED_STEPS)
        if case.train.steps <= warmup:
            allowed = f"more than {warmup}, the steps before the steady state of {method.label}"
            raise UsageError.at(scenario.name, "train.steps", case.train.steps, allowed)
        period = state_of(method).agrees_every
        for field, steps in (("steps", case.train.steps), ("eval_every", case.train.eval_every)):
            if steps % period:
                allowed = f"multiples of {period}: only then do the workers of {method.label} hold the same parameters"
                raise UsageError.at(scenario.name, f"train.{field}", steps, allowed)


def _known(scenario: Scenario, field: str, name: str, registry: dict[str, Model] | dict[str, Dataset]):  # type: ignore[no-untyped-def]
    if name not in registry:
        raise UsageError.at(scenario.name, f"train.{field}", name, ", ".join(registry))
    return registry[name]
