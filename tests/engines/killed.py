"""A shared run whose processes are killed at random moments, again and again.

    python tests/engines/killed.py --on fake --kills 200 --out results/killed-fake      # about ten minutes
    python tests/engines/killed.py --on netns --kills 10 --out results/killed-netns     # on real clusters: about three

Afterwards one more process completes it. No trial may be lost, and none may count twice: both are counted by what each
trial is, and not by its id. The same command goes on where it was ended, also with more ``--kills``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.record.store import Store
from harness.units import parse_rate_bps

RATES = ("50mbit", "100mbit")
METHODS = ("dense", "bf16", "topk")
SETTINGS = ("link.rate=[" + ", ".join(f"'{rate}'" for rate in RATES) + "]", "train.steps=24", "train.pace=none")
MACHINES = 3
TIMEOUT_S = 3600

MOST_BETWEEN_S = {"fake": 4.0, "netns": 12.0}
"""The longest time between two kills: each process must come to its trials, and be struck in them."""

ROUNDS_A_KILL = {"fake": 2, "netns": 1}
"""So that there is still work at the last kill."""

LEASHED = ("setpriv", "--pdeathsig", "KILL", "env", "--default-signal=INT")
"""It ends with its parent, and Ctrl-C ends it, also where a shell has begun all this in the background."""

AS_MACHINE = """
import socket, sys
name = sys.argv.pop(1)
socket.gethostname = lambda: name
from harness.cli.main import main
main()
"""


@dataclass
class Study:
    """What was asked, and how far it is; kept in a file, after each kill."""

    on: str
    rounds: int
    seed: int
    kills: int = 0
    at_work: int = 0
    """How many of the killed were at work, and not yet done with everything."""
    took_s: float = 0.0

    @property
    def command(self) -> tuple[str, ...]:
        """The command line by which a process joins the run, in the current folder's ``run``."""
        chosen = (word for name in METHODS[1:] for word in ("--method", name))
        return (
            *("run", "quickstart", "--on", self.on, *chosen, "--rounds", str(self.rounds)),
            *(word for setting in SETTINGS for word in ("--set", setting)),
            *("--join", "--out", "run"),
        )


@dataclass(frozen=True)
class Counts:
    """What became of the trials, each of which is a round of a method at a rate."""

    trials: int
    lost: int
    """Trials that do not count as done."""
    counted_twice: int
    """Rows that count beside another one of the same trial."""
    torn: int
    """Rounds of a case that do not count from one machine alone."""


def count(folder: Path, rounds: int) -> Counts:
    """Look at what counts."""
    rows = Store.open(folder / "run").trials()
    expected = set(itertools.product(range(rounds), (parse_rate_bps(rate) for rate in RATES), METHODS))
    done = rows[rows["status"] == "done"]
    found = Counter(zip(done["round"], done["rate_bps"], done["method"], strict=True))
    machines = done.groupby(["round", "rate_bps"])["machine"].nunique()
    twice = sum(number - 1 for number in found.values())
    return Counts(len(expected), len(expected - found.keys()), twice, int((machines > 1).sum()))


def start(folder: Path, machine: str, study: Study) -> subprocess.Popen[bytes]:
    """A process that joins the run, on a machine of that name; ``machine.log`` tells what it says.

    It ends with this one: what a study that is ended leaves undone is left to the next.
    """
    with (folder / f"{machine}.log").open("a") as log:
        return subprocess.Popen(
            [*LEASHED, sys.executable, "-c", AS_MACHINE, machine, *study.command],
            cwd=folder,
            env=os.environ,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def kill_and_complete(folder: Path, study: Study, kills: int) -> Counts:
    """Strike until there were so many kills, mostly by SIGKILL and sometimes as Ctrl-C does; then have the rest run."""
    running: dict[int, subprocess.Popen[bytes]] = {}
    while study.kills < kills:
        began_s, chance = time.monotonic(), random.Random(f"{study.seed} {study.kills}")
        for number in range(MACHINES):
            if number not in running or running[number].poll() is not None:
                running[number] = start(folder, f"m{number}", study)
        time.sleep(chance.uniform(0.0, MOST_BETWEEN_S[study.on]))
        victim = running[chance.randrange(MACHINES)]
        study.at_work += victim.poll() is None
        victim.send_signal(chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGINT]))
        victim.wait(TIMEOUT_S)
        study.kills += 1
        keep(folder, study, began_s)
    began_s = time.monotonic()
    for process in running.values():
        process.wait(TIMEOUT_S)
    last = start(folder, "m0", study)
    assert last.wait(TIMEOUT_S) == 0, (folder / "m0.log").read_text()
    keep(folder, study, began_s)
    return count(folder, study.rounds)


def keep(folder: Path, study: Study, began_s: float) -> None:
    """Add what has passed since, and write down how far it is."""
    study.took_s += time.monotonic() - began_s
    written = folder / ".study.json"
    written.write_text(json.dumps(asdict(study)))
    written.replace(folder / "study.json")


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill processes that share a run, and count what is lost.")
    parser.add_argument("--on", default="fake", choices=["fake", "netns"])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--rounds", type=int, help="default: enough for so many kills")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10_000))
    parser.add_argument("--out", type=Path, required=True, help="where it is kept, so that it can go on")
    options = parser.parse_args()
    folder = options.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    begun = folder / "study.json"
    study = Study(options.on, options.rounds or ROUNDS_A_KILL[options.on] * options.kills, options.seed)
    if begun.exists():
        study = Study(**json.loads(begun.read_text()))
    elif (folder / "run").exists():
        sys.exit(f"{folder}: found a run of no study; allowed: a new folder, or one in which a study was begun")
    keep(folder, study, time.monotonic())
    print(f"--on {study.on} --rounds {study.rounds} --seed {study.seed}: {study.kills} kills before", flush=True)
    counts = kill_and_complete(folder, study, options.kills)
    attempts = len(Store.open(folder / "run").attempts())
    print(f"{study.kills} kills, {study.at_work} of them of processes at work, {study.took_s:.0f} s")
    print(f"{counts.trials} trials, {attempts} attempts")
    print(f"lost: {counts.lost}; counted twice: {counts.counted_twice}; rounds of several machines: {counts.torn}")
    sys.exit(any([counts.lost, counts.counted_twice, counts.torn]))


if __name__ == "__main__":
    main()
