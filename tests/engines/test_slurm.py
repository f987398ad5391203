"""A real Slurm of four hosts: ranks that learn what an emulated network does, an array, a host that loses its power."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from host import PACBENCH, wait_until
from shared_run import SMALL, TASKS, check_all_ran_once, columns
from slurm import Slurm

import harness
from harness.record.claims import LEASE_S, RENEWED_AFTER_S, Claim, Claims
from harness.record.store import Store

HOSTS, RANKS = 4, 3


@pytest.fixture(scope="module")
def slurm(processes_are_known: None) -> Iterator[Slurm]:
    """Four hosts and their controller. The last test takes one's power away."""
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, Slurm(Path(folder), HOSTS) as cluster:
        yield cluster


METHODS = ("topk", "pactrain-fp32")
SETTINGS = (
    *(f"cluster.workers={RANKS}", "baseline_16bit=dense", "train.steps=24", "train.eval_every=8"),
    "train.dilation=1",
)


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
    asked = [word for setting in (*SETTINGS, "link.rate=unshaped") for word in ("--set", setting)]
    asked += [word for method in METHODS for word in ("--method", method)]
    done = slurm.run(RANKS, *PACBENCH, "worker", "quickstart", *asked, "--rounds", "1", "--out", str(on_hosts))
    assert done.returncode == 0, done.stderr
    harness.run_scenario("quickstart", on="netns", out=emulated, overrides=SETTINGS, methods=METHODS, rounds=1)
    assert columns(on_hosts, "parameter_hash", "final_accuracy") == columns(
        emulated, "parameter_hash", "final_accuracy"
    )
    assert curve(on_hosts) == curve(emulated)
    assert columns(on_hosts, "cluster")["dense"] == ("hosts",)
    (entry,) = Store.open(on_hosts).provenance()
    ran_on = {host["host"] for host in entry["hosts"]}
    assert len(ran_on) == RANKS
    assert ran_on <= {*slurm.names}


def test_a_folder_that_each_host_has_for_itself_is_refused(slurm: Slurm, tmp_path: Path) -> None:
    """All hosts get a disk of their own under the name of the shared folder; the controller has the real one."""
    run = tmp_path / "run"
    done = slurm.call(*PACBENCH, "submit", *SMALL, "--engine", "slurm", "--tasks", "4", "--out", str(run))
    assert done.returncode == 0, done.stderr
    (script,) = run.glob("submit-*.sh")
    for name in slurm.names:
        slurm.machines[name].run("mount", "-t", "tmpfs", "own", str(run))
    task = ("run", *SMALL, "--join", "--out", str(run), "--mark", script.name)
    refused = slurm.run(4, *PACBENCH, *task)
    assert refused.returncode == 5
    said = [line for line in refused.stderr.splitlines() if "pacbench:" in line]
    assert len(said) == 4
    for name in slurm.names:
        assert any(f"{run} on {name} is not the folder that the run was submitted in" in line for line in said)


def at_work(run: Path) -> dict[str, Claim]:
    """The parts that have not ended, by the machine that holds them."""
    latest = Claims(run).latest().values() if (run / "claims").exists() else ()
    return {claim.holder.machine: claim for claim in latest if not claim.has_ended}


def make_older(claim: Claim) -> None:
    """Have a claim's last touch lie so long ago that a living holder would keep it by the next one, and a dead one not.

    So what is waited for is the time of two touches, and not the whole of a lease.
    """
    touched_s = time.time() - LEASE_S + 2 * RENEWED_AFTER_S
    os.utime(claim.path, (touched_s, touched_s))


def test_an_array_shares_a_run_and_a_host_that_dies_loses_nothing(slurm: Slurm, tmp_path: Path) -> None:
    run = tmp_path / "run"
    asked = ("submit", *SMALL, "--engine", "slurm", "--tasks", str(TASKS), "--out", str(run), "--go")
    done = slurm.call(*PACBENCH, *asked)
    assert done.returncode == 0, done.stderr
    assert "Submitted batch job" in done.stdout
    wait_until(lambda: len(at_work(run)) == TASKS)
    wait_until(lambda: len(Store.open(run).trials()) >= 2)
    youngest = min(at_work(run).values(), key=lambda claim: claim.age_s)
    slurm.kill(youngest.holder.machine)
    make_older(youngest)
    finished = Store.open(run).trials()
    slurm.wait()
    logs = "\n".join(log.read_text() for log in sorted(run.glob("submit-*.log")))
    trials = check_all_ran_once(run)
    assert set(finished["trial_id"]) <= set(trials["trial_id"]), logs
    assert set(trials["machine"]) <= {*slurm.names}
    assert Claims(run).latest()[youngest.part].number > 1, "what the dead host held fell to another one"
    said = slurm.call(*PACBENCH, "status", str(run)).stdout
    assert said == f"{len(trials)} of {len(trials)} trials are done\n"
    assert (run / "report.html").is_file()
