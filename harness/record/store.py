"""A run's folder: trials appended one by one, each written once by rename, and read back as frames.

    RUN/scenario.json           the scenario as it was resolved
    RUN/store.json              the version of what is stored (``row.SCHEMA``); runs from before there was one have none
    RUN/provenance.json         a list, one entry for each time the run was started or resumed
    RUN/provenance-*.json       the same of each other process that shares the run
    RUN/profiles/*/self.json    profiles of this machine that trainings were paced by, one for each workload
    RUN/profiles/*@50%.json     profiles for who has a share of a device
    RUN/trials.parquet/         a folder, one file a trial; pandas reads it as one frame
    RUN/verified.parquet/       likewise: what the links were after it, known only once the last trial on them has ended
    RUN/events.parquet/         likewise: trial_id, rank, step, time_s, kind, value
    RUN/checkpoints/*.zip       of trainings that were begun and are not done: what they go on from
    RUN/dilations*.json         what was found of this machine, or of each that shares the run (``run/dilation.py``)
    RUN/claims/                 who runs which trial, where processes share the run (``claims.py``)

A trial's events are written before its row, and the row is what makes it count: whatever dies in between leaves
nothing half-written that is read. A trial that failed keeps its row; when it is run again a further attempt is added.
"""

from __future__ import annotations

import fcntl
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from pydantic import ValidationError

from harness import provenance
from harness.errors import MeasurementError, UsageError
from harness.files import (
    LOCK,
    NoRoomError,
    UnreadableError,
    UnwritableError,
    as_name,
    is_file,
    is_folder,
    keep_elsewhere,
    locked,
    make_folder,
    names_in,
    read_stored,
    write_new,
    write_whole,
)
from harness.plan.status import DONE
from harness.record.claims import FOLDER as CLAIMS
from harness.record.row import EVENT_SCHEMA, SCHEMA, TRIAL_SCHEMA, VERIFICATION_SCHEMA, Event, TrialRow, VerificationRow
from harness.record.tables import (
    DamagedError,
    Rows,
    digest,
    events_file,
    has_digest,
    json_digest,
    read_events,
    row_file,
    row_files,
)
from harness.scenario.load import check_stored
from harness.scenario.schema import Scenario
from harness.scenario.section import in_words
from harness.scenario.target import Target

OLDER_COLUMNS = pa.schema([("target_accuracy", pa.float64())])
"""Columns of stores from before there were other targets than an accuracy. They are read, and never written."""

DIGEST = "digest"
"""Key of an entry of provenance: by it one knows whether the rest is what was written."""

TRIALS, EVENTS = "trials.parquet", "events.parquet"

PROVENANCE = re.compile(r"provenance(-.*)?\.json")
"""Names of files that tell what started a run, by whom it was started."""

OWN_NAME = re.compile(r"(?P<scenario>.+)-\d{8}-\d{6}")
"""The name of a run's folder that was not chosen by a user, see ``new_folder``."""

LOST = "no other disk has room for this trial, which is lost; what was stored before is whole"

WORKLOAD_COLUMNS = (
    *("workers", "model", "dataset", "batch_size", "training", "target"),
    *("cluster", "cpuset", "memory_limit_bytes", "device"),
)
"""What two trials must share to learn alike, whatever their links are."""


class DamagedRunError(UsageError):
    """A file of a run is not what was written."""


class NothingMeasuredError(MeasurementError):
    """No trial of a run finished."""


