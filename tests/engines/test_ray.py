"""A real Ray: a cluster of nodes on one machine, whose tasks share a run, and a node that dies."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from host import PACBENCH, some_trial_is_done, wait_until
from ray._private.node import Node
from ray.cluster_utils import Cluster
from shared_run import SMALL, TASKS, check_all_ran_once

from harness.record.claims import Claims

OBJECT_STORE_BYTES = 80 << 20


@pytest.fixture
def cluster(_host_is_left_as_it_was: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A node with one CPU for each task."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    node = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=node)
    try:
        for _ in range(TASKS - 1):
            made.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES)
        made.wait_for_nodes()
        yield made
    finally:
        made.shutdown()


def test_tasks_share_a_run_and_a_node_that_dies_loses_nothing(cluster: Cluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    order = ("submit", *SMALL, "--engine", "ray", "--tasks", str(TASKS), "--out", str(run), "--go")
    submitted = subprocess.Popen(
        [*PACBENCH, *order],
        env={**os.environ, "RAY_ADDRESS": cluster.address},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_until(lambda: some_trial_is_done(run))
        part, node = wait_until(lambda: caught_at_work(cluster, run))
        cluster.remove_node(node, allow_graceful=False)
        output, _ = submitted.communicate(timeout=480)
    finally:
        submitted.kill()
    assert submitted.returncode == 0, output
    check_all_ran_once(run)
    assert Claims(run).latest()[part].number > 1, "what the dead node held fell to another one"
    assert sorted(log.name.rpartition("-")[2] for log in run.glob("submit-*.log")) == [
        f"{n}.log" for n in range(1, TASKS + 1)
    ]


def caught_at_work(cluster: Cluster, run: Path) -> tuple[str, Node] | None:
    """A part of a run that a task holds, which is stopped, so that it does not come to its end; and the task's node."""
    raylets = {raylet.process.pid: node for node in cluster.worker_nodes for raylet in node.all_processes["raylet"]}
    for part, claim in Claims(run).latest().items():
        with contextlib.suppress(psutil.NoSuchProcess):
            holder = psutil.Process(claim.holder.pid)
            above = {process.pid for process in holder.parents()} & raylets.keys()
            if above:
                holder.suspend()
                if not claim.has_ended:
                    return part, raylets[above.pop()]
                holder.resume()
    return None
