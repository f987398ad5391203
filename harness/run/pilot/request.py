"""What a pilot is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.analysis.pilot.forecast import Forecast
from harness.network.topology import Topology
from harness.record.pilot import Job, Pilot
from harness.scenario.schema import MethodSpec

ATTACHED_WORKERS = 2

MOST_PROBES = 4
"""Settings that are tried in search of the smallest that keeps the loss."""

Tell = Callable[[str], None]
"""Hears what is about to happen, a line each."""


@dataclass(frozen=True)
class Request:
    """What a pilot is asked for."""

    command: tuple[str, ...]
    folder: Path
    """In which it runs."""
    environment: Mapping[str, str]
    network: Topology
    per_node: int
    """Ranks behind each link."""
    on: str
    """Kind of cluster."""
    methods: tuple[MethodSpec, ...]
    """All that may be recommended, the plain ones among them."""
    unsuited: str
    """On methods that are not looked at, and why; empty: there are none."""
    plain: str
    """Label of the all-reduce in 32 bits."""
    sixteen: str
    """Label of the 16-bit one."""
    tolerance: float
    steps: int
    seeds: int
    tested: int
    """How many methods are put to the test beside the plain ones."""
    budget_s: float | None
    out: Path
    command_line: tuple[str, ...]

    def method(self, label: str) -> MethodSpec:
        """The method of a label."""
        return next(method for method in self.methods if method.label == label)

    def forecast(self, job: Job, beyond_s: float = 0.0) -> Forecast:
        """Predictions for a job on the network that is asked for; see ``Forecast``."""
        return Forecast(job, self.network, self.per_node, beyond_s)


def again(before: Pilot, network: Topology, environment: Mapping[str, str], out: Path) -> Request:
    """What a recheck asks for: what the pilot did, for the methods that its verdict is about.

    Args:
        network: what the links are now.
    """
    labels = (before.plain_label, before.sixteen_label, before.verdict.label)
    known = {fit.method.label: fit.method for fit in before.job.fits}
    return Request(
        command=before.command,
        folder=Path(before.folder),
        environment=environment,
        network=network,
        per_node=before.per_node,
        on=before.cluster,
        methods=tuple(known[label] for label in dict.fromkeys(labels)),
        unsuited="",
        plain=before.plain_label,
        sixteen=before.sixteen_label,
        tolerance=before.tolerance,
        steps=before.steps,
        seeds=1,
        tested=1,
        budget_s=None,
        out=out,
        command_line=(),
    )
