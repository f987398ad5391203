"""A cluster of network namespaces in a private universe: no root, no container engine, nothing on the host."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from types import TracebackType
from typing import Any

from typing_extensions import Self

from harness.agent import Message
from harness.cluster.base import AgentConnection
from harness.errors import MeasurementError, UsageError
from harness.linkprobe import Readings
from harness.network import Topology
from harness.scenario import UNSHAPED, Link
from harness.trace import PLAYER
from harness.units import format_rate

HEADROOM = 1.1
"""How much more than a link's rate the machine must carry before the rate may be called the limit."""

OWN_NAMESPACES = ["--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"]

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""A worker has one thread to compute with, and the agent none beside its own: it forks."""


@cache
def universe_command() -> tuple[str, ...]:
    """How a private universe is started on this machine: by anyone, or by root where that is not allowed.

    Raises:
        MeasurementError: neither works; the message says what would.
    """
    reasons = []
    for users in (["--user", "--map-root-user"], []):
        command = ["unshare", *users, *OWN_NAMESPACES]
        try:
            tried = subprocess.run([*command, "true"], capture_output=True, text=True, timeout=30)
        except FileNotFoundError:
            raise MeasurementError("unshare is missing; on Debian: apt-get install util-linux") from None
        if tried.returncode == 0:
            return tuple(command)
        reasons.append(" ".join(tried.stderr.split()))
    raise MeasurementError(
        f"no private network can be made here: user namespaces are not allowed ({reasons[0]}) and this is not root; "
        "allow them (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, or the AppArmor profile "
        "of unshare), or run pacbench with sudo"
    )


class NetnsCluster:
    """See the module. Entered, it runs one process outside and a universe inside."""

    name = "netns"

    surely_carried_bps = 1_000_000_000
    """Sum over all workers up to which the ceiling of this machine is not even asked for."""

    build_timeout_s = 60.0
    preload_timeout_s = 300.0
    probe_timeout_s = 120.0

    def __init__(self) -> None:
        self._current: tuple[Topology, Readings] | None = None
        self._ceilings: dict[int, float] = {}

    def __enter__(self) -> Self:
        command = [*universe_command(), sys.executable, "-m", "harness.cluster.universe"]
        self._agent = AgentConnection(command, {**os.environ, **ONE_THREAD})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._agent.close()

    def check(self, topology: Topology) -> None:
        """See ``Cluster.check``; what this machine carries is measured, once for each number of workers."""
        self._agent.request({"op": "check", "topology": _as_json(topology)}, self.build_timeout_s)
        rates = [queue.pipe.rate_bps for queue in topology.queues() if queue.pipe.rate_bps]
        asked, workers = max(rates, default=0), topology.workers
        if asked * workers <= self.surely_carried_bps:
            return
        ceiling_bps = self.ceiling_bps(workers)
        if asked * HEADROOM > ceiling_bps:
            allowed = f"up to {format_rate(ceiling_bps / HEADROOM)}, what this machine carries for {workers} workers"
            raise UsageError.at("scenario", "link.rate", format_rate(asked), allowed)

    def ceiling_bps(self, workers: int) -> float:
        """What each of so many workers can send while all do, with nothing shaped, in bits per second."""
        if workers not in self._ceilings:
            topology = Topology(workers=workers, link=Link.model_validate({"rate": UNSHAPED}))
            self._build(topology)
            self._ceilings[workers] = self._probe("probe_ceiling", topology)["ceiling_bps"]
        return self._ceilings[workers]

    def use(self, topology: Topology) -> Readings:
        """See ``Cluster.use``."""
        if self._current and self._current[0] == topology:
            return self._current[1]
        readings = self.measure(topology)
        if complaints := readings.complaints():
            raise MeasurementError("; ".join(complaints))
        self._current = (topology, readings)
        return readings

    def verify(self) -> Readings:
        """See ``Cluster.verify``."""
        assert self._current, "a topology must be in use"
        if self._current[0].link.trace:
            self._agent.request({"op": "reset"}, self.build_timeout_s)
        readings = self._measured(self._current[0])
        if readings.complaints():
            self._current = None  # it must not be used again
        return readings

    def measure(self, topology: Topology, counted: int | None = None) -> Readings:
        """Build a topology and say what it is, whatever that is; see ``linkprobe.measure``."""
        self._build(topology)
        return self._measured(topology, counted)

    def preload(self, dataset: str | None = None, data_dir: str | None = None) -> None:
        """See ``Cluster.preload``."""
        self._agent.request({"op": "preload", "dataset": dataset, "data_dir": data_dir}, self.preload_timeout_s)

    def run(self, task: str, spec: Mapping[str, Any], timeout_s: float) -> Iterator[Message]:
        """See ``Cluster.run``."""
        assert self._current, "a topology must be in use"
        topology = self._current[0]
        if topology.link.trace is None or "start_file" not in spec:
            return self._agent.task(task, topology.worker_nodes, spec, timeout_s)
        self._agent.request({"op": "reset"}, self.build_timeout_s)
        player = ("play", PLAYER, {"topology": _as_json(topology), "start_file": spec["start_file"]})
        return self._agent.task(task, topology.worker_nodes, spec, timeout_s, beside=player)

    def _build(self, topology: Topology) -> None:
        self._current = None
        self._agent.request({"op": "build", "topology": _as_json(topology)}, self.build_timeout_s)

    def _measured(self, topology: Topology, counted: int | None = None) -> Readings:
        return Readings.model_validate_json(self._probe("probe_links", topology, counted)["readings"])

    def _probe(self, task: str, topology: Topology, counted: int | None = None) -> Message:
        """Run a probing task on all nodes; what the switch found."""
        found: Message = {}
        spec = {"topology": _as_json(topology), "counted": counted}
        for message in self._agent.task(task, topology.nodes, spec, self.probe_timeout_s):
            if message["kind"] == "error":
                raise MeasurementError(f"the links cannot be measured: {message['node']}: {message['reason']}")
            if message["kind"] == "result":
                found = message
        return found


def _as_json(topology: Topology) -> dict[str, Any]:
    dumped: dict[str, Any] = topology.model_dump(mode="json", by_alias=True)
    return dumped
