"""Real training in containers: the same figures as in network namespaces, and nothing lost however a run ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import ROOT
from containers import Passage, labelled
from docker.client import DockerClient
from host import complaints, wait_until
from sent import assert_sends_its_formula

from harness.cluster.docker import engine
from harness.record.store import Store
from harness.workload.models import MODELS

pytestmark = pytest.mark.compose

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Start = Callable[..., "subprocess.Popen[str]"]

SMALL = (
    *("quickstart", "--set", "train.pace=none", "--set", "train.steps=24", "--set", "train.eval_every=8"),
    *("--set", "link.rate=100mbit"),
)
TWO_METHODS = (*SMALL, "--set", "baseline_16bit=dense", "--method", "pactrain-ternary", "--rounds", "1")

ELSEWHERE = ("unshare", "--pid", "--fork", "--mount-proc")
"""Where processes have other numbers, as in another container that has the engine's socket."""


def trials(folder: Path) -> pd.DataFrame:
    return Store.open(folder).trials()


def rows_stored(folder: Path) -> int:
    return len(list((folder / "trials.parquet").glob("[!.]*.parquet")))


def image_torch(folder: Path) -> None:
    """Put the image's own build of torch into a folder, for a Python outside."""
    inside = "/opt/venv/lib/python3.11/site-packages"
    container = engine.command(["create", engine.IMAGE, "true"])
    found = engine.command(
        ["run", "--rm", "--network=none", engine.IMAGE, "sh", "-c", "ls -d /opt/venv/lib/python3*/*"]
    )
    inside = next(line for line in found.splitlines() if line.endswith("site-packages"))
    assert f"python3.{sys.version_info.minor}/" in inside, "the build can be shared by the same Python alone"
    try:
        for part in ("torch", f"torch-{image_libraries()['torch']}.dist-info"):
            engine.command(["cp", "-q", f"{container}:{inside}/{part}", str(folder / part)])
    finally:
        engine.command(["rm", container])


def image_libraries() -> dict[str, str]:
    from harness.cluster.docker.compose import ComposeCluster

    libraries: dict[str, str] = ComposeCluster().provenance()["container"]["libraries"]
    return libraries


