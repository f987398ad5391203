"""Spreads told by like cases: what is found of known ones, and how often intervals from them hold the truth."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import polygamma

from harness.analysis.shifts import mean_difference, variance_of
from harness.analysis.spreads import FEWEST_CASES, Usual, Variance, _trigamma_inverse, usual

Spreads = Callable[[np.random.Generator, int], np.ndarray[Any, Any]]

KINDS: dict[str, Spreads] = {
    "all alike": lambda _, cases: np.full(cases, 0.03),
    "as is taken": lambda dice, cases: 0.03 * np.sqrt(4 / dice.chisquare(4, cases)),
    "log-normal": lambda dice, cases: 0.03 * np.exp(0.7 * dice.standard_normal(cases)),
    "some far more restless": lambda dice, cases: 0.02 * np.where(dice.random(cases) < 0.1, 5, 1),
    "two kinds of cases": lambda dice, cases: 0.02 * np.where(dice.random(cases) < 0.5, 4, 1),
}
"""Standard deviations of cases, of which only one kind is what the rule takes them to be."""

STUDIES, CASES, METHODS = 200, 40, 4


def ratios(spreads: Spreads, dice: np.random.Generator, rounds: int) -> np.ndarray[Any, Any]:
    """Logarithms of ratios that are 1, by case and round: the methods of four cases share one baseline's noise."""
    places = CASES // METHODS
    base = spreads(dice, places)[:, None] * dice.standard_normal((places, rounds))
    own = spreads(dice, CASES)[:, None] * dice.standard_normal((CASES, rounds))
    return own - np.repeat(base, METHODS, axis=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rounds", [2, 3])
def test_intervals_hold_the_truth_as_often_as_they_say(kind: str, rounds: int) -> None:
    dice, outside, widths, alone = np.random.default_rng(5), 0, [], []
    for _ in range(STUDIES):
        logs = ratios(KINDS[kind], dice, rounds)
        known = usual([variance_of(each) for each in logs])
        assert known is not None
        found = [mean_difference(each, known).estimate(0.95) for each in logs]
        outside += sum(not (each.low <= 0 <= each.high) for each in found if each.low is not None)
        widths += [each.high - each.low for each in found]
        alone += [own.high - own.low for own in (mean_difference(each).estimate(0.95) for each in logs)]
    assert outside / (STUDIES * CASES) < 0.07, (
        "5 % are said; the baselines that cases share, and their kinds, cost the rest"
    )
    assert np.median(widths) < 0.75 * np.median(alone), "what like cases show makes intervals shorter"


def test_the_distribution_is_found_from_many_cases() -> None:
    dice, cases, rounds = np.random.default_rng(6), 20_000, 4
    true = 0.01 * 8 / dice.chisquare(8, cases)
    values = np.sqrt(true)[:, None] * dice.standard_normal((cases, rounds))
    known = usual([variance_of(each) for each in values])
    assert known is not None
    assert known.variance == pytest.approx(0.01, rel=0.03)
    assert known.freedom == pytest.approx(8, rel=0.1)
    assert known.most_freedom == cases * (rounds - 1)


def test_a_pool_that_shows_no_difference_between_cases_does_not_rule_one_out() -> None:
    """Of 50 cases with two rounds each, some four times as restless as the rest, by chance."""
    dice = np.random.default_rng(7)
    for _ in range(STUDIES):
        spreads = 0.02 * np.where(dice.random(50) < 0.2, 4, 1)
        known = usual([variance_of(each) for each in spreads[:, None] * dice.standard_normal((50, 2))])
        assert known is not None
        assert known.freedom < 15
        assert known.cases == 50


def test_a_cases_variance_lies_between_its_own_and_the_usual_one() -> None:
    known = Usual(4.0, 3.0, 100.0)
    assert known.beside(Variance(1.0, 1)) == (pytest.approx((3 * 4 + 1 * 1) / 4), 4)
    assert known.times(2).beside(Variance(2.0, 1)).value == pytest.approx(2 * known.beside(Variance(1.0, 1)).value)
    assert Usual(4.0, math.inf, 100.0).beside(Variance(1.0, 1)) == (4.0, 100.0)
    assert Usual(4.0, 60.0, 30.0).beside(Variance(1.0, 1)).freedom == 30, "nothing is known better than by all"


def test_too_few_cases_or_no_spread_tell_nothing() -> None:
    assert usual([Variance(0.1 + 0.01 * case, 1) for case in range(FEWEST_CASES - 1)]) is None
    assert usual([Variance(0.0, 1)] * FEWEST_CASES) is None
    one_agrees = [Variance(0.0, 1), *(Variance(0.1 + 0.01 * case, 1) for case in range(FEWEST_CASES))]
    known = usual(one_agrees)
    assert known is not None
    assert known.variance > 0


@given(st.floats(1e-3, 1e4))
def test_the_inverse_of_the_trigamma_function(value: float) -> None:
    assert float(polygamma(1, _trigamma_inverse(value))) == pytest.approx(value, rel=1e-6)
