"""A run that something happens to: it is started, struck and looked at, and the same command is given again."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import psutil
import pytest
from host import PACBENCH, wait_until
from sent import assert_sends_its_formula
from typing_extensions import Self

from harness.record.store import Store

ROOT = Path(__file__).resolve().parents[2]

SMALL = (
    *("quickstart", "--method", "topk", "--set", "cluster.workers=2", "--set", "link.rate=100mbit"),
    *("--set", "train.pace=none", "--set", "train.steps=40", "--set", "train.eval_every=40"),
    *("--set", "baseline_16bit=dense"),
)
"""Two trials a round, of two seconds each."""

STRUCK_WITHIN_S = 2.0
"""How long after the chosen trial has ended something happens: the next trial takes about so long."""

END_TIMEOUT_S = 480

BUSY_S = 0.1
"""Processor time by which workers are told from those who measure: five times what these take, and a third of what
training takes where processors are fast."""

MOST_TRIES = 3
"""How often a fault is tried whose victim has ended by itself each time."""

STRUCK: Counter[int] = Counter()
"""How many faults struck while their run was under way, by the try at which they did; 0: at none."""


def try_to_strike(attempt: Callable[[], bool]) -> None:
    """Have a fault strike a run, and another one where it came too late: a fault that strikes nobody shows nothing.

    Args:
        attempt: starts a run and strikes; whether the run was under way then, and had whoever was meant.
    """
    for number in range(1, MOST_TRIES + 1):
        if attempt():
            STRUCK[number] += 1
            return
    STRUCK[0] += 1
    pytest.fail(f"whoever was meant had ended each time, of {MOST_TRIES}")


@dataclass
class Ordeal:
    """A run under way, in a folder of its own."""

    folder: Path
    chance: random.Random
    cluster: str = "netns"
    rounds: int = 2
    settings: tuple[str, ...] = ()
    prefix: tuple[str, ...] = ()
    """What goes before the first command line: a program that changes its surroundings."""
    environment: dict[str, str] = field(default_factory=dict)
    out: Path = Path("run")
    process: subprocess.Popen[str] | None = None
    output: str = ""

    @property
    def store(self) -> Path:
        """The folder of the run."""
        return self.folder / self.out

    def command(self) -> list[str]:
        """The run's."""
        place = ("--on", self.cluster, "--rounds", f"{self.rounds}", "--out", str(self.out))
        return [*PACBENCH, "run", *SMALL, *self.settings, *place]

    @property
    def trials(self) -> int:
        """How many the run has."""
        return 2 * self.rounds

    def start(self) -> Self:
        """Begin the run."""
        self.process = self.popen(*self.prefix, *self.command())
        return self

    def start_anew(self) -> Self:
        """Begin the run, in the place of one that was begun before."""
        if self.process:
            shutil.rmtree(self.store, ignore_errors=True)
        return self.start()

    def popen(self, *command: str) -> subprocess.Popen[str]:
        """Start any command in the folder, in a session of its own; both of its outputs together."""
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        )

    @property
    def pid(self) -> int:
        """The harness's."""
        assert self.process
        return self.process.pid

    def wait_for_a_moment(self) -> None:
        """Until a trial that is chosen by chance has ended, or the run has begun, and for some time after that."""
        ended = self.chance.randrange(self.trials)
        wait_until(lambda: self.has_ended() or self._hears())
        wait_until(lambda: self.has_ended() or len(self.done()) >= ended)
        time.sleep(self.chance.uniform(0.0, STRUCK_WITHIN_S))

    def has_ended(self) -> bool:
        """Whether the run has, by itself."""
        assert self.process
        return self.process.poll() is not None

    def _hears(self) -> bool:
        """Whether the harness is asked before it is ended. Until then a signal strikes Python, which still starts."""
        caught = re.search(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{self.pid}/status").read_text(), re.MULTILINE)
        assert caught
        return bool(int(caught[1], 16) & 1 << signal.SIGTERM - 1)

    def is_over(self) -> bool:
        """Whether nothing is left to run of it."""
        return self.has_ended() or len(self.done()) >= self.trials

    def done(self) -> list[str]:
        """The files of the trials that are stored; of a run under way as it sees them, on a disk of its own perhaps."""
        root = f"/proc/{self.pid}/root" if self.process and not self.has_ended() else "/"
        rows = Path(f"{root}{self.folder}") / self.out / "trials.parquet"
        return sorted(path.name for path in rows.glob("[!.]*.parquet"))

    def outer(self) -> psutil.Process:
        """The process that holds the universe: started by the harness, and the parent of the agent."""
        return next(process for process in self._below() if process.name() == "unshare")

    def agent(self) -> psutil.Process:
        """The process that forks workers.

        Raises:
            StopIteration: the run has ended, or has no need of it any more.
        """
        return next(iter(self._agents()))

    def _agents(self) -> list[psutil.Process]:
        return [
            each for each in self._below() if each.name() != "unshare" and "harness.cluster.universe" in each.cmdline()
        ]

    def _below(self) -> list[psutil.Process]:
        return psutil.Process(self.pid).children(recursive=True)

    def forked(self) -> list[psutil.Process]:
        """All that the agent has forked: those who measure, train, look on, or change the links."""
        with suppress(psutil.NoSuchProcess):
            return [child for agent in self._agents() for child in agent.children()]
        return []

    def busy(self) -> list[psutil.Process]:
        """Those who have computed for longer than anybody who measures or looks on."""
        found = []
        for each in self.forked():
            with suppress(psutil.NoSuchProcess):
                found += [each] if each.cpu_times().user > BUSY_S else []
        return found

    def inside(self, *command: str) -> None:
        """Run a program in the universe, as an administrator would who means well.

        Raises:
            StopIteration: the run has ended.
        """
        entering = (
            "nsenter",
            "--target",
            str(self.agent().pid),
            "--user",
            "--preserve-credentials",
            "--mount",
            "--net",
        )
        done = subprocess.run([*entering, *command], capture_output=True, text=True, timeout=30)
        if done.returncode and self.has_ended():
            raise StopIteration
        assert done.returncode == 0, done.stderr

    def wait(self) -> None:
        """Until the run has ended."""
        assert self.process
        self.process.wait(END_TIMEOUT_S)

    def end(self) -> int:
        """Wait for the run's end; its exit code. No traceback was printed."""
        assert self.process
        self.output, _ = self.process.communicate(timeout=END_TIMEOUT_S)
        assert "Traceback" not in self.output, self.output
        return self.process.returncode

    def bring_back(self) -> None:
        """Add a trial that had no room where it belongs, as the run's last line says."""
        if kept := re.search(r"this trial is kept: cp -r (.+)/\. ", self.output):
            shutil.copytree(kept[1], self.store, dirs_exist_ok=True)
            shutil.rmtree(kept[1])

    def again(self) -> subprocess.CompletedProcess[str]:
        """The same command, in its usual surroundings."""
        return self._call(self.command())

    def run(self, *arguments: str) -> None:
        """Another verb of pacbench, which succeeds."""
        done = self._call([*PACBENCH, *arguments])
        assert done.returncode == 0, done.stdout + done.stderr

    def _call(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=END_TIMEOUT_S,
        )


class Undisturbed:
    """What the run gives where nothing happens to it, by kind of cluster: each is made once."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self._folders = folders
        self._hashes: dict[tuple[str, ...], dict[str, str]] = {}

    def hashes(self, ordeal: Ordeal) -> dict[str, str]:
        """The parameters that every trial of such a run ends with, by trial."""
        key = (ordeal.cluster, f"{ordeal.rounds}", *ordeal.settings)
        if key not in self._hashes:
            calm = Ordeal(
                *(self._folders.mktemp("calm"), random.Random(0), ordeal.cluster, ordeal.rounds, ordeal.settings)
            )
            done = calm.again()
            assert done.returncode == 0, done.stdout + done.stderr
            self._hashes[key] = hashes_of(calm.store)
        return self._hashes[key]


def hashes_of(folder: Path) -> dict[str, str]:
    """The parameters of all trials that are done."""
    trials = done_trials(folder)
    return dict(zip(trials["trial_id"], trials["parameter_hash"], strict=True))


def done_trials(folder: Path) -> pd.DataFrame:
    """The rows of trials that are done."""
    trials = Store.open(folder).trials()
    return trials[trials["status"] == "done"]


def check_what_was_kept(ordeal: Ordeal, before: set[str], calm: dict[str, str]) -> None:
    """Nothing that had finished is lost or wrong, and the same command completes the rest.

    Args:
        before: trials that were done when the run was struck.
        calm: see ``Undisturbed.hashes``.
    """
    ordeal.bring_back()
    kept = hashes_of(ordeal.store) if Store.is_run(ordeal.store) else {}
    assert before <= kept.keys(), "what had finished is kept"
    assert kept.items() <= calm.items(), "what counts is right"
    again = ordeal.again()
    assert again.returncode == 0, again.stdout + again.stderr
    assert hashes_of(ordeal.store) == calm
    trials = done_trials(ordeal.store)
    assert_sends_its_formula(trials)
    assert trials["drift"].isna().all()
    attempts = Store.open(ordeal.store).attempts()
    times = attempts[attempts["status"] == "done"].groupby("trial_id").size()
    assert (times.loc[list(before)] == 1).all(), "what had finished is not run again"
