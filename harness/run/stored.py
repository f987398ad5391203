"""Stored runs as they are, whatever code made them: for who judges anew and runs nothing again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.analysis.claims import plans
from harness.analysis.claims.figures import Run
from harness.analysis.claims.schema import Claim
from harness.analysis.trials import CASE_COLUMNS, on_links
from harness.analysis.trials import case_of as case_of_row
from harness.cluster.protocol import Cluster
from harness.errors import UsageError
from harness.plan.plan import Plan
from harness.record.store import Store, runs_named
from harness.run.planning import plan_on
from harness.run.row import case_of, told_replay
from harness.scenario.schema import Scenario


def stored_runs(chosen: Sequence[Claim], folder: Path, cluster: Cluster) -> dict[str, Run]:
    """Of each scenario that claims need its newest run in a folder, if there is one.

    Args:
        cluster: the kind on which what is not there would run.

    Raises:
        UsageError: there is none at all; or a run lacks a case or a method that a claim asks for.
    """
    stores: dict[str, Store] = {}

    def plan(scenario: Scenario) -> Plan:
        store = next(runs_named(folder, scenario.name), None)
        if store is None:
            return plan_on(scenario, cluster)
        stores[scenario.name] = store
        return plan_of(store, cluster)

    planned = plans.plans(chosen, plan)
    if not stores:
        names = ", ".join(each.scenario.name for each in planned.values())
        raise UsageError.at("command line", "--judge", str(folder), f"a folder with runs of {names}")
    return {name: Run(each, stores.get(each.scenario.name)) for name, each in planned.items()}


def plan_of(store: Store, cluster: Cluster) -> Plan:
    """The plan of a run's scenario, in which trials have the ids under which they are stored.

    An id is of the code, too, that made the trial. So trials are known by their case as rows tell it, their method's
    label, and their round.
    """
    rows = on_links(store.trials())
    ids = {
        _key(case_of_row(row), row["replay"], row["label"], row["round"]): row["trial_id"] for _, row in rows.iterrows()
    }
    plan = plan_on(store.scenario(), cluster)
    return plan.renamed(
        lambda trial: ids.get(_key(case_of(trial), told_replay(trial), trial.method.label, trial.round), trial.id)
    )


def _key(case: tuple[Any, ...], replay: str | None, label: str, number: int) -> tuple[Any, ...]:
    """What a replay is fed with is told by its profile: there have been several words for it."""
    told = dict(zip(CASE_COLUMNS, case, strict=True))
    fed = replay if isinstance(replay, str) else told["dataset"]
    return (*({**told, "dataset": fed}).values(), label, number)
