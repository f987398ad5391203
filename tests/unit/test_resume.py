"""Save and resume: to the last bit, wherever DDP is with its buckets; what is of another training is refused."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import SHAPES, Given, Training, flat, gradients
from trainings import (
    EVERY_MEMORY,
    EVERY_VARIANT,
    IN_ONE_ENTRY,
    LR,
    METHODS,
    SETTINGS,
    Facts,
    Scaled,
    agree,
    brisk,
    complaint_of,
    equal,
    loaded,
    not_so,
    resumed,
    saved,
)

import baselines

pytestmark = pytest.mark.methods

STEPS = 7


def resume_everywhere(name: str, parameters: dict[str, Any], steps: int, options: dict[str, Any]) -> Facts:
    """After each step of a training another one is resumed, which should go on as the first did for so many steps."""
    one = Training(brisk(name, **parameters), settings=SETTINGS, **options)
    checkpoints, results = [saved(one)], []
    for step in range(STEPS):
        results.append(one.step(gradients(step, dist.get_rank())))
        checkpoints.append(saved(one))
    facts: Facts = {}
    for stop in range(STEPS - steps + 1):
        other = resumed(checkpoints[stop], brisk(name, **parameters), load_first=stop % 2 == 0, **options)
        for step in range(stop, stop + steps):
            result = other.step(gradients(step, dist.get_rank()))
            facts[f"{stop}: result of {step}"] = torch.equal(result, results[step])
        facts[f"{stop}: checkpoint"] = equal(loaded(saved(other)), loaded(checkpoints[stop + steps]))
    return facts


@EVERY_VARIANT
def test_a_resumed_training_goes_on_to_the_last_bit(on_ranks, name, parameters):
    assert not_so(on_ranks(2, resume_everywhere, name, parameters, 2, {})) == []


@pytest.mark.parametrize("options", [{"static_graph": True}, {"find_unused_parameters": True}], ids=str)
@pytest.mark.parametrize("name", ["topk", "thc"])
def test_it_does_so_whenever_ddp_regroups_its_buckets(on_ranks, name, options):
    assert not_so(on_ranks(2, resume_everywhere, name, {}, 3, options)) == []


class OfTwoTypes(Given):
    """A model whose weights are fp32 and fp64 by turns: DDP begins with a bucket of each."""

    def __init__(self) -> None:
        super().__init__(*SHAPES)
        for weight in [*self.weights][1::2]:
            weight.data = weight.data.double()


class WithWords(Given):
    """A model with an embedding whose gradient is sparse: DDP gives it a bucket to itself."""

    def __init__(self) -> None:
        super().__init__(*SHAPES)
        self.words = torch.nn.Embedding(10, 3, sparse=True)
        torch.nn.init.ones_(self.words.weight)

    def forward(self, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
        return super().forward(gradients) + self.words(torch.tensor([dist.get_rank(), 3])).sum()


def resume_among_buckets(name: str, model: type[Given]) -> Facts:
    """After each of the first steps another training is resumed, which should go on as the first one does."""
    one = Training(brisk(name), model=model(), settings=LR)
    checkpoints, later = [], []
    for step in range(STEPS):
        checkpoints.append(saved(one))
        later.append(stepped(one, step))
    facts: Facts = {}
    for stop in range(1, STEPS - 1):
        other = resumed(checkpoints[stop], brisk(name), load_first=stop % 2 == 0, settings=LR, model=model())
        for step in range(stop, STEPS):
            facts[f"{stop}: {step}"] = equal(stepped(other, step), later[step])
    return facts


def stepped(training: Training, step: int) -> list[torch.Tensor]:
    """The weights after a step."""
    training.begin_step()
    training.ddp(gradients(step, dist.get_rank())).backward()
    training.optimizer.step()
    return [weight.detach().clone() for weight in training.weights]


AMONG_BUCKETS = [(name, OfTwoTypes) for name in METHODS]
AMONG_BUCKETS += [(name, WithWords) for name in METHODS if baselines.get(name).State.takes_sparse_embeddings]


@pytest.mark.parametrize(("name", "model"), AMONG_BUCKETS, ids=lambda value: getattr(value, "__name__", value))
def test_it_does_so_whatever_buckets_ddp_begins_with(on_ranks, name, model):
    assert not_so(on_ranks(2, resume_among_buckets, name, model)) == []


class Branching(Given):
    """A model of branches, which each rank goes through in an order of its own."""

    def forward(self, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
        terms = list(zip(self.weights, gradients, strict=True))
        in_order = terms if dist.get_rank() == 0 else terms[::-1]
        return sum((weight * gradient).sum() for weight, gradient in in_order)


def resume_branches(name: str) -> Facts:
    one = Training(brisk(name), model=Branching(*SHAPES), settings=SETTINGS)
    for step in range(3):
        one.step(gradients(step, dist.get_rank()))
    other = resumed(saved(one), brisk(name), model=Branching(*SHAPES))
    facts: Facts = {}
    for step in range(3, 6):
        results = [each.step(gradients(step, dist.get_rank())) for each in (one, other)]
        facts[f"result of {step}"] = torch.equal(*results)
    return {**facts, "checkpoint": equal(loaded(saved(other)), loaded(saved(one)))}


@pytest.mark.parametrize("name", ["topk", "thc", "oktopk"])
def test_ranks_whose_gradients_get_ready_in_other_orders_go_on_together(on_ranks, name):
    assert not_so(on_ranks(3, resume_branches, name)) == []


def resume_what_was_loaded_first(name: str, parameters: dict[str, Any], load_first: bool) -> Facts:
    """Model and optimizer are loaded before ``register``, but not before DDP, which sends rank 0's weights to all."""
    one = Training(brisk(name, **parameters), settings=SETTINGS)
    for step in range(4):
        one.step(gradients(step, dist.get_rank()))
    of_model, of_optimizer, of_method = loaded(saved(one))

    def as_it_was(weights: list[torch.nn.Parameter], **settings: Any) -> torch.optim.SGD:
        optimizer = torch.optim.SGD(weights, **settings)
        model.load_state_dict(of_model)
        optimizer.load_state_dict(of_optimizer)
        return optimizer

    model, state = Given(*SHAPES), brisk(name, **parameters)
    if load_first:
        state.load_state_dict(of_method)
    other = Training(state, model=model, optimizer=as_it_was, settings=SETTINGS)
    if not load_first:
        state.load_state_dict(of_method)
    facts: Facts = {}
    for step in range(4, 7):
        results = [each.step(gradients(step, dist.get_rank())) for each in (one, other)]
        facts[f"result of {step}"] = torch.equal(*results)
    return {**facts, "checkpoint": equal(loaded(saved(other)), loaded(saved(one)))}


