"""Stored runs as they are, whatever code made them: for who judges anew and runs nothing again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from harness.analysis.claims import plans
from harness.analysis.claims.figures import Run
from harness.analysis.claims.schema import Claim
from harness.analysis.trials import CASE_COLUMNS, case_of_row, on_links
from harness.errors import UsageError
from harness.plan import plan
from harness.plan.plan import Plan
from harness.plan.status import DONE
from harness.record.store import Store, runs_named
from harness.run.row import case_of, told_replay
from harness.scenario.load import load
from harness.scenario.schema import Scenario

UNKNOWN_KIND = "netns"
"""Kind of cluster of a plan whose trials are stored nowhere: nothing of it is run."""


def stored_runs(chosen: Sequence[Claim], folder: Path) -> tuple[list[Claim], dict[str, Run]]:
    """Of each scenario that claims need its newest run in a folder, if there is one.

    Returns:
        The claims, without what was to stand beside a verdict where no run of it is stored; and the runs.

    Raises:
        UsageError: there is none at all; or one lacks a case or a method that a claim asks for.
    """
    scenarios = {name: load(name) for claim in chosen for name in claim.needs}
    newest = {name: _newest(folder, name, scenario, chosen) for name, scenario in scenarios.items()}
    stores = {scenarios[name].name: store for name, store in newest.items() if store}
    if scenarios and not stores:
        allowed = f"a folder with runs of {', '.join(each.name for each in scenarios.values())}"
        raise UsageError.at("command line", "--judge", str(folder), allowed)

    def plan_by(scenario: Scenario) -> Plan:
        store = stores.get(scenario.name)
        return plan_of(store) if store else plan.make(scenario, UNKNOWN_KIND)

    claims = [each if newest.get(str(each.in_one_piece)) else _without_beside(each) for each in chosen]
    planned = plans.plans(claims, plan_by)
    return claims, {name: Run(each, stores.get(each.scenario.name)) for name, each in planned.items()}


def _without_beside(claim: Claim) -> Claim:
    return claim.model_copy(update={"in_one_piece": None})


def _newest(folder: Path, name: str, scenario: Scenario, chosen: Sequence[Claim]) -> Store | None:
    """The newest run of a scenario in which something is done, by all methods that claims ask for.

    Raises:
        UsageError: runs of it are there, but each lacks a method.
    """
    asked = {label for claim in chosen if name in claim.needs for label in claim.labels}
    lacking: list[tuple[Store, set[str]]] = []
    for store, found in runs_named(folder, scenario.name):
        if (store.attempts()["status"] == DONE).any():
            missing = asked - {each.label for each in found.methods}
            if not missing:
                return store
            lacking.append((store, missing))
    if lacking:
        store, missing = lacking[0]
        allowed = f"a run with {', '.join(sorted(missing))} in it"
        raise UsageError.at("command line", "--judge", str(store.folder), allowed)
    return None


def plan_of(store: Store) -> Plan:
    """The plan of a run's scenario, in which trials have the ids under which they are stored.

    An id is of the code, too, that made the trial. So trials are known by their case as rows tell it, their method's
    label, and their round.
    """
    rows = on_links(store.trials())
    ids = {
        _key(case_of_row(row), row["replay"], row["label"], row["round"]): row["trial_id"] for _, row in rows.iterrows()
    }
    return plan.make(store.scenario(), rows["cluster"].iloc[0]).renamed(
        lambda trial: ids.get(_key(case_of(trial), told_replay(trial), trial.method.label, trial.round), trial.id)
    )


def _key(case: tuple[Any, ...], replay: str | None, label: str, number: int) -> tuple[Any, ...]:
    """What a replay is fed with is told by its profile: there have been several words for it."""
    told = dict(zip(CASE_COLUMNS, case, strict=True))
    fed = replay if isinstance(replay, str) else told["dataset"]
    return (*({**told, "dataset": fed}).values(), label, number)


def newest_runs(claims: Iterable[Claim], folder: Path) -> dict[str, Run]:
    """Of each scenario that claims need the newest run in a folder in which something is done.

    They tell how much rounds usually vary: so no verdict depends on which of the claims are asked for.
    """
    found: dict[str, Run] = {}
    for name in dict.fromkeys(name for claim in claims for name in claim.needs):
        for store, scenario in runs_named(folder, load(name).name):
            if (store.attempts()["status"] == DONE).any():
                found[name] = Run(Plan(scenario, ()), store)
                break
    return found
