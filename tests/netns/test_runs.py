"""Real training on real namespaces: figures that add up, and nothing lost however a run ends."""

from __future__ import annotations

import math
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from host import busy_workers, universes, wait_until

from harness.record.store import Store

pytestmark = pytest.mark.netns

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Start = Callable[..., "subprocess.Popen[str]"]

SMALL = (
    *("quickstart", "--set", "train.pace=none", "--set", "train.steps=24", "--set", "train.eval_every=8"),
    *("--set", "link.rate=200mbit"),
)
TWO_METHODS = (*SMALL, "--set", "baseline_16bit=dense", "--method", "pactrain-ternary", "--rounds", "2")


def trials(folder: Path) -> pd.DataFrame:
    return Store.open(folder).trials()


def rows_stored(folder: Path) -> int:
    return len(list((folder / "trials.parquet").glob("[!.]*.parquet")))


def test_a_run_measures_every_method_and_writes_its_report(pacbench: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = pacbench("run", *SMALL, "--rounds", "1", "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == "", "quiet when not on a terminal"
    assert "to 95 %" in done.stdout
    assert "No winner can be named" in done.stdout, "one round says nothing of accuracy, and 24 steps do not reach it"
    assert (out / "report.html").is_file()

    rows = trials(out).set_index("label")
    assert set(rows.index) == {"dense", "bf16", "topk", "dgc", "pactrain-fp32", "pactrain-ternary"}
    assert (rows["status"] == "done").all()
    ratio = rows["wire_bytes_per_step"] / rows["formula_bytes_per_step"]
    assert ratio.between(0.95, 1.05).all(), ratio.to_dict()
    assert (rows["step_time_median_s"] > rows["lower_bound_s_per_step"]).all(), "nothing beats its bound"
    assert rows["final_accuracy"].between(0.3, 1.0).all(), "ten classes: chance is 0.1"
    assert rows["parameter_hash"].nunique() == len(rows), "methods differ in what they do to parameters"
    assert (rows["own_memory_bytes"] < 400e6).all()
    assert rows["log_tail"].isna().all(), "workers have nothing to complain of"

    phases = rows[["compute_s_per_step", "codec_s_per_step", "comm_s_per_step"]].sum(axis=1)
    mean_step_s = rows["steady_s"] / rows["steady_steps"]
    assert (phases / mean_step_s).between(0.9, 1.1).all(), (phases / mean_step_s).to_dict()


@pytest.mark.parametrize(("model", "dataset"), [("byte-lm", "python-source"), ("resnet18-cifar", "fashion-mnist-rgb")])
def test_text_and_networks_with_statistics_of_batches_are_trained(
    model: str, dataset: str, pacbench: Run, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    settings = f"""cluster.workers=2 link.rate=unshaped train.model={model} train.dataset={dataset} train.batch_size=2
                   train.pace=none train.steps=4 train.eval_every=4"""
    changes = [part for setting in settings.split() for part in ("--set", setting)]
    done = pacbench("run", "quickstart", *changes, "--method", "topk", "--rounds", "1", "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = trials(out)
    assert (rows["status"] == "done").all(), "also: every rank ends with the same parameters and statistics"
    assert (rows["wire_bytes_per_step"] / rows["formula_bytes_per_step"]).between(0.95, 1.05).all()
    assert rows["final_accuracy"].between(0, 0.99).all()
    events = Store.open(out).events()
    losses = events[events["kind"] == "test_loss"]["value"]
    assert len(losses) == 3 * 2, "of three methods, before the first step and after the last"
    assert (losses > 0).all()
    perplexities = events[events["kind"] == "perplexity"]["value"]
    assert list(perplexities) == ([pytest.approx(math.exp(loss)) for loss in losses] if model == "byte-lm" else [])
    assert (out / "plots" / "perplexity.csv").exists() == (model == "byte-lm")


def test_the_same_seed_trains_the_same_parameters(pacbench: Run, tmp_path: Path) -> None:
    hashes = []
    for name in ("one", "two"):
        done = pacbench("run", *TWO_METHODS, "--rounds", "1", "--out", str(tmp_path / name))
        assert done.returncode == 0, done.stderr
        hashes.append(dict(trials(tmp_path / name)[["label", "parameter_hash"]].itertuples(index=False)))
    assert hashes[0] == hashes[1]
    assert set(hashes[0]) == {"dense", "pactrain-ternary"}


def test_whom_many_send_to_has_the_fullest_queue(pacbench: Run, tmp_path: Path) -> None:
    scenario = """
        description = "All push to the server on the first worker, and pull from it"
        [cluster]
        workers = 4
        [link]
        rate = "50mbit"
        [train]
        model = "digits-cnn"
        dataset = "digits"
        steps = 10
        batch_size = 8
        lr = 0.05
        [[methods]]
        name = "dense"
        [[methods]]
        name = "parameter_server"
    """
    (tmp_path / "incast.toml").write_text(scenario)
    done = pacbench("run", "incast.toml", "--rounds", "1", "--out", "run")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = trials(tmp_path / "run").set_index("label")
    assert rows["fullest_queue"]["parameter_server"] == "w0 down"
    assert rows["queue_backlog_bytes"]["parameter_server"] > rows["queue_backlog_bytes"]["dense"] > 0


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_leaves_nothing_and_the_next_one_completes_it(
    pacbench: Run, start: Start, tmp_path: Path, sent: signal.Signals
) -> None:
    process = start("run", *TWO_METHODS)
    wait_until(lambda: list(tmp_path.glob("results/quickstart-*")), 60)
    (folder,) = tmp_path.glob("results/quickstart-*")
    wait_until(lambda: rows_stored(folder) >= 1, 60)
    os.kill(process.pid, sent)
    output, _ = process.communicate(timeout=30)
    wait_until(lambda: not universes())

    assert process.returncode == (-signal.SIGKILL if sent == signal.SIGKILL else 130)
    assert "Traceback" not in output
    kept = trials(folder)
    finished = set(kept.loc[kept["status"] == "done", "trial_id"])
    assert finished
    assert set(kept["status"]) <= {"done", "interrupted"}

    again = pacbench("run", *TWO_METHODS)
    assert again.returncode == 0, again.stderr
    assert f"{len(finished)} of 4 trials are done" in again.stdout
    attempts = Store.open(folder).attempts()
    assert (attempts[attempts["trial_id"].isin(finished)].groupby("trial_id").size() == 1).all(), "none ran twice"
    assert (trials(folder)["status"] == "done").all()
    assert len(trials(folder)) == 4

    once_more = pacbench("run", *TWO_METHODS, "--out", str(folder))
    assert "all 4 trials are done already" in once_more.stdout


def test_a_worker_that_is_killed_costs_one_trial(start: Start, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start("run", *TWO_METHODS, "--set", "train.steps=100", "--out", str(out))
    wait_until(lambda: rows_stored(out) == 1, 60)  # whoever is busy before then may be measuring the links
    wait_until(lambda: busy_workers(process))
    busy_workers(process)[-1].kill()
    output, _ = process.communicate(timeout=90)

    assert process.returncode == 5
    rows = trials(out)
    assert sorted(rows["status"]) == ["crashed", "done", "done", "done"]
    crashed = rows[rows["status"] == "crashed"].iloc[0]
    assert "signal 9" in crashed["reason"] or "closed" in crashed["reason"].lower()
    assert crashed["reason"] in output
    assert "crashed" in (out / "report.md").read_text()
