"""What every cluster can do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol

from typing_extensions import Self

from harness.errors import MeasurementError
from harness.messages import Message, Traffic
from harness.network.readings import Readings
from harness.network.topology import Topology
from harness.plan.machine import Machine
from harness.scenario.schema import NO_LIMITS, Resources, Train

EXECUTE = "execute"
"""The task that runs a user's command; its spec is ``harness.worker.command.Order``."""


class TaskTimeoutError(MeasurementError):
    """A task took longer than it was given; it has been ended."""


class ClusterBrokenError(MeasurementError):
    """The cluster itself ended; nothing more can be run on it."""


@dataclass(frozen=True)
class Check:
    """One thing that ``pacbench doctor`` has looked at."""

    name: str
    ok: bool
    found: str
    fix: str = ""
    needed: bool = False
    """Whether its kind of cluster cannot be had without it, and another kind would have to do."""


class SideTask(NamedTuple):
    """What goes on beside a task until that has ended."""

    task: str
    node: str
    spec: dict[str, Any]


class Cluster(Protocol):
    """A set of nodes that can be connected as a topology and made to run tasks. Closing removes all of it."""

    name: str

    machine: Machine
    """What it runs on, for who must know how long trials take, and what can be slowed there."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def check_kind(self, topology: Topology, resources: Resources = NO_LIMITS) -> None:
        """Raise UsageError where this kind of cluster never gives what is asked for. It need not be entered."""

    def check(self, topology: Topology, resources: Resources = NO_LIMITS) -> None:
        """The same, and also where this machine cannot give it."""

    def use(self, topology: Topology, resources: Resources = NO_LIMITS) -> Readings:
        """Make the topology current: built, shaped, read back, measured. What is current already costs nothing.

        Raises:
            MeasurementError: a link is not what was asked.
        """

    def verify(self) -> Readings:
        """Measure the topology in use once more; what is off is in the readings' ``complaints``."""

    def share_file(self, file: Path) -> None:
        """Let workers read a file of this machine by the same name; before tasks start."""

    def preload(self, train: Train | None = None) -> None:
        """Have torch ready before tasks start, and the data set or the replayed model of a training, if one is given.

        Raises:
            UsageError: the data set is not there.
        """

    def run(self, task: str, spec: Mapping[str, Any], timeout_s: float) -> Iterator[Message]:
        """Run a task on every worker of the current topology; yields what they say until all have ended.

        Raises:
            TaskTimeoutError: it took too long.
            ClusterBrokenError: the cluster itself ended.
        """

    def signal(self, number: int) -> None:
        """Send a signal to the task that runs on the workers; what becomes of it is heard from ``run``."""

    def image_digest(self) -> str:
        """What identifies the workers' environment, where it is not the harness's own; empty where it is."""

    def provenance(self) -> dict[str, Any]:
        """What a reader may ask of this kind of cluster, beyond what ``provenance.collect`` tells of the machine."""


class CommandCluster(Cluster, Protocol):
    """A cluster whose workers run any command of the user's, as the task ``EXECUTE``."""

    def share_folder(self, folder: Path) -> None:
        """Let commands write to a folder of this machine, by the same name; before links are used."""

    def find_command(self, command: str, environment: Mapping[str, str]) -> None:
        """Raise UsageError where it is known beforehand that workers have no such command."""

    def count(self) -> list[Traffic]:
        """What all queues of the topology in use have carried so far, a message for each node."""
