"""``pacbench doctor``: each 'no' that it can say has its fix on the page of troubles."""

from __future__ import annotations

import re
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import NoReturn

import pytest

from harness import programs
from harness.cluster import netns, uml
from harness.cluster.docker import engine
from harness.cluster.docker.engine import EngineError
from harness.cluster.protocol import Check
from harness.errors import MeasurementError
from harness.machine import doctor

PAGE = Path(__file__).resolve().parents[2] / "docs" / "troubleshooting.md"
NEVER_NO = {"ceiling"}
"""It is a number."""


def sections() -> dict[str, str]:
    """What the page says, by the heading; some are of several checks."""
    parts = re.split(r"^## (.+)\n", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {name: text for heading, text in zip(parts[::2], parts[1::2], strict=True) for name in heading.split(", ")}


def refuse(*_: object) -> NoReturn:
    raise EngineError("it is not there")


def forbid() -> NoReturn:
    raise MeasurementError("no namespaces")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has nothing, and is slow in all ways."""
    monkeypatch.setattr(programs, "find", lambda program: None)
    monkeypatch.setattr(netns, "universe_command", forbid)
    monkeypatch.setattr(uml, "_has_amx", lambda: True)
    monkeypatch.setattr(engine, "connect", refuse)
    monkeypatch.setattr(doctor, "timer_resolution_s", lambda: 1.0)
    monkeypatch.setattr(doctor, "this_machine", lambda: SimpleNamespace(cpu_count=1))
    monkeypatch.setattr(doctor, "read_setting", lambda path: "hpet" if "clocksource" in path else "")


@pytest.fixture
def incomplete(monkeypatch: pytest.MonkeyPatch, bare: None) -> None:
    """The same with namespaces and an engine, whose kernel has no queues and which cannot compose."""
    monkeypatch.setattr(programs, "find", lambda program: f"/usr/bin/{program}")
    monkeypatch.setattr(programs, "run", lambda command, **_: CompletedProcess(command, 2, "", "unknown qdisc"))
    monkeypatch.setattr(netns, "universe_command", lambda: ["unshare"])
    monkeypatch.setattr(netns, "_ceiling", lambda: Check("ceiling", True, "40 Gbit/s"))
    monkeypatch.setattr(engine, "connect", lambda: SimpleNamespace(version=lambda: {"Version": "27"}))
    monkeypatch.setattr(engine, "compose_version", refuse)


def noes() -> set[str]:
    return {check.name for check in doctor.examine() if not check.ok}


def test_each_no_has_its_heading_and_each_heading_its_no(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = set[str]()
    for machine in ("bare", "incomplete"):
        request.getfixturevalue(machine)
        said |= noes()
    monkeypatch.setattr(engine, "compose_version", lambda: "2.30")
    monkeypatch.setattr(engine, "image_facts", refuse)
    said |= noes()
    assert said == set(sections()) - NEVER_NO


@pytest.mark.parametrize(
    ("heading", "needed"),
    [
        *((program, [program]) for program in netns.PROGRAMS),
        ("user-mode-linux", [uml.KERNEL, "busybox", uml.COMPILER]),
    ],
)
def test_the_page_installs_what_is_needed(heading: str, needed: list[str]) -> None:
    named = set(re.findall(r"[\w.-]+", sections()[heading]))
    assert {word for program in needed for word in programs.package(program).split()} <= named
