"""Whole pilots of a small script on emulated links: what is written, what is not run again, and drift."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from harness.errors import EXIT_REGRESSION, MeasurementError
from harness.record.pilot import FILE, load

SCRIPTS = Path(__file__).parents[2] / "examples" / "scripts"
OPTIONS = (
    *("pilot", "--on", "netns", "--workers", "2", "--rate", "20mbit", "--method", "topk", "--steps", "24"),
    *("--seeds", "1", "--tested", "1", "-o", "found"),
)

Run = Callable[..., CompletedProcess[str]]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return Path(shutil.copy(SCRIPTS / "ddp_cnn.py", tmp_path / "train.py"))


def test_a_pilot_decides_goes_on_and_finds_what_has_drifted(script: Path, pacbench: Run, tmp_path: Path) -> None:
    asked = (*OPTIONS, "--price", "2.49/h", "--", sys.executable, str(script), "--steps", "200")
    first = pacbench(*asked)
    assert first.returncode == 0, first.stderr
    found = load(tmp_path / "found" / FILE)
    labels = {each.label for each in found.trainings}
    assert {"dense", "bf16"} < labels
    assert any("topk" in label for label in labels)
    for each in found.trainings:
        assert each.sent_bytes
        assert each.formula_bytes
        assert each.formula_bytes <= each.sent_bytes, "the kernel counts headers of messages, too"
    for name in ("pilot.html", "recommended.toml", "snippet.py"):
        assert (tmp_path / "found" / name).is_file()
    records = {path: path.stat().st_mtime_ns for path in (tmp_path / "found" / "runs").glob("*/exec.json")}
    assert len(records) == 1 + len(found.trainings)

    assert pacbench(*asked).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "found" / "runs").glob("*/exec.json")} == records
    assert load(tmp_path / "found" / FILE).trainings == found.trainings

    script.write_text(script.read_text().replace("256", "288"))
    again = pacbench("pilot", "--recheck", "found/pilot.json")
    assert again.returncode == EXIT_REGRESSION, again.stderr
    assert "other parameters" in again.stdout


def test_a_budget_below_one_look_and_a_script_that_ends_too_soon_are_one_line(script: Path, pacbench: Run) -> None:
    short = pacbench(*OPTIONS, "--budget", "1s", "--", sys.executable, str(script))
    ended = pacbench(*OPTIONS, "--", sys.executable, str(script), "--steps", "5")
    for done, told in ((short, "budget of 1 s"), (ended, "ended after 5 steps")):
        assert done.returncode == MeasurementError.exit_code, done.stderr
        assert told in done.stderr.splitlines()[-1]
