"""Asked against measured for many links: what the emulated network of this machine is worth, in one table.

Each link joins two workers to a switch, so that every row is four directions; the worst of them is what it shows. Rows
that this kernel can emulate are measured in a private universe on it; the others in user-mode-linux, where it is
installed. A row that is out of tolerance is built and measured again, as verification does before training
(``measure.ATTEMPTS``): a busy machine explains a late reading, and chance one count in a hundred. The row says how
often it was measured; one that stays out of tolerance is printed as such, and what could not be emulated at all too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from harness import programs
from harness.cluster import registry
from harness.cluster.netns import NetnsCluster
from harness.cluster.uml import INSTALL, KERNEL, UmlCluster
from harness.errors import MeasurementError, UsageError
from harness.network.measure import ATTEMPTS
from harness.network.readings import Readings
from harness.network.tolerances import loss_interval
from harness.network.topology import Topology
from harness.scenario.links import PROPERTIES, Link
from harness.units import format_time

RATE_TOLERANCE = 0.05
"""How far a rate may be from what was asked, as a share of it. Both include headers."""

RTT_TOLERANCE_S, RTT_TOLERANCE_SHARE = 0.3e-3, 0.05
"""How far a link's round trip may be from what was asked: the greater of the two."""

FEWEST, MOST = 3_000, 30_000
"""Datagrams to count for a loss."""
MEETINGS = 30

LINKS: tuple[Mapping[str, Any], ...] = (
    *(link for row in PROPERTIES for link in row.calibrated),
    {"rate": "20mbit", "delay": "5ms", "up": {"rate": "5mbit"}},
)
"""What each property of a link is tried on, and a link that is not the same in both directions."""


@dataclass(frozen=True)
class Calibration:
    """One link: what was asked in words, where it was emulated, and the reading that is farthest from it."""

    asked: str
    where: str
    rate_error: float | None = None
    """The greatest of four directions, relative to the rate."""
    rtt_s_asked: float | None = None
    rtt_s_measured: float | None = None
    loss_asked: float | None = None
    loss_measured: float | None = None
    """Farthest from what was asked."""
    counted: int | None = None
    times: int = 1
    """How often it was measured; what is said is what the last time found."""
    complaints: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether all of it is within tolerance."""
        return not self.complaints


def names() -> list[str]:
    """What ``where`` may be: one kind of private universe, or ``auto``, which tries them in turn."""
    return [registry.AUTO, *(name for name, kind in registry.KINDS.items() if kind.has_universe)]


def calibrate(where: str = "auto") -> Iterator[Calibration]:
    """Measure all links, each as soon as it is asked for.

    Args:
        where: ``netns``, ``uml``, or ``auto``: each link on this kernel if it can emulate it, else in user-mode-linux.
    """
    with ExitStack() as stack:
        clusters: dict[str, NetnsCluster] = {}
        for fields in LINKS:
            topology = Topology(workers=2, link=Link.model_validate(fields))
            yield _calibrated(topology, _candidates(where), clusters, stack)


def _candidates(where: str) -> list[type[NetnsCluster]]:
    """The kinds of cluster to try a link on, in this order."""
    if where != registry.AUTO:
        return [registry.KINDS[where].load()]
    kinds: list[type[NetnsCluster]] = [registry.KINDS[name].load() for name in names()[1:]]
    return [kind for kind in kinds if kind is not UmlCluster or programs.find(KERNEL)]


def _calibrated(
    topology: Topology, kinds: list[type[NetnsCluster]], clusters: dict[str, NetnsCluster], stack: ExitStack
) -> Calibration:
    """One row: measured on the first kind of cluster that can emulate it."""
    refusals = []
    for kind in kinds:
        cluster = clusters.get(kind.name) or stack.enter_context(kind())
        cluster.surely_carried_bps = sys.maxsize  # one direction of one link at a time: a ceiling of all tells nothing
        clusters[kind.name] = cluster
        try:
            cluster.check(topology)
            return _measured(topology, cluster)
        except UsageError as error:
            refusals.append(f"{kind.name}: {error}")
            if not topology.needs_netem:
                break
        except MeasurementError as error:
            return Calibration(_words(topology), kind.name, complaints=(str(error),))
    missing = [] if UmlCluster in kinds or not topology.needs_netem else [f"uml: not installed ({INSTALL})"]
    return Calibration(_words(topology), "nowhere", complaints=(*refusals, *missing))


def _measured(topology: Topology, cluster: NetnsCluster) -> Calibration:
    """One row, measured until it is within tolerance, or as often as it may be."""
    for times in range(1, ATTEMPTS + 1):
        found = replace(_judged(topology, cluster.name, cluster.measure(topology, _counted(topology))), times=times)
        if found.ok:
            break
    return found


def _counted(topology: Topology) -> int:
    shares = [share for queue in topology.queues() for share in queue.pipe.disturbed_shares]
    return min(max(FEWEST, round(MEETINGS / min(shares, default=1.0))), MOST)


def _judged(topology: Topology, where: str, readings: Readings) -> Calibration:
    """The worst reading of each sort, and a complaint for each that is out of tolerance."""
    complaints = readings.complaints()
    shaped = [link for link in readings.links if link.rate_bps_asked]
    errors = [link.rate_bps_measured / link.rate_bps_asked - 1 for link in shaped if link.rate_bps_asked]
    for link, error in zip(shaped, errors, strict=True):
        if abs(error) > RATE_TOLERANCE and not link.complaints:
            complaints.append(f"{link.link} {link.direction}: rate {error:+.1%}")
    trip = max(readings.round_trips, key=lambda trip: abs(trip.rtt_s_measured - trip.rtt_s_asked))
    allowed_s = max(RTT_TOLERANCE_S, RTT_TOLERANCE_SHARE * trip.rtt_s_asked)
    if not trip.jitter_s_asked and abs(trip.rtt_s_measured - trip.rtt_s_asked) > allowed_s and not trip.complaints:
        complaints.append(f"{trip.link}: round trip more than {format_time(allowed_s)} off")
    pipes = {(queue.link, queue.direction): queue.pipe for queue in topology.queues()}
    counted = [link for link in readings.links if link.counts and link.loss_asked]
    worst = max(counted, key=lambda link: abs(link.counts.loss - link.loss_asked) if link.counts else 0, default=None)
    for link in counted:
        assert link.counts
        low, high = loss_interval(pipes[link.link, link.direction], link.counts, confidence=0.99)
        if not low <= link.counts.loss <= high and not link.complaints:
            complaints.append(f"{link.link} {link.direction}: loss outside {low:.3%} to {high:.3%}")
    return Calibration(
        asked=_words(topology),
        where=where,
        rate_error=max(errors, key=abs, default=None),
        rtt_s_asked=trip.rtt_s_asked,
        rtt_s_measured=trip.rtt_s_measured,
        loss_asked=worst.loss_asked if worst else None,
        loss_measured=worst.counts.loss if worst and worst.counts else None,
        counted=worst.counts.sent if worst and worst.counts else None,
        complaints=tuple(complaints),
    )


def _words(topology: Topology) -> str:
    return topology.describe().removeprefix("at ")