class Store:
    """The folder of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        all_columns = pa.unify_schemas([TRIAL_SCHEMA, OLDER_COLUMNS])
        self._trial_rows = Rows(self._trials, TrialRow, all_columns, OLDER_COLUMNS.names)
        self._verification_rows = Rows(self._verified, VerificationRow, VERIFICATION_SCHEMA)

    @classmethod
    def create(cls, folder: Path, scenario: Scenario) -> Store:
        """Make the folder, or enter one that holds the same scenario.

        Raises:
            UsageError: it cannot be written, or holds a run of another scenario or of a newer version.
            NoRoomError: the disk is full.
        """
        store = cls(folder)
        store.check_has_its_scenario()
        try:
            for part in (store._trials, store._events, store._verified):
                make_folder(part)
            if not store._scenario.exists():
                content = scenario.model_dump_json(by_alias=True, indent=1).encode()
                write_whole(store._version, json.dumps({"schema": SCHEMA, "scenario": digest(content)}))
                write_whole(store._scenario, content)
        except UnwritableError as error:
            raise error.of_folder("--out", folder) from None
        store.check_version()
        if not store.scenario().is_same_run(scenario):
            raise UsageError.at(
                "command line",
                "--out",
                str(folder),
                f"an empty folder, or a run of this same scenario; it holds "
                f"{store.scenario().name!r} with other settings",
            )
        return store

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Enter the folder of an existing run.

        Raises:
            UsageError: it is not the folder of a run, or a newer version of pacbench wrote it.
        """
        store = cls(folder)
        if not cls.is_run(folder):
            raise UsageError.at("command line", "RUN_DIR", str(folder), "the folder of a run (it has scenario.json)")
        store.check_version()
        return store

    @classmethod
    def is_run(cls, folder: Path) -> bool:
        """Whether it is the folder of a run."""
        return is_file(cls(folder)._scenario)

    @property
    def has_lost_its_scenario(self) -> bool:
        """Whether trials lie in the folder, and nothing says what they are of."""
        return not is_file(self._scenario) and is_folder(self._trials) and bool(row_files(self._trials))

    def check_has_its_scenario(self) -> None:
        """Refuse to begin a run in a folder where its trials would be mixed with others.

        Raises:
            UsageError: trials of a scenario that is lost are there, or the folder cannot be read.
        """
        if self.has_lost_its_scenario:
            allowed = "an empty folder, or a run; it holds trials, and scenario.json is missing"
            raise UsageError.at("command line", "--out", str(self.folder), allowed)

    def lost(self) -> list[str]:
        """A line for each file that is missing without which all the rest can be read."""
        rows, lines = row_files(self._trials), []
        if rows and not self._provenance_files():
            lines.append(f"{self._provenance}: missing: nothing says which code and machine the trials are of")
        if not is_file(self._version) and has_digest(rows):  # runs from before there was one have no digests either
            lines.append(f"{self._version}: missing: nothing says whether scenario.json is what the run began with")
        return lines

    @property
    def _trials(self) -> Path:
        return self.folder / TRIALS

    @property
    def _verified(self) -> Path:
        return self.folder / "verified.parquet"

    @property
    def _events(self) -> Path:
        return self.folder / EVENTS

    @property
    def _scenario(self) -> Path:
        return self.folder / "scenario.json"

    @property
    def _version(self) -> Path:
        return self.folder / "store.json"

    @property
    def _provenance(self) -> Path:
        return self.folder / "provenance.json"

    def check_version(self) -> None:
        """Refuse what a newer version of pacbench has written, whose columns may mean something else.

        Raises:
            UsageError: the version is newer, or its file is damaged.
        """
        found = self._said_of_the_store().get("schema", SCHEMA)
        if isinstance(found, bool) or not isinstance(found, int) or not 1 <= found <= SCHEMA:
            raise UsageError.at(self._version, "schema", found, f"up to {SCHEMA}; a newer pacbench reads it: upgrade")

    def _said_of_the_store(self) -> dict[str, Any]:
        """What stands beside the scenario; nothing in runs from before there was a version."""
        try:
            found = json.loads(read_stored(self._version))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            raise DamagedRunError(f"{self._version}: damaged: {type(error).__name__}: {error}") from None
        if not isinstance(found, dict) or not {"schema"} <= set(found) <= {"schema", "scenario"}:
            raise DamagedRunError(f"{self._version}: damaged: it does not say schema and scenario")
        return found

    @property
    def is_shared(self) -> bool:
        """Whether processes have shared this run."""
        return is_folder(self.folder / CLAIMS)

    @contextmanager
    def locked(self, shared: bool = False) -> Iterator[None]:
        """Keep other runs out of the folder; the lock ends with the process that holds it.

        Args:
            shared: whether others that share the run may be in it as well. Of other machines nobody may know.

        Raises:
            UsageError: another run is using it, its disk has no locks, or it is shared and this one is not to.
        """
        if self.is_shared and not shared:
            raise UsageError(f"{self.folder}: this run is shared between processes: give --join to go on with it")
        with locked(self.folder, shared) as lacks:
            if lacks and not shared:  # else claims keep them apart
                allowed = f"a folder whose disk has locks ({lacks}), or --join, which needs none"
                raise UsageError.at("command line", "--out", str(self.folder), allowed)
            yield

    @property
    def is_locked(self) -> bool:
        """Whether a run that shares the folder with nobody is using it at this moment."""
        try:
            with (self.folder / LOCK).open() as handle:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # there is no such file, or its disk has no locks
            return False
        return False

    def scenario(self) -> Scenario:
        """The scenario of this run.

        Raises:
            DamagedRunError: its file is.
            UsageError: it was written by another version of pacbench, or cannot be read now.
        """
        try:
            content = read_stored(self._scenario)
        except OSError as error:
            raise UsageError(f"{self._scenario}: cannot be read: {error.strerror}") from None
        if self._said_of_the_store().get("scenario", digest(content)) != digest(content):
            raise DamagedRunError(f"{self._scenario}: damaged: it is not what the run was started with")
        try:
            found = Scenario.model_validate_json(content)
        except ValidationError as error:
            reason = in_words(error)
            raise UsageError(f"{self._scenario}: not a scenario this version can read ({reason})") from None
        check_stored(found, self._scenario)
        return found

    def append(self, row: TrialRow, events: Iterable[Event]) -> None:
        """Add a trial: its events first, then its row, each by one rename.

        Raises:
            MeasurementError: this attempt is there already, perhaps since another process that shares the run made it.
            NoRoomError: the disk is full, or gone. Where another one has room the trial lies there, and this is said.
        """
        name = f"{row.trial_id}-{row.attempt}.parquet"
        of_events = events_file(row.trial_id, events)
        files = {EVENTS: of_events, TRIALS: row_file(row, TRIAL_SCHEMA, of_events)}
        try:
            for part, content in files.items():
                if not write_new(self.folder / part / name, content):
                    raise MeasurementError(f"{self.folder / part / name}: exists already; a trial is written once")
        except (NoRoomError, UnwritableError) as error:
            kept = keep_elsewhere("pacbench-trial-", {f"{part}/{name}": content for part, content in files.items()})
            what = f"this trial is kept: cp -r {kept}/. {self.folder} adds it to the run" if kept else LOST
            raise NoRoomError(f"{error}; {what}") from None

    def append_verification(self, row: VerificationRow) -> None:
        """Add what the links of a trial were after it.

        Raises:
            NoRoomError: the disk is full.
        """
        write_whole(self._verified / f"{row.trial_id}-{row.attempt}.parquet", row_file(row, VERIFICATION_SCHEMA))

    def attempts_of(self, trial_id: str) -> int:
        """How many attempts of a trial there were: those that were moved away since, but for the last ones, count.

        So does one of which there are events alone: its process ended before it wrote the row.
        """
        parts = (self._trials, self._events)
        numbers = [int(path.stem.removeprefix(f"{trial_id}-")) for part in parts for path in row_files(part, trial_id)]
        return max(numbers, default=-1) + 1

    def attempts(self, trial_id: str | None = None) -> pd.DataFrame:
        """Every attempt of every trial, in order of trial, claim and attempt, in the columns of both schemas.

        Args:
            trial_id: the one trial whose attempts are wanted; no file of another one is read.

        Raises:
            UsageError: a file is damaged; it is named, and nothing is lost.
        """
        verified = self._verification_rows.read(trial_id)
        own = as_written_now(self._trial_rows.read(trial_id))
        frame = own.merge(verified, how="left", on=["trial_id", "attempt"])
        frame["network"] = frame["network"].fillna("")  # of runs from before there was more than a plain star
        order = ["round", "trial_id", "claim", "attempt"]
        return frame.sort_values(order, key=lambda column: column.fillna(0), ignore_index=True)

    def trials(self) -> pd.DataFrame:
        """The last attempt of every trial, in the columns of ``TRIAL_SCHEMA``.

        Raises:
            UsageError: a file is damaged.
        """
        return self.attempts().drop_duplicates("trial_id", keep="last").reset_index(drop=True)

    def events(self, trials: pd.DataFrame | None = None) -> pd.DataFrame:
        """The events of the last attempt of every trial, in the columns of ``EVENT_SCHEMA``.

        Args:
            trials: what ``trials`` gave, where that has been read already.

        Raises:
            UsageError: a file is damaged.
        """
        trials = self.trials() if trials is None else trials
        names = [f"{row.trial_id}-{row.attempt}.parquet" for row in trials[["trial_id", "attempt"]].itertuples()]
        tables = [EVENT_SCHEMA.empty_table()]
        for name in names:
            try:
                tables.append(read_events(self._events / name, self._trials / name))
            except DamagedError as error:
                remedy = f"move {self._trials / name} away, and its trial runs again"
                raise UsageError(f"{self._events / name}: damaged ({error}); {remedy}") from None
        frame: pd.DataFrame = pa.concat_tables(tables).to_pandas()
        return frame

    def add_provenance(self, entry: Mapping[str, Any]) -> None:
        """Remember what started or resumed this run, and where.

        Raises:
            NoRoomError: the disk is full.
        """
        self._write_provenance(self._provenance, [*_provenance_of(self._provenance), dict(entry)])

    def add_own_provenance(self, entry: Mapping[str, Any], name: str) -> None:
        """The same in a file of its own, for a process of that name that shares the run.

        Raises:
            NoRoomError: the disk is full.
        """
        self._write_provenance(self.folder / f"provenance-{name}.json", [dict(entry)])

    def _write_provenance(self, path: Path, entries: Iterable[dict[str, Any]]) -> None:
        plain = json.loads(json.dumps(list(entries)))
        write_whole(path, json.dumps([{**each, DIGEST: json_digest(each)} for each in plain], indent=1))

    def own_profile(self, workload: str, make: Callable[[], str]) -> Path:
        """The file of a profile of this machine, for one workload; what ``make`` gives is kept where there is none."""
        return self.profile(f"{as_name(workload)}/self", make)

    def profile(self, name: str, make: Callable[[], str]) -> Path:
        """The file of a profile that the run has for itself; what ``make`` gives is kept where there is none.

        Of processes that share the run and make it at the same time, all use what the first one has kept.
        """
        file = self.folder.absolute() / "profiles" / f"{name}.json"
        if not file.exists():
            content = make()
            make_folder(file.parent)
            write_new(file, content.encode())
        return file

    def provenance(self) -> list[dict[str, Any]]:
        """What started and resumed this run, oldest first."""
        entries = [entry for file in self._provenance_files() for entry in _provenance_of(file)]
        return sorted(entries, key=lambda entry: str(entry.get("started", "")))

    def _provenance_files(self) -> list[Path]:
        names = (name for name in names_in(self.folder) if PROVENANCE.fullmatch(name))
        return [self.folder / name for name in names]


