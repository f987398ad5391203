"""What is pure of running a command: places, placeholders, lines, counters; and what the verb refuses."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from forked import SERVER
from in_process import call_pacbench

from harness import programs
from harness.cli.outputs import Files, Terminal
from harness.cluster.fake import FakeCluster
from harness.errors import MeasurementError, UsageError
from harness.messages import CommandEnded, Exit, Failed, Message, Output, QueueCount, RankEnded, Tick, Traffic
from harness.network.topology import Topology
from harness.network.traffic import queue_counts, retransmits
from harness.record.execution import Execution, new_folder
from harness.run.command import Job, look_every_s
from harness.run.command import execute as execute_job
from harness.run.counting import MOST_SAMPLES, Counting
from harness.scenario.links import Link
from harness.worker.command import READ_BYTES, Order, Printed, execute
from harness.worker.torchrun import Place, filled, variables


def test_ranks_are_dealt_to_nodes_in_order_as_torchrun_does() -> None:
    places = [Place(node, local, nodes=3, per_node=2) for node in range(3) for local in range(2)]
    told = [variables(place, "eth0", "198.18.128.2", 29500) for place in places]
    assert [each["RANK"] for each in told] == list("012345")
    assert [each["LOCAL_RANK"] for each in told] == list("010101")
    assert [each["PACBENCH_NODE"] for each in told] == [each["GROUP_RANK"] for each in told] == list("001122")
    assert {(each["WORLD_SIZE"], each["LOCAL_WORLD_SIZE"], each["GROUP_WORLD_SIZE"]) for each in told} == {
        ("6", "2", "3")
    }


def test_placeholders_are_filled_and_a_shells_own_are_not() -> None:
    known = {**variables(Place(2, 0, 4, 1), "eth0", "198.18.128.2", 29500)}
    command = [
        "sh",
        "-c",
        "echo ${RANK} $RANK {RANK} {rank} {OTHER}",
        "--node-rank={PACBENCH_NODE}",
        "{MASTER_ADDR}:{MASTER_PORT}",
    ]
    assert filled(command, known)[2:] == [
        *("echo ${RANK} $RANK 2 {rank} {OTHER}", "--node-rank=2", "198.18.128.2:29500")
    ]


def order(**changes: object) -> Order:
    plain = {"command": ["true"], "folder": "/", "environment": {}, "more": {}, "workers": 2, "per_node": 1}
    place = {
        "port": 29500,
        "look_every_s": 0.25,
        "grace_s": 5.0,
        "interface": "eth0",
        "meeting_address": "198.18.128.2",
    }
    return Order(**{**plain, **place, **changes})  # type: ignore[arg-type]


def test_the_users_variables_go_before_our_defaults_and_behind_what_a_rank_must_know() -> None:
    own = {"OMP_NUM_THREADS": "3", "RANK": "17", "METHOD": "none"}
    found = order(environment=own, more={"METHOD": "topk"}).variables(Place(1, 0, 2, 1))
    assert (found["OMP_NUM_THREADS"], found["RANK"], found["METHOD"]) == ("3", "1", "topk")
    assert order().variables(Place(1, 0, 2, 1))["OMP_NUM_THREADS"] == "1"
    for users, path in (({"PYTHONPATH": "/own:"}, "/ours:/own:"), ({"PYTHONPATH": ""}, "/ours"), ({}, "/ours")):
        found = order(environment=users, more={"PYTHONPATH": "/ours"}).variables(Place(0, 0, 2, 1))
        assert found["PYTHONPATH"] == path


def execute_what_ends_at_once(told: Connection) -> None:
    """Run a command on a node, whose ranks have each ended before the next line after their start."""
    start = programs.start_for_user

    def start_and_wait(*arguments: Any, **options: Any) -> subprocess.Popen[Any]:
        process = start(*arguments, **options)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        return process

    programs.start_for_user = start_and_wait
    execute(asdict(order(per_node=3, grace_s=0.1)), "w0", told.send)
    told.send(None)


def test_the_end_of_a_rank_that_ends_at_once_is_told() -> None:
    hears, told = SERVER.Pipe(duplex=False)
    node = SERVER.Process(target=execute_what_ends_at_once, args=(told,))
    node.start()
    node.join(30)
    assert not node.is_alive() or node.kill(), "it waits for ranks that have ended"
    messages = [*iter(hears.recv, None)]
    ended = [message for message in messages if isinstance(message, RankEnded)]
    assert [(each.rank, each.code) for each in sorted(ended, key=lambda each: each.rank)] == [(0, 0), (1, 0), (2, 0)]
    assert isinstance(messages[-1], CommandEnded)


@pytest.mark.parametrize(
    ("chunks", "lines"),
    [
        ([b"one\ntw", b"o\n\nfour"], ["one", "two", "", "four"]),
        ([b"one\r", b"\ntwo\r\n"], ["one", "two"]),
        ([b" 10%\r 20%\r", b" 30%\r"], [" 10%", " 20%", " 30%"]),
        ([b"\xc3", b"\xa9\n", b"\xff\n"], ["é", "\ufffd"]),
        ([b"x" * READ_BYTES, b"x"], ["x" * (READ_BYTES + 1)]),
        ([], []),
    ],
)
def test_lines_are_whole_however_they_arrive(chunks: list[bytes], lines: list[str]) -> None:
    stream = Printed(rank=0, to_stderr=False)
    assert [line for chunk in [*chunks, b""] for line in stream.lines(chunk)] == lines


def traffic(node: str, at_s: float, interface: str, wire_bytes: int, drops: int = 0) -> Traffic:
    count = QueueCount(wire_bytes=wire_bytes, packets=wire_bytes // 1514, drops=drops, backlog_bytes=0)
    return Traffic(node=node, at_s=at_s, queues={interface: count}, retransmits=5 * drops)


def star() -> Topology:
    return Topology(workers=2, link=Link.model_validate({"rate": "50mbit"}))


def first() -> list[Traffic]:
    empty = QueueCount(wire_bytes=0, packets=0, drops=0, backlog_bytes=0)
    switch = Traffic(node="switch", at_s=100.1, queues={"to0": empty, "to1": empty}, retransmits=0)
    return [traffic("w0", 100.0, "eth0", 15140), traffic("w1", 100.0, "eth0", 0), switch]


def test_a_links_traffic_is_what_its_counter_grew_by() -> None:
    counting = Counting(star(), first())
    counting.add(traffic("w0", 101.0, "eth0", 15140 + 1_514_000, drops=2))
    (up, *others) = counting.links()
    assert (up.link, up.direction, up.wire_bytes, up.drops) == ("w0", "up", 1_514_000, 2)
    assert (up.packets, up.payload_bytes) == (1000, 1_448_000)
    assert up.rates_bps() == [(0.5, 8 * 1_514_000.0)]
    assert {other.wire_bytes for other in others} == {0}
    assert counting.retransmits("w0") == 10


def test_a_long_command_keeps_fewer_samples_and_every_byte() -> None:
    counting = Counting(star(), first())
    looks = 3 * MOST_SAMPLES
    for look in range(1, looks + 1):
        counting.add(traffic("w1", 100 + look / 4, "eth0", 1000 * look))
    up = next(link for link in counting.links() if (link.link, link.direction) == ("w1", "up"))
    assert MOST_SAMPLES / 2 <= len(up.samples) <= MOST_SAMPLES
    assert (up.samples[0].time_s, up.samples[-1].time_s) == (0.0, looks / 4)
    assert up.wire_bytes == up.samples[-1].wire_bytes == 1000 * looks
    assert all(rate == pytest.approx(8 * 4000) for _, rate in up.rates_bps())


def test_a_queue_counts_what_leaves_its_root_and_what_is_lost_inside() -> None:
    shown = [
        {"kind": "noqueue", "dev": "lo", "root": True, "bytes": 0, "packets": 0, "drops": 0, "backlog": 0},
        {"kind": "netem", "dev": "eth0", "root": True, "bytes": 3028, "packets": 2, "drops": 1, "backlog": 1514},
        {"kind": "tbf", "dev": "eth0", "parent": "1:1", "bytes": 3028, "packets": 2, "drops": 4, "backlog": 0},
    ]
    assert queue_counts(shown)["eth0"] == QueueCount(wire_bytes=3028, packets=2, drops=4, backlog_bytes=1514)


def test_retransmits_are_read_by_name() -> None:
    text = "Ip: Forwarding\nIp: 1\nTcp: RtoAlgorithm RetransSegs InErrs\nTcp: 1 42 0\nUdp: A\nUdp: 7\n"
    assert retransmits(text) == 42


def test_looks_come_from_four_times_to_once_a_second() -> None:
    assert [look_every_s(workers) for workers in (2, 64, 128, 1000)] == [0.25, 0.5, 1.0, 1.0]


def test_a_folder_that_stays_empty_goes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--rate"), new_folder(tmp_path, None) as folder:
        raise UsageError("--rate")
    assert not folder.exists()
    with new_folder(tmp_path, tmp_path / "mine") as folder:
        (folder / "exec.json").write_text("{}")
    assert folder.exists()


def test_commands_that_begin_at_the_same_time_have_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.strftime", lambda _: "now")
    with ExitStack() as stack:
        folders = [stack.enter_context(new_folder(tmp_path, None)) for _ in range(3)]
        assert [each.name for each in folders] == ["exec-now", "exec-now.2", "exec-now.3"]
    assert list(tmp_path.iterdir()) == []
    with new_folder(tmp_path, tmp_path / "mine") as folder:
        with pytest.raises(UsageError, match="another pacbench run is using this folder"), new_folder(tmp_path, folder):
            pass
        (folder / "exec.json").write_text("{}")
    assert [each.name for each in (tmp_path / "mine").iterdir()] == ["exec.json"]


class Scripted(FakeCluster):
    """Runs commands: what is heard of them is what it was told."""

    def __init__(self, *heard: Message, countable: bool = True) -> None:
        super().__init__()
        self.heard, self.countable, self.signals = heard, countable, list[int]()

    def find_command(self, command: str, environment: Mapping[str, str]) -> None:
        """It is there."""

    def share_folder(self, folder: Path) -> None:
        """Nobody writes."""

    def signal(self, number: int) -> None:
        self.signals.append(number)

    def count(self) -> list[Traffic]:
        if self.signals and not self.countable:
            raise MeasurementError("the links' counters cannot be read: w1: its container has ended")
        return first()

    def run(self, task: str, spec: Mapping[str, Any], timeout_s: float) -> Iterator[Message]:
        yield from self.heard


GONE = [
    (Exit(node="w1", code=-9), "w1: the process that pacbench has there ended with SIGKILL"),
    (Failed(node="w1", reason="its container has ended", lost=True), "w1: its container has ended"),
]


@pytest.mark.parametrize("countable", [True, False])
@pytest.mark.parametrize(("lost", "reason"), GONE)
def test_a_node_that_is_lost_ends_the_command_and_leaves_a_record(
    lost: Message, reason: str, countable: bool, tmp_path: Path
) -> None:
    ended = [RankEnded(node="w0", rank=0, code=0), CommandEnded(node="w0", cpu_s=1.0, peak_memory_bytes=1)]
    cluster = Scripted(lost, *ended, Exit(node="w0", code=0), countable=countable)
    found = execute_job(cluster, star(), Job(["true"], tmp_path, {}), lambda said: None, ["pacbench"])
    assert (found.ending, found.reason, found.exit_code) == ("failed", reason, 5)
    assert cluster.signals == [signal.SIGTERM]
    assert [use.exit_codes for use in found.uses] == [{0: 0}, {}]
    assert Execution.load(found.save(tmp_path).parent).reason == reason


def test_a_cluster_that_runs_nothing_is_refused(tmp_path: Path) -> None:
    done: subprocess.CompletedProcess[str] = call_pacbench(("exec", "--on", "fake", "--", "true"), tmp_path)
    assert done.returncode == 2
    assert "--on: found 'fake'; allowed: auto, netns, uml, docker" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "COMMAND: found 'nothing'"),
        (("--", "no-such-command"), "COMMAND: found 'no-such-command'"),
        (("--", "./script"), "COMMAND: found './script'"),
        (("--timeout", "soon", "--", "true"), "--timeout: found 'soon'"),
        (("--timeout", "0s", "--", "true"), "--timeout: found '0s'"),
        (("--rate", "fast", "--", "true"), "link.rate: found 'fast'"),
        (("--link", "link.toml", "--rate", "1gbit", "--", "true"), "--rate: found 'with --link'; allowed: the file's"),
        (("--image", "pacbench", "--", "true"), "--image: found '--on netns'; allowed: with --on docker alone"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(arguments: tuple[str, ...], complaint: str, tmp_path: Path) -> None:
    (tmp_path / "script").write_text("not to be executed")
    done = call_pacbench(("exec", "--on", "netns", "--out", "record", *arguments), tmp_path)
    assert done.returncode == 2, done.stderr
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "record").exists()


def test_what_an_earlier_command_printed_is_no_part_of_what_this_one_does(tmp_path: Path) -> None:
    for name in ("w0.err", "w7.out", "w1.0.err", "notes.out", "w0.err.old"):
        (tmp_path / name).write_text("a traceback of yesterday")
    with Files(tmp_path, per_node=1) as shown:
        shown(Output(node="w0", rank=0, to_stderr=False, lines=["all is well"]))
    assert {path.name for path in tmp_path.iterdir()} == {"w0.out", "notes.out", "w0.err.old"}
    assert (tmp_path / "w0.out").read_text() == "all is well\n"


def test_of_a_command_that_cannot_be_started_what_the_last_one_printed_is_left(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "w0.out").write_text("of hours")
    done = call_pacbench(("exec", "--on", "netns", "--output", "logs", "--", "no-such-command"), tmp_path)
    assert done.returncode == 2
    assert (tmp_path / "logs" / "w0.out").read_text() == "of hours"


def test_of_a_command_that_says_nothing_there_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "w0.out").write_text("of yesterday")
    with Files(tmp_path, per_node=1):
        assert (tmp_path / "w0.out").exists()
    assert list(tmp_path.iterdir()) == []


def test_a_terminal_that_has_gone_away_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    os.close(ours)
    with open(theirs, "w") as gone:
        monkeypatch.setattr("sys.stdout", gone)
        Terminal(per_node=1)(Output(node="w0", rank=0, to_stderr=False, lines=["is anybody there?"]))
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), gone.fileno())  # so that it can be closed


class HungUp(Scripted):
    """While a command runs, its terminal goes away: the kernel says so, and the shell."""

    def run(self, task: str, spec: Mapping[str, Any], timeout_s: float) -> Iterator[Message]:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGHUP)
            yield Tick()
        yield from super().run(task, spec, timeout_s)


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])
def test_a_command_whose_terminal_goes_away_leaves_a_record(handler: Any, tmp_path: Path) -> None:
    ended = [
        message
        for number in range(2)
        for message in (
            RankEnded(node=f"w{number}", rank=number, code=0),
            CommandEnded(node=f"w{number}", cpu_s=1.0, peak_memory_bytes=1),
        )
    ]
    cluster, before = HungUp(*ended), signal.signal(signal.SIGHUP, handler)
    try:
        found = execute_job(cluster, star(), Job(["true"], tmp_path, {}), lambda said: None, ["pacbench"])
        assert signal.getsignal(signal.SIGHUP) == handler
    finally:
        signal.signal(signal.SIGHUP, before)
    is_heard = handler != signal.SIG_IGN  # as nohup has it
    assert cluster.signals == [signal.SIGHUP] * is_heard
    assert found.ending == ("interrupted" if is_heard else "finished")


def test_a_record_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "record").mkdir()
    (tmp_path / "record" / "notes").write_text("mine")
    done = call_pacbench(("exec", "--on", "netns", "--out", "record", "--", "true"), tmp_path)
    assert done.returncode == 2
    assert "--out: found 'record'; allowed: a new or an empty folder" in done.stderr
    assert (tmp_path / "record" / "notes").read_text() == "mine"


def test_options_of_the_command_are_its_own(tmp_path: Path) -> None:
    done = call_pacbench(("exec", "--on", "fake", "no-such-command", "--workers", "many"), tmp_path)
    assert "--on: found 'fake'" in done.stderr, "--workers is not ours here"
