"""A real Slurm: an array whose tasks share a run, and hosts that lose their power."""

from __future__ import annotations

from pathlib import Path

from host import PACBENCH, wait_until
from shared_run import SMALL, check_all_ran_once
from slurm import Slurm

from harness.record.claims import Claims
from harness.record.store import Store


def at_work(run: Path) -> set[str]:
    """The machines that hold a part that has not ended."""
    latest = Claims(run).latest().values() if (run / "claims").exists() else ()
    return {claim.holder.machine for claim in latest if not claim.has_ended}


def test_an_array_shares_a_run_and_a_host_that_dies_loses_nothing(slurm: Slurm, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = slurm.call(*PACBENCH, "submit", *SMALL, "--engine", "slurm", "--tasks", "4", "--out", str(run), "--go")
    assert done.returncode == 0, done.stderr
    assert "Submitted batch job" in done.stdout
    wait_until(lambda: len(at_work(run)) == 4)
    wait_until(lambda: len(Store.open(run).trials()) >= 2)
    victim = min(at_work(run))
    slurm.kill(victim)
    finished = Store.open(run).trials()
    slurm.wait()
    logs = "\n".join(log.read_text() for log in sorted(run.glob("submit-*.log")))
    trials = check_all_ran_once(run)
    assert set(finished["trial_id"]) <= set(trials["trial_id"]), logs
    assert set(trials["machine"]) <= {*slurm.names}
    taken_over = [claim for claim in Claims(run).latest().values() if claim.number > 1]
    assert taken_over, "what the dead host held fell to another one"
    said = slurm.call(*PACBENCH, "status", str(run)).stdout
    assert said == f"{len(trials)} of {len(trials)} trials are done\n"
    assert slurm.call(*PACBENCH, "report", str(run)).returncode == 0


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
