"""What the compose tier shares: the engine that is there, the command line, and somebody else's container beside us.

The tier needs an engine, its compose plugin and the image (``pacbench image``); ``.ci/run`` sees to all three.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from containers import labelled
from docker.client import DockerClient
from host import PACBENCH

from harness.cluster.docker import engine

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 180


@pytest.fixture(scope="session")
def client() -> DockerClient:
    """The engine."""
    return engine.connect()


@pytest.fixture(autouse=True, scope="session")
def _others_are_left_alone(client: DockerClient) -> Iterator[None]:
    """Somebody else's container stands by on a network where ours would go first; at the end nothing of ours is."""
    subnet = "198.19.0.0/29"
    engine.command(["network", "create", "--subnet", subnet, "somebody-else"])
    engine.command(["run", "-d", "--name=somebody-else", "--network=somebody-else", engine.IMAGE, "sleep", "3600"])
    theirs = client.containers.get("somebody-else")
    yield
    theirs.reload()
    assert theirs.status == "running"
    assert client.networks.get("somebody-else").attrs["IPAM"]["Config"][0]["Subnet"] == subnet
    theirs.remove(force=True)
    client.networks.get("somebody-else").remove()
    assert labelled(client) == []


@pytest.fixture
def pacbench(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line in an empty folder; ``prefix`` goes before it."""

    def run(*arguments: str, prefix: tuple[str, ...] = (), **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*prefix, *PACBENCH, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), **env},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )

    return run


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the command line in an empty folder and go on; whatever still runs after the test is interrupted."""
    started: list[subprocess.Popen[str]] = []

    def popen(*arguments: str, **env: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*PACBENCH, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        )
        started.append(process)
        return process

    yield popen
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=480)
