"""A run that is killed in the middle of its trainings goes on where they were, to the last bit."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import pytest
from host import universes, wait_until

from harness.record import checkpoint
from harness.record.store import Store
from harness.run.session import Watcher

pytestmark = [pytest.mark.netns, pytest.mark.job]

RunScenario = Callable[..., Store]
Start = Callable[..., "subprocess.Popen[str]"]

SCENARIO = """
description = "Is what goes on what was begun?"
baseline_16bit = "dense"
[cluster]
workers = 2
[link]
rate = "200mbit"
[train]
model = "digits-cnn"
dataset = "digits"
steps = 64
save_every = 2
eval_every = 8
batch_size = 8
accumulate = 2
bucket = "200 kB"
augment = "crop-flip"
schedule = "cosine"
lr = 0.05
[[methods]]
name = "dense"
[[methods]]
name = "topk"
ratio = 0.05
[[methods]]
name = "pactrain"
density = 0.2
values = "ternary"
warmup_steps = 8
[[methods]]
name = "diloco"
period = 8
"""

AFTER = {"topk": 9, "pactrain": 15, "diloco": 20}
"""Steps after which each is killed, or soon then: PacTrain when the mask is agreed, DiLoCo between two meetings."""

PACED = SCENARIO.replace("accumulate = 2", 'pace = "digits-cnn-epyc"\ndilation = 2.0').replace(
    "batch_size = 8", "batch_size = 16"
)

LEARNT = ["loss", "accuracy", "test_loss"]


class Listening(Watcher):
    """Keeps what is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def told(self, line: str) -> None:
        self.lines.append(line)


def steps_kept(file: Path) -> int:
    try:
        return checkpoint.read(file).about.steps
    except FileNotFoundError:  # its trial has ended
        return 0


def killed_in(start: Start, run: Path, methods: list[str], asked: Mapping[str, int], killed: set[str]) -> None:
    """Start the run, and kill it in a training of those asked for in which it has not been killed before."""
    before = set(universes())
    process = start("run", "mine.toml", "--on", "netns", "--rounds", "1", "--out", str(run), *methods)
    deadline = time.monotonic() + 300
    while True:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        new = [file for file in run.glob("checkpoints/*.zip") if file.stem in asked.keys() - killed]
        if new and steps_kept(new[0]) >= asked[new[0].stem]:
            break
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    wait_until(lambda: set(universes()) <= before)
    killed.add(new[0].stem)


def learnt(store: Store, rows: pd.DataFrame) -> pd.DataFrame:
    events = store.events(rows)
    return events[events["kind"].isin(LEARNT)].drop(columns="time_s").sort_values(["trial_id", "kind", "step"])


@pytest.mark.parametrize(
    ("scenario", "labels"),
    [(SCENARIO, ["pactrain", "diloco"]), (PACED, ["topk"])],
    ids=["unpaced", "paced"],
)
def test_killed_trainings_go_on_to_the_last_bit(
    scenario: str, labels: list[str], run_scenario: RunScenario, start: Start, tmp_path: Path
) -> None:
    (tmp_path / "mine.toml").write_text(scenario)
    whole = run_scenario("mine.toml", methods=labels, out="whole")
    asked = {row.trial_id: AFTER[row.label] for row in whole.trials().itertuples() if row.label in AFTER}

    run, killed = tmp_path / "run", set[str]()
    for _ in asked:
        killed_in(start, run, [word for label in labels for word in ("--method", label)], asked, killed)
    listening = Listening()
    store = run_scenario("mine.toml", methods=labels, out="run", watcher=listening)
    assert len([line for line in listening.lines if "goes on after step" in line]) == 1
    assert list((run / "checkpoints").iterdir()) == []

    attempts = store.attempts()
    resumed = attempts[attempts["resumed_from_step"].notna()]  # one may run again because something disturbed it
    assert set(resumed["trial_id"]) == killed == set(asked)
    assert set(resumed["status"]) <= {"done", "disturbed"}
    assert (resumed["resumed_from_step"] >= resumed["trial_id"].map(asked)).all()
    trained = whole.trials()[lambda rows: rows["trial_id"].isin(asked)]
    again, once = (frame.set_index("trial_id").sort_index() for frame in (resumed, trained))
    assert again["parameter_hash"].to_dict() == once["parameter_hash"].to_dict()
    assert (again["wire_bytes_per_step"] / once["wire_bytes_per_step"]).between(0.98, 1.02).all()
    columns = ["trial_id", "rank", "step", "kind", "value"]
    same = [learnt(*each)[columns].reset_index(drop=True) for each in ((store, resumed), (whole, trained))]
    pd.testing.assert_frame_equal(*same, check_exact=True)


def test_a_checkpoint_and_an_evaluation_after_each_step_suit_a_dilation_that_is_found(
    run_scenario: RunScenario,
) -> None:
    often = ["train.save_every=1", "train.eval_every=1", "train.steps=16", "baseline_16bit=dense"]
    trials = run_scenario("quickstart", often, ["dense"]).trials()
    assert trials["label"].tolist() == ["dense"]
    assert trials["added_s_per_step"].notna().all()
