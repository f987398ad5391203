"""Scripts that train by what others have built on torch, unmodified: FSDP2, Accelerate, Lightning."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from harness.attach import Attachment
from harness.cluster.netns import NetnsCluster
from harness.messages import Output
from harness.network.topology import Topology
from harness.record.execution import Execution
from harness.run.attached import execute_attached
from harness.run.command import Job
from harness.scenario.links import Link

pytestmark = [pytest.mark.netns, pytest.mark.job]

SCRIPTS = Path(__file__).resolve().parents[2] / "examples" / "scripts"
PAIR = Topology(workers=2, link=Link.model_validate({"rate": "200mbit"}))
STEPS = 8

METHODS = {
    "dense": None,
    "dgc": {"ratio": 0.05, "warmup_steps": 0},
    "pactrain": {"density": 0.3, "warmup_steps": 2},
}


def executed(
    cluster: NetnsCluster, script: str, folder: Path, into_it: Attachment, steps: int
) -> tuple[str, Execution]:
    """What a script prints, and the record."""
    heard: list[Output] = []
    job = Job([sys.executable, str(SCRIPTS / script), "--steps", f"{steps}"], folder, os.environ)
    found = execute_attached(cluster, PAIR, job, into_it, heard.append, ["pacbench"], folder)
    printed = "\n".join(line for said in heard for line in said.lines)
    assert found.exit_code == 0, printed
    return printed, found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("framework", ["accelerate", "lightning"])
def test_a_frameworks_own_ddp_sends_what_the_formula_says(
    cluster: NetnsCluster, framework: str, method: str, tmp_path: Path
) -> None:
    params = METHODS[method]
    into_it = Attachment(steps=STEPS) if params is None else Attachment(method=method, params=params, steps=STEPS)
    _, found = executed(cluster, f"{framework}_digits.py", tmp_path, into_it, steps=10 * STEPS)
    training = found.training
    assert training is not None
    assert (training.steps, training.optimizer, training.shortfall) == (STEPS, "SGD", None)
    assert training.sent_bytes == pytest.approx(training.formula_bytes, rel=0.05)


def test_fsdp2_is_carried_as_it_is(cluster: NetnsCluster, tmp_path: Path) -> None:
    steps = 3
    printed, found = executed(cluster, "fsdp2_language_model.py", tmp_path, Attachment(observe=False), steps)
    told = re.search(r"parameters: (\d+)", printed)
    assert told
    half_bytes = 4 * int(told[1]) / 2
    (up,) = [link for link in found.links if (link.link, link.direction) == ("w0", "up")]
    # An all-gather before each pass, and a reduce-scatter, which Gloo does at the cost of an all-reduce or less.
    assert 2.8 * half_bytes < up.payload_bytes / steps < 4.2 * half_bytes
    assert found.training is None
