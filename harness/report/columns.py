"""The columns of trials, with type and meaning, read from ``TrialRow``. results/README.md ends with them."""

from __future__ import annotations

import pyarrow as pa

from harness.record.row import TRIAL_SCHEMA, TrialRow, meanings
from harness.report.markdown import table


def columns() -> str:
    """A table in Markdown with a row for each column of ``trials.parquet``."""
    types = {pa.string(): "text", pa.int32(): "integer", pa.int64(): "integer", pa.float64(): "number"}
    rows = [
        [f"`{name}`", types[TRIAL_SCHEMA.field(name).type], meaning.replace("``", "`")]
        for name, meaning in meanings(TrialRow).items()
    ]
    return table(["column", "type", "meaning"], rows) + "\n"
