"""A link property is one row: a toy one is added from outside, and everything that a property needs follows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.scenario import properties
from harness.scenario.links import PROPERTIES, Link, Pipe

ROOT = Path(__file__).resolve().parents[2]

TOY = """
import json
from typing import Annotated

from pydantic import Field

from harness.scenario import properties
from harness.scenario.properties import Property, each
from harness.units import TimeS


class WithSlots(properties.LinkProperties):
    slot_s: Annotated[
        TimeS,
        Field(alias="slot"),
        Property("slot {}", shown="slot.min-delay", needs_netem=True, calibrated=each("slot", "2ms", rate="20mbit")),
    ] = 0.0


properties.LinkProperties = WithSlots  # before anything reads the table

from harness.machine import calibrate
from harness.network.qdisc import check_read_back, qdisc
from harness.network.topology import Topology
from harness.scenario.schema import Case
from harness.scenario.section import checked_section

said = {"rate": "20mbit", "slot": "2ms", "workers": {"w1": {"slot": "3ms"}}}
link = checked_section(Case, {"cluster": {}, "link": said, "train": {}}, "toy.toml").link
queue = next(Topology(workers=2, link=link).queues())
shown = [{"kind": "netem", "dev": "eth0", "root": True, "options": {"rate": {"rate": 2.5e6}}}]
try:
    check_read_back(queue.pipe, queue, shown)
    complaint = None
except ValueError as error:
    complaint = str(error)
shown[0]["options"]["slot"] = {"min-delay": 0.002}
check_read_back(queue.pipe, queue, shown)
print(json.dumps({
    "tc": qdisc(queue.pipe),
    "of w1": qdisc(link.pipe("w1", "down")),
    "complaint": complaint,
    "slowed": qdisc(link.slowed(4).pipe("w1", "down")),
    "said": Topology(workers=2, link=link).describe_extras(),
    "file": link.model_dump(mode="json", by_alias=True)["slot"],
    "calibrated": [each for each in calibrate.LINKS if "slot" in each],
}))
"""


def test_a_property_that_is_added_from_outside_is_all_that_a_property_can_be() -> None:
    command = [sys.executable, "-c", TOY]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["tc"].endswith(" slot 2000us rate 20000000bit")
    assert " slot 3000us " in found["of w1"]
    assert found["complaint"] == "w0/eth0: asked for slot_s = 0.002, the kernel has 0"
    assert found["slowed"].endswith(" slot 12000us rate 5000000bit")
    assert "slot 2 ms" in found["said"]
    assert found["file"] == "0.002s"
    assert found["calibrated"] == [{"rate": "20mbit", "slot": "2ms"}]


def test_a_field_without_a_property_is_refused() -> None:
    class Forgetful(properties.LinkProperties):
        colour: str = "red"

    with pytest.raises(TypeError, match="Forgetful.colour: found no Property"):
        properties.rows(Forgetful)


@pytest.mark.parametrize("row", PROPERTIES, ids=lambda row: row.name)
def test_every_row_says_what_it_means_and_names_fields_that_there_are(row: properties.Property) -> None:
    assert Pipe.model_fields[row.name].description
    assert not row.only_with or row.only_with in Pipe.model_fields
    assert row.shown or not row.needs_netem, "what netem is told must be read back"
    assert not row.needs_netem or row.calibrated, "what netem does must be measured"
    for fields in row.calibrated:
        assert row.key in fields
        Link.model_validate(fields)
