"""Makes the parts of the site that are read from the code: ``python docs/made.py FOLDER``."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path

import drawings

from harness import errors
from harness.cli import app, json_reference
from harness.report.columns import columns
from harness.report.markdown import table

EXITS = {
    0: "done; a gate has passed",
    errors.UsageError.exit_code: "the input is wrong: one line names file, field, what was found and what is allowed",
    errors.EXIT_REGRESSION: "a regression: something is slower than it may be",
    errors.EXIT_INCONCLUSIVE: "a gate that cannot decide: too few rounds, or too much noise",
    errors.MeasurementError.exit_code: "something could not be measured, or cannot be trusted",
    errors.EXIT_INTERRUPTED: "interrupted; what had finished is kept",
}

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
    rows = [[str(code), meaning] for code, meaning in EXITS.items()]
    return "# Exit codes\n\n" + table(["code", "meaning"], rows) + "\n"


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
