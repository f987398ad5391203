"""What clusters on emulated links share: nothing is used before it is checked, built, read back and measured."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from harness.cluster.protocol import EXECUTE, SideTask
from harness.errors import MeasurementError, UsageError
from harness.messages import CeilingMeasured, Failed, LinksMeasured, Message, Preload, Traffic
from harness.network.addresses import WORKER_INTERFACE, address
from harness.network.measure import PACKET_COST, measuring_s
from harness.network.readings import Readings
from harness.network.topology import Topology
from harness.plan.machine import this_machine
from harness.scenario.links import Link
from harness.scenario.properties import UNSHAPED
from harness.scenario.schema import NO_LIMITS, Resources, Train
from harness.units import format_rate

LEAST_DELAY = "1us"
"""A delay that sends packets through netem and its timers, and costs them nothing else."""

MEETING_PLACE = {"interface": WORKER_INTERFACE, "meeting_address": address(0)}
"""What a worker's task must know of the network: its shaped interface, and the address at which all ranks meet."""

HEADROOM = 1.1
"""How much more than a link's rate the machine must carry before the rate may be called the limit."""

MOST_ANSWERS = 3
"""How often a machine is asked what it carries before a rate is refused: another program may keep it busy just now."""

PAUSE_S = 2.0
"""Between two such questions."""

MOST_MEASUREMENTS = 3
"""How often links are measured before they are said to be others than were asked."""


class EmulatedCluster(ABC):
    """See the module. A kind of cluster adds how a network is built, and how tasks run on its nodes."""

    machine = this_machine()

    surely_carried_bps = 1_000_000_000
    """Sum over all workers up to which the ceiling of this machine is not even asked for; of short segments, which cost
    more, a part of it."""

    build_timeout_s = 60.0
    preload_timeout_s = 300.0
    probe_timeout_s = 120.0

    def __init__(self) -> None:
        self._current: tuple[Topology, Resources, Readings] | None = None
        self._ceilings: dict[tuple[int, int | None], list[float]] = {}

    @abstractmethod
    def _build(self, topology: Topology, resources: Resources) -> None:
        """Replace the network by this one, and read back every queue."""

    @abstractmethod
    def _task(self, task: str, nodes: list[str], spec: Mapping[str, Any], timeout_s: float) -> Iterator[Message]:
        """Run a task on these nodes."""

    def check_kind(  # noqa: B027 - a kind that can give all has nothing to add
        self, topology: Topology, resources: Resources = NO_LIMITS
    ) -> None:
        """See ``Cluster.check_kind``."""

    def check(self, topology: Topology, resources: Resources = NO_LIMITS) -> None:
        """See ``Cluster.check``; what this machine carries is measured for so many workers and such segments."""
        self.check_kind(topology, resources)
        asked, workers, segments = topology.at_once_bps, topology.workers, topology.segments
        if asked * workers <= self.surely_carried_bps / (PACKET_COST if segments else 1):
            return
        needed_bps = asked * HEADROOM
        ceiling_bps = self.ceiling_bps(workers, segments, needed_bps)
        if needed_bps > ceiling_bps:
            carried = f"what this machine carries for {workers} workers{' through netem' if segments else ''}"
            slowed = topology.dilation * topology.shrink  # the user asked for a rate that is not
            at = f" at a dilation of {topology.dilation:g}" if topology.dilation != 1 else ""
            allowed = f"up to {format_rate(slowed * ceiling_bps / HEADROOM)}, {carried}{at}"
            field = "link.rate through the fabric" if topology.fabric.groups else "link.rate"
            raise UsageError.at("scenario", field, format_rate(slowed * asked), allowed)

    def ceiling_bps(self, workers: int, segments: int | None = None, needed_bps: float = 0.0) -> float:
        """What each of so many workers can send while all do, with nothing limited, in bits per second.

        Args:
            segments: how many packets go through netem as one (``Topology.segments``); None: there is no netem.
            needed_bps: while the best answer is less, the machine is asked again, ``MOST_ANSWERS`` times in all.
        """
        answers = self._ceilings.setdefault((workers, segments), [])
        while not answers or (max(answers) < needed_bps and len(answers) < MOST_ANSWERS):
            if answers:
                time.sleep(PAUSE_S)
            answers.append(self._measured_ceiling_bps(workers, segments))
        return max(answers)

    def _measured_ceiling_bps(self, workers: int, segments: int | None) -> float:
        link = Link.model_validate({"rate": UNSHAPED, **({"delay": LEAST_DELAY} if segments else {})})
        topology = Topology(workers=workers, link=link, most_segments=segments)
        self._build(topology, NO_LIMITS)
        found = self._probe("probe_ceiling", topology)
        assert isinstance(found, CeilingMeasured)
        return found.ceiling_bps

    def use(self, topology: Topology, resources: Resources = NO_LIMITS) -> Readings:
        """See ``Cluster.use``."""
        if self._current and self._current[:2] == (topology, resources):
            return self._current[2]
        self._current = None
        self._build(topology, resources)
        readings = measured_again(lambda: self._measured(topology))
        if complaints := readings.undilated(topology.dilation, topology.shrink).complaints():
            raise MeasurementError("; ".join(complaints))
        self._current = (topology, resources, readings)
        return readings

    def verify(self) -> Readings:
        """See ``Cluster.verify``."""
        if self._current is None:  # a later trial could not have its network, and this one was taken away for it
            raise MeasurementError("the links cannot be measured again: they are gone")
        current, self._current = self._current, None  # only what still is what was asked may be used again
        readings = measured_again(lambda: self._measured(current[0]))
        if not readings.complaints():
            self._current = current
        return readings

    def count(self) -> list[Traffic]:
        """See ``CommandCluster.count``."""
        assert self._current, "a topology must be in use"
        said = list(self._task("count_traffic", self._current[0].nodes, {}, self.probe_timeout_s))
        if failed := next((message for message in said if isinstance(message, Failed)), None):
            raise MeasurementError(f"the links' counters cannot be read: {failed.node}: {failed.reason}")
        return [message for message in said if isinstance(message, Traffic)]

    def measure(self, topology: Topology, counted: int | None = None, resources: Resources = NO_LIMITS) -> Readings:
        """Build a topology and say what it is, whatever that is; see ``measure.measure``."""
        self._build(topology, resources)
        return self._measured(topology, counted)

    def _measured(self, topology: Topology, counted: int | None = None) -> Readings:
        found = self._probe("probe_links", topology, counted)
        assert isinstance(found, LinksMeasured)
        return Readings.model_validate_json(found.readings)

    def _probe(self, task: str, topology: Topology, counted: int | None = None) -> LinksMeasured | CeilingMeasured:
        """Run a probing task on all nodes; what the switch found.

        Raises:
            MeasurementError: a node failed, or the switch found nothing.
        """
        spec = {"topology": as_json(topology), "counted": counted}
        by_itself_s = measuring_s(topology, self.machine.cpu_count, counted)
        timeout_s = self.probe_timeout_s * max(1.0, topology.dilation) + by_itself_s
        return found_by("the switch", self._task(task, topology.nodes, spec, timeout_s))


