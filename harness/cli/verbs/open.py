"""Show a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.console import say
from harness.errors import UsageError
from harness.run import RESULTS


def verb(
    folder: Annotated[
        Path, typer.Argument(metavar="[FOLDER]", help="A run, or a folder that holds some; default: results.")
    ] = RESULTS,
) -> None:
    """Show the newest page below a folder in the browser, and say where it is. Without a browser it only says so."""
    import webbrowser

    pages = sorted(filter(Path.is_file, folder.rglob("*.html")), key=lambda page: page.stat().st_mtime)
    if not pages:
        raise UsageError.at("command line", "FOLDER", str(folder), "a folder in or below which there is a page")
    say(str(pages[-1]))
    if not webbrowser.open(pages[-1].resolve().as_uri()):
        say("no browser was found; open the file by hand")
