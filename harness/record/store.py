"""A run's folder: trials appended one by one, each written once by rename, and read back as frames.

    RUN/scenario.json           the scenario as it was resolved
    RUN/store.json              the version of what is stored (``row.SCHEMA``); runs from before there was one have none
    RUN/provenance.json         a list, one entry for each time the run was started or resumed
    RUN/profiles/*/self.json    profiles of this machine that trainings were paced by, one for each workload
    RUN/profiles/*@50%.json     profiles for who has a share of a device
    RUN/trials.parquet/         a folder, one file a trial; pandas reads it as one frame
    RUN/verified.parquet/       likewise: what the links were after it, known only once the last trial on them has ended
    RUN/events.parquet/         likewise: trial_id, rank, step, time_s, kind, value

A trial's events are written before its row, and the row is what makes it count: whatever dies in between leaves
nothing half-written that is read. A trial that failed keeps its row; when it is run again a further attempt is added.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from harness.errors import MeasurementError, UsageError
from harness.files import write_whole
from harness.plan.status import DONE
from harness.record.row import EVENT_SCHEMA, SCHEMA, TRIAL_SCHEMA, VERIFICATION_SCHEMA, Event, TrialRow, VerificationRow
from harness.scenario.schema import Scenario
from harness.scenario.target import Target

OLDER_COLUMNS = pa.schema([("target_accuracy", pa.float64())])
"""Columns of stores from before there were other targets than an accuracy. They are read, and never written."""

WORKLOAD_COLUMNS = (
    *("workers", "model", "dataset", "batch_size", "training", "target"),
    *("cluster", "cpuset", "memory_limit_bytes", "device"),
)
"""What two trials must share to learn alike, whatever their links are."""


class Store:
    """The folder of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def create(cls, folder: Path, scenario: Scenario) -> Store:
        """Make the folder, or enter one that holds the same scenario.

        Raises:
            UsageError: it cannot be written, or holds a run of another scenario or of a newer version.
        """
        store = cls(folder)
        try:
            for part in (store._trials, store._events, store._verified):
                part.mkdir(parents=True, exist_ok=True)
            if not store._scenario.exists():
                write_whole(store._version, json.dumps({"schema": SCHEMA}).encode())
                write_whole(store._scenario, scenario.model_dump_json(by_alias=True, indent=1).encode())
        except OSError as error:
            raise UsageError.at(
                "command line", "--out", str(folder), f"a folder that can be written ({error})"
            ) from None
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
        if not store._scenario.is_file():
            raise UsageError.at("command line", "RUN_DIR", str(folder), "the folder of a run (it has scenario.json)")
        store.check_version()
        return store

    @property
    def _trials(self) -> Path:
        return self.folder / "trials.parquet"

    @property
    def _verified(self) -> Path:
        return self.folder / "verified.parquet"

    @property
    def _events(self) -> Path:
        return self.folder / "events.parquet"

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
        try:
            found = json.loads(self._version.read_bytes())["schema"]
        except FileNotFoundError:
            return  # from before there was a version
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{self._version}: damaged: {type(error).__name__}: {error}") from None
        if not isinstance(found, int) or found > SCHEMA:
            raise UsageError.at(self._version, "schema", found, f"up to {SCHEMA}; a newer pacbench reads it: upgrade")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out of the folder; the lock ends with the process that holds it.

        Raises:
            UsageError: another run is using it.
        """
        with (self.folder / ".lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(f"{self.folder}: another pacbench run is using this folder") from None
            yield

    def scenario(self) -> Scenario:
        """The scenario of this run.

        Raises:
            UsageError: its file is damaged, or was written by another version of pacbench.
        """
        try:
            return Scenario.model_validate_json(self._scenario.read_bytes())
        except (OSError, ValidationError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"{self._scenario}: not a scenario this version can read ({reason})") from None

    def append(self, row: TrialRow, events: Iterable[Event]) -> None:
        """Add a trial: its events first, then its row, each by one rename.

        Raises:
            MeasurementError: this attempt is there already.
        """
        name = f"{row.trial_id}-{row.attempt}.parquet"
        rows = [{"trial_id": row.trial_id, **event._asdict()} for event in events]
        if (self._trials / name).exists():
            raise MeasurementError(f"{self._trials / name}: exists already; a trial is written once")
        write_whole(self._events / name, _as_parquet(pa.Table.from_pylist(rows, schema=EVENT_SCHEMA)))
        write_whole(self._trials / name, _as_parquet(_table(row, TRIAL_SCHEMA)))

    def append_verification(self, row: VerificationRow) -> None:
        """Add what the links of a trial were after it."""
        table = _table(row, VERIFICATION_SCHEMA)
        write_whole(self._verified / f"{row.trial_id}-{row.attempt}.parquet", _as_parquet(table))

    def attempts_of(self, trial_id: str) -> int:
        """How many attempts of a trial there are."""
        return len(list(self._trials.glob(f"{trial_id}-*.parquet")))

    def attempts(self) -> pd.DataFrame:
        """Every attempt of every trial, in order of trial and attempt, in the columns of both schemas.

        Raises:
            UsageError: a file is damaged; it is named, and nothing is lost.
        """
        verified = _read_tables(self._verified, VERIFICATION_SCHEMA)
        own = with_targets(_read_tables(self._trials, pa.unify_schemas([TRIAL_SCHEMA, OLDER_COLUMNS])))
        frame = own.merge(verified, how="left", on=["trial_id", "attempt"])
        frame["network"] = frame["network"].fillna("")  # of runs from before there was more than a plain star
        return frame.sort_values(["round", "trial_id", "attempt"], ignore_index=True)

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
        names = [f"{row.trial_id}-{row.attempt}.parquet" for row in trials.itertuples()]
        return _read_tables(self._events, EVENT_SCHEMA, only=names)

    def add_provenance(self, entry: Mapping[str, Any]) -> None:
        """Remember what started or resumed this run, and where."""
        entries = [*self.provenance(), dict(entry)]
        write_whole(self._provenance, json.dumps(entries, indent=1).encode())

    def own_profile(self, workload: str, make: Callable[[], str]) -> Path:
        """The file of a profile of this machine, for one workload; what ``make`` gives is kept where there is none."""
        return self.profile(f"{workload}/self", make)

    def profile(self, name: str, make: Callable[[], str]) -> Path:
        """The file of a profile that the run has for itself; what ``make`` gives is kept where there is none."""
        file = self.folder.absolute() / "profiles" / f"{name}.json"
        if not file.exists():
            content = make().encode()
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, content)
        return file

    def provenance(self) -> list[dict[str, Any]]:
        """What started and resumed this run, oldest first."""
        try:
            entries: list[dict[str, Any]] = json.loads(self._provenance.read_bytes())
        except FileNotFoundError:
            return []
        except ValueError as error:
            raise UsageError(f"{self._provenance}: damaged: {error}; move it away to go on") from None
        return entries


def with_targets(trials: pd.DataFrame) -> pd.DataFrame:
    """Rows from before there were other targets, as they would be written now; a replay's meant nothing."""
    older = trials["target"].isna() & trials["target_accuracy"].notna() & trials["replay"].isna()
    said = trials["target_accuracy"].map(lambda share: str(Target("accuracy", share)))
    targets = trials["target"].astype(object).where(~older, said)
    current: pd.DataFrame = trials.assign(target=targets).drop(columns=OLDER_COLUMNS.names)
    return current


