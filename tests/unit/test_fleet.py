"""Several real agents spoken to as one: whoever is lost says so, and the others go on."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import behaving
import pytest
from behaving import Result

from harness.cluster.connection import AgentConnection
from harness.cluster.fleet import Fleet
from harness.cluster.protocol import ClusterBrokenError, SideTask, TaskTimeoutError
from harness.errors import MeasurementError
from harness.messages import HANDED, Failed, Log, Message, Reset, Start, Stop, Tick

NODES = ["w0", "w1", "switch"]
ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 120.0
"""More than a busy machine takes."""


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    fleet = Fleet()
    for node in NODES:
        fleet.add(node, agent())
    yield fleet
    fleet.close()


def agent() -> AgentConnection:
    """What a container runs, but for the container."""
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    return AgentConnection([sys.executable, behaving.__file__], {"PYTHONPATH": path})


def said(fleet: Fleet, spec: Mapping[str, Any], timeout_s: float = PATIENCE_S) -> list[tuple[str, str]]:
    """Who said what, in the order of nodes; ticks and logs apart."""
    messages = fleet.task("behave", NODES[:2], spec, timeout_s)
    return sorted((m.node, m.kind) for m in messages if not isinstance(m, (Tick, Log)))


def test_all_nodes_are_heard(fleet: Fleet) -> None:
    assert said(fleet, {}) == [("w0", "exit"), ("w0", "result"), ("w1", "exit"), ("w1", "result")]


def test_a_lost_agent_is_an_error_of_its_node_and_can_be_replaced(fleet: Fleet) -> None:
    assert said(fleet, {"w1": "lose the agent"}) == [("w0", "exit"), ("w0", "result"), ("w1", "failed")]
    assert [fleet.serves(node) for node in NODES] == [True, False, True]
    fleet.add("w1", agent())
    assert said(fleet, {})[-1] == ("w1", "result")


def test_an_agent_that_is_lost_while_it_is_asked_costs_what_it_was_asked_for_and_not_the_cluster(fleet: Fleet) -> None:
    fleet._agents["w1"]._process.kill()
    with pytest.raises(MeasurementError, match="w1: its container has ended") as lost:
        fleet.request(dict.fromkeys(NODES, Stop()), PATIENCE_S)
    assert not isinstance(lost.value, ClusterBrokenError)
    fleet.add("w1", agent())
    assert said(fleet, {})[-1] == ("w1", "result")


def test_an_agent_that_only_stands_by_is_missed_too(fleet: Fleet) -> None:
    fleet._agents["switch"]._process.kill()
    for message in fleet.task("behave", NODES[:2], {"w0": "hang", "w1": "hang"}, PATIENCE_S):
        if isinstance(message, Failed):
            break
    assert message.node == "switch"


def test_what_goes_on_beside_a_task_ends_with_it(fleet: Fleet) -> None:
    beside = [SideTask("behave", "switch", {"switch": "hang"})]
    heard = [
        (m.node, m.kind) for m in fleet.task("behave", NODES[:2], {}, PATIENCE_S, beside) if not isinstance(m, Tick)
    ]
    assert {("w0", "exit"), ("w1", "exit")} <= set(heard)
    assert ("switch", "exit") not in heard
    again = fleet.task("behave", NODES, {}, PATIENCE_S)
    assert sorted(m.node for m in again if isinstance(m, Result)) == sorted(NODES), "its agent is free again"


def test_each_node_s_task_is_handed_its_file_and_the_next_one_is_not(fleet: Fleet, tmp_path: Path) -> None:
    contents = {"w0": b"more than a message carries" * 10_000, "w1": b"little"}
    with zipfile.ZipFile(tmp_path / "files.zip", "w") as archive:
        for node, content in contents.items():
            archive.writestr(node, content)
    handed = {node: zipfile.Path(tmp_path / "files.zip") / node for node in contents}
    for _ in range(2):
        heard = fleet.task("behave", NODES[:2], {"w0": "read", "w1": "read", HANDED: handed}, PATIENCE_S)
        found = {message.node: message.value for message in heard if isinstance(message, Result)}
        assert found == {node: hashlib.sha256(content).hexdigest() for node, content in contents.items()}
    assert ("w0", "failed") in said(fleet, {"w0": "read"})


def test_a_node_that_is_lost_before_it_is_handed_all_is_lost_as_ever(fleet: Fleet, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "files.zip", "w") as archive:
        archive.writestr("w1", b"content")
    fleet._agents["w1"]._process.kill()
    spec = {HANDED: {"w1": zipfile.Path(tmp_path / "files.zip") / "w1"}}
    assert said(fleet, spec) == [("w0", "exit"), ("w0", "result"), ("w1", "failed")]


def test_without_any_agent_the_cluster_is_broken(fleet: Fleet) -> None:
    with pytest.raises(ClusterBrokenError):
        said(fleet, dict.fromkeys(NODES, "lose the agent"))


def test_a_task_that_is_cut_short_leaves_agents_that_listen(fleet: Fleet) -> None:
    with pytest.raises(TaskTimeoutError):
        said(fleet, {"w0": "hang"}, timeout_s=0.5)
    assert ("w0", "result") in said(fleet, {})
    for message in fleet.task("behave", NODES[:2], {"w0": "hang"}, PATIENCE_S):
        if isinstance(message, Result):
            break  # and w0 hangs
    with pytest.raises(MeasurementError, match="KeyError"):
        fleet.request({"w0": Reset()}, 10)  # which this kind of cluster does not know
    assert ("w0", "result") in said(fleet, {})


def test_a_node_that_had_not_begun_when_a_task_was_cut_short_does_not_begin(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lost agent is heard of at once, while another's request to start may still be on its way."""
    slow, send = fleet._agents["w0"], AgentConnection._send

    def send_late(connection: AgentConnection, message: Message) -> None:
        if connection is slow and isinstance(message, Start):
            time.sleep(0.5)
        send(connection, message)

    monkeypatch.setattr(AgentConnection, "_send", send_late)
    fleet._agents["w1"]._process.kill()
    for message in fleet.task("behave", NODES[:2], {"w0": "hang"}, PATIENCE_S):
        if isinstance(message, Failed):
            break
    assert [thread.name for thread in threading.enumerate() if "_listen" in thread.name] == []
    fleet.add("w1", agent())
    assert said(fleet, {}) == [("w0", "exit"), ("w0", "result"), ("w1", "exit"), ("w1", "result")]
