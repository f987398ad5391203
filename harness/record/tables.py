"""Rows and events as parquet files. Each tells whether it is still what was written.

A row's file holds a digest of its values, and one of the bytes of its trial's events, among its metadata. Files from
before there were digests are checked by their types, and by what a row may hold.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from harness.errors import UsageError, in_one_line
from harness.files import names_in, read_stored
from harness.record.row import EVENT_SCHEMA, Event, TrialRow, VerificationRow, check_form

ROW_DIGEST, EVENTS_DIGEST = b"pacbench_row", b"pacbench_events"
"""Keys of the metadata."""


class DamagedError(Exception):
    """A file is not what was written, for this reason."""


def digest(content: bytes) -> str:
    """Of a file."""
    return hashlib.sha256(content).hexdigest()


def json_digest(content: object) -> str:
    """Of what JSON can say, however it is written down."""
    return digest(json.dumps(content, sort_keys=True).encode())


def events_file(trial_id: str, events: Iterable[Event]) -> bytes:
    """The file of a trial's events."""
    rows = [(trial_id, *event) for event in events]
    columns = zip(*rows, strict=True) if rows else [()] * len(EVENT_SCHEMA)
    arrays = [pa.array(values, field.type) for values, field in zip(columns, EVENT_SCHEMA, strict=True)]
    return _as_parquet(pa.Table.from_arrays(arrays, schema=EVENT_SCHEMA), compression="zstd")


def row_file(row: TrialRow | VerificationRow, schema: pa.Schema, events: bytes | None = None) -> bytes:
    """The file of a row.

    Args:
        events: the file of the trial's events, if there is one.
    """
    table = pa.Table.from_pylist([vars(row)], schema=schema)
    metadata = {ROW_DIGEST: _row_digest(table)}
    if events is not None:
        metadata[EVENTS_DIGEST] = digest(events)
    # Of a column with one value, dictionary, statistics and compression take more room and time than they save.
    return _as_parquet(
        table.replace_schema_metadata(metadata), compression="none", use_dictionary=False, write_statistics=False
    )


class Rows:
    """The rows of a folder, a file each. What a file held is not read again: a run of thousands is looked at often.

    Args:
        older: columns of the schema that are read, and of which ``kind`` knows nothing.
    """

    def __init__(
        self, folder: Path, kind: type[TrialRow] | type[VerificationRow], schema: pa.Schema, older: Sequence[str] = ()
    ) -> None:
        self._folder, self._kind, self._schema, self._older = folder, kind, schema, older
        self._known: dict[Path, tuple[int, ...]] = {}
        """What has been read, as ``_stamp`` has it."""
        self._table: pa.Table = schema.empty_table()

    def read(self, trial_id: str | None = None) -> pd.DataFrame:
        """All rows, or one trial's.

        Raises:
            UsageError: some are damaged; the first is named, and how many there are. Or one cannot be read now.
        """
        if trial_id is not None:
            return _as_frame(self._table_of(row_files(self._folder, trial_id)))
        now = {file: _stamp(file) for file in row_files(self._folder)}
        if any(now.get(file) != stamp for file, stamp in self._known.items()):
            self._known, self._table = {}, self._schema.empty_table()
        added = self._table_of([file for file in now if file not in self._known])
        self._table = pa.concat_tables([self._table, added]).combine_chunks()
        self._known = now
        return _as_frame(self._table)

    def _table_of(self, files: Iterable[Path]) -> pa.Table:
        tables, damaged = [self._schema.empty_table()], []
        for file in files:
            try:
                tables.append(read_row(file, self._kind, self._schema, self._older))
            except DamagedError as error:
                damaged.append(f"{file}: damaged ({error})")
        if damaged:
            more = f"; so are {len(damaged) - 1} more there" if len(damaged) > 1 else ""
            raise UsageError(f"{damaged[0]}{more}; move it away, and its trial runs again")
        return pa.concat_tables(tables)


def _stamp(file: Path) -> tuple[int, ...]:
    """What is another where a file is another; of one that is gone again nothing."""
    try:
        found = file.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _as_frame(table: pa.Table) -> pd.DataFrame:
    frame: pd.DataFrame = table.to_pandas()
    return frame


def row_files(folder: Path, trial_id: str | None = None) -> list[Path]:
    """The files of all rows in a folder, or of one trial's.

    Raises:
        UsageError: the folder cannot be read.
    """
    names = [name for name in names_in(folder) if name.endswith(".parquet") and not name.startswith(".")]
    if trial_id is not None:
        own = re.compile(rf"{re.escape(trial_id)}-\d+\.parquet")
        names = [name for name in names if own.fullmatch(name)]
    return [folder / name for name in names]


def has_digest(rows: Sequence[Path]) -> bool:
    """Whether the first of a run's rows, which code of one version has written, says whether it is what was written."""
    try:
        return bool(rows) and ROW_DIGEST in (_schema_of(rows[0]).metadata or {})
    except DamagedError:
        return False


def _schema_of(file: Path) -> pa.Schema:
    content = _bytes_of(file)
    return _guarded(lambda: pq.read_schema(pa.BufferReader(content)))


