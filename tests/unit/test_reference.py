"""The runs that are committed under results/reference hold what the project says of its methods."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pandas as pd
import pytest

import baselines
from harness.record.store import Store
from harness.scenario.load import load

RESULTS = Path(__file__).resolve().parents[2] / "results"
SEEDS = 3
BYTES_TOLERANCE = 0.05

AGREEING_BYTES = 400
"""What a worker sends in a step to agree on whether it is made, and at evaluations; formulas leave it out."""

MEASURED_AGAIN = {"oktopk": "convergence-oktopk", "zeroone_adam": "convergence-zeroone_adam"}
"""Runs of methods that were mended since all were measured, with a dense of their own; the older trials are kept."""


def run_of(method: str) -> str:
    """The folder of the run that shows a method as it is now, on Fashion-MNIST."""
    return MEASURED_AGAIN.get(method, "convergence")


def plateau_of(method: str) -> str:
    """The same at the end of a training on digits. PacTrain's was made again at a rate that does not diverge."""
    return "plateau-pactrain" if method == "pactrain" else "plateau"


@cache
def store(run: str) -> Store:
    return Store.open(RESULTS / "reference" / run)


@pytest.fixture(scope="module")
def trials_of() -> Callable[[str], pd.DataFrame]:
    """A run's trials, read once."""
    return cache(lambda run: store(run).trials())


def gained(trials: pd.DataFrame, method: str) -> pd.Series:
    """Mean final accuracy over dense, by label.

    Paired by seed, as all are compared: seeds beyond the first three were trained where they were needed.
    """
    of_dense = trials[trials["label"] == "dense"].set_index("seed")["final_accuracy"]
    gain = trials["final_accuracy"] - trials["seed"].map(of_dense)
    return gain[trials["method"] == method].groupby(trials["label"]).mean()


@pytest.mark.parametrize("name", baselines.names())
@pytest.mark.parametrize("run", [run_of, plateau_of])
def test_every_method_was_trained_with_every_seed(trials_of, run: Callable[[str], str], name: str) -> None:
    trials = trials_of(run(name)).query("method == @name")
    assert len(trials)
    assert (trials["status"] == "done").all()
    assert (trials.groupby("label")["seed"].nunique() >= SEEDS).all()


@pytest.mark.parametrize("name", baselines.names())
@pytest.mark.parametrize(("run", "said"), [(run_of, "most_loss"), (plateau_of, "most_loss_at_plateau")])
def test_no_method_loses_more_accuracy_than_its_file_says(
    trials_of, run: Callable[[str], str], said: str, name: str
) -> None:
    gain, most_loss = gained(trials_of(run(name)), name), getattr(baselines.get(name), said)
    assert most_loss is not None
    assert len(gain)
    assert (-gain <= most_loss).all(), gain.to_dict()


def test_dense_improves_no_more_at_the_plateau(trials_of) -> None:
    trials = trials_of("plateau").query("method == 'dense'")
    accuracy = store("plateau").events().query("kind == 'accuracy'").merge(trials[["trial_id", "steps"]])
    late = accuracy[accuracy["step"] >= accuracy["steps"] / 2]
    assert late.groupby("step")["value"].mean().pipe(lambda mean: mean.max() - mean.min()) <= 0.005


@pytest.mark.parametrize("name", sorted({"dense"} | {spec.name for spec in load("language").methods}))
def test_no_method_s_perplexity_is_higher_than_its_file_says(trials_of, name: str) -> None:
    trials = trials_of("language-zeroone_adam" if name == "zeroone_adam" else "language")
    of_dense = trials[trials["label"] == "dense"].set_index("seed")["final_perplexity"]
    own = trials[trials["method"] == name]
    more = (own["final_perplexity"] / own["seed"].map(of_dense) - 1).groupby(own["label"]).agg(["mean", "count"])
    most = baselines.get(name).most_perplexity
    assert most is not None
    assert len(more)
    assert (more["count"] == SEEDS).all()
    assert (more["mean"] <= most + 1e-9).all(), more.to_string()


@pytest.mark.parametrize("name", [name for name in baselines.names() if name != "dense"])
@pytest.mark.parametrize(
    ("section", "run"),
    [("## What each method costs in accuracy", run_of), ("## And once nothing improves?", plateau_of)],
)
def test_the_results_page_says_of_accuracy_what_was_measured(
    trials_of, section: str, run: Callable[[str], str], name: str
) -> None:
    """Its rows have a difference, with an interval in brackets, for each of a method's settings."""
    page = (RESULTS / "README.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| {name}[,; ].*", page.split(f"\n{section}\n")[1].split("\n## ")[0], re.M)
    said = [float(each) for each in re.findall(r"([+-]\d+\.\d) \[", row)]
    measured = 100 * gained(trials_of(run(name)), name)
    assert sorted(said) == pytest.approx(sorted(measured), abs=0.051)


def test_the_pages_say_what_pactrain_costs_in_diloco_s_rhythm(trials_of) -> None:
    measured = 100 * gained(trials_of("convergence-oktopk"), "pactrain")["pactrain-local"]
    (row,) = re.findall(r"^\| pactrain-local,.*", (RESULTS / "README.md").read_text(encoding="utf-8"), re.M)
    assert f"| {measured:+.1f} [" in row
    assert f"{-measured:.1f} points" in baselines.get("pactrain").details


@pytest.mark.parametrize("run", ["convergence", *MEASURED_AGAIN.values()])
def test_the_kernel_counted_the_bytes_that_formulas_state(trials_of, run: str) -> None:
    trials = trials_of(run)
    stated = stated_bytes_per_step(trials, run)
    off = (trials["wire_bytes_per_step"] - stated).abs() > stated * BYTES_TOLERANCE + AGREEING_BYTES
    assert not off.any(), trials.assign(stated=stated).loc[off, ["label", "round", "stated"]].to_string()


def stated_bytes_per_step(trials: pd.DataFrame, run: str) -> pd.Series:
    """By the formula, or by what the method noted for the gradients that it met, in the steps that are counted."""
    events = store(run).events().query("kind == 'formula_bytes'")
    events = events.merge(trials[["trial_id", "steady_from_step"]])
    noted = events[events["step"] >= events["steady_from_step"]].groupby("trial_id")["value"].sum()
    steps = trials["steps"] - trials["steady_from_step"]
    return (trials["trial_id"].map(noted) / trials["workers"] / steps).fillna(trials["formula_bytes_per_step"])
