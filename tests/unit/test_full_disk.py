"""Disks that are full, and files that cannot be written: one line, and what was there before stays whole."""

from __future__ import annotations

import os
import pwd
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from in_process import call_pacbench
from synthetic import make_store

from harness import files
from harness.cli.outputs import Files
from harness.files import NoRoomError, UnwritableError, as_name, keep_elsewhere, write_whole
from harness.messages import Output
from harness.record.store import Store
from harness.report import page

Pacbench = Callable[..., "subprocess.CompletedProcess[str]"]

FAST = ("quickstart", "--on", "fake", "--set", "train.steps=40", "--set", "baseline_16bit=dense", "--method", "topk")


@pytest.fixture
def pacbench(tmp_path: Path) -> Pacbench:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return call_pacbench(arguments, tmp_path)

    return run


@contextmanager
def at_most(size_bytes: int) -> Iterator[None]:
    """No file may grow beyond this size: the kernel refuses what would, as it does where a disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def one_line(done: subprocess.CompletedProcess[str], code: int, *says: str) -> None:
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("pacbench: ")
    assert done.stderr.count("\n") == 1
    assert all(each in done.stderr for each in says), done.stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    make_store(tmp_path / "run", ["rounds=3", "train.steps=8"], methods=["topk"])
    return tmp_path / "run"


def test_a_file_is_whole_or_what_it_was_before_and_nothing_is_left(tmp_path: Path) -> None:
    file = tmp_path / "x"
    write_whole(file, "before")
    with at_most(100), pytest.raises(NoRoomError, match=r"x: cannot be written: File too large"):
        write_whole(file, b"x" * 1000)
    assert contents(tmp_path) == {"x": b"before"}
    with pytest.raises(NoRoomError, match="/dev/full: cannot be written: No space left"):
        write_whole(Path("/dev/full"), "x")
    with pytest.raises(UnwritableError, match="a file that can be written"):
        write_whole(tmp_path / "x" / "y", "x")


def test_processes_of_one_number_in_two_containers_write_two_temporary_files(tmp_path: Path) -> None:
    with files.opened_whole(tmp_path / "x") as handle:
        handle.write(b"its own")
        write_whole(tmp_path / "x", "the other's")
    assert contents(tmp_path) == {"x": b"its own"}


def test_names_stay_in_their_folder() -> None:
    for text in ("a/b", "/etc/passwd", "../x", "file.py:model", "digits-cnn-32-digits-4", "é\n"):
        assert (Path("folder") / f"{as_name(text)}-1").parent == Path("folder")
    assert as_name("digits-cnn-32-digits-4") == "digits-cnn-32-digits-4"


TINY_DISK = """
set -e
mount -t tmpfs -o size={size} tmpfs disk
set +e
{python} -m harness run quickstart --on fake --out disk/run --method topk --rounds 30 >printed 2>told
echo $? >code
cp -r disk/run kept
"""


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a run filled its disk: what it printed, and a copy of the run."""
    folder = tmp_path_factory.mktemp("filled")
    (folder / "disk").mkdir()
    script = TINY_DISK.format(size="600k", python=sys.executable)
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=120)
    return folder


def test_a_run_on_a_full_disk_keeps_what_was_stored_and_the_running_trial_elsewhere(filled: Path) -> None:
    told = (filled / "told").read_text()
    assert (filled / "code").read_text() == "5\n", told
    assert told.count("\n") == 1
    found = re.search(r"parquet: cannot be written: No space left on device; this trial is kept: cp -r (\S+)/\. ", told)
    assert found, told
    elsewhere = Path(found[1])
    try:
        store = Store.open(filled / "kept")
        before = store.trials()
        assert len(before) > 0
        assert len(store.events()) > 0
        shutil.copytree(elsewhere, store.folder, dirs_exist_ok=True)
        after = store.trials()
        assert len(after) == len(before) + 1
        assert set(store.events()["trial_id"]) == set(after["trial_id"])
    finally:
        shutil.rmtree(elsewhere)


def test_a_trial_that_has_room_nowhere_is_told_to_be_lost(
    pacbench: Pacbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "write", lambda store: store.folder / "report.html")
    with at_most(12_000):
        done = pacbench("run", *FAST, "--out", "run")
    one_line(done, 5, "File too large", "which is lost")
    assert not list((tmp_path / "run" / "trials.parquet").iterdir())
    assert pacbench("run", *FAST, "--out", "run").returncode == 0, "the same command goes on when there is room"


