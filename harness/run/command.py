"""A user's command on every worker of a cluster: between two verifications of the links, with what it put on them."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from harness import provenance
from harness.cluster.protocol import EXECUTE, ClusterBrokenError, CommandCluster
from harness.errors import MeasurementError
from harness.messages import CommandEnded, Exit, Failed, Message, Output, RankEnded, Traffic
from harness.network.readings import Readings
from harness.network.topology import Topology
from harness.plain import visible
from harness.programs import how_it_ended
from harness.record.execution import Ending, Execution, WorkerUse
from harness.run.counting import Counting
from harness.start import EXIT_INTERRUPTED
from harness.units import format_time

EXIT_TIMED_OUT = 124
"""As timeout(1) has it."""

EXIT_BY_SIGNAL = 128
"""To which shells add the signal's number."""

PORT = 29500
"""Where ranks meet, if they go by MASTER_PORT; torchrun's own default."""

GRACE_S = 5.0
"""How long processes may take to end when they are told to."""

PATIENCE_S = 10.0
"""Beyond that, until nodes that do not answer are ended from outside."""

LEAST_LOOK_S, MOST_LOOK_S = 0.25, 1.0
WORKERS_A_SECOND = 128
"""How many workers may look at their links each second: a look takes half a millisecond of a processor."""

Hear = Callable[[Output], None]
"""Hears what ranks print, as soon as they do; the message names the node."""


@dataclass(frozen=True)
class Job:
    """What is to be run on every worker's node."""

    command: Sequence[str]
    folder: Path
    environment: Mapping[str, str]
    """The user's own."""
    per_node: int = 1
    """Ranks on each node, behind one link."""
    timeout_s: float | None = None
    more: Mapping[str, str] = field(default_factory=dict)
    """Variables over the user's: here goes what puts something into his script. PYTHONPATH comes before his own."""
    reads: Sequence[Path] = ()
    """What it must find by the same names, beside its folder: read-only where nodes have files of their own."""
    writes: Path | None = None
    """Another folder that it writes to."""


def execute(
    cluster: CommandCluster, topology: Topology, job: Job, hear: Hear, command_line: Sequence[str]
) -> Execution:
    """Run a command until all its ranks have ended, one has failed, its time is up, or the user interrupts it.

    The first Ctrl-C, SIGTERM, or SIGHUP of a terminal that goes away, is passed on to the command; a second one ends
    everything at once.

    Args:
        command_line: what started this, for the record.

    Raises:
        UsageError: the command is not there, or this machine cannot carry the links.
        MeasurementError: a link is not what was asked, or the command cannot be started.
        ClusterBrokenError: the cluster itself ended.
        KeyboardInterrupt: a second Ctrl-C, or one before the command had started.
    """
    cluster.find_command(job.command[0], job.environment)
    cluster.share_folder(job.folder)
    if job.writes:
        cluster.share_folder(job.writes)
    for file in job.reads:
        cluster.share_file(file)
    origin = {**provenance.collect([*map(visible, command_line)]), **cluster.provenance()}
    with cluster:
        cluster.check(topology)
        before = cluster.use(topology)
        course = _Course(cluster, topology, job, hear)
        course.run()
        after, drift = _verified_again(cluster) if course.ending in ("finished", "timed out") else (None, [])
    return Execution(
        command=tuple(map(visible, job.command)),
        folder=visible(str(job.folder)),
        cluster=cluster.name,
        workers=topology.workers,
        per_node=job.per_node,
        network=topology.model_dump(mode="json", by_alias=True),
        network_in_words=_in_words(topology),
        ending=course.ending,
        reason=course.reason,
        exit_code=course.exit_code,
        wall_time_s=course.wall_time_s,
        links=course.counting.links(),
        uses=tuple(map(course.use_of, topology.worker_nodes)),
        before=before,
        after=after,
        drift=tuple(drift),
        provenance=origin,
    )


def _verified_again(cluster: CommandCluster) -> tuple[Readings | None, list[str]]:
    """What the links are by now, and what of it is not what was asked."""
    try:
        readings = cluster.verify()
    except ClusterBrokenError:
        raise
    except MeasurementError as error:
        return None, [str(error)]
    return readings, readings.complaints()


def look_every_s(workers: int) -> float:
    """How often each node looks at its links, in seconds."""
    return min(max(LEAST_LOOK_S, workers / WORKERS_A_SECOND), MOST_LOOK_S)


