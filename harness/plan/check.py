"""Refuse what cannot be run: models, data sets and step counts that do not go together."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path

import torch

from baselines._state import numel
from harness import plugins
from harness.errors import UsageError
from harness.methods import blamed
from harness.plan.expected import MOST_UNLIKE, shapes_of, state_of, topology_of, unlike_bytes
from harness.plan.status import first_steady_step
from harness.scenario.optimisation import NONE
from harness.scenario.schema import MOST_EMULATED, SELF, Case, MethodSpec, Scenario, Train
from harness.workload import optimizers
from harness.workload import profile as profiles
from harness.workload.data import DATASETS, Dataset
from harness.workload.models import MODELS, Model, check_scores
from harness.workload.profile import Profile


def check_workload(scenario: Scenario, case: Case) -> None:
    """Refuse a model, data set or profile that is unknown, or does not go with the rest of ``[train]``.

    Raises:
        UsageError: with the field, what was found and what is allowed.
    """
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
    if train.save_every:
        _check_saves(scenario, case)


def _check_profile(scenario: Scenario, case: Case, field: str) -> None:
    """A profile is of a CPU's workers, and faster than real time is only what this kernel need not time."""
    train = case.train
    if train.known_profile:
        profiles.find(train.known_profile, f"train.{field}")
        _check_contents(scenario, train, profiles.read(train.known_profile), field)
    if case.cluster.device != "cpu":
        allowed = f"cpu with train.{field}: the profile's device is what counts"
        raise UsageError.at(scenario.name, "cluster.device", case.cluster.device, allowed)
    if (train.dilation or 1) < 1 and topology_of(case).needs_netem:
        allowed = "at least 1 where links have a delay or lose packets: netem's timers cannot be faster than real time"
        raise UsageError.at(scenario.name, "train.dilation", train.dilation, allowed)


def _check_contents(scenario: Scenario, train: Train, profile: Profile, field: str) -> None:
    """It must be of the same model and batch."""
    model = _known_model(scenario, train.model)
    if profile.model != plugins.short(train.model) or Counter(profile.shapes) != Counter(shapes_of(model.name)):
        found = f"{train.profile}, of {profile.model} with {profile.numel} parameters"
        allowed = f"a profile of {plugins.short(train.model)} (train.model) with {numel(shapes_of(model.name))}"
        raise UsageError.at(scenario.name, f"train.{field}", found, allowed)
    if train.pace and (lacking := _lacking(profile, model.name)):
        allowed = f"a profile of each parameter of {plugins.short(train.model)} (train.model); it lacks {lacking}"
        raise UsageError.at(scenario.name, "train.pace", train.pace, allowed)
    if profile.batch_size != train.batch_size:
        allowed = f"{profile.batch_size}, with which {train.profile} was made"
        raise UsageError.at(scenario.name, "train.batch_size", train.batch_size, allowed)
    if profile.optimizer != train.optimizer.name:
        allowed = f"{profile.optimizer}, with which {train.profile} was made"
        raise UsageError.at(scenario.name, "train.optimizer", train.optimizer.name, allowed)
    if profile.autocast != train.autocast:
        allowed = f"{profile.autocast or NONE}, as {train.profile} was made"
        raise UsageError.at(scenario.name, "train.autocast", train.autocast or NONE, allowed)


def _lacking(profile: Profile, model: str) -> str | None:
    """A parameter of a model that a profile lacks: workers that are paced ask it by names when gradients are ready.

    Replays do not: their parameters are the profile's own.
    """
    known = {(gradient.parameter, gradient.shape) for gradient in profile.gradients}
    lacking = (each for each in _shapes_by_name(model).items() if each not in known)
    return next((f"{name} of shape {shape}" for name, shape in lacking), None)


@cache
def _shapes_by_name(model: str) -> dict[str, tuple[int, ...]]:
    return MODELS[model].shapes_by_name()


def _check_replay(scenario: Scenario, case: Case) -> None:
    train = case.train
    for field, given in (("pretrain", train.pretrain), ("augment", train.augment), ("checkpoint", train.checkpoint)):
        if given:
            allowed = "none with train.replay: nothing is learnt"
            raise UsageError.at(
                scenario.name, f"train.{field}", given if isinstance(given, str) else "a table", allowed
            )
    if train.shrink not in (None, 1):
        for method in scenario.methods:
            _check_shrinks(scenario, case, method, train.shrink)
    if train.target:
        raise UsageError.at(
            scenario.name, "train.target", str(train.target), "'none' with train.replay: nothing is learnt or evaluated"
        )