def found_by(asked: str, messages: Iterable[Message]) -> LinksMeasured | CeilingMeasured:
    """What the one who was asked to probe found, out of all that its task's nodes say.

    Raises:
        MeasurementError: a node failed, or nothing was found.
    """
    found: LinksMeasured | CeilingMeasured | None = None
    for message in messages:
        match message:
            case Failed():
                raise MeasurementError(f"the links cannot be measured: {message.node}: {message.reason}")
            case LinksMeasured() | CeilingMeasured():
                found = message
    if found is None:
        raise MeasurementError(f"the links cannot be measured: {asked} ended without a word")
    return found


def measured_again(measure: Callable[[], Readings]) -> Readings:
    """Links as they are measured; again where they are not what was asked: on a busy machine they may only seem so."""
    for _ in range(MOST_MEASUREMENTS):
        readings = measure()
        if not readings.complaints():
            break
    return readings


def preload_request(train: Train | None) -> Preload:
    """What asks an agent for ``Cluster.preload``."""
    return Preload(train=None if train is None else train.model_dump(mode="json", by_alias=True))


def as_json(topology: Topology) -> dict[str, Any]:
    """A topology as a request carries it."""
    dumped: dict[str, Any] = topology.model_dump(mode="json", by_alias=True)
    return dumped


WATCHES = {"train": "watch_queues", EXECUTE: "watch_traffic"}
"""What a switch does while workers are at a task."""


def watchers(task: str, topology: Topology, spec: Mapping[str, Any]) -> list[SideTask]:
    """What watches the switches' queues while workers are at a task; these watch their own."""
    watched = {"look_every_s": spec["look_every_s"]} if task == EXECUTE else {}
    return [SideTask(WATCHES[task], switch, watched) for switch in topology.switches if task in WATCHES]
