"""Whole pilots of a small script on emulated links: what is written, what is not run again, and drift."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from harness import attach
from harness.cli import json_reference
from harness.errors import EXIT_REGRESSION, MeasurementError
from harness.record.execution import Execution
from harness.record.pilot import FILE, load
from harness.run.attached import FINDINGS

pytestmark = [pytest.mark.netns, pytest.mark.job]

SCRIPTS = Path(__file__).parents[2] / "examples" / "scripts"
OPTIONS = (
    *("pilot", "--on", "netns", "--workers", "2", "--rate", "20mbit", "--method", "int8", "--steps", "24"),
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
    assert {each.label for each in found.trainings} == {"dense", "bf16", "int8"}
    for each in found.trainings:
        assert each.sent_bytes
        assert each.formula_bytes
        assert each.formula_bytes <= each.sent_bytes, "the kernel counts headers of messages, too"
    for name in ("pilot.html", "recommended.toml", "snippet.py"):
        assert (tmp_path / "found" / name).is_file()
    records = {path: path.stat().st_mtime_ns for path in (tmp_path / "found" / "runs").glob("*/exec.json")}
    assert len(records) == 1 + len(found.trainings)
    for record in records:
        assert all(str(script) in rank.sources for rank in attach.read(record.parent / FINDINGS))

    again = pacbench(*asked[: asked.index("--price")], "--json", *asked[asked.index("--price") :])
    assert again.returncode == 0, again.stderr
    told = json_reference.adapter("pilot").validate_json(again.stdout, strict=True)
    assert told["recommended"] == found.verdict.label
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "found" / "runs").glob("*/exec.json")} == records
    assert load(tmp_path / "found" / FILE).trainings == found.trainings

    elsewhere = pacbench(*["40mbit" if word == "20mbit" else word for word in asked])
    assert elsewhere.returncode == 0, elsewhere.stderr
    learnt = {each.label: each.losses for each in found.trainings}
    for each in load(tmp_path / "found" / FILE).trainings:
        assert each.learnt_in is not None
        assert each.record != each.learnt_in
        assert each.losses == learnt[each.label][: each.steps]
        assert len(Execution.load(tmp_path / "found" / each.record).training.curve) < each.steps
    assert "Of 3 of 3 trainings only the pace was measured" in (tmp_path / "found" / "pilot.html").read_text()

    script.write_text(script.read_text().replace("256", "288"))
    drifted = pacbench("pilot", "--recheck", "found/pilot.json", "--json")
    assert drifted.returncode == EXIT_REGRESSION, drifted.stderr
    told = json_reference.adapter("pilot").validate_json(drifted.stdout, strict=True)
    assert (told["answer"], told["exit_code"]) == ("drifted", EXIT_REGRESSION)
    assert "other parameters, or another batch" in [check["found"] for check in told["checks"]]


def test_a_plug_in_whose_ranks_share_links_is_piloted(pacbench: Run, tmp_path: Path) -> None:
    plugins = SCRIPTS.parent / "plugins"
    trained = ("--model", f"{plugins}/tiny_net.py:tiny_net", "--dataset", f"{plugins}/shifted_digits.py:shifted_digits")
    done = pacbench(*OPTIONS, "--per-node", "2", *trained)
    assert done.returncode == 0, done.stderr
    found = load(tmp_path / "found" / FILE)
    assert found.per_node == 2
    assert {each.label for each in found.trainings} == {"dense", "bf16", "int8"}
    assert all(each.formula_bytes and each.sent_bytes is None for each in found.trainings)


def test_a_budget_below_one_look_and_a_script_that_ends_too_soon_are_one_line(script: Path, pacbench: Run) -> None:
    short = pacbench(*OPTIONS, "--budget", "1s", "--", sys.executable, str(script))
    ended = pacbench(*OPTIONS, "--", sys.executable, str(script), "--steps", "5")
    for done, told in ((short, "budget of 1 s"), (ended, "ended after 5 steps")):
        assert done.returncode == MeasurementError.exit_code, done.stderr
        assert told in done.stderr.splitlines()[-1]
