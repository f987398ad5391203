"""The fixture, in a pytest of its own on the scripted cluster."""

from __future__ import annotations

import subprocess
import sys
from xml.etree import ElementTree

import pytest

TEST = '''
from dataclasses import replace

import pytest

from harness.cluster.fake import FakeCluster, recite
from harness.messages import Events


def slowed(trial):
    """Steps of top-k take a half longer."""
    for message in recite(trial):
        if isinstance(message, Events) and trial.method.name == "topk":
            rows = [
                (step, clock_s, kind, value * 1.5 if kind == "step_s" else value)
                for step, clock_s, kind, value in message.rows
            ]
            message = replace(message, rows=rows)
        yield message


OVERRIDES = ["train.pace=none", "train.steps=40", "baseline_16bit=dense"]


def measure(pacbench, script=recite, **how):
    settings = {"methods": ["topk"], "rounds": 4, "overrides": OVERRIDES, **how}
    return pacbench("quickstart", cluster=FakeCluster(script), **settings)


@pytest.fixture(scope="module")
def before(pacbench):
    return measure(pacbench)
'''


TESTS = {
    "test_unchanged": (
        "measure(pacbench).must_keep_its_throughput(against=before.measured.where)\n"
        "    assert before.speedup('topk').low > 5",
        "passed",
        [],
    ),
    "test_slower": (
        "measure(pacbench, slowed).must_keep_its_throughput(against=before.measured.where)",
        "failed",
        ["regression at a limit of 10 %", "+50."],
    ),
    "test_within_its_limit": (
        "measure(pacbench, slowed).must_keep_its_throughput(against=before.measured.where, max_slowdown=0.7)",
        "passed",
        [],
    ),
    "test_without_a_reference": (
        "before.must_keep_its_throughput(against='nosuch')",
        "failed",
        ["pacbench: command line: RUN or REFERENCE: found 'nosuch'"],
    ),
    "test_of_a_method_that_was_not_run": (
        "before.speedup('nosuch')",
        "failed",
        ["pacbench: speedup: found 'nosuch'; allowed: dense, topk"],
    ),
    "test_at_a_limit_in_percent": (
        "before.must_keep_its_throughput(against=before.measured.where, max_slowdown=10)",
        "failed",
        ["pacbench: max_slowdown: found 10; allowed: a share above 0, up to 1, such as 0.1"],
    ),
    "test_without_a_method": (
        "measure(pacbench, methods=['nosuch'])",
        "failed",
        ["--method: found 'nosuch'"],
    ),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """Test -> how it ended, and what it said; all in one pytest, which imports torch once."""
    folder = tmp_path_factory.mktemp("mine")
    bodies = [f"def {name}(pacbench, before):\n    {body}\n" for name, (body, _, _) in TESTS.items()]
    (folder / "test_mine.py").write_text("\n\n".join([TEST, *bodies]))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "harness.pytest_plugin", "--junit-xml", "found.xml"]
    subprocess.run([*command, "test_mine.py"], cwd=folder, capture_output=True, timeout=250)
    cases = ElementTree.parse(folder / "found.xml").iter("testcase")
    return {
        case.get("name", ""): (
            "failed" if case.find("failure") is not None else "passed" if len(case) == 0 else "error",
            "".join(case.itertext()),
        )
        for case in cases
    }


@pytest.mark.parametrize("name", TESTS)
def test_a_test_of_ones_own_passes_and_fails_as_the_gate_does(outcomes: dict[str, tuple[str, str]], name: str) -> None:
    _, expected, says = TESTS[name]
    outcome, text = outcomes[name]
    assert outcome == expected, text
    for part in says:
        assert part in text
    assert "Traceback" not in text
