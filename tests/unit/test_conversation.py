"""What an agent says, however mangled, ends in what it says or in one line; and so does what an agent is told."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from behaving import Result  # noqa: F401 - a kind of message that an agent may send
from hypothesis import given
from hypothesis import strategies as st
from tries import tries

from harness import messages
from harness.cluster import connection
from harness.cluster.connection import AgentConnection
from harness.cluster.protocol import ClusterBrokenError, TaskTimeoutError
from harness.errors import PacbenchError
from harness.messages import (
    KINDS,
    Done,
    Events,
    Exit,
    Failed,
    Lines,
    Log,
    Message,
    ProtocolError,
    QueuesSeen,
    QueueUse,
    Refused,
    Reset,
    Signal,
    Start,
    Stop,
    Tick,
    encode,
)

AGENT = Path(__file__).with_name("behaving.py")
"""Run as a script it is an agent."""

NODES = ["w0", "w1"]

TASK = [
    Done(op="start"),
    Log(node="w0", text="{ é"),
    Events(node="w0", rows=[(0, 0.5, "loss", 2.25), (1, float("nan"), "loss", 1e300)]),
    QueuesSeen(node="w1", queues={"eth0": QueueUse(drops=1, most_backlog_bytes=2)}),
    Failed(node="w1", reason="why not"),
    Exit(node="w0", code=0),
    Exit(node="w1", code=-9),
]
"""A task from its begin to its end."""

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@contextmanager
def spoken(folder: Path, said: bytes, then: str = "") -> Iterator[AgentConnection]:
    """A conversation with what says this, does that, and ends; whatever it is told."""
    (folder / "said").write_bytes(said)
    agent = AgentConnection(["sh", "-c", f"cat {folder / 'said'}; {then}"])
    try:
        yield agent
    finally:
        agent.close()


def is_a_line(text: str) -> None:
    assert "\n" not in text
    assert len(text) < 3000


def heard(agent: AgentConnection, timeout_s: float = 60.0) -> list[Message]:
    return [message for message in agent.task("behave", NODES, {}, timeout_s) if not isinstance(message, Tick)]


@st.composite
def garbled(draw: st.DrawFn, said: list[Message]) -> bytes:
    """The lines of messages with a few of them changed, cut, doubled, swapped or replaced by what others may say."""
    lines = [encode(message) for message in said]
    for _ in range(draw(st.integers(1, 3))):
        number = draw(st.integers(0, len(lines) - 1))
        line, size = lines[number], draw(st.integers(0, 7))
        match draw(st.integers(0, 7)):
            case 0:  # a bit
                place = draw(st.integers(0, max(len(line) - 1, 0)))
                line = line[:place] + bytes(each ^ 1 << size for each in line[place : place + 1]) + line[place + 1 :]
            case 1:  # an end
                line = line[: draw(st.integers(0, len(line)))]
            case 2:  # bytes
                place = draw(st.integers(0, len(line)))
                line = line[:place] + draw(st.binary(max_size=6)) + line[place:]
            case 3:  # a value
                content = json.loads(encode(said[number]))
                content[draw(st.sampled_from([*content, "kind", "node", "odd"]))] = draw(JSON)
                line = json.dumps(content).encode() + b"\n"
            case 4:  # another kind
                line = json.dumps({"kind": draw(st.sampled_from(sorted(KINDS))), "node": "w0"}).encode() + b"\n"
            case 5:
                line = b""
            case 6:
                line += line
            case 7:
                line = draw(st.sampled_from([b"{" * 5000, b'{"kind":' * 5000, b"[" * 90_000, b"{}", b"\0", b"\xff{"]))
        lines[number] = line
    return b"".join(draw(st.permutations(lines)) if draw(st.integers(0, 4)) == 0 else lines)


@tries(60)
@given(garbled(TASK))
def test_any_answer_is_what_it_says_or_one_line(tmp_path: Path, said: bytes) -> None:
    with spoken(tmp_path, said) as agent:
        try:
            for message in heard(agent):
                assert isinstance(message, Message)
                assert message.node in NODES
        except PacbenchError as error:
            is_a_line(str(error))


def test_a_task_that_nobody_garbled_is_heard(tmp_path: Path) -> None:
    with spoken(tmp_path, b"\nbooting\n" + b"".join(map(encode, TASK)), "sleep 60") as agent:
        assert repr(heard(agent)) == repr(TASK[1:])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"kind": "exit", "node": "w0"}\n', "not a message of this version"),
        (b'{"kind": "exit", "node": "w0", "code": 0\n', "not a message of this version"),
        (b'{"kind": "log", "node": "w0", "text": "' + b"x" * 10_000 + b"\n", "not a message of this version"),
        (encode(Log(node="w7", text="hello")), "speaks for 'w7', which was asked for nothing"),
        (encode(Log(text="hello")), "speaks for '', which was asked for nothing"),
    ],
    ids=["too little", "cut", "long", "a stranger's", "nobody's"],
)
def test_an_agent_that_says_what_it_cannot_mean_is_ended(tmp_path: Path, line: bytes, says: str) -> None:
    """At once: whatever comes after it is no answer."""
    with spoken(tmp_path, encode(TASK[0]) + line, "sleep 60") as agent:
        with pytest.raises(ClusterBrokenError, match=says) as error:
            heard(agent)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 1000
        assert not agent.alive


def test_a_line_without_an_end_is_no_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "MOST_LINE_BYTES", 1 << 20)
    with spoken(tmp_path, encode(TASK[0]), "exec cat /dev/zero") as agent:
        with pytest.raises(ClusterBrokenError, match="a line of more than 1048576 bytes is no message"):
            heard(agent)
        assert not agent.alive


def test_lines_are_cut_wherever_chunks_end() -> None:
    @given(st.lists(st.binary(max_size=8)), st.randoms(use_true_random=False))
    def cut(parts: list[bytes], dice: Any) -> None:
        whole, lines, found = b"\n".join(parts), Lines(), []
        while whole:
            size = dice.randint(1, len(whole))
            found += lines.cut(whole[:size])
            whole = whole[size:]
        assert [*found, lines.rest] == b"\n".join(parts).split(b"\n")

    cut()


def test_an_agent_that_does_not_answer_is_ended_with_one_line(tmp_path: Path) -> None:
    """What it answers later must not be taken for the answer to something else."""
    with spoken(tmp_path, b"", "sleep 60") as agent:
        with pytest.raises(ClusterBrokenError, match=r"did not answer 'stop' within 0\.2 s"):
            agent.request(Stop(), 0.2)
        assert not agent.alive


def test_an_agent_that_does_not_listen_is_ended_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "SEND_GRACE_S", 0.2)
    with spoken(tmp_path, b"", "sleep 60") as agent:
        with pytest.raises(ClusterBrokenError, match=r"did not read a request within 0\.2 s"):
            agent.request(Refused(op="x" * 1_000_000, reason="more than a pipe holds", exit_code=2), 1.0)
        assert not agent.alive


def test_an_agent_that_does_not_end_its_tasks_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "STOP_GRACE_S", 0.2)
    with spoken(tmp_path, encode(TASK[0]), "sleep 60") as agent:
        with pytest.raises(ClusterBrokenError, match=r"did not end its tasks within 0\.2 s"):
            heard(agent, timeout_s=0.2)
        assert not agent.alive


def test_an_agent_that_hangs_up_and_lives_on_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "STOP_GRACE_S", 0.2)
    with spoken(tmp_path, encode(TASK[0]), "exec >&-; sleep 60") as agent:
        with pytest.raises(ClusterBrokenError, match="closed its end of the conversation"):
            heard(agent)
        assert not agent.alive


def test_a_task_that_takes_too_long_is_one_line(tmp_path: Path) -> None:
    ended = b"".join(encode(Exit(node=node, code=-9)) for node in NODES)
    (tmp_path / "ended").write_bytes(ended)
    with (
        spoken(tmp_path, encode(TASK[0]), f"sleep 1; cat {tmp_path / 'ended'}; sleep 60") as agent,
        pytest.raises(TaskTimeoutError, match=r"'behave' took longer than 0\.3 s"),
    ):
        heard(agent, timeout_s=0.3)


REAL_AGENT = [sys.executable, str(AGENT)]
AGENTS_ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(AGENT.parents[2]), str(AGENT.parent)])}


def told(requests: bytes) -> subprocess.CompletedProcess[bytes]:
    """What a real agent answers to bytes on its stdin."""
    return subprocess.run(REAL_AGENT, input=requests, capture_output=True, timeout=120, env=AGENTS_ENVIRONMENT)


@pytest.mark.parametrize(
    "requests",
    [b"{\n", b"garbage\n", b'{"kind": "start"}\n', b'{"kind": "no such"}\n', b"\xff\n", b"[" * 100_000 + b"\n"],
    ids=range(6),
)
def test_an_agent_that_is_told_what_it_cannot_read_ends_with_one_line(requests: bytes) -> None:
    done = told(encode(Stop()) + b"\n".join([requests.rstrip(b"\n"), encode(Stop())]))
    assert done.returncode == 1
    assert done.stderr.decode().count("\n") == 1
    assert "not a message of this version" in done.stderr.decode()


REQUESTS = [
    Start(task="behave", nodes=NODES, spec={"w1": "odd"}),
    Signal(nodes=["w0"], number=signal.SIGTERM),
    Stop(),
    Start(task="behave", nodes=["w0"], spec={}),
    Reset(),
]
"""Of what an agent may be told, that which it can do or refuse without a network."""


@tries(15)
@given(garbled(REQUESTS))
def test_any_request_is_answered_or_ends_the_agent(requests: bytes) -> None:
    done = told(requests)
    for line in done.stdout.splitlines():
        assert isinstance(messages.decode(line), Message)
    assert done.returncode in (0, 1)
    if done.returncode:
        assert "no message" in last_line(done.stderr) or "not a message of this version" in last_line(done.stderr)


def last_line(said: bytes) -> str:
    return said.decode(errors="replace").splitlines()[-1]


def test_an_agent_refuses_what_is_no_request_and_what_it_does_not_have() -> None:
    starts = [{"kind": "start", "task": "x", "nodes": [], "spec": {}}, {"kind": "signal", "nodes": [], "number": 99}]
    requests = [encode(Exit(code=0)), *(json.dumps(each).encode() + b"\n" for each in starts)]
    done = told(b"".join(requests))
    answers = [messages.decode(line) for line in done.stdout.splitlines()]
    assert [answer.kind for answer in answers] == ["refused", "refused", "done"]
    assert done.returncode == 0


def test_a_worker_whose_line_has_no_end_is_ended(tmp_path: Path) -> None:
    script = tmp_path / "endless.py"
    script.write_text(
        "import os\n"
        "from harness import messages\n"
        "from harness.cluster.agent import TASKS, Agent\n"
        "messages.MOST_LINE_BYTES = 1 << 20\n"
        "def endless(spec, node, send):\n"
        "    while True:\n"
        "        os.write(1, bytes(4096))\n"
        "TASKS['endless'] = '__main__:endless'\n"
        "Agent(lambda node: None, {}).serve()\n"
    )
    agent = AgentConnection([sys.executable, str(script)], {"PYTHONPATH": str(AGENT.parents[2])})
    try:
        said = [message for message in agent.task("endless", NODES, {}, 120.0) if not isinstance(message, Tick)]
        ends = [(type(each), each.node) for each in said if not isinstance(each, Log)]
        assert set(ends) == {(kind, node) for kind in (Failed, Exit) for node in NODES}
        assert {each.code for each in said if isinstance(each, Exit)} == {-signal.SIGKILL}
        agent.request(Stop(), 60.0)
    finally:
        agent.close()


@pytest.mark.parametrize("requests", [b"", encode(Stop()) * 1000], ids=["it listens", "it answers"])
def test_an_agent_whose_leader_is_gone_with_its_host_ends_without_a_word(requests: bytes) -> None:
    """The kernel then resets the connection; it does not end as it does when a leader closes it."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as agents_end:
        leader, _ = server.accept()
        agent = subprocess.Popen(
            REAL_AGENT, stdin=agents_end, stdout=agents_end, stderr=subprocess.PIPE, env=AGENTS_ENVIRONMENT
        )
        leader.sendall(encode(Stop()))
        assert isinstance(messages.decode(leader.makefile("rb").readline()), Done)
        leader.sendall(requests)
        leader.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        leader.shutdown(socket.SHUT_RD)
        leader.close()
        _, said = agent.communicate(timeout=60)
    assert (agent.returncode, said) == (0, b"")


def test_an_agent_that_was_killed_is_missed_although_its_end_of_the_pipe_is_held(tmp_path: Path) -> None:
    with spoken(tmp_path, encode(TASK[0]), "sleep 60") as agent:
        said = agent.task("behave", NODES, {}, 60.0)
        assert isinstance(next(said), Tick), "while nothing is said, whoever listens can give up"
        agent._process.kill()  # sleep goes on
        with pytest.raises(ClusterBrokenError, match="ended with SIGKILL"):
            list(said)


def test_a_protocol_error_is_one_that_a_user_may_meet() -> None:
    assert issubclass(ProtocolError, PacbenchError)
    assert issubclass(TaskTimeoutError, PacbenchError)
