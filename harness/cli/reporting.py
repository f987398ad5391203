"""The report of a run, written and summed up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.cli.console import say

if TYPE_CHECKING:
    from harness.record.store import Store


def write_report(store: Store) -> None:
    """Write the report of a run, and show its summary."""
    from harness.report import page

    written = page.write(store)
    page.summary(store).print()
    say(f"report: {written}")
