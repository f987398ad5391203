"""Ranks on machines of their own, whose interfaces they shape, and put back; and a machine that vanishes."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from host import PACBENCH, has_trained, run_pacbench, some_trial_is_done, wait_until
from machines import Machines
from sent import assert_sends_its_formula

from harness import programs
from harness.cluster.hosts import agent, shaper
from harness.record.store import Store

Rank = subprocess.Popen[str]


@pytest.fixture(scope="module")
def hosts(processes_are_known: None) -> Iterator[Machines]:
    """Three hosts, whose links nobody has shaped."""
    with tempfile.TemporaryDirectory(prefix="hosts-") as folder, Machines(Path(folder), 3) as made:
        yield made


@contextmanager
def started(hosts: Machines, count: int, *words: str) -> Iterator[list[Rank]]:
    """The command line on so many hosts, by a scheduler that leaves the others alone when one is lost."""
    contract = {"MASTER_ADDR": "h1", "MASTER_PORT": "29500", "WORLD_SIZE": str(count)}
    with ExitStack() as stack:
        ranks = []
        for number, host in enumerate(hosts.names[:count]):
            variables = [f"{name}={value}" for name, value in {**contract, "RANK": str(number)}.items()]
            command = hosts.machines[host].command("env", *variables, *PACBENCH, *words)
            rank = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            ranks.append(stack.enter_context(rank))
            stack.callback(kill, rank, spared=shaper.__name__)
        yield ranks


def kill(rank: Rank, spared: str = "") -> None:
    """Kill a rank and all that it has started, but for one module's processes, before any can act on another's end."""
    if rank.poll() is not None:
        return
    top = psutil.Process(rank.pid)
    every = [top, *top.children(recursive=True)]
    for strike in (psutil.Process.suspend, psutil.Process.kill):
        for process in every:
            with suppress(psutil.NoSuchProcess):
                if spared not in process.cmdline():
                    strike(process)


def ended(ranks: list[Rank]) -> tuple[list[int], str]:
    """The exit codes of all, and what they said on stderr."""
    said = [rank.communicate(timeout=480)[1] for rank in ranks]
    return [rank.returncode for rank in ranks], "".join(said)


SHAPED = (
    *("worker", "quickstart", "--method", "topk", "--rounds", "1", "--set", "cluster.workers=2"),
    *("--set", "baseline_16bit=dense", "--set", "train.pace=none", "--interface", "eth0", "--shape"),
)
LONG = ("--set", "link.rate=10mbit", "--set", "train.steps=400", "--wait", "60")


def queues(hosts: Machines, name: str) -> list[tuple[str, str]]:
    """The queues of a host's interfaces."""
    command = hosts.machines[name].command("tc", "-j", "qdisc", "show")
    shown = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return sorted((each["dev"], each["kind"]) for each in shown)


def shaped(hosts: Machines) -> list[str]:
    """The hosts that have a bucket."""
    return [name for name in hosts.names if "tbf" in dict(queues(hosts, name)).values()]


@pytest.fixture
def pair(hosts: Machines) -> Iterator[Machines]:
    """The hosts, of which two are used; in the end all queues must be what they were."""
    before = {name: queues(hosts, name) for name in hosts.names}
    yield hosts
    wait_until(lambda: {name: queues(hosts, name) for name in hosts.names} == before)


def test_an_interface_that_is_named_is_shaped_measured_and_put_back(pair: Machines, tmp_path: Path) -> None:
    before = queues(pair, "h1")
    settings = ("--set", "link.rate=50mbit", "--set", "link.down.rate=30mbit", "--set", "train.steps=16")
    for _ in range(3):  # links that a busy machine measures amiss fail their trials, and the same command tries again
        with started(pair, 2, *SHAPED, *settings, "--out", str(tmp_path / "run")) as ranks:
            codes, said = ended(ranks)
        if codes == [0, 0]:
            break
    assert codes == [0, 0], said
    trials = Store.open(tmp_path / "run").trials()
    assert (trials["status"] == "done").all(), trials["reason"].tolist()
    assert (trials["rate_bps"] == 50e6).all()
    assert trials["measured_rate_bps"].tolist() == pytest.approx([30e6] * len(trials), rel=0.07), "the slower end"
    assert_sends_its_formula(trials)
    assert queues(pair, "h1") == before


def test_what_is_killed_puts_its_interface_back(pair: Machines, tmp_path: Path) -> None:
    with started(pair, 2, *SHAPED, *LONG, "--out", str(tmp_path / "run")) as ranks:
        wait_until(lambda: shaped(pair) == ["h1", "h2"])
        for rank in ranks:
            kill(rank, spared=shaper.__name__)
        wait_until(lambda: not shaped(pair))


