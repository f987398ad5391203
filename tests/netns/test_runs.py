"""Real training on real namespaces: figures that add up, and nothing lost however a run ends."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import psutil
import pytest
from host import busiest_worker, complaints, run_pacbench, universes, wait_until
from sent import assert_sends_its_formula

from harness.analysis.cases import case_results
from harness.record.store import Store
from harness.report import page
from harness.report.figures.learning_curves import perplexity
from harness.run.outcome import Progress
from harness.run.session import Outlook, Watcher

pytestmark = pytest.mark.netns

RunScenario = Callable[..., Store]
Start = Callable[..., "subprocess.Popen[str]"]

SCENARIO = "quickstart"
SETTINGS = ("train.pace=none", "train.steps=24", "train.schedule=constant", "train.eval_every=8", "link.rate=200mbit")
SMALL = (SCENARIO, *(word for setting in SETTINGS for word in ("--set", setting)))
FEW = (*SETTINGS, "baseline_16bit=dense", "cluster.workers=2")
WITH_THE_BASELINE = ("pactrain-ternary",)
TWO_TRIALS = (
    *(SCENARIO, *(word for setting in FEW for word in ("--set", setting))),
    *("--method", *WITH_THE_BASELINE, "--rounds", "1"),
)


class Resumed(Watcher):
    """Keeps what a run was about to do."""

    def about_to_run(self, outlook: Outlook) -> None:
        self.outlook = outlook


def trials(folder: Path) -> pd.DataFrame:
    return Store.open(folder).trials()


def rows_stored(folder: Path) -> int:
    return len(list((folder / "trials.parquet").glob("[!.]*.parquet")))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of all methods, by the command line, where torch is told what would end our workers."""
    folder = tmp_path_factory.mktemp("whole")
    done = run_pacbench(folder, "run", *SMALL, "--rounds", "1", "--out", "run", TORCH_DISTRIBUTED_DEBUG="DETAIL")
    assert done.returncode == 0, done.stdout + done.stderr
    assert complaints(done.stderr) == [], "quiet when not on a terminal"
    (folder / "stdout").write_text(done.stdout)
    return folder


def test_a_run_measures_every_method_and_writes_its_report(whole: Path) -> None:
    printed, out = (whole / "stdout").read_text(), whole / "run"
    assert "to 85 %" in printed
    assert "No winner can be named" in printed, "one round says nothing of accuracy, and 24 steps do not reach it"
    assert (out / "report.html").is_file()

    rows = trials(out).set_index("label")
    assert set(rows.index) == {"dense", "bf16", "topk", "dgc", "pactrain-fp32", "pactrain-ternary"}
    assert (rows["status"] == "done").all()
    assert_sends_its_formula(rows)
    assert (rows["step_time_median_s"] > rows["lower_bound_s_per_step"]).all(), "nothing beats its bound"
    assert rows["final_accuracy"].between(0.3, 1.0).all(), "ten classes: chance is 0.1"
    assert rows["parameter_hash"].nunique() == len(rows), "methods differ in what they do to parameters"
    assert (rows["own_memory_bytes"] < 400e6).all()
    assert rows["log_tail"].isna().all(), "workers have nothing to complain of"

    phases = rows[["compute_s_per_step", "codec_s_per_step", "comm_s_per_step"]].sum(axis=1)
    mean_step_s = rows["steady_s"] / rows["steady_steps"]
    assert (phases / mean_step_s).between(0.9, 1.1).all(), (phases / mean_step_s).to_dict()


FEW_CLOTHES = """
from harness.workload.data import Data, dataset
from harness.workload.images import fashion_mnist_rgb

@dataset(train_size=200, test_size=40, input_shape=(3, 32, 32), classes=10)
def few_clothes(folder):
    whole = fashion_mnist_rgb(folder)
    return Data(whole.train_inputs[:200], whole.train_targets[:200], whole.test_inputs[:40], whole.test_targets[:40])
"""
"""An evaluation of this network on all 500 samples takes longer than all else that the test does."""


@pytest.mark.parametrize(
    ("model", "dataset"), [("byte-lm", "python-source"), ("resnet18-cifar", "few_clothes.py:few_clothes")]
)
def test_text_and_networks_with_statistics_of_batches_are_trained(
    model: str, dataset: str, run_scenario: RunScenario, tmp_path: Path
) -> None:
    (tmp_path / "few_clothes.py").write_text(FEW_CLOTHES)
    settings = f"""cluster.workers=2 link.rate=unshaped train.model={model} train.dataset={dataset} train.batch_size=2
                   train.pace=none train.steps=4 train.eval_every=4 baseline_16bit=dense"""
    store = run_scenario("quickstart", settings.split(), ["topk"])
    rows, events = store.trials(), store.events()
    assert (rows["status"] == "done").all(), "also: every rank ends with the same parameters and statistics"
    assert_sends_its_formula(rows)
    assert rows["final_accuracy"].between(0, 0.99).all()
    losses = events[events["kind"] == "test_loss"]["value"]
    assert len(losses) == 2 * 2, "of two methods, before the first step and after the last"
    assert (losses > 0).all()
    told = events[events["kind"] == "perplexity"]["value"]
    assert list(told) == ([pytest.approx(math.exp(loss)) for loss in losses] if model == "byte-lm" else [])
    page.write(store, [perplexity])
    assert (store.folder / "plots" / "perplexity.csv").exists() == (model == "byte-lm")


