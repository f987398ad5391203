"""A run that goes on after it was damaged: it is told which file, or all that was left is run, and nothing is lost."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from abacus import written
from hypothesis import given
from hypothesis import strategies as st
from in_process import call_pacbench
from test_damage import flip, overwrite, truncate
from tries import tries

from harness.provenance import code_digest
from harness.record import claims
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


@pytest.fixture(scope="module")
def _claims_fall_soon() -> Iterator[None]:
    """To others, where their holder is not seen: a run that is whole waits for what another machine holds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims, "LEASE_S", 1.0)
        yield


@pytest.mark.usefixtures("_claims_fall_soon")
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


UNNAMED = (*SMALL[: SMALL.index("--out")], *(word for each in SETTINGS for word in ("--set", each)))
"""The run into a folder of its own choice."""


def assert_refused(done: subprocess.CompletedProcess[str], says: str) -> None:
    assert done.returncode == 2, done
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_trials_whose_scenario_is_lost_are_not_left_behind_nor_mixed_with_others(tmp_path: Path) -> None:
    assert call_pacbench(UNNAMED, tmp_path).returncode == 0
    (folder,) = (tmp_path / "results").iterdir()
    (folder / "scenario.json").unlink()
    done = call_pacbench(UNNAMED, tmp_path)
    assert_refused(done, f"{folder.name}: it holds trials, and scenario.json is missing; move it away to go on")
    out = f"results/{folder.name}"
    allowed = "an empty folder, or a run; it holds trials, and scenario.json is missing"
    assert_refused(call_pacbench((*UNNAMED, "--out", out), tmp_path), f"--out: found '{out}'; allowed: {allowed}")
    assert [path.name for path in (tmp_path / "results").iterdir()] == [folder.name]
    assert not (folder / "scenario.json").exists()


def test_beside_a_run_that_cannot_be_read_now_none_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call_pacbench(UNNAMED, tmp_path).returncode == 0
    read = Path.read_bytes

    def failing(path: Path) -> bytes:
        if path.name == "scenario.json":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", failing)
    assert_refused(call_pacbench(UNNAMED, tmp_path), "scenario.json: cannot be read: Input/output error\n")
    assert len(list((tmp_path / "results").iterdir())) == 1


def test_a_run_that_goes_on_without_a_file_of_it_says_so(tmp_path: Path) -> None:
    assert call_pacbench((*UNNAMED, "--out", "run"), tmp_path).returncode == 0
    min((tmp_path / "run" / "trials.parquet").glob("*.parquet")).unlink()
    (tmp_path / "run" / "provenance.json").unlink()
    done = call_pacbench((*UNNAMED, "--out", "run"), tmp_path)
    assert done.returncode == 0, done
    assert done.stderr.startswith("pacbench: run/provenance.json: missing: ")
    assert Store.open(tmp_path / "run").trials()["status"].tolist() == ["done"] * TRIALS