def test_what_is_killed_with_all_that_it_started_is_found_and_cleaned(pair: Machines, tmp_path: Path) -> None:
    def clean(name: str) -> str:
        command = ["env", "DOCKER_HOST=unix:///nowhere", *PACBENCH, "clean"]  # the engine is this machine's
        done = subprocess.run(pair.machines[name].command(*command), cwd=tmp_path, capture_output=True, text=True)
        return done.stdout

    def shape_as_well() -> dict[str, str]:
        """What a second process that is to shape the first host's interface answers."""
        command = pair.machines["h1"].command(*programs.python(shaper.__name__, "eth0"))
        asked = json.dumps({"up_bps": 1_000_000, "down_bps": None})
        done = subprocess.run(command, input=f"{asked}\n", capture_output=True, text=True, check=True)
        answer: dict[str, str] = json.loads(done.stdout)
        return answer

    with started(pair, 2, *SHAPED, *LONG, "--out", str(tmp_path / "run")) as ranks:
        wait_until(lambda: shaped(pair) == ["h1", "h2"])
        answer = shape_as_well()
        assert (answer["kind"], "allowed: one that no other run shapes" in answer["reason"]) == ("usage", True), answer
        assert clean("h1") == "nothing was left\n", "whoever shapes it is there"
        for rank in ranks:
            kill(rank)
    assert shaped(pair) == ["h1", "h2"]
    unshaped = ("worker", "quickstart", "--set", "link.rate=unshaped", "--set", "cluster.workers=2")
    with started(pair, 2, *unshaped, "--out", str(tmp_path / "other")) as ranks:
        codes, said = ended(ranks)
    assert codes == [2, 2], said
    assert "--interface: found 'eth0, shaped by pacbench'" in said
    assert [clean(name) for name in ("h1", "h2")] == 2 * ["put interface eth0 back\n"]


def test_a_queue_that_somebody_has_set_is_left_alone(pair: Machines, tmp_path: Path) -> None:
    own = ("tbf", "rate", "200mbit", "burst", "64kb", "latency", "300ms")
    for name in ("h1", "h2"):
        pair.machines[name].run("tc", "qdisc", "add", "dev", "eth0", "root", *own)
    try:
        before = queues(pair, "h1")
        with started(pair, 2, *SHAPED, "--set", "link.rate=50mbit", "--out", str(tmp_path / "run")) as ranks:
            codes, said = ended(ranks)
        assert codes[0] == 2, said
        assert "--interface: found 'eth0 with tbf'; allowed: an interface with the kernel's own queue" in said
        assert queues(pair, "h1") == before
    finally:
        for name in ("h1", "h2"):
            pair.machines[name].run("tc", "qdisc", "del", "dev", "eth0", "root")


def test_a_host_that_vanishes_costs_one_trial_and_another_takes_its_place(hosts: Machines, tmp_path: Path) -> None:
    settings = ("--set", "cluster.workers=2", "--set", "baseline_16bit=dense", "--set", "train.pace=none")
    methods = ("--method", "topk", "--method", "pactrain-fp32", "--rounds", "1", "--set", "train.schedule=constant")
    asked = ("worker", "quickstart", *methods, *settings, "--set", "link.rate=unshaped", "--set", "train.steps=96")
    switch = hosts.machines["switch"]
    try:
        with started(hosts, 3, *asked, "--out", str(tmp_path / "run")) as ranks:
            wait_until(lambda: some_trial_is_done(tmp_path / "run"))
            wait_until(lambda: any(map(has_trained, workers_of(ranks[1]))))
            switch.run("ip", "link", "set", "to-h2", "down")
            codes, said = ended([ranks[0], ranks[2]])
    finally:
        switch.run("ip", "link", "set", "to-h2", "up")
    trials = Store.open(tmp_path / "run").trials()
    assert sorted(trials["status"]) == ["crashed", "done", "done"], trials["reason"].to_dict()
    assert "w1: its host is gone" in trials[trials["status"] == "crashed"]["reason"].iloc[0]
    assert codes == [5, 0], said


def test_a_training_goes_on_after_all_hosts_were_killed(hosts: Machines, tmp_path: Path) -> None:
    """It learns what an emulated network does. Bytes of checkpoints are not told as the method's."""
    settings = ("link.rate=unshaped", "cluster.workers=2", "baseline_16bit=dense", "train.pace=none", "train.steps=96")
    words = [word for setting in (*settings, "train.save_every=8") for word in ("--set", setting)]
    asked = ("worker", "quickstart", "--method", "topk", "--rounds", "1", *words)
    run = tmp_path / "run"
    with started(hosts, 2, *asked, "--out", str(run)) as ranks:
        wait_until(lambda: any(run.glob("checkpoints/*.zip")))
        for rank in ranks:
            kill(rank)
    with started(hosts, 2, *asked, "--out", str(run)) as ranks:
        codes, said = ended(ranks)
    assert codes == [0, 0], said
    whole = run_pacbench(tmp_path, "run", *asked[1:], "--on", "netns", "--out", "whole")
    assert whole.returncode == 0, whole.stderr
    ended_well = Store.open(run).attempts()  # a disturbed one is run again, and anew
    ended_well = ended_well[ended_well["status"].isin(["done", "disturbed"])]
    emulated = Store.open(tmp_path / "whole").trials().set_index("label")["parameter_hash"]
    assert (ended_well["resumed_from_step"] >= 8).any()
    assert (ended_well["parameter_hash"] == ended_well["label"].map(emulated)).all()
    assert_sends_its_formula(ended_well)


def workers_of(rank: Rank) -> list[psutil.Process]:
    """What the agent of a rank has forked: they have its command line."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(rank.pid).children(recursive=True):
            parent = process.parent()
            if parent and agent.MODULE in parent.cmdline() and agent.MODULE in process.cmdline():
                found.append(process)
    return found


def test_both_options_are_needed(tmp_path: Path) -> None:
    done = run_pacbench(tmp_path, "worker", "quickstart", "--shape")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--shape: found 'no --interface'" in done.stderr
    done = run_pacbench(tmp_path, "run", "quickstart", "--on", "hosts")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "srun pacbench worker" in done.stderr
