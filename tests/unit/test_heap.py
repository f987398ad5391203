"""What a step frees, the next one finds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

FAULTS_A_STEP = """
import resource, torch
from harness.heap import keep_what_is_freed
{}
def step(): [torch.ones(7_500_000) for _ in range(4)]
for _ in range(3): step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5): step()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 5)
"""


def faults_a_step(first: str) -> int:
    """Page faults of each step of a process that allocates and frees 120 MB in it."""
    done = subprocess.run(
        [sys.executable, "-c", FAULTS_A_STEP.format(first)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_memory_that_was_freed_is_found_again() -> None:
    assert faults_a_step("keep_what_is_freed()") < 100
    assert faults_a_step("") > 1000, "else there is no need for it"
