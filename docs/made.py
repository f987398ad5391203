"""Makes the parts of the site that are read from the code: ``python docs/made.py FOLDER``."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import drawings

from harness import errors
from harness.cli import app, json_reference
from harness.record.execution import FILE
from harness.report.columns import columns
from harness.report.markdown import table
from harness.run.command import EXIT_BY_SIGNAL, EXIT_TIMED_OUT
from harness.start import EXIT_INTERRUPTED

EXITS = {
    0: "done; a gate has passed",
    errors.UsageError.exit_code: "the input is wrong: one line names file, field, what was found and what is allowed",
    errors.EXIT_REGRESSION: "a regression: something is slower than it may be",
    errors.EXIT_INCONCLUSIVE: "a gate that cannot decide: too few rounds, or too much noise",
    errors.MeasurementError.exit_code: "something could not be measured, or cannot be trusted",
    EXIT_INTERRUPTED: "interrupted; what had finished is kept",
}

OF_A_COMMAND = {
    0: "the command has finished on every rank",
    "its own": "the command's own, of the rank that failed first",
    f"{EXIT_BY_SIGNAL} + n": f"that rank was ended by signal n; {EXIT_BY_SIGNAL + signal.SIGKILL}: by SIGKILL",
    EXIT_TIMED_OUT: "it took longer than `--timeout`, and was ended",
    EXIT_INTERRUPTED: "interrupted",
}

OF_EXEC = f"""`pacbench exec` passes on what became of the command. A 2 or a 5 may be pacbench's, too: wrong input, or
links or a method inside the script that cannot be trusted. The `exit_code` in `{FILE}` is the command's."""

WIDTH = 100
"""Characters in a line of a verb's help."""

LIBRARY = """# In your own code

The methods work in any training by DDP, without the rest of pacbench.

::: baselines
    options:
      members: [get, names, register, Method, Handle]

::: baselines.MethodState
"""


def verbs() -> str:
    """Every verb with its help."""
    os.environ["COLUMNS"] = str(WIDTH)
    parts = [f"## {name}\n\n```text\n{_said(name, '--help').strip()}\n```\n" for name in app.names()]
    return "# Verbs\n\n" + "\n".join(parts)


def _said(*arguments: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as said:
        app.make_app()(args=list(arguments), standalone_mode=False)
    return said.getvalue()


def exit_codes() -> str:
    """Every exit code and what it means."""
    parts = ["# Exit codes", table(["code", "meaning"], _as_rows(EXITS))]
    parts += ["## Of exec", OF_EXEC, table(["code", "meaning"], _as_rows(OF_A_COMMAND))]
    return "\n\n".join(parts) + "\n"


def _as_rows(codes: Mapping[Any, str]) -> list[list[str]]:
    return [[str(code), meaning] for code, meaning in codes.items()]


def pages() -> dict[str, str]:
    """The pages by their place in the site's sources."""
    return {
        "docs/reference/verbs.md": verbs(),
        "docs/reference/columns.md": f"# Columns of trials\n\nOf `trials.parquet`, a row a trial.\n\n{columns()}",
        "docs/reference/exit-codes.md": exit_codes(),
        "docs/reference/json.md": json_reference.page().replace("(CHANGELOG.md)", "(../../CHANGELOG.md)"),
        "docs/reference/library.md": LIBRARY,
    }


def main(folder: Path) -> None:
    """Write all of it."""
    for place, text in pages().items():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    drawings.write(folder / "docs" / "how")
    _said("explore", "-o", str(folder / "docs" / "explorer-page.html"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
