"""Predict where compression is faster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.console import print_table, say
from harness.cli.json_output import print_json
from harness.cli.options import AsJson, Method, command
from harness.run import RESULTS


def verb(
    scenario: Annotated[
        str, typer.Argument(metavar="[SCENARIO]", help="Whose methods are compared; default: one that has them all.")
    ] = "convergence",
    profile: Annotated[
        list[str] | None,
        typer.Option("--profile", metavar="NAME", help="Only this profile, or file; default: all that know codecs."),
    ] = None,
    method: Method = None,
    out: Annotated[Path, typer.Option(help="Where the map goes.")] = RESULTS / "map",
    as_json: AsJson = False,
) -> None:
    """Predict on which networks each method's step is shorter than that of the 16-bit all-reduce. Runs nothing."""
    from harness.analysis import prediction_map
    from harness.report import prediction_map as report
    from harness.report.figures.drawing import style
    from harness.report.figures.prediction_map import prediction_map as draw
    from harness.report.figures.render import write
    from harness.scenario.load import load

    loaded = load(scenario, (), method or ())
    chosen, left_out = prediction_map.subjects(loaded, profile or ())
    grid, compared = prediction_map.Grid(), prediction_map.errors()
    found = prediction_map.gains(chosen, loaded.cases[0].train.bucket_bytes, grid)
    with style():
        write([draw(report.by_cell(found))], out)
    page = report.write(found, compared, chosen, grid, out, " ".join(command()))
    if as_json:
        shares = report.of_profiles(found).to_dict("records")
        print_json({"cells": grid.cells, "shares": shares, "page": str(page)})
        return
    of_methods = report.rows(found, compared)
    title = f"a step is predicted to be shorter than with the 16-bit all-reduce in so many of {grid.cells:,} cells"
    print_table(title, list(of_methods[0]), [list(row.values()) for row in of_methods])
    for name in left_out:
        say(f"{name}: not on the map, since it knows no codec of these methods")
    say(f"by profile, and how far to trust it: {page}")
