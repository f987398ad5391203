"""Ranks as a scheduler starts them, each a process on an address of this machine's loopback."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest
from host import PACBENCH, has_trained, some_trial_is_done, wait_until

from harness.cli import json_reference
from harness.cluster.hosts import agent, greeting
from harness.cluster.hosts.launch import Launch
from harness.messages import Challenge, Hello, Welcome, encode
from harness.provenance import code_digest
from harness.record.store import Store

RANKS = 3
PAIR = 2
"""Ranks, where more of them would prove nothing else."""

SETTINGS = "link.rate=unshaped train.pace=none train.schedule=constant baseline_16bit=dense"


def free_port() -> int:
    with socket.socket() as tried:
        tried.bind(("", 0))
        return int(tried.getsockname()[1])


class Ranks:
    """The command line, once for each of so many ranks."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count, self.port = folder, count, free_port() - 1
        self.processes: dict[int, subprocess.Popen[str]] = {}

    def start(self, rank: int, *arguments: str, **env: str) -> subprocess.Popen[str]:
        """Start one."""
        place = self.place(rank)
        own = ("--address", f"127.0.0.{rank + 1}", "--out", "run", "--wait", "120", *arguments)
        settings = [word for setting in SETTINGS.split() for word in ("--set", setting)]
        settings += ["--set", f"cluster.workers={self.count}"]
        self.processes[rank] = subprocess.Popen(
            [*PACBENCH, "worker", "quickstart", *settings, "--method", "topk", "--rounds", "1", *own],
            cwd=self.folder,
            env={**os.environ, **place, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return self.processes[rank]

    def place(self, rank: int) -> dict[str, str]:
        """What a scheduler tells a rank."""
        told = {"RANK": rank, "WORLD_SIZE": self.count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": self.port}
        return {name: str(value) for name, value in told.items()}

    def codes(self) -> dict[int, int]:
        """The exit codes of all, once they have ended."""
        return {rank: each.wait(240) for rank, each in sorted(self.processes.items())}

    def agent_of(self, rank: int) -> psutil.Process:
        """The agent of a rank that follows."""
        (found,) = (
            each for each in psutil.Process(self.processes[rank].pid).children() if agent.MODULE in each.cmdline()
        )
        return found


@contextlib.contextmanager
def ranks_in(folder: Path, count: int = RANKS) -> Iterator[Ranks]:
    """Whatever still runs in the end is killed."""
    made = Ranks(folder, count)
    try:
        yield made
    finally:
        for process in made.processes.values():
            process.kill()
            process.communicate()


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Ranks]:
    with ranks_in(tmp_path) as made:
        yield made


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Ranks]:
    with ranks_in(tmp_path, PAIR) as made:
        yield made


@dataclass(frozen=True)
class Trained:
    """What became of a run, and what its rank 0 said."""

    folder: Path
    codes: dict[int, int]
    printed: str
    said: str


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, processes_are_known: None) -> Trained:
    """All ranks have trained, after one came whose clock is an hour behind, and left."""
    folder = tmp_path_factory.mktemp("trained")
    with ranks_in(folder) as ranks:
        ranks.start(0, "--set", "train.steps=8", "--set", "train.eval_every=8", "--json")
        greet(Launch.read(ranks.place(1)), clock_s=time.time() - 3600)
        for rank in range(1, RANKS):
            ranks.start(rank)
        return Trained(folder / "run", ranks.codes(), *ranks.processes[0].communicate())


def test_ranks_train_and_what_is_measured_stands_in_the_rows(trained: Trained) -> None:
    assert trained.codes == dict.fromkeys(range(RANKS), 0), trained.said
    json_reference.adapter("worker").validate_json(trained.printed, strict=True)
    store = Store.open(trained.folder)
    rows = store.trials()
    assert (set(rows["label"]), set(rows["status"]), set(rows["cluster"])) == ({"dense", "topk"}, {"done"}, {"hosts"})
    assert (rows["measured_rate_bps"] > 0).all()
    assert rows["rate_bps"].isna().all()
    assert rows["fullest_queue"].str.endswith(" up").all()
    assert rows["parameter_hash"].nunique() == 2


def test_a_clock_that_is_off_is_told_and_harms_nothing(trained: Trained) -> None:
    assert trained.codes == dict.fromkeys(range(RANKS), 0), trained.said
    assert re.search("rank 1 on elsewhere: its clock is 3[67][0-9]{2} s behind rank 0", trained.said)


