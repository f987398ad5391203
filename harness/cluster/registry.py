"""The kinds of cluster by name, and which of them this machine can have."""

from __future__ import annotations

from harness.cluster.docker import engine
from harness.cluster.docker.compose import ComposeCluster
from harness.cluster.fake import FakeCluster
from harness.cluster.netns import NetnsCluster, universe_command
from harness.cluster.protocol import Cluster
from harness.cluster.uml import UmlCluster
from harness.errors import MeasurementError, UsageError

AUTO = "auto"
NAMES = (AUTO, NetnsCluster.name, UmlCluster.name, ComposeCluster.name, FakeCluster.name)


def choose(asked: str) -> tuple[str, str]:
    """The kind of cluster to use, and why.

    Raises:
        UsageError: there is no such kind.
        MeasurementError: this machine can have none.
    """
    if asked not in NAMES:
        raise UsageError.at("command line", "--on", asked, ", ".join(NAMES))
    if asked != AUTO:
        return asked, "as asked"
    try:
        universe_command()
        return NetnsCluster.name, "private networks can be made here"
    except MeasurementError as error:
        no_universe = str(error)
    try:
        engine.connect()
        engine.compose_version()
    except engine.EngineError as no_engine:
        raise MeasurementError(f"{no_universe}; and containers are no way round: {no_engine}") from None
    return ComposeCluster.name, no_universe


def make(kind: str, keep: bool = False) -> Cluster:
    """A cluster of a kind that was chosen; nothing is started before it is entered.

    Args:
        keep: leave it up at the end.

    Raises:
        UsageError: this kind cannot be kept.
    """
    if kind == ComposeCluster.name:
        return ComposeCluster(keep)
    if keep:
        raise UsageError.at("command line", "--keep", f"--on {kind}", f"with --on {ComposeCluster.name} alone")
    alone: dict[str, type[Cluster]] = {cluster.name: cluster for cluster in (NetnsCluster, UmlCluster, FakeCluster)}
    return alone[kind]()
