"""The record of a command whose numbers are made up."""

from __future__ import annotations

from typing import Any

from harness.cluster.fake import FakeCluster
from harness.network.topology import Topology
from harness.record.execution import Execution, LinkTraffic, Sample, WorkerUse
from harness.scenario.links import Link


def execution(**changes: Any) -> Execution:
    """Two workers send 100 bytes a second for two seconds, and get as many."""
    topology = Topology(workers=2, link=Link.model_validate({"rate": "10mbit"}))
    with FakeCluster() as cluster:
        before = cluster.use(topology)
    samples = tuple(Sample(time_s=time_s, wire_bytes=100 * time_s, backlog_bytes=3 * time_s) for time_s in (0, 1, 2))
    counted: dict[str, Any] = {"rate_bps_asked": 10**7, "wire_bytes": 200, "payload_bytes": 68, "packets": 2}
    links = tuple(
        LinkTraffic(link=f"w{worker}", direction=direction, worker=worker, drops=0, samples=samples, **counted)
        for worker in range(2)
        for direction in ("up", "down")
    )
    uses = tuple(
        WorkerUse(worker=f"w{worker}", exit_codes={worker: 0}, retransmits=0, cpu_s=1.0, peak_memory_bytes=None)
        for worker in range(2)
    )
    plain: dict[str, Any] = {
        "command": ("python", "train.py"),
        "folder": "/somewhere",
        "cluster": "netns",
        "workers": 2,
        "per_node": 1,
        "network": {},
        "network_in_words": "2 workers at 10 Mbit/s",
        "ending": "finished",
        "reason": "",
        "exit_code": 0,
        "wall_time_s": 2.0,
        "links": links,
        "uses": uses,
        "before": before,
        "after": before,
        "provenance": {"command": ["pacbench", "exec"], "commit": "abc"},
    }
    return Execution(**{**plain, **changes})
