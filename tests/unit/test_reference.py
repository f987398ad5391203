"""The runs that are committed under results/reference hold what the project says of its methods."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import baselines
from harness.record.store import Store

REFERENCE = Path(__file__).resolve().parents[2] / "results" / "reference"
SEEDS = 3
BYTES_TOLERANCE = 0.05

AGREEING_BYTES = 400
"""What a worker sends in a step to agree on whether it is made, and at evaluations; formulas leave it out."""


@pytest.fixture(scope="module")
def convergence() -> pd.DataFrame:
    """Every method on Fashion-MNIST."""
    return Store.open(REFERENCE / "convergence").trials()


def test_every_method_was_trained_with_every_seed(convergence: pd.DataFrame) -> None:
    assert set(convergence["method"]) == set(baselines.names())
    assert (convergence["status"] == "done").all()
    assert (convergence.groupby("label")["seed"].nunique() >= SEEDS).all()


@pytest.mark.parametrize("name", baselines.names())
def test_no_method_loses_more_accuracy_than_its_file_says(convergence: pd.DataFrame, name: str) -> None:
    """Paired by seed, as all are compared: seeds beyond the first three were trained where they were needed."""
    of_dense = convergence[convergence["label"] == "dense"].set_index("seed")["final_accuracy"]
    loss = convergence["seed"].map(of_dense) - convergence["final_accuracy"]
    mean = loss[convergence["method"] == name].groupby(convergence["label"]).mean()
    most_loss = baselines.get(name).most_loss
    assert most_loss is not None
    assert (mean <= most_loss).all(), mean.to_dict()


def test_the_kernel_counted_the_bytes_that_formulas_state(convergence: pd.DataFrame) -> None:
    stated = stated_bytes_per_step(convergence)
    off = (convergence["wire_bytes_per_step"] - stated).abs() > stated * BYTES_TOLERANCE + AGREEING_BYTES
    assert not off.any(), convergence.assign(stated=stated).loc[off, ["label", "round", "stated"]].to_string()


def stated_bytes_per_step(trials: pd.DataFrame) -> pd.Series:
    """By the formula, or by what the method noted for the gradients that it met, in the steps that are counted."""
    events = Store.open(REFERENCE / "convergence").events().query("kind == 'formula_bytes'")
    events = events.merge(trials[["trial_id", "steady_from_step"]])
    noted = events[events["step"] >= events["steady_from_step"]].groupby("trial_id")["value"].sum()
    steps = trials["steps"] - trials["steady_from_step"]
    return (trials["trial_id"].map(noted) / trials["workers"] / steps).fillna(trials["formula_bytes_per_step"])
