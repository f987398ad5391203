"""Processes that share a run and are killed at random moments lose nothing, and count nothing twice."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from killed import kill_and_complete


@pytest.mark.timeout(900)  # a machine that does other things as well may take long
@pytest.mark.parametrize(("on", "kills", "rounds"), [("fake", 8, 12), ("netns", 2, 1)])
def test_whoever_is_killed_and_whenever(tmp_path: Path, on: str, kills: int, rounds: int) -> None:
    seed = random.SystemRandom().randrange(10_000)
    print(f"seed {seed}")
    kill_and_complete(tmp_path, on, kills, rounds, seed)
