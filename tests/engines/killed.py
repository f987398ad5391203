"""A shared run whose processes are killed at random moments, again and again.

    python tests/engines/killed.py --on fake --kills 200      # ten minutes
    python tests/engines/killed.py --on netns --kills 10      # on real clusters

Afterwards one more process completes it: no trial may be lost, and none may count twice.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness.record.store import Store

RATES = ("10mbit", "100mbit")
METHODS = 3
SETTINGS = ("link.rate=[" + ", ".join(f"'{rate}'" for rate in RATES) + "]", "train.steps=24", "train.pace=none")
MACHINES = 3
TIMEOUT_S = 600

AS_MACHINE = """
import socket, sys
name = sys.argv.pop(1)
socket.gethostname = lambda: name
from harness.cli.main import main
main()
"""


def shared(on: str, rounds: int) -> tuple[str, ...]:
    """The command line by which a process joins a run of so many rounds, in the current folder's ``run``."""
    return (
        *("run", "quickstart", "--on", on, "--method", "topk", "--method", "bf16", "--rounds", str(rounds)),
        *(word for setting in SETTINGS for word in ("--set", setting)),
        *("--join", "--out", "run"),
    )


def trials_of(rounds: int) -> int:
    """How many trials that run has."""
    return rounds * len(RATES) * METHODS


def start(folder: Path, machine: str, on: str, rounds: int) -> subprocess.Popen[bytes]:
    """A process that joins the run, on a machine of that name; ``machine.log`` tells what it says."""
    with (folder / f"{machine}.log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-c", AS_MACHINE, machine, *shared(on, rounds)],
            cwd=folder,
            env=os.environ,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def kill_and_complete(folder: Path, on: str, kills: int, rounds: int, seed: int) -> int:
    """Strike so many times, mostly by SIGKILL and sometimes as Ctrl-C does; then let the rest be run, and check.

    Returns:
        How many of the struck were at work, and not yet done with everything.
    """
    chance, running, at_work = random.Random(seed), dict[int, "subprocess.Popen[bytes]"](), 0
    for _ in range(kills):
        for number in range(MACHINES):
            if number not in running or running[number].poll() is not None:
                running[number] = start(folder, f"m{number}", on, rounds)
        time.sleep(chance.uniform(0.0, 4.0))
        victim = running[chance.randrange(MACHINES)]
        at_work += victim.poll() is None
        victim.send_signal(chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGINT]))
        victim.wait(TIMEOUT_S)
    for process in running.values():
        process.wait(TIMEOUT_S)
    last = start(folder, "m0", on, rounds)
    assert last.wait(TIMEOUT_S) == 0, (folder / "m0.log").read_text()
    check(folder, rounds)
    return at_work


def check(folder: Path, rounds: int) -> None:
    """Every trial counts once, is done, and each round of a case counts from one machine."""
    trials = Store.open(folder / "run").trials()
    assert len(trials) == trials_of(rounds)
    assert trials["trial_id"].is_unique
    assert (trials["status"] == "done").all()
    assert (trials.groupby(["round", "rate_bps"])["machine"].nunique() == 1).all()


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill processes that share a run, and look whether anything is lost.")
    parser.add_argument("--on", default="fake", choices=["fake", "netns"])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--rounds", type=int, help="default: two a kill")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10_000))
    options = parser.parse_args()
    rounds = options.rounds or 2 * options.kills
    print(f"--on {options.on} --kills {options.kills} --rounds {rounds} --seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="killed-") as folder:
        at_work = kill_and_complete(Path(folder), options.on, options.kills, rounds, options.seed)
        attempts = Store.open(Path(folder) / "run").attempts()
    told = f"{trials_of(rounds)} trials, each of which counts once; {len(attempts)} attempts were stored"
    print(f"{told}; {at_work} of {options.kills} were at work when they were struck")


if __name__ == "__main__":
    main()
