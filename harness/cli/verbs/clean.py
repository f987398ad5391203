"""Remove what a killed run left."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.console import say
from harness.run import RESULTS


def verb(
    results: Annotated[Path, typer.Option(help="Where runs are kept.")] = RESULTS,
) -> None:
    """Remove what a killed run may have left: universes, containers, half-written files, queues of ours."""
    from harness.machine.clean import clean_up

    removed = clean_up(results)
    for line in removed or ["nothing was left"]:
        say(line)
