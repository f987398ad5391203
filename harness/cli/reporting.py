"""The report of a run, written and summed up."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.cli.console import print_table, say, tell

if TYPE_CHECKING:
    from harness.record.store import Store
    from harness.report.facts import Summary


def write_report(store: Store) -> None:
    """Write the report of a run, and show its summary."""
    from harness.report import facts, page

    found = facts.collect(store)
    written = page.show(found, store.folder)
    show_summary(found.summary)
    say(f"report: {written}")


def tell_of_lost_files(*runs: Path) -> None:
    """Say what is missing in the folders of runs, where all the rest could be read. Other files lack nothing."""
    from harness.record.store import Store

    for folder in dict.fromkeys(runs):
        for line in Store(folder).lost() if Store.is_run(folder) else ():
            tell(line)


def show_summary(summary: Summary) -> None:
    """A table a case, then the sentences."""
    for title, rows in summary.tables.items():
        print_table(title, list(rows[0]), [list(row.values()) for row in rows])
    for sentence in summary.sentences:
        say(sentence)
