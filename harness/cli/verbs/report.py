"""Write the report of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.console import say
from harness.cli.json_output import print_json, words_aside
from harness.cli.options import AsJson, RunDir
from harness.cli.reporting import tell_of_lost_files, write_report


def verb(
    run_dir: RunDir,
    for_paper: Annotated[
        bool, typer.Option("--paper", help="Also write paper/: figures and tables for LaTeX.")
    ] = False,
    trusted: Annotated[
        list[str] | None,
        typer.Option("--plugin", metavar="FILE.py:NAME", help="Ask this plug-in for its colour, bounds and sweeps."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write report.html, report.md and plots/ into a run's folder. No code that only the run names is run."""
    from harness import methods
    from harness.plugins import anchored
    from harness.record.store import Store

    for name in trusted or []:
        methods.method_named(anchored(name, Path()))
    store = Store.open(run_dir)
    with words_aside(as_json):
        write_report(store)
        if for_paper:
            from harness.report import paper

            say(f"paper: {paper.write(store)}")
    tell_of_lost_files(run_dir)
    if as_json:
        from harness.report.export import figures_json

        print_json(figures_json(store))
