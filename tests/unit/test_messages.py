"""What harness, agents and workers say to each other: read as it was written, or refused."""

from __future__ import annotations

import json
import math
import re
from base64 import b64encode
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from harness.cluster.guest import GREETING
from harness.messages import (
    KINDS,
    Done,
    Events,
    Exit,
    Failed,
    Message,
    ProtocolError,
    QueuesSeen,
    QueueUse,
    Trained,
    decode,
    encode,
)

OBJECTS = st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.lists(st.floats(allow_nan=False)))
"""What JSON can hold."""

STEP = st.integers(-(2**31), 2**31 - 1)
STEPS = {
    **dict.fromkeys(("steps", "steady_from_step"), STEP),
    "first_non_finite": st.none() | st.tuples(STEP, st.text()),
    "rows": st.lists(st.tuples(STEP, st.floats(), st.text(), st.floats())),
}
"""Fields that hold steps."""

PARTS = {"part": st.binary().map(lambda content: b64encode(content).decode())}
"""Fields that hold bytes."""


@pytest.mark.parametrize("kind", sorted(name for name in KINDS if KINDS[name].__module__ == "harness.messages"))
def test_every_kind_is_read_as_it_was_written(kind: str) -> None:
    types = {field.name: str(field.type) for field in fields(KINDS[kind])}  # type: ignore[arg-type]
    objects = {name: OBJECTS for name, said in types.items() if "Any" in said}
    others = {name: strategy for name, strategy in {**STEPS, **PARTS}.items() if name in types}

    @given(st.builds(KINDS[kind], **objects, **others))
    def comes_back(message: Message) -> None:
        line = encode(message)
        assume(not re.search(rb"\d{19}", line))  # whole numbers have 64 bits
        assert line.endswith(b"\n")
        assert line.count(b"\n") == 1
        assert repr(decode(line)) == repr(message)

    comes_back()


@pytest.mark.parametrize("part", ["A", "AAA", "AA=A", "AAAA\n", "%%%%", "AAAA AAAA"])
def test_a_part_of_a_file_is_nothing_but_base64(part: str) -> None:
    with pytest.raises(ProtocolError):
        decode(json.dumps({"kind": "saved", "steps": 1, "part": part, "is_last": False}))


def test_the_node_is_filled_in_where_the_message_does_not_say_it() -> None:
    assert decode(encode(Exit(code=0), "w3")).node == "w3"
    assert decode(encode(Exit(code=0, node="w1"), "w3")).node == "w1"


def test_numbers_that_are_none_travel_too() -> None:
    rows = [(0, 0.5, "loss", math.nan), (1, 1.0, "loss", math.inf)]
    heard = decode(encode(Events(rows=rows)))
    assert isinstance(heard, Events)
    assert math.isnan(heard.rows[0][3])
    assert heard.rows[1] == rows[1]


def test_what_is_nested_keeps_its_type() -> None:
    heard = decode(encode(QueuesSeen(queues={"eth0": QueueUse(drops=1, most_backlog_bytes=2)})))
    assert isinstance(heard, QueuesSeen)
    assert heard.queues["eth0"].drops == 1


@pytest.mark.parametrize(
    "content",
    [
        {"kind": "no such kind"},
        {"op": "start"},
        {"kind": "exit", "node": "w0"},
        {"kind": "exit", "code": "nine"},
        {"kind": "exit", "code": 0, "cod": 1},
        {"kind": "events", "rows": [[0, 0.5, "loss"]]},
        {"kind": "events", "rows": [[2**31, 0.5, "loss", 1.0]]},
        {"kind": "exit", "code": 2**63},
        {"kind": "log", "text": "\ud800"},
        ["exit"],
    ],
    ids=str,
)
def test_what_is_no_message_is_refused_in_one_line(content: Any) -> None:
    with pytest.raises(ProtocolError, match="not a message of this version") as refused:
        decode(json.dumps(content))
    assert "\n" not in str(refused.value)


def test_a_misspelt_field_cannot_be_said() -> None:
    with pytest.raises(ValueError, match="raeson"):
        Failed(raeson="typing")  # type: ignore[call-arg]


def test_a_kernel_that_has_booted_says_so_as_an_agent_would() -> None:
    """Its first process imports nothing of ours."""
    assert decode(GREETING) == Done(op="boot")


def test_a_result_has_all_that_a_row_needs_and_no_field_twice() -> None:
    names = [field.name for field in fields(Trained)]  # type: ignore[arg-type]
    assert len(names) == len(set(names))
    assert {"payload_bytes", "parameters_identical", "yardstick_s"} <= set(names)