@pytest.mark.parametrize("load_first", [True, False], ids=["method first", "method last"])
@EVERY_VARIANT
def test_an_optimizer_may_be_loaded_before_a_method_comes(on_ranks, name, parameters, load_first):
    assert not_so(on_ranks(2, resume_what_was_loaded_first, name, parameters, load_first)) == []


def resume_after_an_overflow(name: str) -> Facts:
    """An overflow in the first step, after which DDP regroups its buckets, though no step was made."""
    one = Scaled(brisk(name), scale=1024.0)
    one.step(0, IN_ONE_ENTRY)
    other = Scaled(brisk(name), scale=512.0)
    other.state.load_state_dict(one.state.state_dict())
    facts: Facts = {}
    for step in range(3):
        for each in (one, other):
            each.step(step)
        facts[f"{step}"] = torch.equal(flat(one.training.weights), flat(other.training.weights))
    return facts


def test_a_training_is_resumed_that_has_made_no_step_yet(on_ranks):
    assert not_so(on_ranks(2, resume_after_an_overflow, "topk")) == []


def go_back(name: str, parameters: dict[str, Any]) -> Facts:
    """A training takes an earlier checkpoint of its own and goes on from there, without another ``register``."""
    one = Training(brisk(name, **parameters), settings=SETTINGS)
    for step in range(3):
        one.step(gradients(step, dist.get_rank()))
    checkpoint = saved(one)
    results = [one.step(gradients(step, dist.get_rank())) for step in range(3, STEPS)]
    last = loaded(saved(one))
    for part, earlier in zip((one.model, one.optimizer, one.handle.state), loaded(checkpoint), strict=True):
        part.load_state_dict(earlier)
    again = [one.step(gradients(step, dist.get_rank())) for step in range(3, STEPS)]
    return {"results": all(map(torch.equal, results, again)), "checkpoint": equal(loaded(saved(one)), last)}


