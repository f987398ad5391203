"""Checkpoints of a run's trials: what all ranks have saved is kept together with all that was measured until then."""

from __future__ import annotations

import tempfile
from base64 import b64decode
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO

from harness.files import NoRoomError, UnwritableError, make_folder, writing
from harness.messages import Message, Saved
from harness.network.addresses import worker_number
from harness.plan.trial import Trial
from harness.provenance import machine, trial_digest
from harness.record import checkpoint
from harness.record.checkpoint import About, Checkpoint
from harness.record.row import Event
from harness.record.tables import DamagedError

FOLDER = "checkpoints"

Tell = Callable[[str], None]
"""Hears a line that a user should read."""


class Checkpoints:
    """Those of a run, a file for each trial that was begun and is not done.

    Args:
        folder: where they lie.
        only_machine: whose checkpoints are used; None: any machine's.
    """

    def __init__(self, folder: Path, tell: Tell, only_machine: str | None = None) -> None:
        self._folder, self._tell, self._only_machine = folder, tell, only_machine

    def find(self, trial: Trial) -> Checkpoint | None:
        """What a trial can go on from. What cannot be used is told, and replaced by its next checkpoint."""
        if not trial.train.save_every:
            return None
        file = self._file(trial)
        try:
            found = checkpoint.read(file)
            why = self._why_not(found.about, trial)
        except FileNotFoundError:
            return None
        except DamagedError as error:
            found, why = None, f"damaged ({error})"
        whose = f"{trial.method.label}, round {trial.round}"
        if found is None or why:
            self._tell(f"{file}: {why}; {whose} starts anew")
            return None
        self._tell(f"{whose}: goes on after step {found.about.steps} of {trial.train.steps}")
        return found

    def keeper(self, trial: Trial) -> Keeper:
        """Who keeps what a trial saves."""
        return Keeper(self._file(trial), trial, self._tell)

    def discard(self, trial: Trial) -> None:
        """Remove a trial's, if there is one: it has ended."""
        _remove(self._file(trial))

    def tidy(self, begun: Collection[str], known: Collection[str]) -> None:
        """Remove what the end of an earlier start has left, and tell of what no trial can go on from.

        Args:
            begun: ids of the trials that are not done.
            known: ids of all trials.
        """
        for file in sorted(self._folder.glob("*")):
            trial_id = file.stem
            if file.name.startswith(".") or (trial_id in known and trial_id not in begun):
                _remove(file)
            elif trial_id not in known:
                self._tell(f"{file}: of no trial of this run as it is now: its code has changed, say; it is not used")

    def _file(self, trial: Trial) -> Path:
        return self._folder / f"{trial.id}.zip"

    def _why_not(self, about: About, trial: Trial) -> str | None:
        """Why a trial cannot go on from it."""
        own = {"trial": trial.id, "code": trial_digest(), "workers": trial.case.cluster.workers}
        found = {"trial": about.trial_id, "code": about.code, "workers": about.workers}
        if self._only_machine:
            own["machine"], found["machine"] = self._only_machine, about.machine
        for name, value in own.items():
            if found[name] != value:
                return f"{name}: found {found[name]}; allowed: {value}"
        return None if about.steps < trial.train.steps else f"steps: found {about.steps}; allowed: fewer than all"


class Keeper:
    """Keeps what the ranks of one trial save. Where it cannot, it says so once, and the trial goes on."""

    def __init__(self, file: Path, trial: Trial, tell: Tell) -> None:
        self._file, self._trial, self._tell = file, trial, tell
        self._parts = ExitStack()
        self._part_of: dict[int, IO[bytes]] = {}
        self._whole: set[int] = set()
        """Ranks of which all has come."""
        self._gave_up = False

    def take(self, message: Message, events: Sequence[Event]) -> bool:
        """Hear what is said; whether all ranks now wait to be told that they may go on.

        Args:
            events: all that ranks have told so far. Whoever has saved says nothing more until it goes on.
        """
        if not isinstance(message, Saved):
            return False
        rank = worker_number(message.node)
        self._unless_impossible(lambda: self._add(rank, b64decode(message.part)))
        if message.is_last:
            self._whole.add(rank)
        if len(self._whole) < self._trial.case.cluster.workers:
            return False
        self._unless_impossible(lambda: self._write(message.steps, events))
        self.close()
        return True

    def close(self) -> None:
        """Forget what is not whole."""
        self._parts.close()
        self._part_of.clear()
        self._whole.clear()

    def _add(self, rank: int, part: bytes) -> None:
        if rank not in self._part_of:
            make_folder(self._file.parent)
            part_of_rank = tempfile.TemporaryFile(dir=self._file.parent)  # noqa: SIM115 - closed with all others
            self._part_of[rank] = self._parts.enter_context(part_of_rank)
        self._part_of[rank].write(part)

    def _write(self, steps: int, events: Sequence[Event]) -> None:
        about = About(
            trial_id=self._trial.id,
            code=trial_digest(),
            machine=machine(),
            workers=self._trial.case.cluster.workers,
            steps=steps,
            found=self._trial.found,
        )
        checkpoint.write(self._file, about, [self._part_of[rank] for rank in sorted(self._whole)], events)

    def _unless_impossible(self, keep: Callable[[], None]) -> None:
        if self._gave_up:
            return
        try:
            with writing(self._file):
                keep()
        except (NoRoomError, UnwritableError) as error:
            self._gave_up = True
            self._tell(f"{error}; {self._trial.method.label}, round {self._trial.round} goes on without checkpoints")


def _remove(file: Path) -> None:
    with suppress(OSError):
        file.unlink()
