"""A cluster of network namespaces in a private universe: no root, no container engine, nothing on the host."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from typing_extensions import Self

from harness import programs
from harness.cluster.connection import AgentConnection
from harness.cluster.emulated import EmulatedCluster, as_json, preload_request, watchers
from harness.cluster.protocol import SideTask
from harness.errors import MeasurementError, UsageError
from harness.messages import Build, Check, Message, Reset
from harness.network.player import PLAYER
from harness.network.readings import Readings
from harness.network.topology import Topology
from harness.scenario.schema import NO_LIMITS, Resources, Train

UNIVERSE_MODULE = "harness.cluster.universe"
"""By which its processes are recognised."""

OWN_NAMESPACES = ["--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"]

PROGRAMS = ("unshare", "mount", "ip", "tc", "ss", "stdbuf")
"""What a universe is made with, and what its workers look at it with."""

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""A worker has one thread to compute with, and the agent none beside its own: it forks."""


@cache
def universe_command() -> tuple[str, ...]:
    """How a private universe is started on this machine: by anyone, or by root where that is not allowed.

    Raises:
        MeasurementError: a program is missing, or neither works; the message says what would.
    """
    programs.require(*PROGRAMS)
    reasons = []
    for users in (["--user", "--map-root-user"], []):
        command = ["unshare", *users, *OWN_NAMESPACES]
        tried = programs.run([*command, "true"], capture_output=True, text=True, timeout=30)
        if tried.returncode == 0:
            return tuple(command)
        reasons.append(" ".join(tried.stderr.split()))
    raise MeasurementError(
        f"no private network can be made here: user namespaces are not allowed ({reasons[0]}) and this is not root; "
        "allow them (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, or the AppArmor profile "
        "of unshare), or run pacbench with sudo"
    )


class NetnsCluster(EmulatedCluster):
    """See the module. Entered, it runs one process outside and a universe inside."""

    name = "netns"

    def __enter__(self) -> Self:
        command = [*universe_command(), *programs.python(UNIVERSE_MODULE)]
        self._agent = AgentConnection(command, ONE_THREAD)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._agent.close()

    def check(self, topology: Topology, resources: Resources = NO_LIMITS) -> None:
        """See ``Cluster.check``."""
        for field, value in resources.model_dump(by_alias=True, exclude_defaults=True).items():
            raise UsageError.at("scenario", f"cluster.{field}", value, "nothing on netns; containers can: --on docker")
        super().check(topology, resources)  # first: of a rate that is far too high tc only says that it is illegal
        self._agent.request(Check(topology=as_json(topology)), self.build_timeout_s)

    def share_file(self, file: Path) -> None:
        """See ``Cluster.share_file``: workers share the host's files."""

    def verify(self) -> Readings:
        """See ``Cluster.verify``; after a trace the links are first what they were before it."""
        assert self._current, "a topology must be in use"
        if self._current[0].link.trace:
            self._agent.request(Reset(), self.build_timeout_s)
        return super().verify()

    def preload(self, train: Train | None = None) -> None:
        """See ``Cluster.preload``."""
        self._agent.request(preload_request(train), self.preload_timeout_s)

    def run(self, task: str, spec: Mapping[str, Any], timeout_s: float) -> Iterator[Message]:
        """See ``Cluster.run``."""
        assert self._current, "a topology must be in use"
        topology = self._current[0]
        beside = watchers(topology) if task == "train" else []
        if topology.link.trace and "start_file" in spec:
            self._agent.request(Reset(), self.build_timeout_s)
            played = {"topology": as_json(topology), "start_file": spec["start_file"]}
            beside.append(SideTask("play", PLAYER, played))
        return self._agent.task(task, topology.worker_nodes, spec, timeout_s, beside)

    def image_digest(self) -> str:
        """No image: what runs is what lies here."""
        return ""

    def provenance(self) -> dict[str, Any]:
        """Nothing beyond this machine."""
        return {}

    def _build(self, topology: Topology, resources: Resources) -> None:
        self._current = None
        self._agent.request(Build(topology=as_json(topology)), self.build_timeout_s)

    def _task(self, task: str, nodes: list[str], spec: Mapping[str, Any], timeout_s: float) -> Iterator[Message]:
        return self._agent.task(task, nodes, spec, timeout_s)