@EVERY_VARIANT
def test_a_training_goes_back_in_place(on_ranks, name, parameters):
    assert not_so(on_ranks(2, go_back, name, parameters)) == []


def refusals(changes: dict[str, Any], name: str = "topk") -> tuple[str, str]:
    """What is said of a changed checkpoint, before ``register``, and what is the optimizer's then; and after it."""
    training = Training(brisk(name), settings=SETTINGS)
    training.step(gradients(0, dist.get_rank()))
    state = training.handle.state
    changed = {key: value for key, value in {**state.state_dict(), **changes}.items() if value != "left out"}
    after = complaint_of(lambda: state.load_state_dict(changed))
    training.handle.remove()

    def begin() -> None:
        fresh = brisk(name)
        fresh.load_state_dict(changed)
        baselines.register(training.ddp, fresh, optimizer=training.optimizer)

    before = complaint_of(begin)
    assert training.optimizer.param_groups[0]["momentum"] == SETTINGS["momentum"]
    return before, after


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"method": "dgc"}, "the checkpoint is of dgc"),
        ({"version": 9}, "version 9"),
        ({"model": {"weights.0": [2, 2]}}, "another model: weights.0: \\[2, 2\\] there, \\[7, 11\\] here"),
        ({"world_size": 4}, "rank . of 4, and this is rank . of 2"),
        ({"parameters": {"error_feedback": False}}, "error_feedback=False, and this state has True"),
        ({"method": "left out"}, "this is no checkpoint of topk"),
    ],
)
def test_a_foreign_checkpoint_is_one_line(on_ranks, changes, complaint):
    for answer in chain(*on_ranks(2, refusals, changes)):
        assert re.search(complaint, answer)
        assert "\n" not in answer


OTHERS: dict[str, Any] = {"v": {}, "m": {}, "decay": 0.9}
"""What DGC remembers beside ``u``."""


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"rank": "left out"}, "rank is NoneType, not int"),
        ({"remembered": "left out"}, "remembered is NoneType, not Mapping"),
        ({"parameters": None}, "parameters is NoneType, not Mapping"),
        ({"parameters": {"ratio": 7}}, "dgc.ratio: 7: Input should be less than or equal to 1"),
        ({"model": [1]}, "model is list, not Mapping"),
        ({"step": "1"}, "step is str, not int"),
        ({"remembered": {}}, "nothing is remembered as u"),
        ({"remembered": {"u": {"weights.9": torch.ones(2)}, **OTHERS}}, "u cannot be taken"),
        ({"remembered": {"u": {"weights.1": torch.ones(2)}, **OTHERS}}, "u cannot be taken"),
        ({"remembered": {"u": 7, **OTHERS}}, "u cannot be taken"),
    ],
    ids=str,
)
def test_a_damaged_checkpoint_is_one_line_and_changes_no_optimizer(on_ranks, changes, complaint):
    for answer in chain(*on_ranks(2, refusals, changes, "dgc")):
        assert answer.startswith("the checkpoint is damaged: ")
        assert complaint in answer
        assert "\n" not in answer


DICED = ("qsgd", "terngrad", "thc", "randomk", "pactrain")
OF_A_GPU = torch.zeros(16, dtype=torch.uint8)
"""Of the size and type of what a generator on one gives."""


