"""Run scenarios."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.json_output import print_json, words_aside
from harness.cli.options import (
    AsJson,
    Gpu,
    Keep,
    LinkFile,
    Method,
    On,
    Rounds,
    ScenarioNames,
    Seeds,
    Set,
    Until,
    share,
    with_link,
)
from harness.errors import MeasurementError, UsageError


def verb(
    scenarios: ScenarioNames,
    on: On = "auto",
    out: Annotated[Path | None, typer.Option(help="The run's folder; default: results/SCENARIO-TIME.")] = None,
    set_: Set = None,
    link: LinkFile = None,
    method: Method = None,
    rounds: Rounds = None,
    seeds: Seeds = None,
    until: Until = None,
    join: Annotated[
        bool, typer.Option("--join", help="Share the run with all that join it in the same --out, on any machine.")
    ] = False,
    mark: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="With --join: a file that is in --out already; pacbench submit leaves one."),
    ] = None,
    keep: Keep = False,
    gpu: Gpu = False,
    as_json: AsJson = False,
) -> None:
    """Run scenarios, store every trial as it ends, and write the report. Goes on where an earlier run stopped."""
    if mark is not None:
        from harness.run.submit import check_mark

        check_mark(join, out, mark)  # before what brings torch is imported, on each machine
    from harness.cli.running import run_and_report
    from harness.cluster import registry
    from harness.record.store import NothingMeasuredError
    from harness.run.planning import plan_run
    from harness.run.session import check_join, check_start, open_store

    check_join(join, out)
    until_share = None if until is None else share("--until", until)
    overrides = [*with_link(link, set_), *(["cluster.device=cuda", "train.pace=none"] if gpu else [])]
    kind, why = registry.choose(on)
    clusters = [registry.make(kind, keep) for _ in scenarios]
    plans = [
        plan_run(name, cluster, overrides, method or (), rounds, until_share, seeds)
        for name, cluster in zip(scenarios, clusters, strict=True)
    ]
    folders = _folders([plan.scenario.name for plan in plans], out)
    pending = [check_start(*each) for each in zip(plans, clusters, folders, strict=True)]
    stores, failed, empty = [], 0, []
    with words_aside(as_json):
        for number, (plan, cluster, folder) in enumerate(zip(plans, clusters, folders, strict=True), start=1):
            store = open_store(plan, folder)
            later = [trial for of_one in pending[number:] for trial in of_one]
            try:
                failed += run_and_report(plan, store, cluster, why, until_share, join, later).failed
                stores.append(store)
            except NothingMeasuredError as error:  # the scenarios that follow may fare better
                empty.append(str(error))
    if as_json and stores:
        from harness.report.export import figures_json

        print_json([figures_json(store) for store in stores])
    if empty:
        raise MeasurementError("; ".join(empty))
    if failed:
        raise MeasurementError(f"{failed} of the trials did not finish; the report lists each with its reason")


def _folders(names: Sequence[str], out: Path | None) -> list[Path | None]:
    """The folder of each scenario, if one was asked for: of several, one below it that has its name."""
    if out is None or len(names) == 1:
        return [out for _ in names]
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise UsageError.at("command line", "SCENARIO", repeated[0], "with --out, scenarios of different names")
    return [out / name for name in names]
