"""Make a reference for gates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.console import say
from harness.cli.json_output import print_json, words_aside
from harness.cli.options import AsJson, Method, On, Rounds, ScenarioName, Set, refuse_beside
from harness.cli.reporting import tell_of_lost_files
from harness.errors import MeasurementError, UsageError
from harness.run import RESULTS

if TYPE_CHECKING:
    from harness.record.store import Store


def verb(
    context: typer.Context,
    scenario: ScenarioName,
    on: On = "auto",
    out: Annotated[Path | None, typer.Option(help="The file; default: results/reference/SCENARIO.json.")] = None,
    set_: Set = None,
    method: Method = None,
    rounds: Rounds = None,
    from_run: Annotated[Path | None, typer.Option("--from", help="Make it of this run; nothing is run.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run a scenario, ten rounds unless said otherwise, and make of it a reference for gates."""
    from harness.analysis import reference

    if from_run:
        refuse_beside(context, "--from", ["on", "set_", "method", "rounds"], "the run as it is; nothing is run")
    with words_aside(as_json):
        if from_run:
            store = _run_of(scenario, from_run)
            path = out or _default(store.scenario().name)
        else:
            rounds = reference.ROUNDS if rounds is None else rounds
            store, path = _new_run(scenario, on, set_ or (), method or (), rounds, out)
        reference.write(store, path)
        if from_run:
            tell_of_lost_files(from_run)
        say(f"reference: {path}")
    if as_json:
        from harness.report.export import figures_json

        print_json({"reference": str(path), "run": figures_json(store)})


def _run_of(scenario: str, folder: Path) -> Store:
    """A run that is there already, if it is one of this scenario."""
    from harness.record.store import Store
    from harness.scenario.load import load

    store, name = Store.open(folder), load(scenario).name
    if (found := store.scenario().name) != name:
        raise UsageError.at("command line", "--from", str(folder), f"a run of {name}, not of {found}")
    return store


def _default(name: str) -> Path:
    """Where the reference of a scenario goes."""
    return RESULTS / "reference" / f"{name}.json"


def _new_run(
    scenario: str, on: str, overrides: Sequence[str], methods: Sequence[str], rounds: int, out: Path | None
) -> tuple[Store, Path]:
    """Run it, if the file can be written that is to be made of it; returns that, too."""
    from harness.cli.running import run_and_report
    from harness.cluster import registry
    from harness.files import check_folder, check_writable, is_folder
    from harness.run.planning import plan_run
    from harness.run.session import open_store

    kind, why = registry.choose(on)
    cluster = registry.make(kind)
    plan = plan_run(scenario, cluster, overrides, methods, rounds)
    path = out or _default(plan.scenario.name)
    if is_folder(path.parent):
        check_writable(path)
    else:
        check_folder(path.parent)
    store = open_store(plan)
    if failed := run_and_report(plan, store, cluster, why).failed:
        raise MeasurementError(f"{store.folder}: {failed} trials did not finish; of such a run no reference is made")
    return store, path
