"""Refuse what cannot be run: models, data sets and step counts that do not go together."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch

from baselines._state import numel
from harness.errors import UsageError
from harness.plan.expected import shapes_of, state_of, topology_of
from harness.plan.trial import UNSETTLED_STEPS
from harness.scenario.schema import NONE, SELF, Case, Scenario, Train
from harness.workload import optimizers
from harness.workload import profile as profiles
from harness.workload.data import DATASETS, Dataset
from harness.workload.models import MODELS, Model
from harness.workload.profile import Profile


def check_workload(scenario: Scenario, case: Case) -> None:
    train = case.train
    if train.replay and train.pace:
        raise UsageError.at(scenario.name, "train.pace", train.pace, "none with train.replay, which has its own")
    if train.replay == SELF:
        allowed = "a profile, by name or file; one of this machine is made for train.pace alone"
        raise UsageError.at(scenario.name, "train.replay", SELF, allowed)
    if train.profile:
        _check_profile(scenario, case, "replay" if train.replay else "pace")
    if train.replay:
        _check_replay(scenario, case)
    else:
        _check_training(scenario, case)


def _check_profile(scenario: Scenario, case: Case, field: str) -> None:
    """A profile is of a CPU's workers, and faster than real time is only what this kernel need not time."""
    train = case.train
    if train.known_profile:
        _check_contents(scenario, train, profiles.read(train.known_profile), field)
    if case.cluster.device != "cpu":
        allowed = f"cpu with train.{field}: the profile's device is what counts"
        raise UsageError.at(scenario.name, "cluster.device", case.cluster.device, allowed)
    if (train.dilation or 1) < 1 and topology_of(case).needs_netem:
        allowed = "at least 1 where links have a delay or lose packets: netem's timers cannot be faster than real time"
        raise UsageError.at(scenario.name, "train.dilation", train.dilation, allowed)


def _check_contents(scenario: Scenario, train: Train, profile: Profile, field: str) -> None:
    """It must be of the same model and batch."""
    model = _known(scenario, "model", train.model, MODELS)
    if profile.model != train.model or Counter(profile.shapes) != Counter(shapes_of(model.name)):
        found = f"{train.profile}, of {profile.model} with {profile.numel} parameters"
        allowed = f"a profile of {train.model} (train.model) with {numel(shapes_of(model.name))}"
        raise UsageError.at(scenario.name, f"train.{field}", found, allowed)
    if profile.batch_size != train.batch_size:
        allowed = f"{profile.batch_size}, with which {train.profile} was made"
        raise UsageError.at(scenario.name, "train.batch_size", train.batch_size, allowed)
    if profile.optimizer != train.optimizer.name:
        allowed = f"{profile.optimizer}, with which {train.profile} was made"
        raise UsageError.at(scenario.name, "train.optimizer", train.optimizer.name, allowed)
    if profile.autocast != train.autocast:
        allowed = f"{profile.autocast or NONE}, as {train.profile} was made"
        raise UsageError.at(scenario.name, "train.autocast", train.autocast or NONE, allowed)


def _check_replay(scenario: Scenario, case: Case) -> None:
    train = case.train
    for field, given in (("pretrain", train.pretrain), ("augment", train.augment), ("checkpoint", train.checkpoint)):
        if given:
            allowed = "none with train.replay: nothing is learnt"
            raise UsageError.at(
                scenario.name, f"train.{field}", given if isinstance(given, str) else "a table", allowed
            )
    if train.target:
        raise UsageError.at(
            scenario.name, "train.target", str(train.target), "'none' with train.replay: nothing is learnt or evaluated"
        )


def _check_training(scenario: Scenario, case: Case) -> None:
    train = case.train
    model, known = _known(scenario, "model", train.model, MODELS), _known(scenario, "dataset", train.dataset, DATASETS)
    data = known.in_folder(train.data_dir)
    if not model.fits(data):
        fitting = [name for name, other in MODELS.items() if other.fits(data)]
        raise UsageError.at(scenario.name, "train.model", train.model, f"for {train.dataset}: {', '.join(fitting)}")
    if train.target and train.target.metric == "perplexity" and not data.is_text:
        allowed = f"accuracy or loss on {data.name}: only a language has a perplexity"
        raise UsageError.at(scenario.name, "train.target", str(train.target), allowed)
    if train.augment and data.is_text:
        raise UsageError.at(scenario.name, "train.augment", train.augment, f"none on {data.name}, which has no images")
    if train.checkpoint and train.pretrain:
        raise UsageError.at(scenario.name, "train.checkpoint", train.checkpoint, "none with train.pretrain")
    if train.checkpoint:
        model.build_from(Path(train.checkpoint))
    if case.cluster.workers * train.samples_per_step > data.train_size:
        found = f"{train.batch_size} x {case.cluster.workers} workers"
        found += f" x {train.accumulate} accumulated" if train.accumulate > 1 else ""
        raise UsageError.at(
            scenario.name, "train.batch_size", found, f"at most {data.train_size} samples a step ({train.dataset})"
        )


def check_methods(scenario: Scenario, case: Case) -> None:
    """A method may need something of the optimizer that only some have."""
    for method in scenario.methods:
        try:
            state_of(method).check_optimizer(optimizer_like(case.train))
        except ValueError as error:
            found = f"{case.train.optimizer.name} with {method.label}"
            allowed = f"what the method can work with: {error}"
            raise UsageError.at(scenario.name, "train.optimizer", found, allowed) from None


def optimizer_like(train: Train) -> torch.optim.Optimizer:
    """The training's optimizer, of one number."""
    settings = optimizers.settings_of(train.optimizer, train.lr, train.momentum, train.weight_decay)
    return optimizers.build(train.optimizer, [torch.zeros(1, requires_grad=True)], settings)


def check_steps(scenario: Scenario, case: Case) -> None:
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
