"""Runs on hosts of a real Slurm, each in namespaces of its own: held against an emulated network, shaped, struck."""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from host import PACBENCH, run_pacbench, wait_until
from slurm import Slurm

from harness.cluster.hosts import shaper
from harness.record.store import Store

HOSTS = 4
RATE = "20mbit"
TRAINING = (
    *("quickstart", "--method", "topk", "--method", "pactrain-fp32", "--rounds", "1"),
    *("--set", f"cluster.workers={HOSTS}", "--set", "baseline_16bit=dense", "--set", "train.steps=24"),
    *("--set", "train.eval_every=8", "--set", "train.dilation=1"),
)


def columns(run: Path, *names: str) -> dict[str, tuple[object, ...]]:
    """What the rows of a run say, by label."""
    trials = Store.open(run).trials().set_index("label")
    assert (trials["status"] == "done").all(), trials["reason"].to_dict()
    return {label: tuple(trials.loc[label, name] for name in names) for label in trials.index}


def curve(run: Path) -> dict[tuple[object, ...], float]:
    """What each step lost, and each evaluation found, by label, rank, step and kind."""
    store = Store.open(run)
    labels = store.trials().set_index("trial_id")["label"]
    events = store.events()
    learnt = events[events["kind"].isin(["loss", "accuracy", "test_loss"])]
    told = learnt[["trial_id", "rank", "step", "kind", "value"]].itertuples(index=False)
    return {(labels[trial], *where): value for trial, *where, value in told}


def test_hosts_learn_what_an_emulated_network_learns_bit_for_bit(slurm: Slurm, tmp_path: Path) -> None:
    on_hosts, emulated = tmp_path / "hosts", tmp_path / "netns"
    asked = ("worker", *TRAINING, "--set", "link.rate=unshaped", "--out", str(on_hosts))
    done = slurm.run(HOSTS, *PACBENCH, *asked)
    assert done.returncode == 0, done.stderr
    done = run_pacbench(tmp_path, "run", *TRAINING, "--on", "netns", "--out", str(emulated))
    assert done.returncode == 0, done.stderr
    assert columns(on_hosts, "parameter_hash", "final_accuracy") == columns(
        emulated, "parameter_hash", "final_accuracy"
    )
    assert curve(on_hosts) == curve(emulated)
    assert columns(on_hosts, "cluster")["dense"] == ("hosts",)
    (entry,) = Store.open(on_hosts).provenance()
    assert {host["host"] for host in entry["hosts"]} == {*slurm.names}


@pytest.fixture
def plain(_host_is_left_as_it_was: None) -> Iterator[Slurm]:
    """Two hosts, whose links nobody has shaped."""
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, Slurm(Path(folder), hosts=2, rate=None) as cluster:
        yield cluster


SHAPED = (
    *("worker", "quickstart", "--method", "topk", "--rounds", "1", "--set", "cluster.workers=2"),
    *("--set", "baseline_16bit=dense", "--set", "train.pace=none", "--interface", "eth0", "--shape"),
)


def queues(cluster: Slurm) -> dict[str, list[tuple[str, str]]]:
    """Of each host: the queues of its interface, and its interfaces."""
    found = {}
    for name in cluster.names:
        command = cluster.machines[name].command("tc", "-j", "qdisc", "show")
        shown = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        found[name] = sorted((each["dev"], each["kind"]) for each in shown)
    return found


def test_an_interface_that_is_named_is_shaped_measured_and_put_back(plain: Slurm, tmp_path: Path) -> None:
    before = queues(plain)
    settings = ("--set", "link.rate=50mbit", "--set", "link.down.rate=30mbit", "--set", "train.steps=16")
    done = plain.run(2, *PACBENCH, *SHAPED, *settings, "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    for label, (rate_bps, measured_bps, payload, formula) in columns(
        tmp_path / "run", "rate_bps", "measured_rate_bps", "wire_bytes_per_step", "formula_bytes_per_step"
    ).items():
        assert rate_bps == 50e6, label
        assert measured_bps == pytest.approx(30e6, rel=0.07), "the slower end"
        assert payload == pytest.approx(formula, rel=0.05)
    assert queues(plain) == before


def test_what_is_killed_puts_its_interface_back(plain: Slurm, tmp_path: Path) -> None:
    before = queues(plain)
    settings = ("--set", "link.rate=10mbit", "--set", "train.steps=400", "--wait", "60")
    environment = {"MASTER_ADDR": "h1", "MASTER_PORT": "29500", "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            plain.machines[f"h{rank + 1}"].command(
                *("env", *(f"{name}={value}" for name, value in environment.items()), f"RANK={rank}"),
                *PACBENCH,
                *SHAPED,
                *settings,
                *("--out", str(tmp_path / "run")),
            ),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for rank in range(2)
    ]
    try:
        wait_until(lambda: all("tbf" in dict(found).values() for found in queues(plain).values()))
        for rank in ranks:
            for process in (psutil.Process(rank.pid), *psutil.Process(rank.pid).children(recursive=True)):
                if shaper.__name__ not in process.cmdline():
                    process.send_signal(signal.SIGKILL)
        wait_until(lambda: queues(plain) == before)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait(60)


def test_a_queue_that_somebody_has_set_is_left_alone(slurm: Slurm, tmp_path: Path) -> None:
    before = queues(slurm)
    done = slurm.run(2, *PACBENCH, *SHAPED, "--set", "link.rate=50mbit", "--out", str(tmp_path / "run"))
    assert done.returncode == 2
    assert "--interface: found 'eth0 with tbf'; allowed: an interface with the kernel's own queue" in done.stderr
    assert queues(slurm) == before


def test_both_options_are_needed(tmp_path: Path) -> None:
    done = run_pacbench(tmp_path, "worker", "quickstart", "--shape")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--shape: found 'no --interface'" in done.stderr
    done = run_pacbench(tmp_path, "run", "quickstart", "--on", "hosts")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "srun pacbench worker" in done.stderr