def runs(results: Path, scenario: Scenario) -> Iterator[Store]:
    """The runs of exactly this scenario under ``results``, newest first."""
    for folder in sorted(results.glob(f"{scenario.name}-*"), reverse=True):
        try:
            store = Store.open(folder)
            if store.scenario().is_same_run(scenario):
                yield store
        except UsageError:
            continue


def new_folder(results: Path, scenario: Scenario) -> Path:
    """A folder for a run that starts now."""
    return results / f"{scenario.name}-{time.strftime('%Y%m%d-%H%M%S')}"


def require_done(trials: pd.DataFrame, where: Path) -> pd.DataFrame:
    """The rows that finished.

    Raises:
        MeasurementError: there are none.
    """
    done = trials[trials["status"] == DONE]
    if done.empty:
        reasons = ", ".join(sorted(set(trials["reason"].dropna()))) or "the run is empty"
        raise MeasurementError(f"{where}: no trial finished ({reasons}); nothing was measured")
    return done


def _table(row: TrialRow | VerificationRow, schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist([vars(row)], schema=schema)


def _as_parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _read_tables(folder: Path, schema: pa.Schema, only: list[str] | None = None) -> pd.DataFrame:
    names = sorted(path.name for path in folder.glob("[!.]*.parquet")) if only is None else only
    tables = [schema.empty_table()]
    for name in names:
        try:
            tables.append(pq.read_table(folder / name, schema=schema))
        except (OSError, pa.ArrowException) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"{folder / name}: damaged ({reason}); move it away, and its trial runs again") from None
    frame: pd.DataFrame = pa.concat_tables(tables).to_pandas()
    return frame
