"""Whatever workers report, if it is of the right types, becomes rows that are read and shown, or one line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import only
from tries import tries

from harness.cluster.fake import FakeCluster, recite
from harness.errors import PacbenchError
from harness.messages import Events, Message, ProtocolError, decode, encode
from harness.plan.plan import Plan, make
from harness.plan.trial import Trial
from harness.record.store import Store
from harness.report import page
from harness.report.figures import registry
from harness.run import execute
from harness.scenario.load import load

WHOLE = st.integers() | st.sampled_from([-1, 0, 2**31, 2**63 - 1, 2**63, -(2**63) - 1, 10**400])
REAL = st.floats() | st.sampled_from([0.0, -0.0, 1e308, -1e308, 5e-324, math.inf, -math.inf, math.nan])
TEXT = st.text(max_size=20) | st.sampled_from(["accuracy", "step_s", "test_loss", "comm_s", "\0", "\ud800"])
ROW = (WHOLE, REAL, TEXT, REAL)
OF_TYPE: dict[type, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: WHOLE,
    float: REAL,
    str: TEXT,
    type(None): REAL,
}


@pytest.fixture(scope="module")
def plan() -> Plan:
    few = ["rounds=1", "train.steps=40", "train.pace=none", "cluster.workers=2", "train.target=accuracy 50%"]
    return make(only(load("quickstart", few), ["topk"]), "fake")


def replaced(message: Message, data: st.DataObject) -> Message:
    """One thing in it is another of its type; what no agent could have said stays as it was."""
    content = json.loads(encode(message))
    if isinstance(message, Events):
        row = data.draw(st.sampled_from(content["rows"]))
        place = data.draw(st.integers(0, 3))
        row[place] = data.draw(ROW[place])
    else:
        name = data.draw(st.sampled_from(sorted(content.keys() - {"kind", "node"})))
        content[name] = data.draw(OF_TYPE.get(type(content[name]), st.just(content[name])))
    try:
        return decode(json.dumps(content))
    except ProtocolError:
        return message


@tries(15)
@given(st.data())
def test_whatever_workers_report_is_stored_and_shown_or_one_line(
    plan: Plan, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    monkeypatch.setattr(registry, "figures", lambda for_paper=False: [])

    def script(trial: Trial) -> Iterator[Message]:
        said = [*recite(trial)]
        if trial.method.name == "topk":
            for _ in range(data.draw(st.integers(1, 3))):
                number = data.draw(st.integers(0, len(said) - 1))
                said[number] = replaced(said[number], data)
        return iter(said)

    complaint = ""
    store = Store.create(tmp_path_factory.mktemp("run") / "run", plan.scenario)
    try:
        with FakeCluster(script) as cluster:
            execute.run(plan, store, cluster, lambda progress: None, lambda *how: None)
    except PacbenchError as error:
        complaint = str(error)
    assert "\n" not in complaint
    assert len(store.trials()) == len(plan.trials)
    store.events()
    page.write(store)
