"""Make a page with sliders: would it pay?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.console import say
from harness.cli.options import Method


def verb(
    profile: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PROFILE...]", help="Names, or .json files; default: all that know codecs."),
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="The page.")] = Path("explorer.html"),
    scenario: Annotated[
        str, typer.Option("--scenario", metavar="SCENARIO", help="Whose methods are compared; default: all methods.")
    ] = "convergence",
    method: Method = None,
) -> None:
    """Make one offline page: sliders of network and device, and the step of each method there, predicted."""
    from harness.analysis import explorer, prediction_map
    from harness.files import make_folder
    from harness.report import explorer as report
    from harness.scenario.load import load

    loaded = load(scenario, (), method or ())
    chosen, left_out = prediction_map.subjects(loaded, profile or ())
    baseline = next((each for each in loaded.methods if each.label == loaded.baseline), None)
    make_folder(out.parent)
    page = report.write(explorer.exported(chosen, baseline, loaded.cases[0].train.bucket_bytes), out)
    for name in left_out:
        say(f"{name}: not in the page, since it knows no codec of these methods")
    say(f"open in a browser: {page}")