def test_an_agent_that_is_killed_costs_one_trial_and_comes_back(pair: Ranks) -> None:
    for rank in range(PAIR):
        pair.start(rank, *("--set", "train.steps=120", "--set", "train.eval_every=120"))
    wait_until(lambda: some_trial_is_done(pair.folder / "run"))  # before, its agent may be reading data, or measuring
    wait_until(lambda: any(map(has_trained, _workers(pair, 1))))
    pair.agent_of(1).send_signal(signal.SIGKILL)
    assert pair.codes() == {0: 5, 1: 0}
    rows = Store.open(pair.folder / "run").trials()
    assert sorted(rows["status"]) == ["crashed", "done"], rows["reason"].to_dict()
    assert "w1: its host is gone" in rows[rows["status"] == "crashed"]["reason"].iloc[0]


def test_an_agent_that_is_killed_before_any_trial_comes_back(pair: Ranks) -> None:
    for rank in range(PAIR):
        pair.start(rank, *("--set", "train.steps=8", "--set", "train.eval_every=8"))
    wait_until(lambda: _workers(pair, 1))
    pair.agent_of(1).send_signal(signal.SIGKILL)
    assert pair.codes()[1] == 0
    rows = Store.open(pair.folder / "run").trials()
    assert "done" in set(rows["status"]), rows["reason"].to_dict()


def _workers(ranks: Ranks, rank: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess, ValueError):
        return ranks.agent_of(rank).children()
    return []


def test_a_run_whose_rank_0_is_killed_ends_the_others_and_is_resumed(ranks: Ranks) -> None:
    settings = ("--set", "train.steps=32", "--set", "train.eval_every=32")
    for rank in range(RANKS):
        ranks.start(rank, *settings)
    wait_until(lambda: some_trial_is_done(ranks.folder / "run"))
    ranks.processes[0].kill()
    assert ranks.codes() == {0: -signal.SIGKILL, 1: 5, 2: 5}
    for rank in range(1, RANKS):
        (line,) = ranks.processes[rank].communicate()[1].splitlines()
        assert "rank 0 is not to be found at 127.0.0.1" in line
    ranks.processes[0].communicate()
    before = Store.open(ranks.folder / "run").trials()["trial_id"]
    for rank in range(RANKS):
        ranks.start(rank, *settings)
    assert ranks.codes() == dict.fromkeys(range(RANKS), 0)
    rows = Store.open(ranks.folder / "run").trials()
    assert (set(rows["label"]), set(rows["status"])) == ({"dense", "topk"}, {"done"})
    assert set(before) <= set(rows["trial_id"])
    assert len(rows) == 2


def greet(launch: Launch, clock_s: float) -> None:
    """Come to rank 0 as one whose clock says so, and leave once it is welcome."""
    connections: list[socket.socket] = []

    def connect() -> bool:
        with contextlib.suppress(ConnectionRefusedError):
            connections.append(socket.create_connection((launch.leader, launch.port)))
        return bool(connections)

    wait_until(connect)
    with connections[0] as connection:
        challenge = greeting.hear(connection)
        assert isinstance(challenge, Challenge)
        own = {"host": "elsewhere", "address": "127.0.0.2", "interface": "lo", "problem": None, "nonce": "any"}
        alike = {"rank": launch.rank, "world_size": RANKS, "code": code_digest(), "torch": version("torch")}
        shown = greeting.proof(launch.token, challenge.nonce, "rank")
        connection.sendall(encode(Hello(**own, **alike, clock_s=clock_s, proof=shown)))
        assert isinstance(greeting.hear(connection), Welcome)


def test_hosts_that_are_not_alike_end_in_one_line_that_names_both(ranks: Ranks, tmp_path: Path) -> None:
    metadata = tmp_path / "other" / "torch-9.9.9.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.9.9\n")
    path = os.pathsep.join([str(tmp_path / "other"), os.environ.get("PYTHONPATH", "")])
    ranks.start(0)
    odd = ranks.start(1, PYTHONPATH=path)
    assert ranks.codes() == {0: 2, 1: 2}
    for process in (odd, ranks.processes[0]):
        (line,) = process.communicate()[1].splitlines()
        assert "has torch 9.9.9, and rank 0 on" in line


def test_an_interface_that_is_not_there_ends_all_in_one_line(ranks: Ranks) -> None:
    ranks.start(0)
    odd = ranks.start(2, "--interface", "eth77")
    assert ranks.codes() == {0: 2, 2: 2}
    assert "--interface: found 'eth77'" in odd.communicate()[1]
    assert "rank 2 on" in ranks.processes[0].communicate()[1]


def test_links_are_not_shaped(ranks: Ranks) -> None:
    for rank in range(RANKS):
        ranks.start(rank, "--set", "link.rate=100mbit")
    assert ranks.codes()[0] == 2
    (line,) = ranks.processes[0].communicate()[1].splitlines()
    assert "allowed: unshaped and nothing else" in line
