"""The checkpoint of a trial that is not done: one file, which is there as a whole or not at all.

    checkpoint.json     of which trial, after how many steps, and digests of all that follows
    0.pt, 1.pt, ...     what each rank needs to go on (``worker/saving.py``)
    events.parquet      what all ranks have measured until then

It is a zip file, uncompressed. What ranks have written is only ever read by ranks.
"""

from __future__ import annotations

import hashlib
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from pydantic import Field, ValidationError

from harness.files import opened_whole
from harness.plan.dilation import Dilation
from harness.record.row import EVENT_SCHEMA, Event
from harness.record.tables import DamagedError, events_file, events_in
from harness.scenario.section import Section, in_words

ABOUT, EVENTS = "checkpoint.json", "events.parquet"

CHUNK_BYTES = 1 << 20

UNREADABLE = (
    *(OSError, EOFError, KeyError, ValueError, RuntimeError, NotImplementedError, OverflowError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)
"""What is raised over bytes that are no such file."""


class About(Section):
    """What a checkpoint says of itself."""

    version: Literal[1] = 1
    trial_id: str
    code: str
    """Digest of the code that made it."""
    machine: str
    workers: int = Field(ge=1)
    steps: int = Field(ge=1)
    """Steps completed."""
    found: Dilation | None
    """The dilation of the steps until then, where the run has found it."""


class _Sealed(Section):
    """The same with digests of the other members."""

    about: About
    digests: dict[str, str]


@dataclass(frozen=True)
class Checkpoint:
    """One that was read, and is what was written."""

    about: About
    events: list[Event]
    parts: list[zipfile.Path]
    """What each rank has saved."""


def write(file: Path, about: About, parts: Sequence[IO[bytes]], events: Iterable[Event]) -> None:
    """Write a checkpoint, in the place of the one before.

    Args:
        parts: what each rank has saved.

    Raises:
        NoRoomError, UnwritableError: it cannot be written; the one before is still there.
    """
    with opened_whole(file) as whole, zipfile.ZipFile(whole, "w") as archive:
        digests = {}
        for name, part in zip(_members(about.workers), parts, strict=True):
            part.seek(0)
            with archive.open(name, "w", force_zip64=True) as member:
                digests[name] = _digest(_copied(part, member))
        content = events_file(about.trial_id, events)
        archive.writestr(EVENTS, content)
        digests[EVENTS] = _digest([content])
        archive.writestr(ABOUT, _Sealed(about=about, digests=digests).model_dump_json())


def read(file: Path) -> Checkpoint:
    """Read a checkpoint, all of it.

    Raises:
        FileNotFoundError: there is none.
        DamagedError: it is not what was written.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            sealed = _Sealed.model_validate_json(archive.read(ABOUT))
            members = [*_members(sealed.about.workers), EVENTS]
            for name in members:
                with archive.open(name) as member:
                    if _digest(_chunks(member)) != sealed.digests.get(name):
                        raise DamagedError(f"{name} is not what was written")
            table = events_in(archive.read(EVENTS), sealed.about.trial_id)
        root = zipfile.Path(file)
    except FileNotFoundError:
        raise
    except ValidationError as error:
        raise DamagedError(f"{ABOUT}: {in_words(error)}") from None
    except UNREADABLE as error:
        raise DamagedError(" ".join(str(error).split()) or type(error).__name__) from None
    columns = (table.column(name).to_pylist() for name in EVENT_SCHEMA.names[1:])
    events = [Event._make(values) for values in zip(*columns, strict=True)]
    return Checkpoint(sealed.about, events, [root / name for name in members[:-1]])


def _members(workers: int) -> Iterator[str]:
    return (f"{rank}.pt" for rank in range(workers))


def _chunks(content: IO[bytes]) -> Iterator[bytes]:
    while chunk := content.read(CHUNK_BYTES):
        yield chunk


def _copied(content: IO[bytes], target: IO[bytes]) -> Iterator[bytes]:
    """What is read, and written to a target."""
    for chunk in _chunks(content):
        target.write(chunk)
        yield chunk


def _digest(chunks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()
