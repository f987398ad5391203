"""A soak says of growth what is so, and nothing of what it has not seen."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soak
from in_process import call_pacbench

TRIALS, LOOKS = 2000, 900


def seen(per_1000_trials: float, resemblance: float = 0.0, seed: int = 0, without: str = "") -> pd.DataFrame:
    """Looks at processes whose memory grows, with noise of 3 MB in which a look resembles the one before it."""
    dice = np.random.default_rng(seed)
    rows = []
    for name in set(soak.PROCESSES) - {without}:
        off = 0.0
        for look in range(LOOKS):
            off = resemblance * off + np.sqrt(1 - resemblance**2) * 3e6 * dice.standard_normal()
            done = look * TRIALS // LOOKS
            rows.append((done, name, 1, 60e6 + per_1000_trials * done / 1000 + off, 10, 3))
    return pd.DataFrame(rows, columns=["done", "process", "pid", *soak.MOST_GROWTH])


def test_its_scenario_can_be_run(tmp_path: Path) -> None:
    (tmp_path / "soak.toml").write_text(soak.SCENARIO.format(rounds=3))
    done = call_pacbench(("plan", "soak.toml"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{3 * soak.METHODS} trials" in done.stdout


def verdicts(looks: pd.DataFrame) -> dict[tuple[str, str], str]:
    found = soak.growth(looks, TRIALS)
    return dict(zip(zip(found["process"], found["resource"], strict=True), found["verdict"], strict=True))


def test_what_grows_is_told_and_what_does_not_is_flat() -> None:
    assert set(verdicts(seen(0.0)).values()) == {"flat"}
    grown = verdicts(seen(2 * soak.MOST_GROWTH["memory_bytes"]))
    assert {verdict for (_, resource), verdict in grown.items() if resource == "memory_bytes"} == {"grew"}
    assert {verdict for (_, resource), verdict in grown.items() if resource != "memory_bytes"} == {"flat"}


def test_a_process_that_was_never_seen_is_unknown() -> None:
    for name in soak.PROCESSES:
        found = verdicts(seen(0.0, without=name))
        assert {process for (process, _), verdict in found.items() if verdict == "unknown"} == {name}
    assert set(verdicts(seen(0.0).head(0)).values()) == {"unknown"}


def test_a_slope_that_is_not_sure_is_unknown() -> None:
    limit = soak.MOST_GROWTH["memory_bytes"]
    assert verdicts(seen(limit, resemblance=0.9))["harness", "memory_bytes"] == "unknown"
    few = seen(0.0)
    assert set(verdicts(few[few["done"] < 0.4 * TRIALS]).values()) == {"unknown"}


def test_intervals_hold_the_slope_as_often_as_they_promise() -> None:
    slope, held = 5e6, []
    for seed in range(100):
        found = soak.growth(seen(slope, resemblance=0.9, seed=seed), TRIALS)
        memory = found[found["resource"] == "memory_bytes"]
        held += [*((memory["low"] <= slope) & (memory["high"] >= slope))]
    assert np.mean(held) > 0.92


@pytest.mark.parametrize("text", ["0", "-2", "3", "2002", "many"])
def test_replays_are_whole_rounds(text: str) -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--replays", type=soak.replays)
    with pytest.raises(argparse.ArgumentError):
        parser.parse_args(["--replays", text])
    assert parser.parse_args(["--replays", "2000"]).replays == 2000