def _check_shrinks(scenario: Scenario, case: Case, method: MethodSpec, shrink: int) -> None:
    """What a method sends must be as many times smaller as tensors are."""
    if unlike_bytes(case, method, shrink) > MOST_UNLIKE:
        allowed = f"1 with {method.label}: what it sends does not shrink with its tensors"
        raise UsageError.at(scenario.name, "train.shrink", shrink, allowed)


def _check_training(scenario: Scenario, case: Case) -> None:
    train = case.train
    model, known = _known_model(scenario, train.model), _known_dataset(scenario, train.dataset)
    data = known.in_folder(train.data_dir)
    if not model.fits(data):
        fitting = [name for name, other in MODELS.items() if other.fits(data)]
        wanted = ", ".join(fitting) or f"a model of inputs {data.input_shape} and {data.classes} classes"
        allowed = f"for {plugins.short(train.dataset)}: {wanted}"
        raise UsageError.at(scenario.name, "train.model", train.model, allowed)
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


def _check_saves(scenario: Scenario, case: Case) -> None:
    """A trial may go on where it was only if that is more than its model, and its links may go on as well."""
    for field, given, why in (
        ("train.replay", case.train.replay, "nothing is learnt"),
        ("link.trace", case.link.trace, "it begins anew with every start"),
    ):
        if given:
            raise UsageError.at(scenario.name, "train.save_every", case.train.save_every, f"none with {field}: {why}")


def check_methods(scenario: Scenario, case: Case) -> None:
    """A method may need something of the optimizer that only some have, and may be for some numbers of workers alone.

    Raises:
        UsageError: this optimizer, or this number, will not do.
    """
    for method in scenario.methods:
        train, workers = method.settings(case.train), case.cluster.workers
        try:
            state_of(method).check_optimizer(optimizer_like(train))
        except ValueError as error:
            found = f"{train.optimizer.name} with {method.label}"
            allowed = f"what the method can work with: {error}. A method may have an optimizer of its own"
            raise UsageError.at(scenario.name, "train.optimizer", found, allowed) from None
        try:
            if case.can_be_emulated:  # of more, what they would send is predicted all the same
                state_of(method).check_workers(workers)
        except ValueError as error:
            allowed = f"what the method can work with: {error}"
            raise UsageError.at(scenario.name, "cluster.workers", f"{workers} with {method.label}", allowed) from None


def optimizer_like(train: Train) -> torch.optim.Optimizer:
    """What the training's optimizer is like; it makes no step."""
    settings = optimizers.settings_of(train.optimizer, train.lr, train.momentum, train.weight_decay)
    return optimizers.described(train.optimizer, settings)


def check_steps(scenario: Scenario, case: Case) -> None:
    """Refuse numbers of steps with which a method has no steady state, or ranks do not hold the same parameters.

    Raises:
        UsageError: with the field, what was found and what is allowed.
    """
    for method in scenario.methods:
        with blamed(method.name):
            state = state_of(method)
            warmup, period = first_steady_step(state), state.agrees_every
        if case.train.steps <= warmup:
            allowed = f"more than {warmup}, the steps before the steady state of {method.label}"
            raise UsageError.at(scenario.name, "train.steps", case.train.steps, allowed)
        for field, steps in (("steps", case.train.steps), ("eval_every", case.train.eval_every)):
            if steps % period:
                allowed = f"multiples of {period}: only then do the workers of {method.label} hold the same parameters"
                raise UsageError.at(scenario.name, f"train.{field}", steps, allowed)


def check_size(scenario: Scenario) -> None:
    """Refuse to run what can only be predicted.

    Raises:
        UsageError: a case has more workers than a machine emulates.
    """
    for case in scenario.cases:
        if not case.can_be_emulated:
            allowed = f"at most {MOST_EMULATED} to run; what more would do, pacbench plan predicts"
            raise UsageError.at(scenario.name, "cluster.workers", case.cluster.workers, allowed)


def _known_model(scenario: Scenario, name: str) -> Model:
    if name not in MODELS:
        raise UsageError.at(scenario.name, "train.model", name, MODELS.allowed)
    if MODELS.is_plugin(name):
        check_scores(name)
    return MODELS[name]


def _known_dataset(scenario: Scenario, name: str) -> Dataset:
    if name not in DATASETS:
        raise UsageError.at(scenario.name, "train.dataset", name, DATASETS.allowed)
    return DATASETS[name]
