"""A real Ray: a cluster of four nodes on one machine, whose tasks share a run, and a node that dies."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from host import PACBENCH, wait_until
from ray.cluster_utils import Cluster
from shared_run import SMALL, check_all_ran_once

from harness.record.claims import Claims
from harness.record.store import Store

OBJECT_STORE_BYTES = 80 << 20


@pytest.fixture
def cluster(_host_is_left_as_it_was: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Four nodes with one CPU each."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    node = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=node)
    try:
        for _ in range(3):
            made.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES)
        made.wait_for_nodes()
        yield made
    finally:
        made.shutdown()


def test_tasks_share_a_run_and_a_node_that_dies_loses_nothing(cluster: Cluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    order = ("submit", *SMALL, "--engine", "ray", "--tasks", "4", "--out", str(run), "--go")
    submitted = subprocess.Popen(
        [*PACBENCH, *order],
        env={**os.environ, "RAY_ADDRESS": cluster.address},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_until(lambda: len(held(run)) >= 4 and len(Store.open(run).trials()) >= 2)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        output, _ = submitted.communicate(timeout=240)
    finally:
        submitted.kill()
    assert submitted.returncode == 0, output
    check_all_ran_once(run)
    assert sorted(log.name.rpartition("-")[2] for log in run.glob("submit-*.log")) == [f"{n}.log" for n in range(1, 5)]


def held(run: Path) -> list[str]:
    """The parts that are held by somebody."""
    latest = Claims(run).latest() if (run / "claims").exists() else {}
    return [part for part, claim in latest.items() if not claim.has_ended]
