"""The search for the smallest setting that keeps the loss, in trainings whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import piloted
import pytest

from harness.analysis.pilot.search import LEAST, NEAR, STEP
from harness.run.pilot.found import Found
from harness.run.pilot.request import MOST_PROBES
from harness.run.pilot.smallest import Search, smallest_setting
from harness.scenario.schema import MethodSpec

RATIO = 0.01
"""With which top-k is tried first."""


class Trainer:
    """Trains with made-up losses: top-k keeps dense's if it sends at least such a share.

    Args:
        room: trainings of top-k that the budget has room for.
    """

    def __init__(self, least: float, room: int = 100) -> None:
        self._least, self._room = least, room

    def train_in_turns(self, found: Found, methods: Sequence[MethodSpec]) -> None:
        for method in methods:
            end = 1.0 if method.params["ratio"] >= self._least else 1.5
            if self._room:
                self._room -= 1
                found.trainings += [
                    piloted.training(method, seed, 0.05, piloted.falling(40, end * (1 + 0.01 * seed), 30))
                    for seed in range(3)
                ]


def searched(least: float, methods: Sequence[MethodSpec] = (piloted.TOPK,), **changes: Any) -> tuple[Search, Found]:
    found = Found(piloted.request(Path()), piloted.job())
    plain = (piloted.DENSE, piloted.BF16)
    found.trainings += [each for each in piloted.trainings() if each.method in plain]
    trainer: Any = Trainer(least, **changes)
    trainer.train_in_turns(found, methods)
    return smallest_setting(trainer, found), found


@pytest.mark.parametrize("least", [1e-5, 1.6e-4, 5e-4, 0.003, 0.0099, 0.02, 0.3, 1.0])
def test_what_is_found_keeps_the_loss_and_a_little_less_does_not_or_it_says_where_it_stopped(least: float) -> None:
    search, found = searched(least)
    tried = {RATIO: least <= RATIO} | {each.value: each.within for each in search.probes}
    assert all(kept == (value >= least) for value, kept in tried.items())
    assert len(search.probes) <= MOST_PROBES
    within, outside = ([value for value, kept in tried.items() if kept == side] for side in (True, False))
    is_narrow = within and outside and min(within) / max(outside) <= NEAR
    is_at_the_end = not outside and min(within) / STEP < LEAST
    assert bool(search.left_open) == (not is_narrow and not is_at_the_end)
    assert {each.label for each in search.probes} < {each.label for each in found.outcomes()}


def test_without_room_for_another_setting_it_ends_with_what_it_has() -> None:
    search, found = searched(0.001, room=2)
    assert [each.value for each in search.probes] == [RATIO / 4]
    assert {each.method.label for each in found.job.fits} >= {search.probes[0].label}


@pytest.mark.parametrize("methods", [(), (piloted.LOCAL,)], ids=["none was trained", "it has a number, not a share"])
def test_a_method_without_a_share_is_not_searched(methods: tuple[MethodSpec, ...]) -> None:
    found = Found(piloted.request(Path()), piloted.job())
    found.trainings += [each for each in piloted.trainings() if each.method != piloted.TOPK]
    found.trainings += [
        piloted.training(each, seed, 0.05, piloted.falling(42, 1 + 0.01 * seed, 30))
        for each in methods
        for seed in range(3)
    ]
    unused: Any = None
    assert smallest_setting(unused, found) == Search()
