"""What ``pacbench clean`` removes, and what it leaves to those that are still there."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from in_process import call_pacbench

from harness.cluster import uml
from harness.cluster.netns import UNIVERSE_MODULE
from harness.machine import clean


def test_files_are_deleted_that_were_left_half_written_for_long(tmp_path: Path) -> None:
    """Also where their writer was on another machine; and none that one there writes just now."""
    folder = tmp_path / "results" / "run" / "trials.parquet"
    folder.mkdir(parents=True)
    own = {f".half-1.{kind}.4194304.0123456789ab" for kind in ("parquet", "zip", "html", "toml")}
    left = own | {".half-0.parquet.4194304", f".half-0.json.{'0f' * 16}"}
    kept = {"whole-0.parquet", ".now-0.parquet.4194304", f".now-0.parquet.{'0f' * 16}", ".holder.parquet.part"}
    for name in left | kept:
        (folder / name).write_bytes(b"x")
        if ".now" not in name:
            os.utime(folder / name, (time.time() - 3600,) * 2)
    said = call_pacbench(("clean",), tmp_path).stdout
    assert all(name in said for name in left)
    assert {path.name for path in folder.iterdir()} == kept
    assert call_pacbench(("clean",), tmp_path).stdout == "nothing was left\n"


class Universe:
    """What the process table tells of one whose parent, as process 1, is this test."""

    def __init__(self, pid: int, user: int) -> None:
        self.pid, self.was_killed = pid, False
        uids = SimpleNamespace(real=user)
        self.info = {"cmdline": ["unshare", "python", UNIVERSE_MODULE], "ppid": os.getpid(), "uids": uids}

    def kill(self) -> None:
        self.was_killed = True


class Gone(Universe):
    """It ended before it could be ended."""

    def kill(self) -> None:
        raise psutil.NoSuchProcess(self.pid)


def test_universes_are_ended_that_nobody_speaks_to_and_none_of_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the harness is process 1 of its container, it is the parent of what goes on, too."""
    me = os.getuid()
    with (
        subprocess.Popen(["cat"], stdin=subprocess.PIPE) as spoken_to,
        subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL) as orphan,
    ):
        table = [Universe(spoken_to.pid, me), Universe(orphan.pid, me), Universe(orphan.pid, me + 1), Gone(2**22, me)]
        monkeypatch.setattr(clean, "INIT", os.getpid())
        monkeypatch.setattr(psutil, "process_iter", lambda names: iter(table))
        said = clean._end_orphans()
        orphan.kill()
    assert said == [f"ended universe {orphan.pid}"]
    assert [universe.was_killed for universe in table] == [False, True, False, False]


def test_folders_of_kernels_are_deleted_whose_harness_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(uml, "command", lambda folder: [])
    agent = SimpleNamespace(wait_until_done=lambda *_: None, close=lambda: None)
    monkeypatch.setattr(uml, "AgentConnection", lambda *_: agent)
    left, older = tmp_path / "pacbench-uml-left", tmp_path / "pacbench-uml-older"
    for folder in (left, older):
        folder.mkdir()
    (left / ".lock").touch()
    (left / "settings.json").touch()
    with uml.UmlCluster():
        (alive,) = {*tmp_path.iterdir()} - {left, older}
        assert f"deleted {left}\n" in call_pacbench(("clean",), tmp_path).stdout
        assert {*tmp_path.iterdir()} == {alive, older}, "one is in use, and of the other nobody knows"
    assert {*tmp_path.iterdir()} == {older}
