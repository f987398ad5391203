"""Steps that are far out: found where a worker stood still, and not where times merely spread or a warm-up shrinks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.plan.status import UNSETTLED_STEPS
from harness.record.far_out import FIRST_S, MOST_DISTURBED, far_out
from harness.record.steady import settling_steps

TRIALS = 500

FIRST = dict.fromkeys(range(UNSETTLED_STEPS), FIRST_S)
"""Of a trial in real time."""


def share(step_s: np.ndarray, kinds: list[float] | None = None, warmup: int = UNSETTLED_STEPS) -> float:  # type: ignore[type-arg]
    """The disturbed share, as a row tells it."""
    steady_from = warmup + settling_steps(step_s[warmup:])
    return far_out(step_s, kinds or [1.0] * len(step_s), steady_from, FIRST).extra_s / step_s.sum()


def noisy(generator: np.random.Generator, steps: int, spread: float) -> np.ndarray:  # type: ignore[type-arg]
    return generator.lognormal(np.log(0.05), spread, steps)


@pytest.mark.parametrize("spread", [0.05, 0.1])
@pytest.mark.parametrize("steps", [12, 24, 150])
def test_usual_noise_is_found_disturbed_in_less_than_one_of_a_hundred_trials(steps: int, spread: float) -> None:
    generator = np.random.default_rng(17)
    found = [share(noisy(generator, steps, spread)) > MOST_DISTURBED for _ in range(TRIALS)]
    assert np.mean(found) < 0.01


@pytest.mark.parametrize("steps", [5, 12, 24, 150])
def test_one_step_of_eight_seconds_is_always_found_wherever_it_is(steps: int) -> None:
    generator = np.random.default_rng(17)
    for late in range(steps):
        step_s = noisy(generator, steps, 0.1)
        step_s[late] = 8.0
        assert share(step_s) > 8 / (8 + 0.1 * steps) - 0.1


@given(st.lists(st.floats(0.09, 0.11), min_size=4, max_size=60), st.floats(0.5, 100.0), st.data())
def test_what_is_found_is_what_was_added(step_s: list[float], extra_s: float, data: st.DataObject) -> None:
    late = data.draw(st.integers(UNSETTLED_STEPS, len(step_s) - 1))
    step_s[late] += extra_s
    found = far_out(step_s, [0] * len(step_s), UNSETTLED_STEPS, FIRST)
    assert found.steps == 1
    assert found.extra_s == pytest.approx(extra_s, abs=0.02)


@given(st.lists(st.floats(1e-4, 10.0), max_size=60), st.integers(0, 80))
def test_it_is_a_part_of_the_training_time_whatever_the_unit(step_s: list[float], steady_from: int) -> None:
    kinds = [step % 3 for step in range(len(step_s))]
    found = far_out(step_s, kinds, steady_from, FIRST)
    assert 0 <= found.extra_s <= sum(step_s)
    assert 0 <= found.steps <= len(step_s)
    assert (found.steps == 0) == (found.extra_s == 0)
    twice = dict.fromkeys(FIRST, 2 * FIRST_S)
    scaled = far_out([2 * each for each in step_s], kinds, steady_from, twice)
    assert scaled == (found.steps, pytest.approx(2 * found.extra_s))


@given(st.lists(st.floats(0.100, 0.149), max_size=60), st.integers(0, 80))
def test_nothing_is_far_out_where_no_step_takes_half_as_long_again(step_s: list[float], steady_from: int) -> None:
    assert far_out(step_s, [0] * len(step_s), steady_from, FIRST) == (0, 0.0)


@pytest.mark.parametrize(("dilation", "longest_s"), [(1.0, 1.09), (12.0, 0.39), (0.01, 100.0)])
def test_a_first_step_may_take_four_times_its_like_s_time_or_a_second_more(dilation: float, longest_s: float) -> None:
    """In real time: what prepares a first step is this machine, however much slower or faster all else runs."""
    first = dict.fromkeys(FIRST, FIRST_S / dilation)
    for place in FIRST:
        step_s = [0.1] * 20
        step_s[place] = longest_s
        assert far_out(step_s, [0] * 20, UNSETTLED_STEPS, first).steps == 0
        step_s[place] = 1.1 * longest_s
        assert far_out(step_s, [0] * 20, UNSETTLED_STEPS, first) == (1, pytest.approx(1.1 * longest_s - 0.1))


def test_where_a_training_goes_on_steps_are_first_ones_again_and_those_that_settle_are_left_out() -> None:
    step_s = [0.1] * 30
    step_s[15:19] = [0.35, 0.35, 0.2, 0.2]
    first = {**FIRST, **dict.fromkeys((15, 16), 0.01)}
    assert far_out(step_s, [0] * 30, UNSETTLED_STEPS, first, {17, 18}).steps == 0
    step_s[16] += 8.0
    assert far_out(step_s, [0] * 30, UNSETTLED_STEPS, first, {17, 18}) == (1, pytest.approx(8.25))


def test_a_first_step_is_compared_with_what_sends_as_much() -> None:
    """A dense warm-up: its first step would be far out beside the steady ones."""
    step_s, sent = [2.0] * 8 + [0.01] * 40, [1.0] * 8 + [0.1] * 40
    assert far_out(step_s, sent, 8, FIRST).steps == 0
    assert far_out([2.0] + [0.01] * 40, [1.0] + [0.1] * 40, 2, FIRST).steps == 0, "there is none"


def test_steps_that_send_once_in_a_while_are_not_found_and_a_late_one_among_them_is() -> None:
    sends = [float((step + 1) % 8 == 0) for step in range(64)]
    step_s = np.array([0.01 + 0.2 * each for each in sends])
    assert share(step_s, sends) == 0
    step_s[31] += 8.0
    assert share(step_s, sends) > 0.5


def test_a_warm_up_that_shrinks_is_not_found_and_a_late_step_in_it_is() -> None:
    """DGC's: four steps a stage, each shorter by far, and then the steady ones."""
    sent = [0.25] * 4 + [0.0625] * 4 + [0.015625] * 4 + [0.004] * 4 + [0.001] * 44
    step_s = np.array([0.01 + each for each in sent])
    assert share(step_s, sent, warmup=16) == 0
    step_s[6] += 8.0
    assert share(step_s, sent, warmup=16) > 0.5


def test_a_slow_start_belongs_to_the_steps_before_the_steady_state() -> None:
    step_s = np.full(60, 0.05)
    step_s[2:8] = 0.5
    assert share(step_s) == 0


def test_the_rule_is_stated_in_results() -> None:
    page = (Path(__file__).resolve().parents[2] / "results" / "README.md").read_text()
    assert f"more than {100 * MOST_DISTURBED:.0f} % of" in page
