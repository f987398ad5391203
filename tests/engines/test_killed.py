"""Processes that share a run on real clusters and are killed at random moments lose nothing, and count nothing twice.

On the scripted cluster, ``tests/unit/test_sharing.py`` proves the same.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from killed import METHODS, RATES, Counts, Study, kill_and_complete

KILLS, ROUNDS = 2, 1


@pytest.mark.timeout(900)  # a machine that does other things as well may take long
def test_whoever_is_killed_and_whenever(tmp_path: Path) -> None:
    study = Study("netns", ROUNDS, seed=random.SystemRandom().randrange(10_000))
    print(f"seed {study.seed}")
    trials = ROUNDS * len(RATES) * len(METHODS)
    assert kill_and_complete(tmp_path, study, KILLS) == Counts(trials, lost=0, counted_twice=0, torn=0)
