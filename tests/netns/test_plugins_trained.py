"""A model, a data set and a method of another folder, really trained, at a pace that is measured of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from sent import assert_sends_its_formula

from harness.record.store import Store

pytestmark = pytest.mark.netns

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "plugins"


def test_the_examples_train_as_what_is_pacbenchs_own(run_scenario: Callable[..., Store], tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES, tmp_path / "toys")
    settings = """cluster.workers=2 link.rate=200mbit train.steps=24 train.target=none baseline_16bit=dense
                  train.pace=self train.dilation=4.0"""
    store = run_scenario("toys/own.toml", settings.split(), ["block_sign-block=256"])
    rows = store.trials().set_index("label")
    assert set(rows.index) == {"dense", "block_sign-block=256"}
    assert_sends_its_formula(rows)
    assert rows["final_accuracy"].between(0.2, 1.0).all(), "ten classes: chance is 0.1"
    assert rows["held_memory_bytes"]["block_sign-block=256"] > 600_000, "a residual for each of 0.16 M weights"
