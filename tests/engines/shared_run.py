"""A small run that tasks of a scheduler share, and what must have become of it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from harness.record.store import Store

ROUNDS, METHODS = 8, 2
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
