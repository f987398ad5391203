"""Show what changed between two runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.console import print_table, say
from harness.cli.json_output import print_json
from harness.cli.options import AsJson
from harness.cli.reporting import tell_of_lost_files
from harness.errors import UsageError


def verb(
    before: Annotated[Path, typer.Argument(metavar="RUN_A", help="The folder of a run, or a reference.")],
    after: Annotated[Path, typer.Argument(metavar="RUN_B", help="Likewise.")],
    as_json: AsJson = False,
) -> None:
    """Show what changed from RUN_A to RUN_B. Exit code: 0 nothing is slower, 3 something is, 4 unknown, 5 failed.

    Runs on two kinds of cluster are held against each other instead: speeds, accuracy curves, bits.
    """
    from harness.analysis import compare as comparison
    from harness.analysis import reference
    from harness.record.store import Store
    from harness.report import changes as report
    from harness.report import comparison as across

    old, new = reference.read(before), reference.read(after)
    tell_of_lost_files(before, after)
    if old.clusters.isdisjoint(new.clusters):
        if as_json:
            raise UsageError.at("command line", "--json", "two kinds of cluster", "runs on one kind of cluster")
        page = across.write(Store.open(before), Store.open(after))
        print(page.read_text(encoding="utf-8"))
        say(f"comparison: {page}")
        return
    changes = comparison.changes(old, new)
    if as_json:
        print_json(report.as_json(old, new, changes))
    else:
        for case in dict.fromkeys(change.case for change in changes):
            own = [report.cells(change) for change in changes if change.case == case]
            print_table(case, list(own[0]), [list(cells.values()) for cells in own], words=[""])
        for line in report.notes(old, new, changes):
            say(line)
    raise typer.Exit(comparison.exit_code(changes, new.scenario.baseline))
