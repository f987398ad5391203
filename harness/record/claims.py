"""Who runs which part of a run that several processes share: claims, which are files in the run's folder.

Nothing but the folder is shared, so nothing but files is used. A claim is made by one ``link``, which is atomic on NFS
as well (open(2), at O_EXCL). Its holder touches it from time to time, and it falls to others when that stops. How old
it is the file server tells, by its own clock: machines' clocks may differ.

Each claim of the same part has a number. Whoever takes a part over raises it, and the holder before, had he only been
slow, finds that out before he stores anything more.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

from pydantic import TypeAdapter

from harness.errors import MeasurementError, UsageError
from harness.files import link, make_folder, names_in, read_stored, write_whole, writing
from harness.provenance import boot, code_digest, machine, namespace, started_s

LEASE_S, RENEWED_AFTER_S = 120.0, 15.0
"""How old a claim may be, and after how long its holder touches it."""

LONG_AGO = (0, 0)
"""The times of a claim that was given back."""

FOLDER = "claims"

NAME = re.compile(r"(?P<part>[^.].*)\.(?P<number>[1-9][0-9]*)\.claim")
"""Of a claim's file. Others, such as somebody's copies, are none."""


class ClaimLostError(MeasurementError):
    """Another process has taken over what this one was too slow with."""


@dataclass(frozen=True)
class Holder:
    """A process that shares a run."""

    name: str
    machine: str
    boot: str
    """Of the kernel that it runs on, and the namespace in which ``started_s`` says anything."""
    pids: int
    """The namespace in which ``pid`` says anything."""
    pid: int
    started_s: float
    """When that process began, in seconds since the kernel did; another one may get its number later."""
    code: str

    @classmethod
    def this(cls) -> Holder:
        """This process."""
        return cls(
            name=uuid4().hex[:12],
            machine=machine(),
            boot=f"{boot()}/{namespace('time')}" if boot() else "",
            pids=namespace("pid"),
            pid=os.getpid(),
            started_s=started_s(os.getpid()) or 0.0,
            code=code_digest(),
        )

    def is_gone(self, seen_by: Holder) -> bool:
        """Whether the process that asks can see that this one has ended."""
        if not self.boot or (self.boot, self.pids) != (seen_by.boot, seen_by.pids):
            return False
        return started_s(self.pid) != self.started_s


HOLDER = TypeAdapter(Holder)


@dataclass(frozen=True)
class Claim:
    """A part of a run that a process holds, or held."""

    part: str
    number: int
    """From 1; the next one to hold it has one more."""
    path: Path
    holder: Holder
    age_s: float
    """Since the holder last touched it, as it was looked at."""

    @property
    def has_ended(self) -> bool:
        """Whether the holder came to the end of the part."""
        return self._end.exists()

    @property
    def ended_at_s(self) -> float:
        """When, by the file server's clock; infinitely long ago where it has not."""
        try:
            return self._end.stat().st_mtime
        except OSError:
            return float("-inf")

    @property
    def _end(self) -> Path:
        return self.path.with_name(f"{self.path.name}.ended")

    def end(self) -> None:
        """Tell the others that nothing is left to do here, for now: not even what failed is to be tried again."""
        with writing(self._end):
            self._end.touch()


class Claims:
    """The claims of a run, as one process sees and makes them; nothing is written before the first is made."""

    def __init__(self, run: Path, holder: Holder | None = None) -> None:
        self.folder = run / FOLDER
        self.holder = holder or Holder.this()
        self.began_at_s = self.now_s()

    @classmethod
    def joined(cls, run: Path, holder: Holder | None = None) -> Claims:
        """Those of a process that is to share the run, which from now on nobody can run alone.

        Raises:
            NoRoomError, UnwritableError: nothing can be written there.
        """
        make_folder(run / FOLDER)
        return cls(run, holder)

    def now_s(self) -> float:
        """The file server's clock, by a file that is made and gone; this machine's where none can be."""
        try:
            with tempfile.TemporaryFile(prefix=".", dir=self.folder.parent) as just_now:
                return os.fstat(just_now.fileno()).st_mtime
        except OSError:
            return time.time()

    def latest(self, of_any_code: bool = False) -> dict[str, Claim]:
        """The last claim of each part that was ever held.

        Raises:
            UsageError: a claim is damaged, or cannot be read; or its holder has other code, unless that is no matter.
        """
        newest: dict[str, tuple[int, Path]] = {}
        for found_name in map(NAME.fullmatch, names_in(self.folder)):
            if found_name and int(found_name["number"]) > newest.get(found_name["part"], (0, self.folder))[0]:
                newest[found_name["part"]] = int(found_name["number"]), self.folder / found_name[0]
        now_s = self.now_s() if newest else 0.0
        found = {part: _read(part, number, path, now_s) for part, (number, path) in newest.items()}
        for claim in found.values():
            if claim.holder.code != self.holder.code and not of_any_code:
                raise UsageError(
                    f"{claim.path}: the code of {claim.holder.machine} is {claim.holder.code}, and here it is "
                    f"{self.holder.code}; all that share a run must have the same"
                )
        return found

    def is_free(self, claim: Claim | None) -> bool:
        """Whether a part may be taken whose last claim is this; it has to have something left to do."""
        if claim is None:
            return True
        if claim.has_ended:
            return claim.ended_at_s < self.began_at_s  # a later start tries again what has failed
        return not self.is_alive(claim)

    def is_alive(self, claim: Claim) -> bool:
        """Whether its holder is at work on it, as far as one can see."""
        return not claim.has_ended and claim.age_s <= LEASE_S and not claim.holder.is_gone(self.holder)

    def take(self, part: str, last: Claim | None) -> Claim | None:
        """Claim a part whose last claim is known; None where another process was faster.

        Raises:
            UsageError: the folder knows no links, so that nothing can be shared in it.
        """
        number = 1 if last is None else last.number + 1
        path = self.folder / f"{part}.{number}.claim"
        own = self.folder / f".{self.holder.name}.{part}"
        write_whole(own, json.dumps(asdict(self.holder)))
        try:
            if not link(own, path):
                return None
        except OSError as error:
            allowed = f"with --join a folder whose disk has hard links ({error.strerror})"
            raise UsageError.at("command line", "--out", str(self.folder.parent), allowed) from None
        finally:
            with suppress(OSError):
                own.unlink()
        return Claim(part, number, path, self.holder, 0.0)

    def is_mine(self, claim: Claim) -> bool:
        """Whether no other process has taken it over."""
        return not claim.path.with_name(f"{claim.part}.{claim.number + 1}.claim").exists()

    @contextmanager
    def held(self, claim: Claim) -> Iterator[None]:
        """Touch it until the end; what is left then, as after Ctrl-C, others may take at once."""
        over = threading.Event()

        def renew() -> None:
            while not over.wait(RENEWED_AFTER_S):
                with suppress(OSError):  # the next time, perhaps
                    os.utime(claim.path)

        thread = threading.Thread(target=renew, daemon=True, name="claim")
        thread.start()
        try:
            yield
            claim.end()
        finally:
            over.set()
            thread.join()
            if not claim.has_ended:
                with suppress(OSError):
                    os.utime(claim.path, LONG_AGO)


def _read(part: str, number: int, path: Path, now_s: float) -> Claim:
    """Raises:
    UsageError: it is damaged.
    """
    try:
        holder = HOLDER.validate_json(read_stored(path))
        age_s = now_s - path.stat().st_mtime
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: damaged ({type(error).__name__}); move it away") from None
    return Claim(part, number, path, holder, age_s)
