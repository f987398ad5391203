"""How long a model is tried for on this machine, and what of it is told."""

from __future__ import annotations

import pytest
import torch

from harness.workload import speed


@pytest.fixture(autouse=True)
def untried() -> None:
    speed.passes_s.cache_clear()


@pytest.mark.parametrize(("model", "batch_size"), [("digits-cnn", 16), ("byte-lm", 4)])
def test_a_model_is_tried_and_nothing_is_left_of_it(model: str, batch_size: int) -> None:
    torch.manual_seed(7)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    found = speed.passes_s(model, batch_size)
    assert found is not None
    assert found > 0
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_of_a_large_batch_some_samples_are_tried_and_counted_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "MOST_FLOPS", 2.5 * speed.flops_per_sample("digits-cnn"))
    ticks_s = iter(range(100))
    monkeypatch.setattr(speed.time, "process_time", lambda: next(ticks_s))
    assert speed.passes_s("digits-cnn", 64) == 1.0 * 64 / 2


def test_what_takes_too_long_is_not_tried() -> None:
    assert speed.passes_s("resnet152", 32) is None
