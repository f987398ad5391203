"""A run that goes on after it was damaged: it is told which file, or all that was left is run, and nothing is lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from abacus import written
from hypothesis import given
from hypothesis import strategies as st
from in_process import call_pacbench
from test_damage import flip, overwrite, truncate
from tries import tries

from harness.provenance import code_digest
from harness.record.claims import Claims, Holder
from harness.record.store import Store

SMALL = ("run", "quickstart", "--on", "fake", "--method", "topk", "--rounds", "2", "--out", "run")
SETTINGS = ("train.steps=24", "train.pace=none", "train.target=none", "baseline_16bit=dense")
TRIALS = 4
GUESSES, CLAIMS = "dilations.json", "claims/*.claim"

pytestmark = pytest.mark.usefixtures("without_figures")


def command(pattern: str) -> tuple[str, ...]:
    """Of the run that has such files: one that is shared, or one that looks for dilations."""
    settings = SETTINGS if pattern == CLAIMS else (*SETTINGS, "train.replay=p.json")
    return (
        *SMALL,
        *(["--join"] if pattern == CLAIMS else []),
        *(word for each in settings for word in ("--set", each)),
    )


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, without_figures: None) -> dict[str, Path]:
    """A folder with a run for each of these files, all but one of whose trials are done."""
    found = {}
    for pattern in (GUESSES, CLAIMS):
        folder = tmp_path_factory.mktemp("begun")
        written(folder / "p.json")
        assert call_pacbench(command(pattern), folder).returncode == 0
        min((folder / "run" / "trials.parquet").glob("*.parquet")).unlink()
        found[pattern] = folder
    others = Holder(name="m7", machine="m7", boot="m7", pids=0, pid=1, started_s=0.0, code=code_digest())
    assert Claims.joined(found[CLAIMS] / "run", others).take("round-9-0123abcd", None)
    return found


@tries(10)
@given(
    pattern=st.sampled_from([GUESSES, CLAIMS]),
    of_rows=st.booleans(),
    which=st.floats(0, 1),
    way=st.sampled_from([flip, truncate, overwrite]),
    where=st.floats(0, 1),
    how=st.integers(0, 99),
)
def test_a_damaged_run_goes_on_or_says_why_not(
    begun: dict[str, Path],
    tmp_path: Path,
    pattern: str,
    of_rows: bool,
    which: float,
    way: Callable[[Path, float, int], None],
    where: float,
    how: int,
) -> None:
    folder = tmp_path / "case"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(begun[pattern], folder)
    files = sorted((folder / "run").glob("*/*.parquet" if of_rows else pattern))
    way(files[int(which * (len(files) - 1))], where, how)
    if pattern == CLAIMS:
        assert_one_line(folder, ("status", "run"))
    if assert_one_line(folder, command(pattern)):
        trials = Store.open(folder / "run").trials()
        assert trials["status"].tolist() == ["done"] * TRIALS


def assert_one_line(folder: Path, asked: tuple[str, ...]) -> bool:
    """Whether a command did what it was to; where not, one line told of a file of the run."""
    done = call_pacbench(asked, folder)
    if done.returncode == 0:
        return True
    assert done.returncode == 2, done
    assert done.stderr.startswith("pacbench: run/"), done.stderr
    assert done.stderr.count("\n") == 1
    return False
