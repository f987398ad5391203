"""The door of a training: who may enter, what is behind wrappers, what is refused in one line, and the way out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from ranks import Training, flat, gradients
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parallel.distributed import _MixedPrecision
from trainings import METHODS, SETTINGS, Facts, agree, brisk, complaint_of, not_so, resumed, saved

import baselines
from baselines._local import LocalState
from baselines._momentum import MomentumState


def door(name: str) -> list[str]:
    """What a second state is told, what a used one is told, and whether dense gradients come after ``remove``."""
    ddp = DistributedDataParallel(nn.Linear(3, 2, bias=False))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1, momentum=0.9)
    state = brisk(name)
    answers = []
    with baselines.register(ddp, state, optimizer=optimizer):
        ddp(torch.ones(1, 3) * (1 + dist.get_rank())).sum().backward()
        optimizer.step()
        answers.append(complaint_of(lambda: baselines.register(ddp, brisk("dgc"), optimizer=optimizer)))
    answers.append(complaint_of(lambda: baselines.register(ddp, state, optimizer=optimizer)))
    optimizer.zero_grad()
    ddp(torch.ones(1, 3) * (1 + dist.get_rank())).sum().backward()
    mean = (1 + dist.get_world_size()) / 2
    same = torch.equal(ddp.module.weight.grad, torch.full((2, 3), mean))
    with baselines.register(ddp, brisk("topk"), optimizer=optimizer):
        return [*answers, f"dense {same}, momentum {optimizer.param_groups[0]['momentum']}"]


def refused(what: str, name: str) -> str:
    """What ``register`` says to a model that is not in DDP, or not alone."""
    model = nn.Linear(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if what == "bare":
        return complaint_of(lambda: baselines.register(model, brisk(name), optimizer=optimizer))
    if what == "foreign optimizer":
        ddp = DistributedDataParallel(nn.Linear(8, 4))
        return complaint_of(lambda: baselines.register(ddp, brisk(name), optimizer=optimizer))
    if what == "foreign hook":
        ddp = DistributedDataParallel(model)
        ddp.register_comm_hook(None, default_hooks.allreduce_hook)
        return complaint_of(lambda: baselines.register(ddp, brisk(name), optimizer=optimizer))
    if what == "mixed precision":
        with mock.patch.object(torch, "Stream"):  # of which a CPU has none
            half = _MixedPrecision(param_dtype=torch.float16, reduce_dtype=torch.float16)
            ddp = DistributedDataParallel(model, mixed_precision=half)
        return complaint_of(lambda: baselines.register(ddp, brisk(name), optimizer=optimizer))
    if what == "FSDP":
        sharded = FullyShardedDataParallel(model, device_id=torch.device("cpu"))
    else:
        sharded = fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = torch.optim.SGD(sharded.parameters(), lr=0.1)
    return complaint_of(lambda: baselines.register(sharded, brisk(name), optimizer=optimizer))


@pytest.mark.parametrize(
    ("what", "complaint"),
    [
        ("bare", "register needs a model in DDP, not Linear"),
        ("foreign optimizer", "holds none of the model's parameters"),
        ("foreign hook", "has a communication hook already"),
        ("mixed precision", "has a mixed_precision of its own"),
        ("FSDP", "shards its parameters"),
        ("FSDP2", "shards its parameters"),
    ],
)
def test_what_no_method_supports_is_refused_in_one_line(on_ranks, what, complaint):
    for answer in on_ranks(2, refused, what, "topk"):
        assert complaint in answer
        assert "\n" not in answer


@pytest.mark.parametrize("name", METHODS)
def test_a_method_comes_alone_and_leaves_what_it_found(on_ranks, name):
    for second, again, after in on_ranks(2, door, name):
        assert f"{name} synchronises this model already" in second
        assert "belongs to another training" in again
        assert after == "dense True, momentum 0.9"


def by_a_bare_hook(name: str) -> str:
    """What a user is told who hands DDP a state and a hook without the door."""
    ddp, method = DistributedDataParallel(nn.Linear(8, 4)), baselines.get(name)
    ddp.register_comm_hook(method.State(), method.hook)
    return complaint_of(lambda: ddp(torch.ones(1, 8)).sum().backward())


@pytest.mark.parametrize("name", METHODS)
def test_a_hook_whose_state_is_not_registered_says_what_to_do(on_ranks, name):
    for answer in on_ranks(2, by_a_bare_hook, name):
        assert f"this state of {name} is not registered" in answer.splitlines()[0]
        assert "hand it to baselines.register(ddp, state, optimizer=optimizer)" in answer.splitlines()[0]


# Optimizers


def behind_accelerate(name: str) -> Facts:
    from accelerate import Accelerator  # takes seconds

    accelerator = Accelerator(cpu=True)

    def wrapped(weights: list[nn.Parameter], **settings: Any) -> Any:
        return accelerator.prepare_optimizer(torch.optim.SGD(weights, **settings))

    one, by_hand = (Training(brisk(name), optimizer=make, settings=SETTINGS) for make in (wrapped, torch.optim.SGD))
    for step in range(4):
        for each in (one, by_hand):
            each.step(gradients(step, dist.get_rank()))
    return {
        "steps": one.handle.state.step == 4,
        "weights": torch.equal(flat(one.weights), flat(by_hand.weights)),
    }


@pytest.mark.parametrize("name", ["topk", "dgc", "local_sgd", "pactrain"])
def test_the_optimizer_within_accelerate_s_is_found(on_ranks, name):
    assert not_so(on_ranks(2, behind_accelerate, name)) == []


def by_a_sharded_optimizer(name: str) -> Facts:
    sharded = partial(ZeroRedundancyOptimizer, optimizer_class=torch.optim.SGD)
    state = brisk(name)
    if isinstance(state, (LocalState, MomentumState)) or name == "pactrain":  # they act on all of a rank's optimizer
        answer = complaint_of(lambda: Training(state, optimizer=sharded, settings=SETTINGS))
        return {answer: "ZeroRedundancyOptimizer" in answer and "\n" not in answer}
    one = Training(state, optimizer=sharded, settings=SETTINGS)
    by_hand = Training(brisk(name), settings=SETTINGS)
    for step in range(4):
        for each in (one, by_hand):
            each.step(gradients(step, dist.get_rank()))
    return {"steps": state.step == 4, "weights": torch.equal(flat(one.weights), flat(by_hand.weights))}


@pytest.mark.parametrize("name", METHODS)
def test_an_optimizer_in_shards_is_as_a_whole_one_or_refused(on_ranks, name):
    assert not_so(on_ranks(2, by_a_sharded_optimizer, name)) == []


def with_a_second_optimizer(name: str) -> str:
    """What ``register`` says where it is given one of two optimizers of a model."""
    is_sparse = brisk(name).takes_sparse_embeddings
    model = nn.Sequential(nn.Embedding(4, 3, sparse=is_sparse), nn.Linear(3, 2), nn.Linear(2, 2))
    model[0].requires_grad_(is_sparse)
    ddp = DistributedDataParallel(model)
    first = torch.optim.SGD(model[1].parameters(), lr=0.1, momentum=0.9)
    alone = complaint_of(lambda: baselines.register(ddp, brisk(name), optimizer=first))
    first.add_param_group({"params": model[2].parameters()})  # of the sparse embedding no hook is handed anything
    together = complaint_of(lambda: baselines.register(ddp, brisk(name), optimizer=first))
    return f"{alone}; then {together}"


@pytest.mark.parametrize("name", METHODS)
def test_one_optimizer_must_hold_all_that_a_method_remembers_something_of(on_ranks, name):
    for answer in on_ranks(2, with_a_second_optimizer, name):
        if brisk(name).remembers:
            assert answer.startswith("optimizer: it lacks 2 of the model's trained parameters, such as 2.weight")
            assert "\n" not in answer
            assert answer.endswith("then taken")
        else:
            assert answer.startswith("taken")


def gathered_before(name: str) -> Facts:
    """A method comes to an optimizer that has gathered momentum, and goes again."""
    training = Training(baselines.get("dense").State(), settings=SETTINGS)
    training.step(gradients(0, dist.get_rank()))
    training.handle.remove()
    with baselines.register(training.ddp, brisk(name), optimizer=training.optimizer):
        training.step(gradients(1, dist.get_rank()))
        facts = {"ranks": agree(flat(training.weights))}
    before = [weight.detach().clone() for weight in training.weights]
    training.step([torch.zeros_like(weight) for weight in training.weights])
    decayed = [weight * (1 - SETTINGS["lr"] * SETTINGS["weight_decay"]) for weight in before]
    return {**facts, "begins anew": torch.allclose(flat(training.weights), flat(decayed))}


MOMENTUM_METHODS = [name for name in METHODS if issubclass(baselines.get(name).State, MomentumState)]


@pytest.mark.parametrize("name", MOMENTUM_METHODS)
def test_momentum_that_was_gathered_before_a_method_came_does_not_come_back(on_ranks, name):
    assert not_so(on_ranks(2, gathered_before, name)) == []


# What is assigned later

LATER = {"ratio": 0.6, "period": 3, "clip_norm": 0.1, "selection": "exact", "topk": 2, "decay": 0.5, "mu": 0.5}
ADJUSTABLE = [(name, parameter) for name in METHODS for parameter in baselines.get(name).State.adjustable]


def assigned_in_training(name: str, parameter: str) -> Facts:
    """Against a training that was resumed and given the new value then, and one that keeps the old one."""
    one = Training(brisk(name), settings=SETTINGS)
    for step in range(4):
        one.step(gradients(step, dist.get_rank()))
    checkpoint = saved(one)
    setattr(one.handle.state, parameter, LATER[parameter])
    by_hand = resumed(checkpoint, brisk(name), assigned={parameter: LATER[parameter]})
    as_before = resumed(checkpoint, brisk(name, **{parameter: LATER[parameter]}))  # the checkpoint's value counts
    same, different = True, False
    for step in range(4, 10):
        for each in (one, by_hand, as_before):
            each.step(gradients(step, dist.get_rank()))
        same &= torch.equal(flat(one.weights), flat(by_hand.weights))
        different |= not torch.equal(flat(one.weights), flat(as_before.weights))
    return {"acts": different, "from the next step on": same}


@pytest.mark.parametrize(("name", "parameter"), ADJUSTABLE)
def test_what_may_change_in_training_acts_from_the_next_step_on(on_ranks, name, parameter):
    assert not_so(on_ranks(2, assigned_in_training, name, parameter)) == []


def resumed_after_an_assignment(name: str, parameter: str, load_first: bool) -> Facts:
    """By a state that is made as the first one was, before the assignment."""
    one = Training(brisk(name), settings=SETTINGS)
    for step in range(6):
        if step == 3:
            setattr(one.handle.state, parameter, LATER[parameter])
        one.step(gradients(step, dist.get_rank()))
    other = resumed(saved(one), brisk(name), load_first)
    facts = {"the value": getattr(other.handle.state, parameter) == LATER[parameter]}
    for step in range(6, 12):
        results = [each.step(gradients(step, dist.get_rank())) for each in (one, other)]
        facts[f"result of {step}"] = torch.equal(*results)
    return {**facts, "weights": torch.equal(flat(one.weights), flat(other.weights))}


@pytest.mark.parametrize("load_first", [True, False], ids=["before", "after"])
@pytest.mark.parametrize(("name", "parameter"), ADJUSTABLE)
def test_what_was_assigned_is_so_after_a_resume(on_ranks, name, parameter, load_first):
    assert not_so(on_ranks(2, resumed_after_an_assignment, name, parameter, load_first)) == []


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"ratio": 0.0}, "topk.ratio: 0.0: Input should be greater than 0"),
        ({"rato": 0.1}, "topk.rato: unknown parameter; allowed: ratio, selection, error_feedback"),
        ({"selection": 3}, "topk.selection: 3: Input should be 'sampled' or 'exact'"),
    ],
)
def test_a_parameter_that_is_not_allowed_is_one_line(given, complaint):
    with pytest.raises(baselines.ParameterError) as refused:
        baselines.get("topk").State(**given)
    assert str(refused.value) == complaint


@pytest.mark.parametrize("name", [name for name in METHODS if brisk(name).parameters])
def test_what_is_assigned_later_is_checked(name):
    state = brisk(name)
    for parameter in state.parameters:
        assert "\n" not in complaint_of(lambda parameter=parameter: setattr(state, parameter, object()))
        with pytest.raises(ValueError, match=parameter):
            setattr(state, parameter, object())


WORDS = ("exact", "fp32", "ternary", "int8", "layer", "nearest", "private", "best")
OTHER_VALUES = (2, 3, 4, 0.5, 0.1, True, False, *WORDS)
SAYS = ("most_copies", "syncs_in_end_step", "agrees_every", "steady_from_step", "hidden_steps", "has_residuals")


def other_value(make: Callable[..., baselines.MethodState], parameter: str) -> Any:
    """The first that the parameter may have beside its own; None if there is none here."""
    own = getattr(make(), parameter)
    others = [value for value in OTHER_VALUES if (type(value), value) != (type(own), own)]
    return next((v for v in others if complaint_of(partial(make, **{parameter: v})) == "taken"), None)


def outcome(state: baselines.MethodState) -> list[Any]:
    """What a state says of itself, and what a training by it comes to."""
    said = [getattr(state, each) for each in SAYS]
    training = Training(state, settings=SETTINGS)
    for step in range(5):
        training.step(gradients(step, dist.get_rank()))
    return [*said, *flat(training.weights).tolist()]


def assigned_before_training(name: str, others: dict[str, Any]) -> Facts:
    """Against states that are made with the value."""
    make, facts = partial(brisk, name, **others), Facts()
    for parameter in make().parameters:
        if (value := other_value(make, parameter)) is None:
            continue
        state = make()
        if parameter == "variant":
            answer = complaint_of(partial(setattr, state, parameter, value))
            facts[answer] = "comes too late: it names values of other parameters" in answer and "\n" not in answer
            continue
        setattr(state, parameter, value)
        facts[f"{parameter} {value}"] = outcome(state) == outcome(make(**{parameter: value}))
    return facts


WITH_PARAMETERS = [(name, {}) for name in METHODS if brisk(name).parameters]


@pytest.mark.parametrize(("name", "others"), [*WITH_PARAMETERS, ("pactrain", {"values": "ternary"})], ids=str)
def test_what_is_assigned_before_training_is_as_if_made_so(on_ranks, name, others):
    assert not_so(on_ranks(2, assigned_before_training, name, others)) == []
