"""Where steps have settled: on invented times, and on those of the reference run, whose warm-ups are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.record.steady import FEWEST, is_long_enough, settling_steps
from harness.record.store import Store

REAL_RUN = Path(__file__).resolve().parents[1] / "data" / "older" / "quickstart"


def noisy(count: int, seed: int) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(seed).lognormal(-3, 0.15, count)


@pytest.mark.parametrize("warmup", [1, 5, 20])
@pytest.mark.parametrize("factor", [0.3, 3.0])
def test_a_warm_up_is_found_to_the_step(warmup: int, factor: float) -> None:
    for seed in range(20):
        step_s = noisy(60, seed)
        step_s[:warmup] *= factor
        assert warmup <= settling_steps(step_s) <= warmup + 3


def test_where_nothing_warms_up_next_to_nothing_is_dropped() -> None:
    assert np.mean([settling_steps(noisy(60, seed)) for seed in range(500)]) < 0.2


def test_a_late_step_further_on_drops_nothing() -> None:
    step_s = np.full(60, 0.05)
    step_s[10] = 1.0
    assert settling_steps(step_s) == 0


@given(st.lists(st.floats(1e-4, 10.0), max_size=80), st.integers(1, 20))
def test_at_most_half_is_dropped_and_always_whole_periods(step_s: list[float], period: int) -> None:
    dropped = settling_steps(step_s, period)
    assert 0 <= dropped <= len(step_s) / 2
    assert dropped % period == 0
    assert len(step_s) >= FEWEST or dropped == 0


def test_the_declared_warm_ups_of_a_real_run_are_found_by_the_times_alone() -> None:
    """Without being told, the rule finds the 16 dense steps of PacTrain's warm-up, or the 17 that it declares."""
    run = Store.open(REAL_RUN)
    events = run.events().query("kind == 'step_s' and rank == 0").merge(run.trials(), on="trial_id")
    found = {
        (label, number): settling_steps(steps.sort_values("step")["value"])
        for (label, number), steps in events.groupby(["label", "round"])
    }
    pactrain = run.trials().query("method == 'pactrain'")
    assert set(pactrain["steady_from_step"]) == {17}, "the step in which the mask is first used is among them"
    assert {found[each] for each in zip(pactrain["label"], pactrain["round"], strict=True)} <= {16, 17}
    assert all(found[label, number] <= 2 for label in ("dense", "fp16", "topk") for number in range(3))


def test_behind_the_declared_warm_ups_there_is_nothing_left_to_drop() -> None:
    run = Store.open(REAL_RUN)
    events = run.events().query("kind == 'step_s' and rank == 0").merge(run.trials(), on="trial_id")
    steady = events[events["step"] >= events["steady_from_step"]]
    dropped = [settling_steps(steps.sort_values("step")["value"]) for _, steps in steady.groupby("trial_id")]
    assert len(dropped) == 18
    assert max(dropped) == 0


def test_a_throughput_needs_ten_steps_and_a_quarter_of_a_second_and_of_a_replay_three_steps() -> None:
    assert is_long_enough(10, 0.25, is_replay=False)
    assert not is_long_enough(9, 1.0, is_replay=False)
    assert not is_long_enough(1000, 0.2, is_replay=False)
    assert is_long_enough(3, 0.001, is_replay=True)
    assert not is_long_enough(2, 100.0, is_replay=True)
