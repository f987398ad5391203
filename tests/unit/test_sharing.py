"""Processes that share a run: each round of a case is run whole by one, nothing is lost, and nothing counts twice."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

import pandas as pd
import psutil
import pytest
from forked import SERVER
from host import wait_until
from in_process import call_pacbench

from harness.cli.main import main
from harness.errors import UsageError
from harness.plan.plan import make
from harness.record import claims as claims_module
from harness.record.claims import LEASE_S, Claims, Holder
from harness.record.store import Store
from harness.report.figures import registry
from harness.run.sharing import as_the_last, left_of, parts_of
from harness.scenario.load import load

ROUNDS, RATES = 3, ("10mbit", "100mbit")
SETTINGS = ("link.rate=[" + ", ".join(f"'{rate}'" for rate in RATES) + "]", "train.steps=24", "train.pace=none")
SHARED = (
    *("run", "quickstart", "--on", "fake", "--method", "topk", "--method", "bf16", "--rounds", str(ROUNDS)),
    *(word for setting in SETTINGS for word in ("--set", setting)),
    *("--join", "--out", "run"),
)
ALONE = tuple(word for word in SHARED if word != "--join")
TRIALS = ROUNDS * len(RATES) * 3

pytestmark = pytest.mark.usefixtures("without_figures")


def start(folder: Path, machine: str) -> BaseProcess:
    """A process that joins the run, on a machine of that name; ``machine.log`` tells what it says."""
    process = SERVER.Process(target=_join, args=(folder, machine))
    process.start()
    return process


def _join(folder: Path, machine: str) -> None:
    log = os.open(folder / f"{machine}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.chdir(folder)
    sys.argv = ["pacbench", *SHARED]
    socket.gethostname = lambda: machine
    registry.figures = lambda for_paper=False: []
    main()


def counted(folder: Path) -> pd.DataFrame:
    return Store.open(folder / "run").trials()


def check(folder: Path) -> None:
    """Every trial counts once, is done, and each round of a case counts from one machine."""
    trials = counted(folder)
    assert len(trials) == TRIALS
    assert trials["trial_id"].is_unique
    assert (trials["status"] == "done").all()
    assert (trials.groupby(["round", "rate_bps"])["machine"].nunique() == 1).all()


def test_processes_share_the_rounds_and_each_trial_is_run_once(tmp_path: Path) -> None:
    started = [start(tmp_path, f"m{number}") for number in range(3)]
    for number, process in enumerate(started):
        process.join(200)
        assert process.exitcode == 0, (tmp_path / f"m{number}.log").read_text()
    check(tmp_path)
    attempts = Store.open(tmp_path / "run").attempts()
    assert len(attempts) == TRIALS
    assert attempts["claim"].eq(1).all()
    assert {entry["code_digest"] for entry in Store.open(tmp_path / "run").provenance()} == set(attempts["code_digest"])


def test_whoever_is_killed_loses_nothing_but_what_ran(tmp_path: Path) -> None:
    chance, running = random.Random(0), dict[int, BaseProcess]()
    for _ in range(6):
        for number in range(3):
            if number not in running or not running[number].is_alive():
                running[number] = start(tmp_path, f"m{number}")
        time.sleep(chance.uniform(0.0, 0.8))
        victim = running[chance.randrange(3)]
        struck_by = chance.choice([signal.SIGKILL, signal.SIGINT])
        if victim.is_alive():
            assert victim.pid
            with suppress(ProcessLookupError):  # it may end just now
                os.kill(victim.pid, struck_by)
        victim.join(120)
    for process in running.values():
        process.join(200)
    assert call_pacbench(SHARED, tmp_path).returncode == 0
    check(tmp_path)


# Claims


def holder(**changes: object) -> Holder:
    return dataclasses.replace(Holder.this(), **changes)  # type: ignore[arg-type]


def elsewhere(name: str = "other") -> Holder:
    """A process of another machine, of which nothing can be seen."""
    return holder(name=name, machine=name, boot=name)


def test_one_of_many_gets_a_part(tmp_path: Path) -> None:
    many = [Claims.joined(tmp_path, holder(name=f"h{number}")) for number in range(5)]
    taken = [each.take("part", None) for each in many]
    assert [claim is not None for claim in taken] == [True, False, False, False, False]
    assert not list((tmp_path / "claims").glob(".*.part")), "nothing is left lying about"


def test_a_claim_falls_to_others_when_it_is_not_renewed(tmp_path: Path) -> None:
    mine, theirs = Claims.joined(tmp_path), Claims.joined(tmp_path, elsewhere())
    claim = theirs.take("part", None)
    assert claim is not None
    assert not mine.is_free(mine.latest()["part"])
    old = time.time() - LEASE_S - 10
    os.utime(claim.path, (old, old))
    last = mine.latest()["part"]
    assert mine.is_free(last)
    assert theirs.is_mine(claim)
    taken = mine.take("part", last)
    assert taken is not None
    assert taken.number == 2
    assert not theirs.is_mine(claim), "whoever was only slow finds out"
    assert mine.is_mine(taken)


def test_the_age_is_told_by_the_file_server_s_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = Claims.joined(tmp_path, elsewhere())
    theirs.take("part", None)
    monkeypatch.setattr(time, "time", lambda: 10**9)
    assert not Claims.joined(tmp_path).is_free(Claims.joined(tmp_path).latest()["part"])


def test_a_holder_on_this_machine_is_seen_to_be_gone(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    started = holder(name="gone", pid=gone.pid)
    gone.wait()
    theirs, mine = Claims.joined(tmp_path, started), Claims.joined(tmp_path)
    theirs.take("part", None)
    assert mine.is_free(mine.latest()["part"])
    unknown = Claims.joined(tmp_path, dataclasses.replace(started, name="unknown", boot="another kernel"))
    unknown.take("other", None)
    assert not mine.is_free(mine.latest()["other"])


def test_a_clock_that_is_set_makes_no_holder_seem_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, mine = (Claims.joined(tmp_path, holder(name=name)) for name in ("theirs", "mine"))
    theirs.take("part", None)
    began_s = psutil.Process().create_time()
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: began_s + 3600)  # it moves with the clock
    assert not mine.is_free(mine.latest()["part"])
    earlier = Claims.joined(tmp_path, holder(name="earlier", started_s=0.25))
    earlier.take("other", None)
    assert mine.is_free(mine.latest()["other"]), "another process has its number now"


def test_what_is_held_is_renewed_and_given_back_when_it_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims_module, "RENEWED_AFTER_S", 0.02)
    theirs, mine = Claims.joined(tmp_path, elsewhere()), Claims.joined(tmp_path)
    claim = theirs.take("part", None)
    assert claim is not None

    def work() -> None:
        with theirs.held(claim):
            os.utime(claim.path, (0, 0))
            wait_until(lambda: not mine.is_free(mine.latest()["part"]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert mine.is_free(mine.latest()["part"])


def test_what_has_ended_is_tried_again_by_a_later_start_alone(tmp_path: Path) -> None:
    theirs, mine = Claims.joined(tmp_path, elsewhere()), Claims.joined(tmp_path)
    claim = theirs.take("part", None)
    assert claim is not None
    time.sleep(0.05)
    with theirs.held(claim):
        pass
    time.sleep(0.05)
    assert not mine.is_free(mine.latest()["part"])
    later = Claims.joined(tmp_path)
    assert later.is_free(later.latest()["part"])


def test_two_versions_of_the_code_are_refused(tmp_path: Path) -> None:
    Claims.joined(tmp_path, dataclasses.replace(elsewhere(), code="0123456789ab")).take("part", None)
    with pytest.raises(UsageError, match="the code of other is 0123456789ab, and here it is"):
        Claims.joined(tmp_path).latest()


def test_a_damaged_claim_is_named(tmp_path: Path) -> None:
    claims = Claims.joined(tmp_path)
    (claims.folder / "part.1.claim").write_text("{")
    with pytest.raises(UsageError, match=r"part\.1\.claim: damaged"):
        claims.latest()


# How far it is


def test_status_says_who_is_at_work_and_what_is_left(tmp_path: Path) -> None:
    assert call_pacbench(SHARED, tmp_path).returncode == 0
    said = call_pacbench(("status", "run"), tmp_path)
    assert said.stdout == f"{TRIALS} of {TRIALS} trials are done\n"
    assert call_pacbench(("report", "run"), tmp_path).returncode == 0
    for row in sorted((tmp_path / "run" / "trials.parquet").glob("*.parquet"))[:6]:
        row.unlink()
    said = call_pacbench(("status", "run"), tmp_path)
    assert f"{TRIALS - 6} of {TRIALS} trials are done\nnobody is at work" in said.stdout
    Claims.joined(tmp_path / "run", elsewhere("m7")).take("round-9-0123abcd", None)
    said = call_pacbench(("status", "run"), tmp_path)
    assert "m7" in said.stdout
    assert "round-9-0123abcd" in said.stdout
    assert "the rest may take" in said.stdout


def test_status_says_whether_a_run_that_is_not_shared_goes_on(tmp_path: Path) -> None:
    assert call_pacbench(ALONE, tmp_path).returncode == 0
    next((tmp_path / "run" / "trials.parquet").glob("*.parquet")).unlink()
    assert "nobody is at work on it" in call_pacbench(("status", "run"), tmp_path).stdout
    with Store.open(tmp_path / "run").locked():
        said = call_pacbench(("status", "run"), tmp_path).stdout
    assert "a process is at work on it" in said
    assert "the rest may take" in said


def test_what_is_done_once_for_all_is_done_by_one_and_when_none_is_at_work(tmp_path: Path) -> None:
    assert call_pacbench(SHARED, tmp_path).returncode == 0
    store, entered = Store.open(tmp_path / "run"), threading.Event()
    with as_the_last(store) as first, as_the_last(store) as second:
        assert (first, second) == (True, False)
    at_work = Claims.joined(tmp_path / "run", elsewhere("m7")).take("round-9-0123abcd", None)
    assert at_work

    def wait_for_it() -> None:
        with as_the_last(store) as is_last:
            assert is_last
            entered.set()

    waiting = threading.Thread(target=wait_for_it)
    waiting.start()
    assert not entered.wait(0.5)
    at_work.end()
    waiting.join(60)
    assert entered.is_set()


READ_ONLY = (
    'mkdir disk && mount -t tmpfs disk disk && cp -r run disk && mount -o remount,ro disk && cd disk && exec "$@"'
)


def test_status_writes_nothing_and_tells_of_what_nothing_may_be_written_to(tmp_path: Path) -> None:
    assert call_pacbench(SHARED, tmp_path).returncode == 0
    Claims.joined(tmp_path / "run", elsewhere("m7")).take("round-9-0123abcd", None)
    before = sorted(tmp_path.rglob("*"))
    assert "m7" in call_pacbench(("status", "run"), tmp_path).stdout
    assert sorted(tmp_path.rglob("*")) == before
    pacbench = (sys.executable, "-m", "harness", "status", "run")
    entering = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", READ_ONLY, "sh", *pacbench)
    done = subprocess.run(entering, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "m7" in done.stdout


# What is left


def rows(*told: tuple[str, int, str, str]) -> pd.DataFrame:
    """Attempts: trial, claim, machine, status."""
    columns = ["trial_id", "claim", "machine", "status"]
    return pd.DataFrame(list(told), columns=columns).assign(attempt=range(len(told)))


def test_a_part_that_another_machine_has_begun_is_run_whole() -> None:
    trials = make(load("quickstart", ["rounds=1"]), "fake").trials[:3]
    a, b, c = (trial.id for trial in trials)
    everything, nothing = list(trials), []
    begun = [(a, 1, "m0", "done"), (b, 1, "m0", "crashed")]
    assert left_of(trials, rows(), "m0") == everything
    assert left_of(trials, rows(*begun), "m0") == everything[1:]
    assert left_of(trials, rows(*begun), "m1") == everything
    over = [*begun, (a, 2, "m1", "done")]
    assert left_of(trials, rows(*over), "m1") == everything[1:]
    assert left_of(trials, rows(*over), "m0") == everything
    ended = [*over, (b, 3, "m1", "done"), (c, 3, "m1", "done")]
    for machine in ("m0", "m1", "m2"):
        assert left_of(trials, rows(*ended), machine) == nothing


def test_a_part_is_a_round_of_a_case() -> None:
    plan = make(load("quickstart", [f"rounds={ROUNDS}", SETTINGS[0]]), "fake")
    parts = parts_of(plan.trials)
    assert len(parts) == ROUNDS * len(RATES)
    assert all(len({(trial.round, trial.case.link.rate_bps) for trial in trials}) == 1 for trials in parts.values())
    assert [trial for trials in parts.values() for trial in trials] == list(plan.trials)


# Bad input


def test_sharing_needs_a_folder_and_a_shared_run_needs_join(tmp_path: Path) -> None:
    refused = call_pacbench(SHARED[:-2], tmp_path)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "--join: found 'no --out'; allowed: with --out" in refused.stderr
    assert call_pacbench(SHARED, tmp_path).returncode == 0
    alone = [word for word in SHARED if word != "--join"]
    refused = call_pacbench(alone, tmp_path)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "this run is shared between processes: give --join" in refused.stderr
