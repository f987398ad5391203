"""A command in containers of the user's own image: his folder is there, his variables are the image's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.cluster.docker import engine
from harness.record.execution import Execution

pytestmark = pytest.mark.compose

IMAGE = "pacbench-test-exec"

OWNER = 12345
BOUNDING = (5, 6, 7, 12)
"""CAP_KILL, CAP_SETGID, CAP_SETUID and CAP_NET_ADMIN, by <linux/capability.h>: what starts and ends the command has."""

SCRIPT = """
import os, torch, torch.distributed as dist
dist.init_process_group("gloo")
ones = torch.ones(250_000)
dist.all_reduce(ones)
print(int(ones[0]), os.environ["OF_THE_IMAGE"], os.environ.get("OF_THE_HOST"), os.getcwd(), flush=True)
open(f"by-{dist.get_rank()}", "w").close()
dist.destroy_process_group()
"""


@pytest.fixture
def image() -> Iterator[str]:
    file = f"FROM {engine.IMAGE}\nENV OF_THE_IMAGE=yes\n"
    engine.command(["build", "-q", "-t", IMAGE, "-"], file)
    yield IMAGE
    engine.command(["rmi", "-f", IMAGE])


def test_a_command_runs_in_the_users_image_and_folder(
    image: str, pacbench: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "gloo.py").write_text(SCRIPT)
    options = ("exec", "--on", "docker", "--image", image, "--workers", "2", "--rate", "100mbit", "--out", "record")
    done = pacbench(*options, "--", "python3", "gloo.py", OF_THE_HOST="no")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(done.stdout.splitlines()) == [f"w{worker} | 2 yes None {tmp_path}" for worker in range(2)]
    assert {(tmp_path / f"by-{rank}").stat().st_uid for rank in range(2)} == {os.getuid()}
    found = Execution.load(tmp_path / "record")
    assert all(link.payload_bytes > 0.9e6 for link in found.links)
    assert found.after is not None

    done = pacbench(*options[:-1], "second", "--", sys.executable + "-that-no-image-has")
    assert done.returncode == 5
    assert "it cannot be run: No such file or directory" in done.stderr


def test_a_command_is_its_users_and_gains_nothing(
    pacbench: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """The kernel says so of the command itself: its user is who owns the folder."""
    os.chown(tmp_path, OWNER, OWNER)
    options = ("exec", "--on", "docker", "--workers", "2", "--rate", "100mbit", "--out", "record")
    done = pacbench(*options, "--", "cat", "/proc/self/status")
    assert done.returncode == 0, done.stdout + done.stderr
    for worker in ("w0", "w1"):
        lines = [line.split(" | ", 1)[1] for line in done.stdout.splitlines() if line.startswith(worker)]
        said = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        assert {said["Uid"], said["Gid"]} == {"\t".join([f"{OWNER}"] * 4)}
        assert not {int(said[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} - {0}
        assert int(said["CapBnd"], 16) == sum(1 << number for number in BOUNDING)
        assert said["NoNewPrivs"] == "1"


def test_the_folder_is_the_users_whatever_its_name(
    pacbench: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """What stands behind a dollar sign would be a variable for compose."""
    folder = tmp_path / "project$HOME"
    folder.mkdir()
    options = ("exec", "--on", "docker", "--workers", "2", "--rate", "100mbit", "--out", "record")
    done = pacbench(*options, "--", "touch", "was-here", prefix=("env", "-C", str(folder)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "was-here").exists()
