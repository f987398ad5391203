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


@pytest.fixture(scope="module")
def convergence() -> pd.DataFrame:
    """Every method on Fashion-MNIST."""
    return Store.open(REFERENCE / "convergence").trials()


MEASURED = [name for name in baselines.names() if baselines.get(name).most_loss is not None]


def test_every_method_that_says_what_it_loses_was_trained_with_every_seed(convergence: pd.DataFrame) -> None:
    assert set(convergence["method"]) >= set(MEASURED), "others say in METHODS.md that it was not measured"
    assert (convergence["status"] == "done").all()
    assert (convergence.groupby("label")["seed"].nunique() == SEEDS).all()


@pytest.mark.parametrize("name", MEASURED)
def test_no_method_loses_more_accuracy_than_its_file_says(convergence: pd.DataFrame, name: str) -> None:
    accuracy = convergence.groupby(["method", "label"])["final_accuracy"].mean()
    loss = accuracy["dense"]["dense"] - accuracy[name]
    most_loss = baselines.get(name).most_loss
    assert most_loss is not None
    assert (loss <= most_loss).all(), loss.to_dict()


def test_the_kernel_counted_the_bytes_that_formulas_state(convergence: pd.DataFrame) -> None:
    ratio = convergence["wire_bytes_per_step"] / convergence["formula_bytes_per_step"]
    off = (ratio - 1).abs() > BYTES_TOLERANCE
    assert not off.any(), convergence.assign(ratio=ratio).loc[off, ["label", "round", "ratio"]].to_string()
