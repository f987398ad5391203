"""Targets: what a scenario may say, and when a training first reached one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.scenario.target import Evaluation, Target, crossing

SHARES = st.floats(1e-6, 1.0)
CURVES = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=12)


def evaluations_of(values: list[float], every: int = 10, step_s: float = 0.1) -> list[Evaluation]:
    return [Evaluation(every * place, every * place * step_s, value) for place, value in enumerate(values)]


@pytest.mark.parametrize(
    ("text", "target", "words"),
    [
        ("accuracy 95%", ("accuracy", 0.95), "95 % accuracy"),
        ("accuracy 0.95", ("accuracy", 0.95), "95 % accuracy"),
        (" loss  0.35", ("loss", 0.35), "loss 0.35"),
        ("perplexity 12", ("perplexity", 12.0), "perplexity 12"),
    ],
)
def test_a_target_is_read_and_said(text: str, target: tuple[str, float], words: str) -> None:
    found = Target.parse(text)
    assert found == target
    assert found.words == words
    assert Target.parse(str(found)) == found


@pytest.mark.parametrize(
    "text",
    ["", "accuracy", "accuracy 0", "accuracy 101%", "accuracy 2", "loss -1", "loss inf", "perplexity nan", "f1 0.5"],
)
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a target such as 'accuracy 95%'"):
        Target.parse(text)


@given(SHARES)
def test_a_target_survives_being_written(share: float) -> None:
    assert Target.parse(str(Target("accuracy", share))) == Target("accuracy", share)


def test_the_first_crossing_lies_on_the_line_between_two_evaluations() -> None:
    curve = evaluations_of([0.1, 0.5, 0.9, 0.7, 1.0])
    assert crossing(Target("accuracy", 0.7), curve) == pytest.approx((15.0, 1.5))
    assert crossing(Target("accuracy", 0.9), curve) == pytest.approx((20.0, 2.0))
    assert crossing(Target("accuracy", 0.95), curve) == pytest.approx((30 + 10 * 0.25 / 0.3, 3 + 0.25 / 0.3))
    falling = evaluations_of([2.3, 1.3, 0.3])
    assert crossing(Target("loss", 0.8), falling) == pytest.approx((15.0, 1.5))
    assert crossing(Target("loss", 0.2), falling) is None


def test_one_that_is_good_enough_when_first_looked_at_has_reached_it_by_then() -> None:
    assert crossing(Target("accuracy", 0.5), [Evaluation(10, 2.0, 0.6)]) == (10, 2.0)
    assert crossing(Target("accuracy", 0.5), []) is None


@given(CURVES, SHARES)
def test_a_crossing_is_where_the_drawn_curve_first_is_as_high(values: list[float], share: float) -> None:
    """Held against numpy's own interpolation, on a grid that is finer than the evaluations."""
    curve = evaluations_of(values)
    found = crossing(Target("accuracy", share), curve)
    assert (found is None) == (max(values) < share)
    if found:
        grid = np.linspace(0, found.steps, 200, endpoint=False)
        drawn = np.interp(grid, [each.steps for each in curve], [each.value for each in curve])
        assert (drawn <= share + 1e-9).all() or found.steps == 0
        assert np.interp(found.steps, [each.steps for each in curve], [each.value for each in curve]) >= share - 1e-9
        assert found.time_s == pytest.approx(0.1 * found.steps)


@given(CURVES, SHARES, SHARES)
def test_a_higher_target_is_never_reached_sooner(values: list[float], one: float, other: float) -> None:
    lower, higher = (crossing(Target("accuracy", each), evaluations_of(values)) for each in sorted((one, other)))
    if higher:
        assert lower is not None
        assert lower.steps <= higher.steps + 1e-9
