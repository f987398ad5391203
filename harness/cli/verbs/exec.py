"""Run any command over an emulated network."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.attaching import Method, Metric, Observe, Params, Seed, Steps, attachment
from harness.cli.options import (
    Keep,
    LinkFile,
    On,
    PerNode,
    Rate,
    SetLinks,
    Workers,
    command,
    current_folder,
    refuse_beside,
    time_above_zero,
    topology,
    with_link,
)
from harness.errors import MeasurementError, UsageError

if TYPE_CHECKING:
    from harness.record.execution import Execution

SETTINGS = {"allow_interspersed_args": False}
"""What follows the command is the command's own."""


def verb(
    context: typer.Context,
    command_: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="-- COMMAND...", help="In it {PACBENCH_NODE}, {RANK} and the like stand for their values."
        ),
    ] = None,
    workers: Workers = 4,
    rate: Rate = "100mbit",
    on: On = "auto",
    set_: SetLinks = None,
    link: LinkFile = None,
    method: Method = None,
    param: Params = None,
    observe: Observe = False,
    seed: Seed = None,
    steps: Steps = None,
    metric: Metric = None,
    per_node: PerNode = 1,
    timeout: Annotated[str | None, typer.Option(metavar="TIME", help="End it after so long, such as 10min.")] = None,
    image: Annotated[
        str | None, typer.Option(help="On docker: what the command runs in; see docker/README.md.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="What ranks print goes into files there.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The record's folder; default: results/exec-TIME.")] = None,
    keep: Keep = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone; what ranks print goes to stderr.")] = False,
) -> None:
    """Run any command over an emulated network, on every worker's node: torchrun for slow links.

    Its scripts stay as they are, also with a method in them.
    """
    from harness.cli.json_output import words_aside
    from harness.cli.outputs import Files, Terminal
    from harness.cli.progress import tell_of_unknown_commit
    from harness.cluster import registry
    from harness.record.execution import new_folder
    from harness.run import RESULTS
    from harness.run.attached import execute_attached
    from harness.run.command import Job

    environment = dict(os.environ)
    if link:
        refuse_beside(context, "--link", ["rate"], "the file's rate, or --set link.rate=..., which goes before it")
    if not command_:
        raise UsageError.at(
            "command line", "COMMAND", "nothing", "what to run, such as: pacbench exec -- python train.py"
        )
    asked, here = topology(workers, rate, with_link(link, set_)), current_folder()
    into_scripts = attachment(method, param, observe, seed, steps, metric, here)
    tell_of_unknown_commit()
    job = Job(command_, here, environment, per_node, time_above_zero("--timeout", timeout, "10min"))
    cluster = registry.make_for_commands(registry.choose(on)[0], keep, image)
    outputs = Files(output, per_node) if output else Terminal(per_node)
    with new_folder(RESULTS, out) as folder, words_aside(as_json), outputs as shown:
        found = execute_attached(cluster, asked, job, into_scripts, shown, command(), folder)
        found.save(folder)
    _report(found, folder, as_json)
    if found.drift:
        raise MeasurementError(f"the links had changed after it: {'; '.join(found.drift)}")
    if found.exit_code:
        raise typer.Exit(found.exit_code)
    if found.training and found.training.shortfall:
        raise MeasurementError(found.training.shortfall)


def _report(found: Execution, folder: Path, as_json: bool) -> None:
    """Write the page, and say the same in short: on stderr, since stdout is the command's, or as JSON."""
    from harness.cli.console import print_table, tell
    from harness.cli.json_output import print_json
    from harness.report import execution
    from harness.units import format_time

    page = execution.write(found, folder)
    if as_json:
        print_json(execution.as_json(found, page))
        return
    how = f"{found.ending}: {found.reason}" if found.reason else found.ending
    tell(f"{how}, in {format_time(found.wall_time_s)}; {found.network_in_words}")
    rows: list[Mapping[str, str]] = execution.rows(found)
    print_table("links and workers", list(rows[0]), [list(row.values()) for row in rows], file=sys.stderr)
    if found.training:
        print_table("training", ["what", "found"], execution.training_rows(found.training), ["found"], file=sys.stderr)
    tell(f"report: {page}")