def read_row(
    file: Path, kind: type[TrialRow] | type[VerificationRow], schema: pa.Schema, older: Iterable[str] = ()
) -> pa.Table:
    """The row of a file, in the columns of a schema; what a file from before them lacks is null.

    Args:
        older: columns of the schema that are read, and of which ``kind`` knows nothing.

    Raises:
        DamagedError: it is not what was written.
        UnreadableError, OutOfFilesError: it cannot be read now.
    """
    table = _parsed(_bytes_of(file))
    if table.num_rows != 1:
        raise DamagedError(f"it has {table.num_rows} rows")
    _check_digest(table, schema)
    found = _in_columns_of(schema, table)
    if ROW_DIGEST not in (table.schema.metadata or {}):
        _check_forms(found.to_pylist()[0])
    values = {name: value for name, value in found.to_pylist()[0].items() if name not in older}
    _check_row(kind, values)
    if file.stem != f"{values['trial_id']}-{values['attempt']}":
        raise DamagedError(f"it is attempt {values['attempt']} of trial {values['trial_id']}")
    return found


def read_events(file: Path, row: Path) -> pa.Table:
    """The events of a trial, whose row has this file.

    Raises:
        DamagedError: they are not what was written.
        UnreadableError, OutOfFilesError: a file cannot be read now.
    """
    content = _bytes_of(file)
    expected = (_schema_of(row).metadata or {}).get(EVENTS_DIGEST)
    if expected is not None and expected.decode(errors="replace") != digest(content):
        raise DamagedError("its content is not what was written")
    return events_in(content, row.stem.rpartition("-")[0])


def events_in(content: bytes, trial_id: str) -> pa.Table:
    """The events of a trial, by what ``events_file`` gave.

    Raises:
        DamagedError: this is something else.
    """
    table = _parsed(content)
    if unknown := set(table.column_names) ^ set(EVENT_SCHEMA.names):
        raise DamagedError(f"columns {', '.join(sorted(unknown))} are too many, or missing")
    found = _in_columns_of(EVENT_SCHEMA, table)
    if others := set(found.column("trial_id").unique().to_pylist()) - {trial_id}:
        raise DamagedError(f"it has events of trial {others.pop()}")
    if holes := [name for name in EVENT_SCHEMA.names[:-1] if found.column(name).null_count]:
        raise DamagedError(f"{holes[0]} is not known everywhere")
    return found


def _check_digest(table: pa.Table, schema: pa.Schema) -> None:
    """Where there is no digest, a column that nobody knows may be a known one under a damaged name."""
    expected = (table.schema.metadata or {}).get(ROW_DIGEST)
    if expected is None:
        if unknown := [name for name in table.column_names if name not in schema.names]:
            raise DamagedError(f"nobody knows a column {unknown[0]}")
    elif expected.decode(errors="replace") != _guarded(lambda: _row_digest(table)):
        raise DamagedError("its content is not what was written")


def _check_forms(values: Mapping[str, Any]) -> None:
    """Of a file that nothing vouches for."""
    try:
        for name, value in values.items():
            check_form(name, value)
    except ValueError as error:
        raise DamagedError(str(error)) from None


def _check_row(kind: type[TrialRow] | type[VerificationRow], values: Mapping[str, Any]) -> None:
    """A column that is null is left out where the row may do so: files from before it have none."""
    fields = kind.__pydantic_fields__  # type: ignore[union-attr]
    given = {name: value for name, value in values.items() if value is not None or fields[name].is_required()}
    try:
        kind(**given)
    except ValidationError as error:
        first = error.errors()[0]
        raise DamagedError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _in_columns_of(schema: pa.Schema, table: pa.Table) -> pa.Table:
    known = set(table.column_names)

    def column(field: pa.Field) -> pa.ChunkedArray:
        if field.name not in known:
            return pa.nulls(table.num_rows, field.type)
        found = table.column(field.name)
        return found if found.type == field.type else _guarded(lambda: found.cast(field.type))

    return pa.Table.from_arrays([column(field) for field in schema], schema=schema)


def _row_digest(table: pa.Table) -> str:
    """Of the values that are known, so that columns which came later change nothing."""
    return json_digest({name: value for name, value in table.to_pylist()[0].items() if value is not None})


def _bytes_of(file: Path) -> bytes:
    try:
        return read_stored(file)
    except FileNotFoundError:
        raise DamagedError("it is missing") from None
    except IsADirectoryError:
        raise DamagedError("it is a folder") from None


def _parsed(content: bytes) -> pa.Table:
    # In this thread: most files are read sooner than others wake up.
    return _guarded(lambda: pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False))


def _guarded(read: Callable[[], Any]) -> Any:
    """What is read; whatever arrow raises over bytes that are no parquet becomes the one error."""
    try:
        return read()
    except (OSError, pa.ArrowException, ValueError, TypeError, KeyError, OverflowError, MemoryError) as error:
        reason = in_one_line(error)
        raise DamagedError(reason) from None


def _as_parquet(table: pa.Table, **how: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **how)
    content: bytes = sink.getvalue().to_pybytes()
    return content
