"""What a step frees, the next one finds; and no thread of Gloo's takes the processor from another."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from harness.worker.process import SHORT_SLICE_NS

ROOT = Path(__file__).resolve().parents[2]

FAULTS_A_STEP = """
import resource, statistics, torch
from harness.worker.process import keep_freed_memory
{}
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step(): [torch.ones(10_000_000) for _ in range(4)]
def faults_of_a_step(): before = faults(); step(); return faults() - before
print(statistics.median(faults_of_a_step() for _ in range(11)))
"""
"""40 MB are more than glibc ever keeps by itself (32 MiB, mallopt(3)); the heap may still grow in a step or two."""


def faults_a_step(first: str) -> float:
    """Page faults of the median step of a process that allocates and frees 160 MB in each."""
    done = subprocess.run(
        [sys.executable, "-c", FAULTS_A_STEP.format(first)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def test_memory_that_was_freed_is_found_again() -> None:
    assert faults_a_step("keep_freed_memory()") < 10
    assert faults_a_step("") > 10, "else there is no need for it"


POLICIES = """
import os, sys, torch, torch.distributed as dist
from harness.worker.process import prepare_process
prepare_process()
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
dist.all_reduce(torch.ones(1))
for thread in os.listdir("/proc/self/task"):
    with open(f"/proc/self/task/{thread}/comm") as name:
        print(name.read().strip(), os.sched_getscheduler(int(thread)))
"""


def test_threads_that_gloo_starts_do_not_take_the_processor_by_waking_up(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", POLICIES, str(tmp_path / "store")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    of_gloo = [line.split()[1] for line in done.stdout.splitlines() if "gloo" in line]
    assert len(of_gloo) > 1
    assert {int(policy) for policy in of_gloo} == {os.SCHED_BATCH}


SLICES = """
import ctypes, platform, threading
from harness.worker.process import SCHED_ATTR, prepare_process
GETATTR = {"x86_64": 315, "aarch64": 275}[platform.machine()]
def told():
    told = ctypes.create_string_buffer(SCHED_ATTR.size)
    assert ctypes.CDLL(None).syscall(GETATTR, 0, told, SCHED_ATTR.size, 0) == 0
    print(SCHED_ATTR.unpack(told)[5])
told()
prepare_process(sleeps=True)
told()
thread = threading.Thread(target=told)
thread.start()
thread.join()
"""


def test_who_sleeps_most_of_the_time_has_short_slices_in_all_its_threads() -> None:
    done = subprocess.run([sys.executable, "-c", SLICES], cwd=ROOT, capture_output=True, text=True, check=True)
    before, *after = map(int, done.stdout.split())
    assert after == [SHORT_SLICE_NS, SHORT_SLICE_NS]
    assert before > SHORT_SLICE_NS