def _provenance_of(path: Path) -> list[dict[str, Any]]:
    try:
        entries: list[dict[str, Any]] = json.loads(read_stored(path))
        provenance.check(entries)
        for each in entries:
            expected = each.pop(DIGEST, None)
            if expected not in (None, json_digest(each)):
                raise ValueError("an entry is not what was written")
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: damaged: {error}; move it away to go on") from None
    return entries


def as_written_now(trials: pd.DataFrame) -> pd.DataFrame:
    """Rows of earlier versions as they would be written now.

    There were no other targets than accuracies, and a replay's meant nothing. Where a kernel's clock was too coarse for
    the yardstick, it was 0.
    """
    older = trials["target"].isna() & trials["target_accuracy"].notna() & trials["replay"].isna()
    said = trials["target_accuracy"].map(lambda share: str(Target("accuracy", share)))
    targets = trials["target"].astype(object).where(~older, said)
    taken_s = trials["yardstick_s"].astype(float)
    current = trials.assign(target=targets, yardstick_s=taken_s.where(taken_s > 0))
    kept: pd.DataFrame = current.drop(columns=OLDER_COLUMNS.names)
    return kept


def runs(results: Path, scenario: Scenario) -> Iterator[Store]:
    """The runs of exactly this scenario under ``results``, newest first."""
    return (store for store, found in runs_named(results, scenario.name) if found.is_same_run(scenario))