def test_the_same_seed_trains_the_same_parameters(whole: Path, run_scenario: RunScenario) -> None:
    """In other processes, after other trials, and in another order."""
    again = run_scenario(SCENARIO, [*SETTINGS, "baseline_16bit=dense"], WITH_THE_BASELINE)
    hashes = [
        dict(trials(folder)[["label", "parameter_hash"]].itertuples(index=False))
        for folder in (whole / "run", again.folder)
    ]
    assert set(hashes[1]) == {"dense", "pactrain-ternary"}
    assert hashes[1].items() <= hashes[0].items()


def test_whom_many_send_to_has_the_fullest_queue(run_scenario: RunScenario, tmp_path: Path) -> None:
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
    rows = run_scenario("incast.toml").trials().set_index("label")
    assert rows["fullest_queue"]["parameter_server"] == "w0 down"
    assert rows["queue_backlog_bytes"]["parameter_server"] > rows["queue_backlog_bytes"]["dense"] > 0


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_leaves_nothing_and_the_next_one_completes_it(
    run_scenario: RunScenario, start: Start, tmp_path: Path, sent: signal.Signals
) -> None:
    before = set(universes())
    process = start("run", *TWO_TRIALS)
    wait_until(lambda: list(tmp_path.glob("results/quickstart-*")), 60)
    (folder,) = tmp_path.glob("results/quickstart-*")
    wait_until(lambda: rows_stored(folder) >= 1 and (trials(folder)["status"] == "done").any(), 60)
    os.kill(process.pid, sent)
    output, _ = process.communicate(timeout=30)
    wait_until(lambda: set(universes()) <= before)

    assert process.returncode == (-signal.SIGKILL if sent == signal.SIGKILL else 130)
    assert "Traceback" not in output
    kept = trials(folder)
    finished = set(kept.loc[kept["status"] == "done", "trial_id"])
    assert finished
    assert set(kept["status"]) <= {"done", "interrupted", "disturbed"}  # another program may hold this machine up

    again = Resumed()
    store = run_scenario(SCENARIO, FEW, WITH_THE_BASELINE, out=None, watcher=again)
    assert store.folder == folder.relative_to(tmp_path)
    assert (again.outlook.done, len(again.outlook.plan.trials)) == (len(finished), 2)
    done = store.attempts().query("status == 'done'")
    assert (done[done["trial_id"].isin(finished)].groupby("trial_id").size() == 1).all(), "none ran twice"
    assert (trials(folder)["status"] == "done").all()
    assert len(trials(folder)) == 2

    once_more = Resumed()
    run_scenario(SCENARIO, FEW, WITH_THE_BASELINE, out=str(folder), watcher=once_more)
    assert not once_more.outlook.runs_something


class Harm(Watcher):
    """Does something to a worker, once, as soon as the first trial is heard to train."""

    def __init__(self, do: Callable[[psutil.Process], None]) -> None:
        self.do, self.is_done = do, False

    def progress(self, progress: Progress) -> None:
        if not self.is_done:
            self.is_done = True
            self.do(busiest_worker())


FOR_SECONDS = ("link.rate=50mbit", "train.steps=60", "train.eval_every=60")
"""The dense baseline, which is first, trains for several times as long as a worker waits before it tells of steps."""


def test_a_worker_that_is_killed_costs_one_trial(run_scenario: RunScenario) -> None:
    settings, methods = (*FEW, *FOR_SECONDS), ["topk", "pactrain-ternary"]
    store = run_scenario(SCENARIO, settings, methods, watcher=Harm(psutil.Process.kill), failing=1)

    rows = store.trials()
    assert sorted(rows["status"]) == ["crashed", "done", "done"]
    crashed = rows[rows["status"] == "crashed"].iloc[0]
    assert "SIGKILL" in crashed["reason"], "whoever fails for want of its peer may be heard first"
    page.write(store, [])
    assert "crashed" in (store.folder / "report.md").read_text()


STOPPED_S = 4.0


def stand_still(worker: psutil.Process) -> None:
    worker.suspend()
    time.sleep(STOPPED_S)
    worker.resume()


def test_a_worker_that_stood_still_costs_one_attempt(run_scenario: RunScenario) -> None:
    """Its trial is run again, and figures are those of the later attempt."""
    store = run_scenario(SCENARIO, (*FEW, *FOR_SECONDS), ["topk"], watcher=Harm(stand_still))

    attempts = store.attempts()
    extra_s = attempts["disturbed_share"] * attempts["train_time_s"]
    (stopped,) = attempts[extra_s > 0.9 * STOPPED_S].to_dict("records")
    assert stopped["status"] == "disturbed"
    assert stopped["far_out_steps"] >= 1
    last = store.trials().set_index("trial_id").loc[stopped["trial_id"]]
    assert (last["status"], last["parameter_hash"]) == ("done", stopped["parameter_hash"])
    assert last["attempt"] > stopped["attempt"]
    (case,) = case_results(store.trials(), store.scenario())
    told = case.method(last["label"]).samples_per_s
    assert told is not None
    assert told.value == pytest.approx(last["samples_per_s"])
    assert last["samples_per_s"] != stopped["samples_per_s"]
    page.write(store, [])
    assert f"Disturbed: {stopped['label']}, round 0" in (store.folder / "report.md").read_text()
