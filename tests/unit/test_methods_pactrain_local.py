"""PacTrain whose workers train alone: DiLoCo where nothing is pruned, masked averaging where they always meet."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import Training, flat, gradients
from test_methods_pactrain import OPTIMIZERS, PRUNABLE
from trainings import Facts, agree, complaint_of, not_so

import baselines
from baselines._state import ring_all_reduce_bytes
from baselines.pactrain import State

pytestmark = pytest.mark.methods

EVERY_P = pytest.mark.parametrize("p", [2, 3])
KEPT = round(0.3 * int(PRUNABLE.sum()))


def local(**parameters: Any) -> State:
    return State(variant="local", **parameters)


def weights_of(state: baselines.MethodState, optimizer: str, steps: int = 9) -> list[torch.Tensor]:
    """This rank's, after each step."""
    kind, settings = OPTIMIZERS[optimizer]
    training = Training(state, optimizer=kind, settings=settings)
    history = []
    for step in range(steps):
        training.step(gradients(step, dist.get_rank()))
        history.append(flat(training.weights))
    return history


def beside_diloco(optimizer: str) -> Facts:
    ours = weights_of(local(local_period=3, density=1.0, warmup_steps=2), optimizer)
    theirs = weights_of(baselines.get("diloco").State(period=3), optimizer)
    return {f"{step}": torch.equal(*pair) for step, pair in enumerate(zip(ours, theirs, strict=True))}


@EVERY_P
@pytest.mark.parametrize("optimizer", ["heavy ball", "adamw"])
def test_without_pruning_it_is_diloco_to_the_last_bit(on_ranks, optimizer, p):
    assert not_so(on_ranks(p, beside_diloco, optimizer)) == []


def beside_masked_averaging() -> Facts:
    ours = weights_of(
        local(local_period=1, outer_lr=1.0, outer_momentum=0.0, density=0.3, warmup_steps=2), "heavy ball"
    )
    theirs = weights_of(State(density=0.3, warmup_steps=2), "heavy ball")
    pairs = list(zip(ours, theirs, strict=True))
    return {
        "weights": all(torch.allclose(own, other, atol=1e-5) for own, other in pairs),
        "survivors": all(torch.equal(own != 0, other != 0) for own, other in pairs),
        "pruned": int((ours[-1] != 0)[PRUNABLE].sum()) == KEPT,
    }


@EVERY_P
def test_who_always_meets_averages_masked_gradients(on_ranks, p):
    assert not_so(on_ranks(p, beside_masked_averaging)) == []


def pruned_at_a_meeting(optimizer: str) -> Facts:
    """Due before step 3, done when the ranks meet after step 4."""
    history = weights_of(local(local_period=2, density=0.3, warmup_steps=3), optimizer)
    survivors = [weights != 0 for weights in history]
    return {
        "not sooner": bool(survivors[2].all()),
        "as many as asked for": int(survivors[3][PRUNABLE].sum()) == KEPT,
        "no weight comes back": all(torch.equal(later, survivors[3]) for later in survivors[3:]),
        "they meet": all(agree(history[step]) for step in (1, 3, 5, 7)),
        "alone in between": not any(agree(history[step]) for step in (0, 2, 4, 6)),
        "survivors train": not torch.equal(history[3], history[7]),
    }


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_all_prune_the_same_when_they_meet_and_nothing_comes_back(on_ranks, optimizer):
    assert not_so(on_ranks(2, pruned_at_a_meeting, optimizer)) == []


def test_what_is_due_before_a_meeting_is_pruned_at_it():
    state = local(local_period=4, warmup_steps=3, prune_steps=3, prune_every=2, density=0.2)
    assert list(state.pruning_steps) == [4, 8, 8]
    assert [state.density_at(step) for step in (3, 8)] == [1.0, pytest.approx(0.2)]
    assert state.steady_from_step == 8


def test_changes_of_survivors_travel_once_in_a_period():
    state, shapes = local(local_period=10, density=0.25, warmup_steps=10), [(40, 30), (30,)]
    whole, masked = (ring_all_reduce_bytes(4 * entries, 4) for entries in (1230, 330))
    assert [state.wire_bytes(shapes, 4, step) for step in (8, 9, 10, 18, 19)] == [0, whole, 0, 0, masked]
    assert state.wire_bytes(shapes, 4) == masked / 10
    assert sum(call.sent_bytes(4) for call in state.calls(shapes, 4)) == pytest.approx(masked)
    assert state.saving_bound.most == 40


@pytest.mark.parametrize(
    "other", [{"values": "ternary"}, {"gse": False}, {"average": False}, {"adaptive": True}], ids=str
)
def test_what_it_cannot_send_is_refused(other):
    complaint = complaint_of(lambda: local(**other))
    assert "a number goes with values='fp32', gse=true, compact=true, average=true, adaptive=false only" in complaint
    assert local(local_period=None, **other).agrees_every == 1
