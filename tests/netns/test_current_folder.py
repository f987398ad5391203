"""Nothing that lies in the current folder is run, and what lies in the system's folders is found."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import traps
from host import complaints

from harness import programs
from harness.record.store import Store

pytestmark = pytest.mark.netns

ROOT = Path(__file__).resolve().parents[2]

A_USERS_PATH = "/usr/local/bin:/usr/bin:/bin"

SMALL = (
    *("quickstart", "--on", "netns", "--rounds", "1", "--method", "topk"),
    *("--set", "train.steps=6", "--set", "cluster.workers=2", "--set", "train.pace=none"),
    *("--set", "baseline_16bit=dense"),
)

LIBRARY = """
from harness.cluster.netns import NetnsCluster
from harness.network.topology import Topology
from harness.scenario.links import Link

if __name__ == "__main__":
    with NetnsCluster() as cluster:
        print(len(cluster.use(Topology(workers=2, link=Link.model_validate({"rate": "50mbit"}))).links))
"""


def run_in(
    folder: Path, command: list[str], path: str | None = A_USERS_PATH, **more: str
) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PATH"}
    given: Mapping[str, str] = {} if path is None else {"PATH": path}
    return subprocess.run(
        command,
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT), **given, **more},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_run_is_not_led_astray_by_any_name(tmp_path: Path) -> None:
    folder = traps.lay(tmp_path / "here")
    done = run_in(folder, [*traps.console_script(tmp_path / "bin"), "run", *SMALL, "--out", "run"])
    assert traps.sprung(folder) == []
    assert done.returncode == 0, done.stdout + done.stderr
    assert complaints(done.stderr) == []
    assert (Store.open(folder / "run").trials()["status"] == "done").all()


PROBE = ("probe", "--on", "netns", "--workers", "2", "--rate", "1gbit")
EXEC = ("exec", "--on", "netns", "--workers", "2", "--rate", "200mbit", "--out", "record", "--", "true")


@pytest.mark.parametrize(("path", "command"), [("", PROBE), (None, EXEC)])
def test_an_empty_entry_does_not_mean_the_current_folder(
    path: str | None, command: tuple[str, ...], tmp_path: Path
) -> None:
    folder = traps.lay(tmp_path / "here", modules=traps.MODULES, packages=traps.PACKAGES)
    done = run_in(folder, [sys.executable, "-m", "harness", *command], path, PYTHONPATH=f":{ROOT}:")
    assert traps.sprung(folder) == []
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_pythonpath_names_is_found_also_if_it_is_the_current_folder(tmp_path: Path) -> None:
    folder = traps.lay(tmp_path / "here", modules=("statistics",), packages=(), programs=())
    command = [sys.executable, "-m", "harness", "probe", "--on", "netns", "--workers", "2"]
    done = run_in(folder, command, PYTHONPATH=f"{ROOT}:{folder}")
    assert done.returncode != 0
    assert traps.sprung(folder) == ["statistics.py.ran"]


def test_a_cluster_of_ones_own_program_neither(tmp_path: Path) -> None:
    folder = traps.lay(tmp_path / "here")
    (tmp_path / "mine.py").write_text(LIBRARY)
    done = run_in(folder, [sys.executable, str(tmp_path / "mine.py")])
    assert traps.sprung(folder) == []
    assert (done.returncode, done.stdout) == (0, "4\n"), done.stderr


@pytest.mark.parametrize("command", [("run", *SMALL), ("probe", "--on", "netns", "--workers", "2")])
def test_a_tool_that_is_missing_is_named_with_its_package(command: tuple[str, ...], tmp_path: Path) -> None:
    tc = programs.find("tc")
    assert tc
    hidden = 'mount --bind /dev/null "$0" && exec "$@"'
    without_tc = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", hidden, tc]
    done = run_in(tmp_path, [*without_tc, sys.executable, "-m", "harness", *command])
    assert done.returncode == 5
    assert done.stderr == "pacbench: tc is missing; on Debian: apt-get install iproute2\n"