def runs_named(results: Path, name: str) -> Iterator[tuple[Store, Scenario]]:
    """The runs of scenarios of this name under ``results``, newest first, and what each scenario says.

    Those that another version of pacbench wrote are passed over where this one cannot read them.

    Raises:
        DamagedRunError: one is, or has lost its scenario.
        UnreadableError, OutOfFilesError: a folder or file cannot be read now.
    """
    for found_name in reversed(names_in(results)):
        if not found_name.startswith(f"{name}-") or not is_folder(results / found_name):
            continue
        try:
            store = Store(results / found_name)
            if store.has_lost_its_scenario:
                raise DamagedRunError(f"{store.folder}: it holds trials, and scenario.json is missing")
            store = Store.open(store.folder)
            found = store.scenario()
        except (DamagedRunError, UnreadableError) as error:
            if _is_of_another(found_name, name):
                continue
            remedy = "; move it away to go on" if isinstance(error, DamagedRunError) else ""
            raise type(error)(f"{error}{remedy}") from None
        except UsageError:
            continue
        if found.name == name:
            yield store, found


def _is_of_another(folder_name: str, name: str) -> bool:
    """Whether a folder has the name of a run of another scenario, whose own name begins like this one."""
    own = OWN_NAME.fullmatch(folder_name)
    return own is not None and own["scenario"] != name


def new_folder(results: Path, scenario: Scenario) -> Path:
    """A folder for a run that starts now."""
    return results / f"{scenario.name}-{time.strftime('%Y%m%d-%H%M%S')}"


def require_done(trials: pd.DataFrame, where: Path) -> pd.DataFrame:
    """The rows that finished.

    Raises:
        NothingMeasuredError: there are none.
    """
    done = trials[trials["status"] == DONE]
    if done.empty:
        reasons = ", ".join(sorted(set(trials["reason"].dropna()))) or "the run is empty"
        raise NothingMeasuredError(f"{where}: no trial finished ({reasons}); nothing was measured")
    return done
