"""Where compression stops to pay, as profiles, bytes and links predict it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from harness.analysis import crossover
from harness.plan.plan import Plan, make
from harness.report.figures.crossover import write_crossover
from harness.scenario.load import load

REPLAYED = "paper/pactrain-resnet152"


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make(load(REPLAYED), "fake")


@pytest.fixture(scope="module")
def found(plan: Plan) -> pd.DataFrame:
    return crossover.speedups(plan)


def test_rates_and_workers_are_swept_for_every_method(found: pd.DataFrame, plan: Plan) -> None:
    labels = {method.label for method in plan.scenario.methods}
    by_rate = found[found["workers"] == 8].groupby("label")["rate_bps"].agg(["min", "max"])
    assert set(by_rate.index) == labels
    assert (by_rate == [1e7, 2.5e10]).all().all()
    by_workers = found[found["rate_bps"] == crossover.RATE_OF_WORKERS_BPS].groupby("label")["workers"]
    assert {tuple(sorted(own)) for _, own in by_workers} == {crossover.WORKERS}
    assert (found[found["label"] == "dense"]["speedup"] == 1).all()


def test_slow_links_give_what_the_bytes_allow_and_faster_ones_less(found: pd.DataFrame, plan: Plan) -> None:
    bound_s = {trial.method.label: trial.expected.lower_bound_s_per_step for trial in plan.trials}
    swept = found[found["workers"] == 8].set_index(["label", "rate_bps"])["speedup"]
    for label in ("fp16", "pactrain-fp32"):
        most = bound_s["dense"] / bound_s[label]
        assert 0.9 * most < swept[label, 1e7] <= most
        curve = swept[label].sort_index()
        assert (curve.diff().dropna() < 1e-6).all()
        assert curve.iloc[-1] < 0.8 * most


def test_the_sweep_has_what_is_predicted_for_a_trial(found: pd.DataFrame) -> None:
    rows = found[(found["workers"] == 8) & (found["rate_bps"] == 1e9)].set_index("label")["step_s"]
    (replayed,) = set(found["replay"])
    for trial in make(load(REPLAYED, ["train.shrink=1"]), "fake").trials:
        if trial.case.link.rate_bps == 10**9 and trial.case.train.replay == replayed:
            assert rows[trial.method.label] == trial.expected.predicted_step_s


def test_a_scenario_that_trains_has_nothing_to_predict() -> None:
    assert crossover.speedups(make(load("quickstart"), "fake")).empty


def test_the_figure_holds_the_predictions(found: pd.DataFrame, plan: Plan, tmp_path: Path) -> None:
    write_crossover(found, plan.scenario.methods, tmp_path)
    drawn = pd.read_csv(tmp_path / "turning.csv")
    assert drawn["speedup"].to_numpy() == pytest.approx(found["speedup"].to_numpy())
    assert (tmp_path / "turning.pdf").stat().st_size > 0
