"""Make a reference for gates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.console import say
from harness.cli.json_output import print_json, words_aside
from harness.cli.options import AsJson, Method, On, Rounds, ScenarioName, Set
from harness.errors import MeasurementError, UsageError
from harness.run import RESULTS

if TYPE_CHECKING:
    from harness.cluster.protocol import Cluster
    from harness.plan.plan import Plan
    from harness.record.store import Store


def verb(
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
    from harness.cluster import registry
    from harness.run.planning import plan_run

    kind, why = registry.choose(on)
    cluster = registry.make(kind)
    plan = plan_run(scenario, cluster, set_ or (), method or (), rounds or reference.ROUNDS)
    with words_aside(as_json):
        store = _run_of(plan, from_run) if from_run else _new_run(plan, cluster, why)
        path = reference.write(store, out or RESULTS / "reference" / f"{plan.scenario.name}.json")
        say(f"reference: {path}")
    if as_json:
        from harness.report.export import figures_json

        print_json({"reference": str(path), "run": figures_json(store)})


def _run_of(plan: Plan, folder: Path) -> Store:
    """A run that is there already, if it is one of this plan's scenario."""
    from harness.record.store import Store

    store = Store.open(folder)
    if (found := store.scenario().name) != plan.scenario.name:
        raise UsageError.at("command line", "--from", str(folder), f"a run of {plan.scenario.name}, not of {found}")
    return store


def _new_run(plan: Plan, cluster: Cluster, why: str) -> Store:
    from harness.cli.running import run_and_report
    from harness.run.session import open_store

    store = open_store(plan)
    if failed := run_and_report(plan, store, cluster, why).failed:
        raise MeasurementError(f"{store.folder}: {failed} trials did not finish; of such a run no reference is made")
    return store