@pytest.mark.parametrize(
    "command",
    [
        ("report", "run"),
        ("report", "run", "--paper"),
        ("reference", "quickstart", "--from", "run", "--out", "reference.json"),
        ("gate", "run", "--against", "run", "--json", "gate.json"),
        ("gate", "run", "--against", "run", "--junit", "gate.xml"),
        ("gate", "run", "--against", "run", "--markdown", "gate.md"),
        ("gate", "run", "--against", "run", "--benchmark-json", "bench.json"),
        ("profile", "resnet18", "--derive-for", "a40", "-o", "profile.json"),
    ],
    ids=lambda command: " ".join(command[:1] + command[-2:]),
)
def test_what_a_verb_writes_is_whole_or_not_there(
    pacbench: Pacbench, run: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    before = contents(tmp_path)
    with at_most(50):
        one_line(pacbench(*command), 5, "cannot be written: File too large")
    assert contents(tmp_path) == before


def test_the_last_report_stays_where_a_new_one_has_no_room(pacbench: Pacbench, run: Path, tmp_path: Path) -> None:
    names = ("report.html", "report.md")
    for name in names:
        (run / name).write_text("the last one")
    with at_most(50):
        assert pacbench("report", "run").returncode == 5
    assert {(run / name).read_text() for name in names} == {"the last one"}


@pytest.mark.parametrize("option", ["--json", "--junit", "--markdown", "--benchmark-json"])
def test_a_full_device_is_one_line(pacbench: Pacbench, run: Path, option: str) -> None:
    one_line(pacbench("gate", "run", "--against", "run", option, "/dev/full"), 5, "/dev/full: cannot be written")


def test_output_that_nobody_can_take_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "harness", "list", "scenarios"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    one_line(done, 5, "what is printed: cannot be written: No space left on device")


@pytest.mark.parametrize(
    "command",
    [
        ("profile", "digits-cnn", "-o", "nowhere/profile.json"),
        ("tune", "quickstart", "--on", "fake", "-o", "nowhere/tuned.toml"),
    ],
)
def test_a_file_that_cannot_be_is_refused_before_anything_is_measured(
    pacbench: Pacbench, tmp_path: Path, command: tuple[str, ...]
) -> None:
    one_line(pacbench(*command), 2, "there is no folder nowhere")
    assert list(tmp_path.iterdir()) == []


def test_what_was_measured_for_a_file_without_room_is_kept_elsewhere(pacbench: Pacbench, tmp_path: Path) -> None:
    os.symlink("/dev/full", tmp_path / "profile.json")
    done = pacbench("profile", "resnet18", "--derive-for", "a40", "-o", "profile.json")
    one_line(done, 5, "it is kept in /")
    folder = Path(done.stderr.split("kept in ")[1].strip())
    assert '"model": "resnet18"' in (folder / "profile.json").read_text()
    shutil.rmtree(folder)


def test_what_ranks_print_onto_a_full_disk_ends_in_one_line(tmp_path: Path) -> None:
    with at_most(100), Files(tmp_path / "logs", per_node=1) as shown:
        shown(Output(node="w0", rank=0, to_stderr=False, lines=["short"]))
        with pytest.raises(NoRoomError, match=r"w1\.out: cannot be written: File too large"):
            shown(Output(node="w1", rank=1, to_stderr=False, lines=["x" * 200]))
    assert (tmp_path / "logs" / "w0.out").read_text() == "short\n"


def test_what_is_kept_elsewhere_is_all_there_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = keep_elsewhere("pacbench-test-", {"a/b": "one", "c": b"two"})
    assert kept is not None
    assert contents(kept) == {"a/b": b"one", "c": b"two"}
    shutil.rmtree(kept)
    monkeypatch.setattr(files.tempfile, "mkdtemp", lambda prefix, dir: str(_new(tmp_path / Path(dir).name)))
    with at_most(2):
        assert keep_elsewhere("pacbench-test-", {"a/b": "one", "c": b"two"}) is None
    assert contents(tmp_path) == {}


def test_where_nobody_has_a_home_it_is_kept_elsewhere_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(number: int) -> None:
        raise KeyError(number)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    kept = keep_elsewhere("pacbench-test-", {"c": b"two"})
    assert kept is not None
    assert contents(kept) == {"c": b"two"}
    shutil.rmtree(kept)


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder
