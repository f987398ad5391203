"""Real training over links with delay and loss, by the command that users run, in a kernel that has netem."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import traps
from host import MARK, universes

from harness.record.store import Store

pytestmark = [pytest.mark.netem, pytest.mark.timeout(600)]

RUN = (
    *("run", "quickstart", "--on", "uml", "--rounds", "1", "--method", "topk", "--set", "train.steps=12"),
    *("--set", "baseline_16bit=dense"),
    *("--set", "cluster.workers=2", "--set", "link.rate=20mbit", "--set", "train.eval_every=12"),
    *("--set", "link.delay=5ms", "--set", "link.loss=0.5%", "--set", "train.pace=none"),
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory, processes_are_known: None) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("netem")
    here, out = traps.lay(folder / "here"), folder / "run"
    done = subprocess.run(
        [*traps.console_script(folder / "bin"), *RUN, "--out", str(out)],
        cwd=here,
        capture_output=True,
        text=True,
        timeout=560,
        env={"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "PATH": "/usr/bin:/bin", MARK: os.environ[MARK]},
    )
    assert traps.sprung(here) == [], "nothing of the current folder is run, in this kernel or that one"
    assert done.returncode == 0, done.stdout + done.stderr
    assert universes() == []
    return Store.open(out).trials().set_index("label")


def test_training_over_delay_and_loss_is_measured_as_any_other(rows: pd.DataFrame) -> None:
    assert (rows["status"] == "done").all(), rows["reason"].tolist()
    assert (rows["cluster"] == "uml").all()
    assert (rows["delay_s"] == 0.005).all()
    assert (rows["loss"] == 0.005).all()
    ratio = rows["wire_bytes_per_step"] / rows["formula_bytes_per_step"]
    assert ratio.between(0.95, 1.10).all(), ratio.to_dict()  # what is lost is sent again
    assert (rows["step_time_median_s"] > rows["lower_bound_s_per_step"]).all()
    assert rows["yardstick_s"].isna().all(), "this kernel counts a thread's time in ticks of 10 ms"


def test_its_links_were_measured_before_and_after(rows: pd.DataFrame) -> None:
    for moment in ("verified_before", "verified_after"):
        readings = json.loads(rows.loc["dense", moment])
        assert [trip["rtt_s_asked"] for trip in readings["round_trips"]] == [0.01, 0.01]
        assert all(link["counts"]["lost"] > 0 for link in readings["links"])
    assert rows["drift"].isna().all()
