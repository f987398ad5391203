"""What surrounds pacbench and must not change what it measures: the user's environment, and whose checkout it is."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from in_process import call_pacbench

from harness import programs, provenance
from harness.cluster import netns
from harness.cluster.connection import AgentConnection
from harness.cluster.netns import ONE_THREAD
from harness.provenance import described

ODD = {
    "TORCH_DISTRIBUTED_DEBUG": "DETAIL",
    "TORCH_CPP_LOG_LEVEL": "INFO",
    "GLOO_SOCKET_IFNAME": "nowhere0",
    "NCCL_SOCKET_IFNAME": "nowhere0",
    "OMP_NUM_THREADS": "7",
    "MKL_NUM_THREADS": "7",
    "MASTER_ADDR": "192.0.2.1",
    "RANK": "3",
    "WORLD_SIZE": "9",
    "PACBENCH_BACKEND": "nccl",
    "PACBENCH_ATTACH": "{}",
    "GIT_DIR": "/nowhere",
    "PYTHONSTARTUP": "/nowhere",
    "PYTHONHASHSEED": "0",
    "PYTHONOPTIMIZE": "2",
    "LD_PRELOAD": "",
    "OF_THE_USER": "1",
}

TELL = "import json, os; print(json.dumps(dict(os.environ)))"


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ODD.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("odd")
def test_what_is_started_has_of_the_users_environment_what_is_listed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "TMPDIR", "CUDA_VISIBLE_DEVICES", "LC_ALL", "DOCKER_HOST", "https_proxy"):
        monkeypatch.setenv(name, "/")
    done = programs.run([sys.executable, "-c", TELL], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert not set(found) & set(ODD)
    assert set(found) >= {"PATH", "HOME", "TMPDIR", "CUDA_VISIBLE_DEVICES", "LC_ALL", "DOCKER_HOST", "https_proxy"}
    assert all(programs.is_let_through(name) or name in ("PATH", "PWD", "SHLVL", "_") for name in found)


@pytest.mark.usefixtures("odd")
def test_an_agent_and_its_workers_have_no_more(tmp_path: Path) -> None:
    told = tmp_path / "told"
    agent = AgentConnection(
        [sys.executable, "-c", f"{TELL.replace('print', f'open({str(told)!r}, chr(119)).write')}"], ONE_THREAD
    )
    agent._process.wait(30)
    agent.close()
    found = json.loads(told.read_text())
    assert {name: found[name] for name in set(found) & set(ODD)} == {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@pytest.mark.usefixtures("odd")
def test_a_command_of_the_users_own_keeps_its_environment() -> None:
    process = programs.start_for_user([sys.executable, "-c", TELL], os.environ, stdout=subprocess.PIPE, text=True)
    assert json.loads(process.communicate()[0]).items() >= ODD.items()


@pytest.mark.usefixtures("odd")
def test_ranks_that_are_timed_here_train_whatever_the_user_has_set(tmp_path: Path) -> None:
    """Real DDP over Gloo, by the command line."""
    before = dict(os.environ)
    done = call_pacbench(("profile", "digits-cnn", "--workers", "2", "--steps", "1", "-o", "x.json"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "x.json").read_text())["workers"] == 2
    assert dict(os.environ) == before


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with one commit."""
    folder = tmp_path / "checkout"
    who = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    subprocess.run(["git", "-C", str(folder), *who, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    return folder


@pytest.fixture
def of_somebody_else(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkout as another user's: git itself says so, by the variable that its own tests use for it."""
    git = programs.find("git")
    (tmp_path / "bin").mkdir()
    wrapper = tmp_path / "bin" / "git"
    wrapper.write_text(f'#!/bin/sh\nGIT_TEST_ASSUME_DIFFERENT_OWNER=1 exec {git} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}{os.pathsep}{os.environ['PATH']}")
    described.cache_clear()
    return checkout


def test_a_commit_is_told_and_without_a_checkout_the_version(checkout: Path, tmp_path: Path) -> None:
    found = described(checkout)
    assert found.problem is None
    assert len(found.text) == 12
    assert described(tmp_path).problem is None
    assert not described(tmp_path).text.startswith("unknown, ")


def test_a_checkout_that_git_does_not_read_is_told(of_somebody_else: Path) -> None:
    found = described(of_somebody_else)
    assert found.text.startswith("unknown, ")
    assert "dubious ownership" in (found.problem or "")
    assert "\n" not in (found.problem or "")
    described.cache_clear()


def test_a_damaged_checkout_is_told(checkout: Path) -> None:
    (checkout / ".git" / "HEAD").write_text("nothing")
    described.cache_clear()
    found = described(checkout)
    assert found.text.startswith("unknown, ")
    assert "not a git repository" in (found.problem or "")


def test_a_run_says_that_its_commit_is_unknown(
    of_somebody_else: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "ROOT", of_somebody_else)
    provenance.commit.cache_clear()
    command = ("run", "quickstart", "--on", "fake", "--method", "topk", "--rounds", "1", "--out", "run")
    try:
        done = call_pacbench((*command, "--set", "train.steps=40", "--set", "baseline_16bit=dense"), tmp_path)
    finally:
        provenance.commit.cache_clear()
        described.cache_clear()
    assert done.returncode == 0
    assert f"pacbench: the commit of {of_somebody_else} is unknown: fatal: detected dubious ownership" in done.stderr
    entry = json.loads((tmp_path / "run" / "provenance.json").read_text())[-1]
    assert entry["commit"].startswith("unknown, ")
    assert "dubious ownership" in entry["commit_problem"]
    assert "unknown, " in (tmp_path / "run" / "report.md").read_text()


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EMFILE, errno.ENFILE])
def test_a_program_that_the_system_has_no_room_for_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def start(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    netns.universe_command.cache_clear()
    monkeypatch.setattr(programs, "find", lambda program: program)
    monkeypatch.setattr(subprocess, "Popen", start)
    done = call_pacbench(("probe", "--on", "netns"), tmp_path)
    assert done.returncode == 5, done
    assert done.stderr == f"pacbench: unshare cannot be started: {programs.NO_MORE[number]}\n"


def test_a_file_that_the_system_has_no_room_for_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: Path) -> bytes:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    monkeypatch.setattr("harness.run.planning.load", lambda *_: read(tmp_path / "x.toml"))
    done = call_pacbench(("plan", "x.toml", "--on", "fake"), tmp_path)
    assert done.returncode == 5, done
    assert done.stderr.startswith(f"pacbench: {tmp_path}/x.toml: cannot be had now: Too many open files")
    assert done.stderr.count("\n") == 1
