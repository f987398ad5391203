"""The report of a run, written and summed up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.cli.console import print_table, say

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


def show_summary(summary: Summary) -> None:
    """A table a case, then the sentences."""
    for title, rows in summary.tables.items():
        print_table(title, list(rows[0]), [list(row.values()) for row in rows])
    for sentence in summary.sentences:
        say(sentence)
