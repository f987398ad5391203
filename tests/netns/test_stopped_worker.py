"""A worker that is stopped for some seconds: its trial is run again, and figures are those of the later attempt."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from host import busy_workers, wait_until

from harness.analysis.cases import case_results
from harness.record.store import Store

pytestmark = pytest.mark.netns

LONG_ENOUGH = (
    *("quickstart", "--set", "train.steps=150", "--set", "train.eval_every=150"),
    *("--set", "train.pace=none", "--set", "link.rate=200mbit", "--set", "cluster.workers=2"),
)
"""Its only evaluations are before the first step and after the last: whoever is busy for long is in a step."""

STOPPED_S = 4.0


def test_a_worker_that_stood_still_costs_one_attempt(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = start("run", *LONG_ENOUGH, "--method", "bf16", "--rounds", "1", "--out", str(out))
    wait_until(lambda: rows_stored(out) >= 1, 60)  # whoever is busy before then may be measuring the links
    wait_until(lambda: busy_workers(process))
    worker = busy_workers(process)[-1]
    worker.send_signal(signal.SIGSTOP)
    time.sleep(STOPPED_S)
    worker.send_signal(signal.SIGCONT)
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 0, output

    store = Store.open(out)
    attempts = store.attempts()
    extra_s = attempts["disturbed_share"] * attempts["train_time_s"]
    (stopped,) = attempts[extra_s > 0.9 * STOPPED_S].to_dict("records")
    assert stopped["status"] == "disturbed"
    assert stopped["far_out_steps"] >= 1
    assert f"{stopped['label']}, round 0: disturbed" in output
    last = store.trials().set_index("trial_id").loc[stopped["trial_id"]]
    assert (last["status"], last["parameter_hash"]) == ("done", stopped["parameter_hash"])
    assert last["attempt"] > stopped["attempt"]
    (case,) = case_results(store.trials(), store.scenario())
    told = case.method(last["label"]).samples_per_s
    assert told is not None
    assert told.value == pytest.approx(last["samples_per_s"])
    assert last["samples_per_s"] != stopped["samples_per_s"]
    assert f"Disturbed: {stopped['label']}, round 0" in (out / "report.md").read_text()


def rows_stored(folder: Path) -> int:
    return len(list((folder / "trials.parquet").glob("[!.]*.parquet")))
