"""A small run that tasks of a scheduler share, what must have become of it, and what rows say."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from harness.record.store import Store

TASKS, ROUNDS, METHODS = 3, 5, 2
SMALL = (
    *("quickstart", "--on", "netns", "--method", "topk", "--rounds", str(ROUNDS)),
    *("--set", "cluster.workers=2", "--set", "link.rate=100mbit", "--set", "baseline_16bit=dense"),
    *("--set", "train.pace=none", "--set", "train.steps=20", "--set", "train.eval_every=20"),
)
"""Trials of two seconds each."""


def check_all_ran_once(run: Path) -> pd.DataFrame:
    """Every trial counts once and is done, and each round counts from one machine. Returns the trials."""
    trials = Store.open(run).trials()
    assert len(trials) == ROUNDS * METHODS
    assert trials["trial_id"].is_unique
    assert (trials["status"] == "done").all(), trials[["status", "reason"]]
    assert (trials.groupby("round")["machine"].nunique() == 1).all()
    return trials


def columns(run: Path, *names: str) -> dict[str, tuple[object, ...]]:
    """What the rows of a run say, by label; each trial is done."""
    trials = Store.open(run).trials().set_index("label")
    assert (trials["status"] == "done").all(), trials["reason"].to_dict()
    return {label: tuple(trials.loc[label, name] for name in names) for label in trials.index}
