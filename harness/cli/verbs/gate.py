"""Hold a run against a reference."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.analysis import MAX_SLOWDOWN
from harness.cli.console import print_table, say
from harness.cli.json_output import as_text
from harness.cli.options import RunOrReference, share, write
from harness.cli.reporting import tell_of_lost_files


def verb(
    run_dir: RunOrReference,
    against: Annotated[
        Path, typer.Option(help="A reference: a name from results/reference, a file, or a run's folder.")
    ],
    max_slowdown: Annotated[str, typer.Option(help="The slowdown that is no longer accepted.")] = f"{MAX_SLOWDOWN:.0%}",
    markdown: Annotated[Path | None, typer.Option(help="Write a summary for a pull request.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit's XML.")] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="Write JSON.")] = None,
    benchmark_json: Annotated[Path | None, typer.Option(help="Write the run as pytest-benchmark's JSON.")] = None,
) -> None:
    """Hold a run's speedups against a reference's. Exit code: 0 pass, 3 regression, 4 inconclusive, 5 failed."""
    from harness.analysis import gate as gates
    from harness.analysis import reference
    from harness.report import export, verdicts

    limit = share("--max-slowdown", max_slowdown)
    run_side = reference.read(run_dir)
    found = gates.judge(run_side, reference.read(against), limit)
    tell_of_lost_files(run_dir, against)
    for path, content in (
        (markdown, lambda: verdicts.as_markdown(found)),
        (junit, lambda: verdicts.as_junit(found)),
        (json_, lambda: as_text(verdicts.as_json(found)) + "\n"),
        (benchmark_json, lambda: as_text(export.benchmark_json(run_side)) + "\n"),
    ):
        if path:
            write(path, content())
    for case in dict.fromkeys(method.change.case for method in found.methods):
        own = [verdicts.cells(method) for method in found.methods if method.change.case == case]
        print_table(case, list(own[0]), [list(cells.values()) for cells in own], words=["why"])
    for note in verdicts.notes(found):
        say(note)
    say(verdicts.sentence(found))
    raise typer.Exit(found.exit_code)
