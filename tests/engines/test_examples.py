"""The examples for schedulers that cannot be run here have the shape that their schedulers publish."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from host import PACBENCH

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "cluster"
KUBERNETES = "1.33"


def job() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((EXAMPLES / "kubernetes.yaml").read_text())
    return found


def test_the_job_is_one_of_kubernetes() -> None:
    kubernetes_validate.validate(job(), KUBERNETES, strict=True)


def test_a_field_that_kubernetes_does_not_know_is_found() -> None:
    wrong = job()
    wrong["spec"]["completion"] = 4
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES, strict=True)


def test_the_matrix_is_a_workflow(tmp_path: Path) -> None:
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
    assert subprocess.run([*check, str(EXAMPLES / "matrix.yml")], capture_output=True).returncode == 0
    wrong = tmp_path / "wrong.yml"
    wrong.write_text((EXAMPLES / "matrix.yml").read_text().replace("runs-on:", "run-on:"))
    assert subprocess.run([*check, str(wrong)], capture_output=True).returncode == 1


def commands() -> list[list[str]]:
    """What both would run of pacbench."""
    (container,) = job()["spec"]["template"]["spec"]["containers"]
    steps = yaml.safe_load((EXAMPLES / "matrix.yml").read_text())["jobs"]["run"]["steps"]
    lines = [step["run"] for step in steps if step.get("run", "").startswith("pacbench")]
    return [container["command"], *(re.sub(r"\$\{\{ matrix\.rate \}\}", "50mbit", line).split() for line in lines)]


@pytest.mark.parametrize("command", commands(), ids=["kubernetes", "matrix"])
def test_its_command_runs(command: list[str], tmp_path: Path) -> None:
    arguments = [word.replace("/shared", str(tmp_path)) for word in command[1:]]
    small = ["--on", "fake", "--rounds", "1", "--set", "train.steps=24", "--method", "topk"]
    done = subprocess.run([*PACBENCH, *arguments, *small], cwd=tmp_path, capture_output=True, text=True, timeout=480)
    assert done.returncode == 0, done.stderr