def resume_what_a_gpu_saved(name: str) -> Facts:
    """Dice are those of a new training; all else is what was saved."""
    one = Training(brisk(name), settings=SETTINGS)
    for step in range(4):
        one.step(gradients(step, dist.get_rank()))
    there = one.handle.state.state_dict()
    kept = {key: OF_A_GPU if "dice" in key else value for key, value in there["remembered"].items()}
    other = Training(brisk(name), settings=SETTINGS)
    fresh = other.handle.state.state_dict()["remembered"]
    other.step(gradients(0, dist.get_rank()))
    other.model.load_state_dict(one.model.state_dict())
    other.optimizer.load_state_dict(one.optimizer.state_dict())
    other.handle.state.load_state_dict({**there, "remembered": kept})
    now = other.handle.state.state_dict()["remembered"]
    facts = {key: equal(now[key], fresh[key] if "dice" in key else there["remembered"][key]) for key in now}
    other.step(gradients(4, dist.get_rank()))
    return {**facts, "ranks agree": agree(flat(other.weights))}


@pytest.mark.parametrize("name", DICED)
def test_what_was_saved_on_a_gpu_is_resumed_on_a_cpu(on_ranks, name):
    assert not_so(on_ranks(2, resume_what_a_gpu_saved, name)) == []


def load_other_dice(name: str, dice: Any) -> str:
    state = Training(brisk(name), settings=SETTINGS).handle.state
    there = state.state_dict()
    return complaint_of(lambda: state.load_state_dict({**there, "remembered": {**there["remembered"], "dice": dice}}))


@pytest.mark.parametrize("dice", [OF_A_GPU[:7], OF_A_GPU.float(), 7], ids=["too short", "no bytes", "no tensor"])
@pytest.mark.parametrize("name", ["qsgd", "randomk"])
def test_dice_that_no_device_has_saved_are_damaged(on_ranks, name, dice):
    for answer in on_ranks(2, load_other_dice, name, dice):
        assert answer.startswith("the checkpoint is damaged: dice cannot be taken: ")
        assert "\n" not in answer


def saved_as_it_is() -> list[str]:
    """What a user is told who saves a state itself, before it is registered and after."""
    state = brisk("topk")
    before = complaint_of(lambda: torch.save(state, io.BytesIO()))
    Training(state)
    return [before, complaint_of(lambda: torch.save(state, io.BytesIO()))]


def test_a_state_that_belongs_to_a_training_says_how_it_is_saved(on_ranks):
    for before, after in on_ranks(1, saved_as_it_is):
        assert before == "taken"
        assert after == "this state of topk belongs to a training: save what its state_dict() gives"


def checkpoint_of(name: str, parameters: dict[str, Any]) -> bytes:
    training = Training(brisk(name, **parameters), settings=SETTINGS)
    for step in range(4):
        training.step(gradients(step, dist.get_rank()))
    return saved(training)


def resume_alone(name: str, parameters: dict[str, Any], checkpoint: bytes) -> Facts:
    state = brisk(name, **parameters)
    answer = complaint_of(lambda: resumed(checkpoint, state))
    if state.has_residuals:
        return {answer: "load this rank's, with as many workers" in answer and "\n" not in answer}
    training = resumed(checkpoint, brisk(name, **parameters))
    training.step(gradients(4, 0))
    return {answer: answer == "taken", "finite": bool(flat(training.weights).isfinite().all())}


@EVERY_MEMORY
def test_another_number_of_workers_resumes_what_no_rank_holds_alone(on_ranks, name, parameters):
    checkpoint = on_ranks(2, checkpoint_of, name, parameters)[0]
    assert not_so(on_ranks(1, resume_alone, name, parameters, checkpoint)) == []


def assign_late(name: str) -> Facts:
    state = brisk(name)
    Training(state)
    complaints = {each: complaint_of(partial(setattr, state, each, value)) for each, value in state.parameters.items()}
    taken = {each for each, complaint in complaints.items() if complaint == "taken"}
    refusals = {complaint for each, complaint in complaints.items() if each not in taken}
    return {
        f"{taken} may change": taken == set(state.adjustable),
        f"{refusals}": all("comes too late, training has begun" in each and "\n" not in each for each in refusals),
    }


@pytest.mark.parametrize("name", METHODS)
def test_only_what_is_said_to_may_change_in_training(on_ranks, name):
    assert not_so(on_ranks(1, assign_late, name)) == []
