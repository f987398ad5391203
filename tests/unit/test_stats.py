"""Ratios, intervals and censored times: what they promise holds for any numbers, and an interval covers as it says."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.analysis.cases import CaseResult, case_results
from harness.analysis.estimates import LARGEST_LOG, Estimate, geometric_mean, spread
from harness.analysis.noise import noise_of_cases
from harness.analysis.pairs import paired_speedup
from harness.analysis.stopping import FEWEST_ROUNDS, narrow_enough
from harness.analysis.targets import time_to_target
from harness.errors import MeasurementError
from harness.plan.status import DONE
from harness.record.row import TRIAL_SCHEMA
from harness.record.store import Store
from harness.scenario.load import load

rates = st.floats(1e-3, 1e6)
rounds_of_two = st.lists(st.tuples(rates, rates), min_size=1, max_size=8)


def trials_of(**samples_per_s: list[float | None]) -> pd.DataFrame:
    """Trials of one case: label -> samples per second by round; None is a trial that crashed."""
    rows = [
        {"label": label, "round": number, "status": "crashed" if value is None else "done", "samples_per_s": value}
        for label, values in samples_per_s.items()
        for number, value in enumerate(values)
    ]
    return pd.DataFrame(rows).astype({"samples_per_s": float})


def speedup_of(trials: pd.DataFrame, label: str = "a", baseline: str = "b") -> Estimate:
    found = paired_speedup(trials, label, baseline)
    assert found is not None
    return found


@given(st.lists(rates, min_size=1, max_size=8))
def test_a_method_is_exactly_as_fast_as_itself(values: list[float]) -> None:
    found = speedup_of(trials_of(a=[*values]), "a", "a")
    assert (found.value, found.n) == (1.0, len(values))
    assert (found.low, found.high) == ((1.0, 1.0) if len(values) > 1 else (None, None))


@given(rounds_of_two, st.floats(1e-3, 1e3))
def test_a_faster_machine_changes_no_ratio(pairs: list[tuple[float, float]], scale: float) -> None:
    a, b = zip(*pairs, strict=True)
    found = speedup_of(trials_of(a=[*a], b=[*b]))
    scaled = speedup_of(trials_of(a=[scale * each for each in a], b=[scale * each for each in b]))
    assert [*filter(None, scaled)] == pytest.approx([*filter(None, found)])


@given(rounds_of_two)
def test_the_inverse_question_has_the_inverse_answer(pairs: list[tuple[float, float]]) -> None:
    a, b = zip(*pairs, strict=True)
    trials = trials_of(a=[*a], b=[*b])
    forth, back = speedup_of(trials, "a", "b"), speedup_of(trials, "b", "a")
    assert back.value == pytest.approx(1 / forth.value)
    if forth.low is not None and forth.high is not None:
        assert (back.low, back.high) == pytest.approx((1 / forth.high, 1 / forth.low))


@given(st.lists(rates, min_size=2, max_size=8))
def test_an_interval_holds_its_mean_and_the_mean_lies_among_the_values(values: list[float]) -> None:
    found = geometric_mean(values)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.value <= found.high
    assert min(values) * (1 - 1e-9) <= found.value <= max(values) * (1 + 1e-9)


def test_the_mean_and_interval_are_those_of_the_textbook() -> None:
    """Logs 0, 1, 2: mean 1, standard error 1/sqrt(3), t(0.975, 2) = 4.302653."""
    found = geometric_mean([1.0, math.e, math.e**2])
    half = 4.302653 / math.sqrt(3)
    assert found == pytest.approx((math.e, math.exp(1 - half), math.exp(1 + half), 3), rel=1e-6)


def test_one_round_gives_no_interval() -> None:
    assert geometric_mean([2.5]) == (pytest.approx(2.5), None, None, 1)


def test_an_interval_beyond_what_floats_hold_is_as_good_as_unbounded() -> None:
    """Two rounds that differ, at the confidence of one of hundreds of intervals that must all hold."""
    found = Estimate(0.0, -2000.0, 2000.0, 2).exp()
    assert found == pytest.approx(Estimate(1.0, 0.0, math.exp(LARGEST_LOG), 2))
    assert sys.float_info.max > math.exp(LARGEST_LOG) > 1e300


@pytest.mark.parametrize("values", [[], [1.0, 0.0], [1.0, -1.0], [math.inf], [math.nan]])
def test_what_has_no_logarithm_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="positive finite values"):
        geometric_mean(values)


@pytest.mark.parametrize("rounds", [3, 5])
def test_intervals_cover_the_truth_as_often_as_they_say(rounds: int) -> None:
    dice, truth, repetitions = np.random.default_rng(7), 1.3, 2000
    samples = truth * np.exp(dice.normal(0, 0.2, (repetitions, rounds)))
    found = [geometric_mean(row) for row in samples]
    covered = np.mean([each.low <= truth <= each.high for each in found if each.low and each.high])
    assert 0.93 <= covered <= 0.97


REAL_ROUNDS = Path(__file__).resolve().parents[2] / "results" / "reference" / "quickstart"


def real_residuals() -> np.ndarray:  # type: ignore[type-arg]
    """What is left of the reference run's log speeds when each method's mean is taken away."""
    trials = Store.open(REAL_ROUNDS).trials()
    logs = np.log(trials.pivot(index="round", columns="label", values="samples_per_s"))
    return (logs - logs.mean()).to_numpy().ravel() * math.sqrt(len(logs) / (len(logs) - 1))


def noisy_ratios(repetitions: int, rounds: int, outliers: float, drift: float) -> np.ndarray:  # type: ignore[type-arg]
    """Log ratios whose truth is 0, (repetitions, rounds): real residuals, late trials, and a machine that drifts.

    Args:
        outliers: share of trials, of the method and of the baseline alike, that something else slows down by 20 %.
        drift: standard deviation of the log speed that the machine gains from one trial to the next, as a share of
            the residuals' own; the order of the two alternates.
    """
    dice = np.random.default_rng(11)
    shape, spread = (repetitions, rounds), real_residuals().std()
    method, baseline = (
        # A late trial's log speed is lower. The few residuals are smoothed: other trials lie between them.
        dice.choice(real_residuals(), shape)
        + dice.normal(0, spread / 2, shape)
        - dice.exponential(0.2, shape) * (dice.random(shape) < outliers)
        for _ in range(2)
    )
    return method - baseline + dice.normal(0, drift * spread, (repetitions, 1)) * np.where(np.arange(rounds) % 2, -1, 1)


REALISTIC_NOISE = [(0.0, 0.0), (0.0, 0.5), (0.02, 0.0), (0.05, 0.5)]


@pytest.mark.parametrize(("outliers", "drift"), REALISTIC_NOISE)
def test_a_t_interval_covers_under_realistic_noise(outliers: float, drift: float) -> None:
    found = [geometric_mean(row) for row in np.exp(noisy_ratios(4000, 5, outliers, drift))]
    covered = np.mean([each.low <= 1 <= each.high for each in found if each.low and each.high])
    assert covered >= 0.93, covered


@pytest.mark.parametrize(("outliers", "drift"), REALISTIC_NOISE)
def test_a_percentile_bootstrap_does_not(outliers: float, drift: float) -> None:
    """Why intervals are not bootstrapped: of five values it covers the truth in five cases of six."""
    ratios = noisy_ratios(2000, 5, outliers, drift)
    drawn = ratios[:, np.random.default_rng(5).integers(0, 5, (400, 5))].mean(axis=2)
    low, high = np.percentile(drawn, [2.5, 97.5], axis=1)
    assert np.mean((low <= 0) & (high >= 0)) < 0.9


def test_intervals_cover_also_where_rounds_end_as_soon_as_they_are_narrow() -> None:
    dice, covered = np.random.default_rng(3), []
    for _ in range(400):
        logs = dice.normal(0, 0.03, 30)
        found = next(
            estimate
            for rounds in range(FEWEST_ROUNDS, 31)
            if half_width(estimate := geometric_mean(np.exp(logs[:rounds]))) <= 0.03 or rounds == 30
        )
        covered.append(found.low <= 1 <= found.high)
    assert np.mean(covered) >= 0.91


def half_width(estimate: Estimate) -> float:
    assert estimate.low is not None
    assert estimate.high is not None
    return math.sqrt(estimate.high / estimate.low) - 1


def cases_of(**samples_per_s: list[float | None]) -> list[CaseResult]:
    rows = trials_of(**samples_per_s).to_dict("records")
    return case_results(frame_of(*rows), load("quickstart", only_methods=["topk", "dgc"]))


def test_noise_is_that_of_a_ratio_against_itself_a_round_later() -> None:
    """Ratios 2, 2e^0.02, 2, 2e^0.02: neighbours differ by 0.02, as two draws of a deviation of 0.02 / sqrt 2 would."""
    up = math.exp(0.02)
    found = noise_of_cases(cases_of(dense=[1.0] * 4, topk=[2.0, 2 * up, 2.0, 2 * up]), "dense")
    assert found == (pytest.approx(0.02 / math.sqrt(2)), 3)


def test_noise_is_not_drift_nor_one_restless_method() -> None:
    drifting = [0.9**number for number in range(6)]
    twice, thrice = ([factor * each for each in drifting] for factor in (2, 3))
    found = noise_of_cases(
        cases_of(dense=drifting, topk=twice, dgc=thrice, bf16=[1.0, 9.0, 1.0, 9.0, 1.0, 9.0]), "dense"
    )
    assert found == (pytest.approx(0.0, abs=1e-12), 15)


def test_of_one_round_no_noise_is_known() -> None:
    assert noise_of_cases(cases_of(dense=[1.0], topk=[2.0]), "dense") is None


@pytest.mark.parametrize(
    ("rounds", "spread_of_ratios", "share", "enough"),
    [(5, 0.01, 0.02, True), (5, 0.01, 0.005, False), (4, 0.0, 0.02, False), (5, 0.0, 0.02, True)],
)
def test_rounds_are_enough_when_the_widest_interval_is_narrow(
    rounds: int, spread_of_ratios: float, share: float, enough: bool
) -> None:
    topk = [2.0 * math.exp(spread_of_ratios * (-1) ** number) for number in range(rounds)]
    rows = trials_of(dense=[1.0] * rounds, topk=topk).to_dict("records")
    assert narrow_enough(frame_of(*rows), load("quickstart", only_methods=["topk"]), share) is enough


def test_a_method_that_never_finishes_does_not_keep_a_run_going() -> None:
    rows = trials_of(dense=[1.0] * 5, topk=[None] * 5).to_dict("records")
    assert narrow_enough(frame_of(*rows), load("quickstart", only_methods=["topk"]), 0.02)


def test_pairing_removes_what_a_round_has_in_common() -> None:
    """The machine was ten times slower in round 1; the ratio was 2 all the same."""
    found = speedup_of(trials_of(a=[200.0, 20.0, 200.0], b=[100.0, 10.0, 100.0]))
    assert found == pytest.approx((2.0, 2.0, 2.0, 3))


def test_only_rounds_in_which_both_finished_are_compared() -> None:
    found = speedup_of(trials_of(a=[200.0, None, 600.0], b=[100.0, 1.0, None]))
    assert (found.value, found.n) == (pytest.approx(2.0), 1)
    assert paired_speedup(trials_of(a=[200.0, None], b=[None, 100.0]), "a", "b") is None
    assert paired_speedup(trials_of(a=[200.0]), "a", "b") is None


def test_a_failed_trial_enters_nothing_even_where_it_has_figures() -> None:
    trials = trials_of(a=[200.0, 999.0], b=[100.0, 100.0])
    trials.loc[(trials["label"] == "a") & (trials["round"] == 1), "status"] = "failed"
    assert speedup_of(trials) == (pytest.approx(2.0), None, None, 1)


def times_of(*times_s: float | None) -> pd.DataFrame:
    return pd.DataFrame({"time_to_target_s": times_s}, dtype=float).assign(status=DONE)


def test_a_trial_that_never_reached_the_target_is_the_slowest_not_dropped() -> None:
    assert time_to_target(times_of(3.0, 1.0, 2.0)) == (3, 3, 2.0)
    assert time_to_target(times_of(3.0, 1.0, None)) == (2, 3, 3.0)
    assert time_to_target(times_of(None, 1.0, None)) == (1, 3, None)
    assert time_to_target(times_of(1.0, None)) == (1, 2, None)
    assert time_to_target(times_of(None, None)) == (0, 2, None)
    assert time_to_target(times_of()) == (0, 0, None)


@given(st.lists(st.none() | rates, min_size=1, max_size=8))
def test_censoring_never_makes_a_method_look_faster(times_s: list[float | None]) -> None:
    """Whatever the unknown times turn out to be, if they are later than those seen, the median is no earlier."""
    reached, of, median_s = time_to_target(times_of(*times_s))
    assert (reached, of) == (sum(each is not None for each in times_s), len(times_s))
    if median_s is not None:
        latest = max(each for each in times_s if each is not None)
        assert median_s == pytest.approx(np.median([latest + 1 if each is None else each for each in times_s]))


def test_a_spread_passes_over_what_is_not_known() -> None:
    assert spread(pd.Series([0.9, math.nan, 0.7])) == pytest.approx((0.8, 0.7, 0.9))
    assert spread(pd.Series([math.nan])) is None


def frame_of(*rows: dict[str, Any]) -> pd.DataFrame:
    usual = {"cluster": "netns", "workers": 4, "model": "m", "dataset": "d", "batch_size": 32, "delay_s": 0.0}
    usual |= {"loss": 0.0, "status": "done", "samples_per_s": 1.0, "target": "accuracy 0.9", "round": 0}
    rows = tuple({"label": "dense", "rate_bps": 1e8, "workers": 4, **row} for row in rows)
    return pd.DataFrame([{**usual, **row} for row in rows], columns=TRIAL_SCHEMA.names)


def parts_of(*rows: dict[str, Any]) -> list[tuple[str, ...]]:
    return [case.parts for case in case_results(frame_of(*rows), load("quickstart"))]


def test_cases_are_told_apart_sorted_and_named() -> None:
    assert parts_of({"rate_bps": None}, {"rate_bps": 1e9}, {"rate_bps": 1e7, "delay_s": 0.02, "loss": 0.01}) == [
        ("10 Mbit/s", "20 ms delay", "1 % loss", "4 workers", "m on d"),
        ("1 Gbit/s", "4 workers", "m on d"),
        ("unshaped links", "4 workers", "m on d"),
    ]


def test_batch_size_target_and_cluster_are_named_only_where_cases_differ_in_them() -> None:
    assert parts_of({"batch_size": 16}, {"batch_size": 32}) == [
        ("100 Mbit/s", "4 workers", "m on d", "batch 16"),
        ("100 Mbit/s", "4 workers", "m on d", "batch 32"),
    ]


def test_scripted_numbers_are_named_so() -> None:
    assert "SCRIPTED" in parts_of({"cluster": "fake"})[0]


def test_trials_that_nothing_tells_apart_are_refused() -> None:
    with pytest.raises(MeasurementError, match="dense has several trials in round 0 of one case"):
        parts_of({}, {})
