"""A run's folder: trials appended one by one, each written once by rename, and read back as frames.

    RUN/scenario.json           the scenario as it was resolved
    RUN/provenance.json         a list, one entry for each time the run was started or resumed
    RUN/trials.parquet/         a folder, one file a trial; pandas reads it as one frame
    RUN/verified.parquet/       likewise: what the links were after it, known only once the last trial on them has ended
    RUN/events.parquet/         likewise: trial_id, rank, step, time_s, kind, value

A trial's events are written before its row, and the row is what makes it count: whatever dies in between leaves
nothing half-written that is read. A trial that failed keeps its row; when it is run again a further attempt is added.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from harness.errors import MeasurementError, UsageError
from harness.plan.status import ACCURACY as ACCURACY
from harness.plan.status import DIVERGED as DIVERGED
from harness.plan.status import DONE as DONE
from harness.plan.status import MISSES as MISSES
from harness.plan.status import STATUSES as STATUSES
from harness.scenario.schema import Scenario
from harness.scenario.target import Target

TRIAL_SCHEMA = pa.schema(
    [
        ("trial_id", pa.string()),
        ("attempt", pa.int32()),
        ("scenario", pa.string()),
        ("cluster", pa.string()),
        ("method", pa.string()),
        ("label", pa.string()),
        ("params", pa.string()),  # JSON
        ("model", pa.string()),
        ("dataset", pa.string()),  # or, of a replay, whose times were waited for
        ("replay", pa.string()),  # the profile; null: it trained for real
        ("replay_source", pa.string()),  # measured or modelled
        ("dilation", pa.float64()),  # of the case: how many times slower everything is than it is told here, at least
        ("trial_dilation", pa.float64()),  # how many times slower it was
        ("workers", pa.int32()),
        ("batch_size", pa.int32()),
        ("rate_bps", pa.float64()),  # null: unshaped
        ("delay_s", pa.float64()),
        ("loss", pa.float64()),
        ("network", pa.string()),  # what else its links and topology are, in words
        ("seed", pa.int64()),
        ("round", pa.int32()),
        ("purpose", pa.string()),  # null: all that is told; accuracy: one more seed, on unshaped links, for that alone
        ("status", pa.string()),
        ("reason", pa.string()),
        ("steps", pa.int32()),  # completed
        ("steady_from_step", pa.int32()),
        ("settling_steps", pa.int32()),  # beyond the declared warm-up, left out of all times by ``steady``'s rule
        ("steady_steps", pa.int32()),  # timed ones
        ("samples_per_s", pa.float64()),
        ("step_time_median_s", pa.float64()),
        ("compute_s_per_step", pa.float64()),
        ("codec_s_per_step", pa.float64()),  # encode and decode together
        ("encode_s_per_step", pa.float64()),
        ("decode_s_per_step", pa.float64()),
        ("comm_s_per_step", pa.float64()),
        ("overrun_s_per_step", pa.float64()),  # of a replay: what this machine's slowness adds at most
        ("processor_s_per_step", pa.float64()),  # of the above, what this machine's processor decides
        ("yardstick_s", pa.float64()),  # of the processor, for a fixed piece of work, when the trial began and ended
        ("wire_bytes_per_step", pa.float64()),
        ("header_bytes_per_step", pa.float64()),
        ("formula_bytes_per_step", pa.float64()),
        ("lower_bound_s_per_step", pa.float64()),
        ("predicted_step_s", pa.float64()),  # null: there is no profile
        ("before_steady_s", pa.float64()),
        ("steady_s", pa.float64()),  # timed, together; throughput is null where these or the steps are too few
        ("final_accuracy", pa.float64()),
        ("final_loss", pa.float64()),  # on the test set
        ("final_perplexity", pa.float64()),  # null: no language
        ("target", pa.string()),  # such as "accuracy 0.95"; null: none
        ("steps_to_target", pa.float64()),  # by a line between two evaluations; null: not reached
        ("time_to_target_s", pa.float64()),  # likewise
        ("train_time_s", pa.float64()),
        ("evaluation_time_s", pa.float64()),
        ("wall_time_s", pa.float64()),
        ("peak_memory_bytes", pa.float64()),
        ("own_memory_bytes", pa.float64()),
        ("held_memory_bytes", pa.float64()),  # by the method between steps: residuals, masks
        ("measured_rate_bps", pa.float64()),
        ("measured_rtt_s", pa.float64()),
        ("links", pa.string()),  # JSON: every link and direction, asked and measured
        ("verified_before", pa.string()),  # JSON: all that was measured of the network before the trial
        ("retransmits", pa.float64()),  # TCP segments sent again, by all workers
        ("transport_rtt_s", pa.float64()),  # TCP's smoothed round trip at the end, queues included; median of workers
        ("cwnd_packets", pa.float64()),  # TCP's congestion window then, likewise
        ("queue_drops", pa.float64()),  # by all links, in both directions: for want of room, or as asked
        ("queue_backlog_bytes", pa.float64()),  # the most that was seen to wait in any link's queue
        ("fullest_queue", pa.string()),  # the link and direction in which it did
        ("parameter_hash", pa.string()),
        ("commit", pa.string()),
        ("code_digest", pa.string()),
        ("image_digest", pa.string()),  # null: workers run in the harness's own environment
        ("cpuset", pa.string()),  # of each worker; null: any CPU
        ("memory_limit_bytes", pa.float64()),  # of each worker; null: none
        ("device", pa.string()),  # cpu or cuda
        ("peak_gpu_memory_bytes", pa.float64()),  # null: on a CPU
        ("log_tail", pa.string()),
    ]
)

OLDER_COLUMNS = pa.schema([("target_accuracy", pa.float64())])
"""Of stores from before there were other targets than an accuracy; read, and never written."""

WORKLOAD_COLUMNS = (
    *("workers", "model", "dataset", "batch_size", "target", "cluster", "cpuset", "memory_limit_bytes", "device"),
)
"""What two trials must share to learn alike, whatever their links are."""

VERIFICATION_SCHEMA = pa.schema(
    [
        ("trial_id", pa.string()),
        ("attempt", pa.int32()),
        ("verified_after", pa.string()),  # JSON: all that was measured after the last trial on the same network
        ("drift", pa.string()),  # what was out of tolerance then
    ]
)

EVENT_SCHEMA = pa.schema(
    [
        ("trial_id", pa.string()),
        ("rank", pa.int32()),
        ("step", pa.int32()),
        ("time_s", pa.float64()),
        ("kind", pa.string()),
        ("value", pa.float64()),
    ]
)


class Event(NamedTuple):
    """One number that a worker reported. ``time_s`` is on the training clock, which evaluations pause."""

    rank: int
    step: int
    time_s: float
    kind: str
    value: float


class Store:
    """The folder of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def create(cls, folder: Path, scenario: Scenario) -> Store:
        """Make the folder, or enter one that holds the same scenario.

        Raises:
            UsageError: it cannot be written, or holds a run of another scenario.
        """
        store = cls(folder)
        try:
            for part in (store._trials, store._events, store._verified):
                part.mkdir(parents=True, exist_ok=True)
            if not store._scenario.exists():
                _write(store._scenario, scenario.model_dump_json(by_alias=True, indent=1).encode())
        except OSError as error:
            raise UsageError.at(
                "command line", "--out", str(folder), f"a folder that can be written ({error})"
            ) from None
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
            UsageError: it is not the folder of a run.
        """
        store = cls(folder)
        if not store._scenario.is_file():
            raise UsageError.at("command line", "RUN_DIR", str(folder), "the folder of a run (it has scenario.json)")
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
    def _provenance(self) -> Path:
        return self.folder / "provenance.json"

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

    def append(self, row: Mapping[str, Any], events: Iterable[Event]) -> None:
        """Add a trial: its events first, then its row, each by one rename."""
        trial_id = row["trial_id"]
        name = f"{trial_id}-{row['attempt']}.parquet"
        rows = [{"trial_id": trial_id, **event._asdict()} for event in events]
        if (self._trials / name).exists():
            raise MeasurementError(f"{self._trials / name}: exists already; a trial is written once")
        _write(self._events / name, _as_parquet(pa.Table.from_pylist(rows, schema=EVENT_SCHEMA)))
        _write(self._trials / name, _as_parquet(pa.Table.from_pylist([dict(row)], schema=TRIAL_SCHEMA)))

    def append_verification(self, trial_id: str, attempt: int, readings: str | None, drift: Sequence[str]) -> None:
        """Add what the links of a trial were after it."""
        row = {
            "trial_id": trial_id,
            "attempt": attempt,
            "verified_after": readings,
            "drift": "; ".join(drift) or None,
        }
        table = pa.Table.from_pylist([row], schema=VERIFICATION_SCHEMA)
        _write(self._verified / f"{trial_id}-{attempt}.parquet", _as_parquet(table))

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
        _write(self._provenance, json.dumps(entries, indent=1).encode())

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


def _as_parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _write(path: Path, content: bytes) -> None:
    """Write by temporary file, sync and rename; names that begin with a dot are passed over by every reader."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    temporary.rename(path)


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