def test_containers_and_namespaces_train_the_same_bits(pacbench: Run, client: DockerClient, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    torch.save(MODELS["digits-cnn"].build().state_dict(), weights)
    paced = ("--set", "train.pace=digits-cnn-epyc", "--set", "train.dilation=2.0")  # a file that containers must get
    both = (*TWO_METHODS, *paced, "--set", f"train.checkpoint={weights}")
    done = pacbench("run", *both, "--on", "docker", "--out", str(tmp_path / "docker"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert complaints(done.stderr) == []
    rows = trials(tmp_path / "docker")
    assert set(rows["cluster"]) == {"docker"}
    assert set(rows["pace"]) == {"digits-cnn-epyc"}
    assert set(rows["image_digest"]) == {engine.image_facts(client, engine.IMAGE)["digest"]}
    assert_sends_its_formula(rows)
    assert (rows["step_time_median_s"] > rows["lower_bound_s_per_step"]).all(), "nothing beats its bound"
    assert labelled(client) == []

    image_torch(tmp_path)
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    done = pacbench("run", *both, "--on", "netns", "--out", str(tmp_path / "netns"), PYTHONPATH=path)
    assert done.returncode == 0, done.stdout + done.stderr
    compared = pacbench("compare", str(tmp_path / "netns"), str(tmp_path / "docker"))
    assert compared.returncode == 0, compared.stderr
    page = (tmp_path / "docker" / "comparison.md").read_text()
    assert page.count("| 1 of 1 | 1 of 1 |") == 2, page
    assert f"netns (torch {image_libraries()['torch']})" in page
    assert f"docker (torch {image_libraries()['torch']})" in page


def test_a_worker_whose_container_is_killed_costs_one_trial(start: Start, client: DockerClient, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start("run", *TWO_METHODS, "--rounds", "2", "--on", "docker", "--out", str(out))
    wait_until(lambda: rows_stored(out) == 1)
    (victim,) = (container for container in client.containers.list() if container.name.endswith("-w2"))
    wait_until(lambda: len(victim.top()["Processes"]) > 3)  # init, sleep, the agent; and a worker
    victim.kill()
    output, _ = process.communicate(timeout=480)

    assert process.returncode == 5
    rows = trials(out)
    # The trial before it cannot be proved to have run on links that stayed as they were, and is run again.
    assert sorted(rows["status"]) == ["crashed", "done", "done", "failed"]
    crashed = rows[rows["status"] == "crashed"].iloc[0]
    assert "w2: its container has ended" in crashed["reason"], "whatever its neighbours said of it first"
    assert crashed["reason"] in output
    assert labelled(client) == []


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_stopped_leaves_nothing_in_the_end(
    pacbench: Run, start: Start, client: DockerClient, tmp_path: Path, sent: signal.Signals
) -> None:
    process = start("run", *TWO_METHODS, "--rounds", "2", "--on", "docker", "--out", str(tmp_path / "run"))
    wait_until(lambda: rows_stored(tmp_path / "run") >= 1)
    assert len(labelled(client)) == 4 + 3
    for who in ((), ELSEWHERE):
        assert pacbench("clean", prefix=who).stdout == "nothing was left\n", "it belongs to a run that goes on"
    os.kill(process.pid, sent)
    output, _ = process.communicate(timeout=480)

    assert "Traceback" not in output
    if sent == signal.SIGINT:
        assert process.returncode == 130
        assert labelled(client) == []
    else:
        assert len(labelled(client)) == 4 + 3
        assert pacbench("clean").stdout.count("removed") == 4 + 3
        assert labelled(client) == []


@pytest.mark.parametrize("fault", ["kill -HUP $PPID", "echo it cannot be done >&2; exit 1"])
def test_a_removal_that_is_disturbed_leaves_nothing(
    pacbench: Run, client: DockerClient, tmp_path: Path, fault: str
) -> None:
    """The terminal goes away just then; or compose fails."""
    shim = tmp_path / "docker"
    shim.write_text(f'#!/bin/sh\ncase " $* " in *" down "*) {fault};; esac\nexec {shutil.which("docker")} "$@"\n')
    shim.chmod(0o755)
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    done = pacbench("probe", "--on", "docker", "--workers", "2", PATH=path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert labelled(client) == []


def test_a_cluster_that_is_kept_can_be_entered_until_it_is_cleaned(pacbench: Run, client: DockerClient) -> None:
    done = pacbench("probe", "--on", "docker", "--workers", "2", "--keep")
    assert done.returncode == 0, done.stderr
    enter = next(line for line in done.stderr.splitlines() if line.startswith("kept: "))
    name = enter.split()[4]
    shaped = client.containers.get(name).exec_run(["tc", "qdisc", "show", "dev", "eth0"]).output.decode()
    assert "rate 100Mbit" in shaped
    assert pacbench("clean").stdout.count("removed") == 3 + 2
    assert labelled(client) == []


def test_an_engine_that_goes_away_ends_the_run_which_can_be_resumed(
    pacbench: Run, start: Start, client: DockerClient, tmp_path: Path
) -> None:
    run = ("run", *TWO_METHODS, "--rounds", "2", "--on", "docker", "--out", str(tmp_path / "run"))
    with Passage(tmp_path / "engine.sock") as passage:
        process = start(*run, DOCKER_HOST=f"unix://{passage.path}")
        wait_until(lambda: rows_stored(tmp_path / "run") >= 1)
        passage.close()
        output, _ = process.communicate(timeout=480)
    assert process.returncode == 5, output
    assert "Traceback" not in output
    assert "pacbench clean" in output, "nobody was there to remove the containers"
    assert "removed" in pacbench("clean").stdout

    again = pacbench(*run)
    assert again.returncode == 0, again.stdout + again.stderr
    assert (trials(tmp_path / "run")["status"] == "done").all()


def test_what_runs_is_the_code_that_lies_here_and_not_what_the_image_was_built_with(tmp_path: Path) -> None:
    for package in ("harness", "baselines", "scenarios"):
        shutil.copytree(ROOT / package, tmp_path / "edited" / package)
    edited = tmp_path / "edited" / "harness" / "worker" / "train.py"
    edited.write_text(edited.read_text().replace("seconds=statistics.median(seconds)", "seconds=42.0"))
    done = subprocess.run(
        [sys.executable, "-m", "harness", "probe", "--on", "docker", "--workers", "2", "--json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "edited")},
        capture_output=True,
        text=True,
        timeout=480,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["all_reduce"]["seconds"] == 42.0


def test_limits_are_the_containers_and_are_recorded(
    pacbench: Run, start: Start, client: DockerClient, tmp_path: Path
) -> None:
    limits = ("--set", 'cluster.cpuset="0;1"', "--set", "cluster.memory=1GB")
    out = tmp_path / "run"
    fashion = ("ablation", *SMALL[1:], "--method", "all parts", "--rounds", "1")
    process = start("run", *fashion, *limits, "--on", "docker", "--out", str(out))
    wait_until(lambda: rows_stored(out) >= 1)
    by_node = {container.name.rpartition("-")[2]: container.attrs for container in client.containers.list()}
    assert [by_node[f"w{worker}"]["HostConfig"]["CpusetCpus"] for worker in range(4)] == ["0", "1", "0", "1"]
    assert {by_node[f"w{worker}"]["HostConfig"]["Memory"] for worker in range(4)} == {10**9}
    for node in ("w0", "switch"):
        host = by_node[node]["HostConfig"]
        assert (host["CapAdd"], host["CapDrop"], host["Privileged"]) == (["NET_ADMIN"], ["ALL"], False)
        assert host["NetworkMode"] != "host"
    output, _ = process.communicate(timeout=480)
    assert process.returncode == 0, output
    rows = trials(out)
    assert set(rows["dataset"]) == {"fashion-mnist"}, "read from a folder of the host"
    assert set(rows["cpuset"]) == {"0;1"}
    assert set(rows["memory_limit_bytes"]) == {1e9}

    refused = pacbench("run", *TWO_METHODS, *limits, "--on", "netns")
    assert refused.returncode == 2
    assert "cluster.cpuset: found '0;1'; allowed: nothing on netns; containers can: --on docker" in refused.stderr
