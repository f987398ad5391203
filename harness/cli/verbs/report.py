"""Write the report of a run."""

from __future__ import annotations

from typing import Annotated

import typer

from harness.cli.console import say
from harness.cli.options import RunDir
from harness.cli.reporting import write_report


def verb(
    run_dir: RunDir,
    for_paper: Annotated[
        bool, typer.Option("--paper", help="Also write paper/: figures and tables for LaTeX.")
    ] = False,
) -> None:
    """Write report.html, report.md and plots/ into a run's folder."""
    from harness.record.store import Store

    store = Store.open(run_dir)
    write_report(store)
    if for_paper:
        from harness.report import paper

        say(f"paper: {paper.write(store)}")
