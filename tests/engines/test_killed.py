"""Processes that share a run and are killed at random moments lose nothing, and count nothing twice."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from killed import METHODS, RATES, Counts, Study, kill_and_complete


@pytest.mark.timeout(900)  # a machine that does other things as well may take long
@pytest.mark.parametrize(("on", "kills", "rounds"), [("fake", 4, 6), ("netns", 2, 1)])
def test_whoever_is_killed_and_whenever(tmp_path: Path, on: str, kills: int, rounds: int) -> None:
    study = Study(on, rounds, seed=random.SystemRandom().randrange(10_000))
    print(f"seed {study.seed}")
    trials = rounds * len(RATES) * len(METHODS)
    assert kill_and_complete(tmp_path, study, kills) == Counts(trials, lost=0, counted_twice=0, torn=0)
