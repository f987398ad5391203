"""What the netns tier shares: the command line as users run it, and a look at what is on the host."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from host import host_network, universes, wait_until

PACBENCH = [sys.executable, "-m", "harness"]
TIMEOUT_S = 240


@pytest.fixture(autouse=True, scope="module")
def _host_is_left_as_it_was() -> Iterator[None]:
    """Around every file of tests: no process stays, and the host's network is not touched."""
    before = host_network()
    yield
    wait_until(lambda: not universes())
    assert host_network() == before


@pytest.fixture
def pacbench(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line in an empty folder; ``prefix`` goes before it, and ``env`` to its environment."""

    def run(*arguments: str, prefix: tuple[str, ...] = (), **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*prefix, *PACBENCH, *arguments],
            cwd=tmp_path,
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )

    return run


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start the command line in an empty folder and go on."""

    def popen(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*PACBENCH, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        )

    return popen