class _Course:
    """A command from its start to its end."""

    def __init__(self, cluster: CommandCluster, topology: Topology, job: Job, hear: Hear) -> None:
        self._cluster, self._topology, self._job, self._hear = cluster, topology, job, hear
        self.ending: Ending = "finished"
        self.reason = ""
        self.exit_code = 0
        self.wall_time_s = 0.0
        self.counting = Counting(topology, cluster.count())
        self._codes: dict[str, dict[int, int]] = {node: {} for node in topology.worker_nodes}
        self._ended: dict[str, CommandEnded] = {}
        self._began_s = time.monotonic()
        self._give_up_at_s = math.inf
        self._lost = False
        """Whether a node is."""

    def run(self) -> None:
        """All of it. Whatever ends it early ends every rank."""
        with _interruptions() as interruptions:
            messages = self._cluster.run(EXECUTE, self._order(), math.inf)
            for message in messages:
                self._take(message)
                self._see_to_the_end(interruptions)
                if time.monotonic() > self._give_up_at_s:
                    break  # leaving ends all that still runs
        for traffic in self._last_counts():
            self.counting.add(traffic)

    def use_of(self, node: str) -> WorkerUse:
        """What the command took on a node."""
        ended = self._ended.get(node)
        return WorkerUse(
            worker=node,
            exit_codes=self._codes[node],
            retransmits=self.counting.retransmits(node),
            cpu_s=ended.cpu_s if ended else None,
            peak_memory_bytes=ended.peak_memory_bytes if ended else None,
        )

    def _order(self) -> dict[str, Any]:
        job = self._job
        return {
            "command": [*job.command],
            "folder": str(job.folder),
            "environment": dict(job.environment),
            "more": dict(job.more),
            "workers": self._topology.workers,
            "per_node": job.per_node,
            "port": PORT,
            "look_every_s": look_every_s(self._topology.workers),
            "grace_s": GRACE_S,
        }

    def _take(self, message: Message) -> None:
        match message:
            case Output():
                self._hear(message)
            case Traffic():
                self.counting.add(message)
            case RankEnded():
                self._codes[message.node][message.rank] = message.code
                self.wall_time_s = time.monotonic() - self._began_s
                if message.code:
                    code = message.code if message.code > 0 else EXIT_BY_SIGNAL - message.code
                    self._end("failed", _why(message), code, signal.SIGTERM)
            case CommandEnded():
                self._ended[message.node] = message
            case Failed() if message.lost:
                self._lose(message.node, message.reason)
            case Failed():
                raise MeasurementError(f"{message.node}: {message.reason}")
            case Exit() if message.code:
                self._lose(message.node, f"the process that pacbench has there ended with {how_it_ended(message.code)}")

    def _lose(self, node: str, reason: str) -> None:
        """A node is lost, by no fault of the command's: its ranks have no end that could be told."""
        self._lost = True
        self._end("failed", f"{node}: {reason}", MeasurementError.exit_code, signal.SIGTERM)

    def _last_counts(self) -> Sequence[Traffic]:
        """What queues have carried by now; nothing where a lost node cannot be asked."""
        try:
            return self._cluster.count()
        except ClusterBrokenError:
            raise
        except MeasurementError:
            if not self._lost:
                raise
            return ()

    def _see_to_the_end(self, interruptions: list[int]) -> None:
        if interruptions:
            self._end("interrupted", "by the user", EXIT_INTERRUPTED, interruptions[0])
        limit_s = self._job.timeout_s
        if limit_s is not None and time.monotonic() > self._began_s + limit_s:
            self._end("timed out", f"after {format_time(limit_s)}", EXIT_TIMED_OUT, signal.SIGTERM)

    def _end(self, ending: Ending, reason: str, exit_code: int, number: int) -> None:
        """End all ranks that still run; what ends them first is what is told."""
        if self.ending != "finished":
            return
        self.ending, self.reason, self.exit_code = ending, reason, exit_code
        self._give_up_at_s = time.monotonic() + GRACE_S + PATIENCE_S
        self._cluster.signal(number)


def _why(ended: RankEnded) -> str:
    return f"rank {ended.rank} on {ended.node}: {how_it_ended(ended.code)}"


def _in_words(topology: Topology) -> str:
    return f"{topology.workers} workers {topology.describe()}"


@contextmanager
def _interruptions() -> Iterator[list[int]]:
    """Signals that ask for an end, in the order in which they came: the first is noted, the second interrupts.

    A terminal that goes away may say so twice, by itself and by its shell, and that is heard once.
    """
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP and number in came:
            return
        came.append(number)
        if len(came) > 1:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield came  # signals are the main thread's
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
