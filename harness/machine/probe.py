"""What a cluster's network is worth: every link measured, and one large all-reduce against its bound."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from harness.cluster.protocol import Cluster
from harness.errors import MeasurementError
from harness.messages import AllReduced, Failed, FirstCollective
from harness.network.bounds import ring_bound_s
from harness.network.readings import Readings
from harness.network.topology import Topology

BOUND_S = 3.0
"""The tensor is as large as makes the bound about this long: what a slow link's bucket passes ahead of its rate, 0.06 s
at 10 Mbit/s, and what it takes until all links are full, must be a small part of it."""

TENSOR_BYTES = (1_000_000, 100_000_000)
UNSHAPED_TENSOR_BYTES = 50_000_000
PORT = 29400
TIMEOUT_S = 180.0


@dataclass(frozen=True)
class AllReduce:
    """A large all-reduce. The ratio is None where links are unshaped, and so nothing bounds it."""

    bytes: int
    seconds: float
    ratio_to_ring_bound: float | None


@dataclass(frozen=True)
class ProbeReport:
    """``bring_up_s``: from nothing to the first collective, torch included and the links' measurement apart."""

    workers: int
    readings: Readings
    all_reduce: AllReduce
    bring_up_s: float

    def as_json(self) -> dict[str, Any]:
        """For scripts: links, rtt_s.median, all_reduce, bring_up_s."""
        return {
            "workers": self.workers,
            "links": [link.model_dump() for link in self.readings.links],
            "round_trips": [trip.model_dump() for trip in self.readings.round_trips],
            "rtt_s": {"median": self.readings.rtt_median_s, "pairs": list(self.readings.rtt_s)},
            "all_reduce": vars(self.all_reduce),
            "bring_up_s": self.bring_up_s,
            "verification_s": self.readings.took_s,
        }


def probe(cluster: Cluster, topology: Topology) -> ProbeReport:
    """Bring a cluster up, measure it, and let it go.

    Raises:
        UsageError: the machine cannot carry what is asked.
        MeasurementError: a link is not what was asked, or the workers failed.
    """
    started = time.monotonic()
    with cluster:
        opened_s = time.monotonic() - started
        cluster.check(topology)
        started = time.monotonic()
        readings = cluster.use(topology)
        cluster.preload()
        size = tensor_bytes(topology)
        seconds, first_collective_at = _time_all_reduce(cluster, topology, size)
    bound = topology.ring_bound_s(size)
    return ProbeReport(
        workers=topology.workers,
        readings=readings,
        all_reduce=AllReduce(size, seconds, seconds / bound if bound else None),
        bring_up_s=opened_s + first_collective_at - started - readings.took_s,
    )


def tensor_bytes(topology: Topology) -> int:
    """A size that takes about ``BOUND_S`` on these links."""
    if topology.slowest_bps is None:
        return UNSHAPED_TENSOR_BYTES
    wanted = BOUND_S / ring_bound_s(1, topology.workers, topology.slowest_bps)
    smallest, largest = TENSOR_BYTES
    return int(min(max(wanted, smallest), largest)) // 4 * 4


def _time_all_reduce(cluster: Cluster, topology: Topology, size: int) -> tuple[float, float]:
    """Median seconds, and when the first collective was over (``time.monotonic()``)."""
    seconds, first_at = None, 0.0
    spec = {"bytes": size, "workers": topology.workers, "port": PORT}
    for message in cluster.run("all_reduce", spec, TIMEOUT_S):
        match message:
            case FirstCollective():
                first_at = time.monotonic()
            case AllReduced():
                seconds = message.seconds
            case Failed():
                raise MeasurementError(f"the all-reduce failed: {message.node}: {message.reason}")
    if seconds is None:
        raise MeasurementError("the all-reduce gave no result")
    return seconds, first_at
