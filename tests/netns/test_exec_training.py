"""A method in an unmodified script, over real links: what it learns, what it sends, and when it ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import pytest

from harness import attach
from harness.attach import Attachment
from harness.cluster.netns import NetnsCluster
from harness.messages import Output
from harness.network.topology import Topology
from harness.record.execution import Execution
from harness.run.attached import execute_attached
from harness.run.command import Job
from harness.scenario.links import Link

pytestmark = [pytest.mark.netns, pytest.mark.job]

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "scripts" / "ddp_cnn.py"
TWO = ("exec", "--on", "netns", "--workers", "2")
PAIR = Topology(workers=2, link=Link.model_validate({"rate": "50mbit"}))
STEPS = 8

METHODS = {"dgc": {"ratio": 0.2, "warmup_steps": 0}, "pactrain": {"density": 0.3, "warmup_steps": 2}}

BY_HAND = """
import baselines
baselines.register(model, baselines.get({name!r}).State(**{params!r}), optimizer=optimizer)
losses = []
"""

KEEP = "    optimizer.step()\n    losses.append(loss.item())\n"

ONE_AFTER_THE_OTHER = """
import json, os, runpy
for number, name in enumerate(["dgc", "pactrain"]):
    os.environ["MASTER_PORT"] = str(29500 + number)
    print(json.dumps([name, runpy.run_path(f"{name}.py", run_name="__main__")["losses"]]))
"""


def by_hand(name: str) -> str:
    """The script with ``baselines.register`` written in before its loop."""
    text = SCRIPT.read_text()
    for pattern, put in ((r"(?m)^(?=for step in)", BY_HAND), (r"    optimizer\.step\(\)\n", KEEP)):
        text, count = re.subn(pattern, put.format(name=name, params=METHODS[name]), text)
        assert count == 1
    return text


def losses_by_hand(cluster: NetnsCluster, folder: Path) -> dict[tuple[str, str], list[float]]:
    """What each rank learns with each method, step by step; scripts tell it, and nothing is put into them."""
    for name in METHODS:
        (folder / f"{name}.py").write_text(by_hand(name))
    (folder / "both.py").write_text(ONE_AFTER_THE_OTHER)
    printed: list[tuple[str, str]] = []

    def hear(output: Output) -> None:
        printed.extend((output.node, line) for line in output.lines if "[" in line)

    job = Job([sys.executable, "both.py", "--steps", f"{STEPS}"], folder, os.environ)
    metric = Attachment(observe=False, metric=r"acc: (?P<accuracy>[0-9.]+)")
    found = execute_attached(cluster, PAIR, job, metric, hear, ["pacbench"], folder)
    assert found.exit_code == 0, printed
    assert found.training is None
    assert [(metric.name, metric.steps) for metric in found.metrics] == [("accuracy", None)] * 2
    return {(node, name): losses for node, text in printed for name, losses in [json.loads(text)]}


def test_a_method_in_an_unmodified_script_does_what_it_does_when_it_is_written_in(
    pacbench: Callable[..., subprocess.CompletedProcess[str]], cluster: NetnsCluster, tmp_path: Path
) -> None:
    expected = losses_by_hand(cluster, tmp_path)

    for name, params in METHODS.items():
        given = [part for key, value in params.items() for part in ("--param", f"{key}={value}")]
        options = ("--rate", "50mbit", "--method", name, *given, "--steps", f"{STEPS}", "--out", f"run-{name}")
        done = pacbench(*TWO, *options, "--", sys.executable, str(SCRIPT), "--steps", "100000")
        assert done.returncode == 0, done.stderr
        ranks = attach.read(tmp_path / f"run-{name}" / "findings")
        losses = {(f"w{rank.rank}", name): [step.loss for step in rank.steps] for rank in ranks}
        assert losses == {key: curve for key, curve in expected.items() if key[1] == name}, "bit for bit"

        found = Execution.load(tmp_path / f"run-{name}")
        training = found.training
        assert training is not None
        assert (training.method, training.steps, training.shortfall) == (name, STEPS, None)
        assert [step.loss for step in training.curve] == [fmean(pair) for pair in zip(*losses.values(), strict=True)]
        assert training.sent_bytes == pytest.approx(training.formula_bytes, rel=0.05)
        assert "counted ÷ formula" in (tmp_path / f"run-{name}" / "exec.html").read_text()
        assert (tmp_path / f"run-{name}" / "plots" / "training.csv").exists()
