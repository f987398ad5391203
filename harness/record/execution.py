"""The record of a user's command that ran over emulated links: ``exec.json`` in a folder of its own."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from harness.errors import UsageError
from harness.files import (
    LOCK,
    NoRoomError,
    UnwritableError,
    keep_elsewhere,
    locked,
    make_folder,
    write_whole,
    writing,
)
from harness.network.readings import Readings
from harness.record.observed import Metric, Training
from harness.scenario.links import Direction
from harness.scenario.section import Section, in_words

SCHEMA = 1
"""Version of the record. A field that changes its meaning makes a new one."""

FILE = "exec.json"

Ending = Literal["finished", "failed", "timed out", "interrupted"]


class Sample(Section):
    """An instant of a link's direction."""

    time_s: float
    """Since counting began, just before the command was started."""
    wire_bytes: int
    """What has left since then, headers included."""
    backlog_bytes: int
    """What waits in the queue."""


class LinkTraffic(Section):
    """What one direction of one link carried while the command ran."""

    link: str
    """The worker's name, or those of the groups that a trunk joins."""
    direction: Direction
    worker: int | None
    """Whose link it is; None for a trunk."""
    rate_bps_asked: int | None
    """None: unshaped."""
    wire_bytes: int
    """What left its queue, headers included."""
    payload_bytes: int
    """The same without headers of 66 bytes a packet: Ethernet, IP, and TCP with timestamps."""
    packets: int
    drops: int
    """Packets dropped: for want of room, or because the link was asked to lose some."""
    samples: tuple[Sample, ...]
    """From the first instant to the last; of a very long command fewer a second than were looked at."""

    @property
    def seconds(self) -> float:
        """From the first sample to the last."""
        return self.samples[-1].time_s - self.samples[0].time_s

    @property
    def mean_bps(self) -> float:
        """Bits a second on the wire, over all that time."""
        return 8 * self.wire_bytes / self.seconds if self.seconds else 0.0

    @property
    def most_backlog_bytes(self) -> int:
        """The most that was seen waiting."""
        return max(sample.backlog_bytes for sample in self.samples)

    def rates_bps(self) -> list[tuple[float, float]]:
        """Between each two samples: their middle in seconds, and bits a second on the wire."""
        pairs = [
            (one, two) for one, two in zip(self.samples, self.samples[1:], strict=False) if two.time_s > one.time_s
        ]
        return [
            ((one.time_s + two.time_s) / 2, 8 * (two.wire_bytes - one.wire_bytes) / (two.time_s - one.time_s))
            for one, two in pairs
        ]


class WorkerUse(Section):
    """What the command was and took on one worker. None: the worker was lost, or ended before it told."""

    worker: str
    exit_codes: dict[int, int]
    """By rank, of those that ended; negative: the signal that ended it."""
    retransmits: int
    """TCP segments that it sent again."""
    cpu_s: float | None
    """Processor time of all its processes."""
    peak_memory_bytes: int | None
    """The most that they had resident together, as seen at each look, or that one of them ever had. Shared pages count
    for each process."""


class Execution(Section):
    """A command that has ended."""

    version: Annotated[int, Field(alias="schema", ge=1, le=SCHEMA)] = SCHEMA
    command: tuple[str, ...]
    """Before placeholders were filled in; signs that steer terminals are escaped."""
    folder: str
    """In which it ran."""
    cluster: str
    """Kind of cluster."""
    workers: int
    per_node: int
    """Ranks behind each link."""
    network: dict[str, Any]
    """The topology that was asked for."""
    network_in_words: str
    ending: Ending
    reason: str
    """Empty where it finished."""
    exit_code: int
    """What is passed on: that of the rank that failed first, or 128 and the signal's number; 124: out of time; 130:
    interrupted; 5: a node was lost."""
    wall_time_s: float
    """From the command's start to the end of its last rank."""
    links: tuple[LinkTraffic, ...]
    uses: tuple[WorkerUse, ...]
    before: Readings
    """What the links were before it."""
    after: Readings | None
    """What they were after it; None where it failed or was interrupted, and nobody looked."""
    drift: tuple[str, ...] = ()
    """What of them was not what was asked any more: then the figures cannot be trusted."""
    training: Training | None = None
    """What was put into its scripts, and seen there; None: nothing was."""
    metrics: tuple[Metric, ...] = ()
    """What rank 0 told by ``harness.metric``, or what a pattern found in its output."""
    provenance: dict[str, Any]

    def save(self, folder: Path) -> Path:
        """Write it; returns the file.

        Raises:
            NoRoomError: the disk is full, or gone. Where another one has room the record lies there, and this is said.
        """
        path = folder / FILE
        content = self.model_dump_json(by_alias=True, indent=1)
        try:
            write_whole(path, content)
        except (NoRoomError, UnwritableError) as error:
            kept = keep_elsewhere("pacbench-exec-", {FILE: content})
            raise NoRoomError(f"{error}; {f'the record is kept in {kept}' if kept else 'it is lost'}") from None
        return path

    @classmethod
    def load(cls, folder: Path) -> Execution:
        """Read it.

        Raises:
            UsageError: there is none, it is damaged, or a newer version of pacbench wrote it.
        """
        path = folder / FILE
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
        except ValidationError as error:
            raise UsageError(f"{path}: not a record this version can read ({in_words(error)})") from None


@contextmanager
def new_folder(results: Path, asked: Path | None) -> Iterator[Path]:
    """A folder for a command that starts now: the one that is asked for, or ``exec-TIME``. If it stays empty, or has
    empty folders alone, it goes.

    Raises:
        UsageError: it cannot be written, holds something, or another command is using it.
    """
    with ExitStack() as stack:
        try:
            folder = _entered(asked, stack) if asked else _made(results / f"exec-{time.strftime('%Y%m%d-%H%M%S')}")
        except UnwritableError as error:
            raise error.of_folder("--out", error.path) from None
        try:
            yield folder
        finally:
            with suppress(OSError):
                (folder / LOCK).unlink()
            with suppress(OSError):  # it holds the record
                for part in folder.iterdir():
                    part.rmdir()
                folder.rmdir()


def _made(folder: Path) -> Path:
    """A folder that was not there; with a number behind its name where another command began at the same time."""
    make_folder(folder.parent)
    with writing(folder):
        for name in itertools.chain([folder.name], (f"{folder.name}.{number}" for number in itertools.count(2))):
            with suppress(FileExistsError):
                folder.with_name(name).mkdir()
                return folder.with_name(name)
    raise AssertionError("numbers have no end")


def _entered(folder: Path, stack: ExitStack) -> Path:
    """A folder that is there, or is made, and is empty; others are kept out of it until the stack is left."""
    make_folder(folder)
    _check_empty(folder)
    stack.enter_context(locked(folder))
    _check_empty(folder)  # by now another one may have come and gone
    return folder


def _check_empty(folder: Path) -> None:
    with writing(folder):
        holds = {path.name for path in folder.iterdir()} - {LOCK}
    if holds:
        raise UsageError.at("command line", "--out", str(folder), "a new or an empty folder")
