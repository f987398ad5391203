"""Show a report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.console import say
from harness.errors import UsageError
from harness.files import files_below
from harness.run import RESULTS


def verb(
    folder: Annotated[
        Path, typer.Argument(metavar="[FOLDER]", help="A run, or a folder that holds some; default: results.")
    ] = RESULTS,
) -> None:
    """Show the newest page below a folder in the browser, and say where it is. Without a browser it only says so."""
    import webbrowser

    pages = sorted((file for file in files_below(folder) if file.suffix == ".html"), key=os.path.getmtime)
    if not pages:
        raise UsageError.at("command line", "FOLDER", str(folder), "a folder in or below which there is a page")
    say(str(pages[-1]))
    if not webbrowser.open(pages[-1].resolve().as_uri()):
        say("no browser was found; open the file by hand")
