"""Stored runs as they are, whatever code made them: for who judges anew and runs nothing again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from harness.analysis.claims import plans
from harness.analysis.claims.figures import Run
from harness.analysis.claims.schema import Claim, known_by
from harness.analysis.trials import CASE_COLUMNS, case_of_row, on_links
from harness.errors import UsageError
from harness.plan import plan
from harness.plan.plan import Plan
from harness.plan.status import DONE
from harness.record.store import Store, runs_named
from harness.run.row import case_of, told_replay
from harness.scenario.load import load
from harness.scenario.schema import Case, MethodSpec, Scenario
from harness.workload import profile as profiles

UNKNOWN_KIND = "netns"
"""Kind of cluster of a plan whose trials are stored nowhere: nothing of it is run."""

MAY_DIFFER = {
    "cluster": {"cpuset", "memory_bytes"},
    "train": {"dilation", "most_added", "shrink", "timeout_s", "save_every", "data_dir"},
}
"""Fields of a case that say how a machine carries it, and not what it is. Rounds and seeds may differ as well."""

PROFILES = ("train.replay", "train.pace")
"""Settings that name a profile, which may have several names."""


def stored_runs(chosen: Sequence[Claim], folder: Path) -> tuple[list[Claim], dict[str, Run]]:
    """Of each scenario that claims need the run in a folder that answers them best, if there is one.

    Returns:
        The claims, without what was to stand beside a verdict where no run of it is stored; and the runs.

    Raises:
        UsageError: there is none at all; or one lacks a case or a method that a claim asks for.
    """
    scenarios = {name: load(name) for claim in chosen for name in claim.needs}
    best = {name: _best(folder, scenario, _asking(name, chosen), name) for name, scenario in scenarios.items()}
    stores = {scenarios[name].name: store for name, store in best.items() if store}
    if scenarios and not stores:
        allowed = f"a folder with runs of {', '.join(each.name for each in scenarios.values())}"
        raise UsageError.at("command line", "--judge", str(folder), allowed)

    def plan_by(scenario: Scenario) -> Plan:
        store = stores.get(scenario.name)
        return plan_of(store, scenario) if store else plan.make(scenario, UNKNOWN_KIND)

    claims = [each if best.get(str(each.in_one_piece)) else _without_beside(each) for each in chosen]
    planned = plans.plans(claims, plan_by)
    return claims, {name: Run(each, stores.get(each.scenario.name)) for name, each in planned.items()}


def _without_beside(claim: Claim) -> Claim:
    return claim.model_copy(update={"in_one_piece": None})


def runs_beside(chosen: Mapping[str, Run], claims: Sequence[Claim], folder: Path) -> dict[str, Run]:
    """Of each other scenario that claims need the run that answers them best, where one has all their methods.

    They tell how much rounds usually vary: so no verdict depends on which of the claims are asked for.
    """
    found: dict[str, Run] = {}
    for name in dict.fromkeys(name for claim in claims for name in claim.needs if name not in chosen):
        fitting, _ = _ranked(folder, load(name), _asking(name, claims), name)
        if fitting:
            found[name] = Run(Plan(fitting[0].scenario(), ()), fitting[0])
    return found


def _best(folder: Path, scenario: Scenario, asking: Sequence[Claim], name: str) -> Store | None:
    """The run that answers claims best, if something is done in one.

    Raises:
        UsageError: runs of it are there, but each lacks a method.
    """
    fitting, lacking = _ranked(folder, scenario, asking, name)
    if lacking and not fitting:
        store, missing = lacking[0]
        allowed = f"a run with {', '.join(sorted(missing))} in it"
        raise UsageError.at("command line", "--judge", str(store.folder), allowed)
    return fitting[0] if fitting else None


def _ranked(
    folder: Path, scenario: Scenario, asking: Sequence[Claim], name: str
) -> tuple[list[Store], list[tuple[Store, set[str]]]]:
    """The runs in which something is done and which have all methods that claims ask for, and those that lack some.

    Those come first that differ least from the scenario as it comes; of several, in which most is done; then the
    newest.
    """
    asked = _labels(asking)
    fitting: list[tuple[int, int, Store]] = []
    lacking: list[tuple[Store, set[str]]] = []
    for store, found in runs_named(folder, scenario.name):
        trials = store.trials()
        done = trials[trials["status"] == DONE]
        if done.empty:
            continue
        if missing := asked - {each.label for each in found.methods}:
            lacking.append((store, missing))
        else:
            cases = _cases(name, scenario, asking)
            differing, wanted = _unlike(found, scenario, cases, asked), _wanted(done, cases, asked)
            fitting.append((len(differing), -wanted, store))
    return [store for *_, store in sorted(fitting, key=lambda each: each[:2])], lacking


def _asking(name: str, chosen: Sequence[Claim]) -> list[Claim]:
    return [claim for claim in chosen if name in claim.needs]


def _labels(asking: Sequence[Claim]) -> set[str]:
    return {label for claim in asking for label in claim.labels}


def _cases(name: str, scenario: Scenario, asking: Sequence[Claim]) -> list[Case]:
    """The cases of a scenario that claims are about; of one that they need for its trainings all."""
    if any(name in (claim.convergence, claim.in_one_piece) for claim in asking):
        return list(scenario.cases)
    cells = [(cell, share) for claim in asking for cell in claim.cells for share in claim.devices]
    about = [(cell, share) for cell, share in cells if cell.scenario == name]
    return [case for case in scenario.cases if any(cell.is_about(case, share) for cell, share in about)]


def _wanted(done: pd.DataFrame, cases: Sequence[Case], labels: set[str]) -> int:
    """How many trials there are of these methods and cases."""
    places = {known_by(case)[:3] for case in cases}
    own = done.loc[done["label"].isin(labels), ["rate_bps", "workers", "model"]]
    return sum(
        (None if pd.isna(rate_bps) else rate_bps, workers, model) in places
        for rate_bps, workers, model in own.itertuples(index=False)
    )


def differences(chosen: Sequence[Claim], runs: Mapping[str, Run]) -> dict[str, str]:
    """In what the runs differ from the scenarios as they come, in words, by the names of their folders."""
    found = {}
    for name, run in runs.items():
        asking, shipped = _asking(name, chosen), load(name)
        if run.store:
            differing = _unlike(run.plan.scenario, shipped, _cases(name, shipped, asking), _labels(asking))
            found[run.store.folder.name] = "; ".join(differing)
    return {name: told for name, told in found.items() if told}


def _unlike(stored: Scenario, shipped: Scenario, cases: Sequence[Case], labels: set[str]) -> list[str]:
    """In what a stored scenario differs, of these cases and methods."""
    found: list[str] = []
    for case in cases:
        same = [other for other in stored.cases if known_by(other) == known_by(case)] or stored.cases
        unlike = [_unlike_settings(_settings(other), _settings(case)) for other in same]
        closest = min(unlike, key=len)
        found += closest
    methods = {method.label: method for method in stored.methods}
    for method in shipped.methods:
        if method.label in labels & set(methods):
            found += _unlike_methods(methods[method.label], method)
    return list(dict.fromkeys(found))


def _settings(case: Case) -> dict[str, Any]:
    """What files say of a case, such as ``link.rate``, but for what may differ."""
    return dict(_flat(case.model_dump(mode="json", by_alias=True, exclude=MAY_DIFFER)))


def _flat(told: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in told.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield before + key, value


def _unlike_methods(stored: MethodSpec, shipped: MethodSpec) -> list[str]:
    """Parameters that only one of them knows came with another version, or went with it."""
    both = set(stored.params) & set(shipped.params)
    return _unlike_settings(_settings_of(stored, both), _settings_of(shipped, both))


def _settings_of(method: MethodSpec, params: set[str]) -> dict[str, Any]:
    told = method.model_dump(mode="json", exclude={"label"})
    of_these = {key: value for key, value in told.pop("params").items() if key in params}
    return dict(_flat({**told, **of_these}, f"{method.label}: "))


def _unlike_settings(stored: Mapping[str, Any], shipped: Mapping[str, Any]) -> list[str]:
    return [
        f"{key} is {_told(stored.get(key))}, not {_told(shipped.get(key))}"
        for key in {**shipped, **stored}
        if not _are_alike(key, stored.get(key), shipped.get(key))
    ]


def _told(value: object) -> str:
    return "none" if value is None else str(value)


def _are_alike(key: str, one: Any, other: Any) -> bool:
    return one == other or (key in PROFILES and bool(one) and bool(other) and _content(one) == _content(other))


def _content(profile: str) -> tuple[str, int]:
    """What a profile holds, whatever its name is, and the share of its device; its name if it is no longer there."""
    name, percent = profiles.split(profile)
    try:
        return profiles.digest(name), percent
    except (UsageError, OSError):
        return name, percent


def _closest(scenario: Scenario, shipped: Scenario) -> Scenario:
    """Of cases that claims cannot tell apart the one alone that differs least from a case as it comes."""
    alike: dict[tuple[Any, ...], list[Case]] = {}
    for case in scenario.cases:
        alike.setdefault(known_by(case), []).append(case)
    ours = [_settings(case) for case in shipped.cases]

    def apart(case: Case) -> int:
        return min(len(_unlike_settings(_settings(case), each)) for each in ours)

    return scenario.model_copy(update={"cases": tuple(min(each, key=apart) for each in alike.values())})


def plan_of(store: Store, shipped: Scenario | None = None) -> Plan:
    """The plan of a run's scenario, in which trials have the ids under which they are stored.

    An id is of the code, too, that made the trial. So trials are known by their case as rows tell it, their method's
    label, and their round.

    Args:
        shipped: the scenario as it comes: of cases that claims cannot tell apart only the closest is planned.
    """
    rows = on_links(store.trials())
    ids = {
        _key(case_of_row(row), row["replay"], row["label"], row["round"]): row["trial_id"] for _, row in rows.iterrows()
    }
    scenario = _closest(store.scenario(), shipped) if shipped else store.scenario()
    return plan.make(scenario, rows["cluster"].iloc[0]).renamed(
        lambda trial: ids.get(_key(case_of(trial), told_replay(trial), trial.method.label, trial.round), trial.id)
    )


def _key(case: tuple[Any, ...], replay: str | None, label: str, number: int) -> tuple[Any, ...]:
    """What a replay is fed with is told by its profile: there have been several words for it."""
    told = dict(zip(CASE_COLUMNS, case, strict=True))
    fed = replay if isinstance(replay, str) else told["dataset"]
    return (*({**told, "dataset": fed}).values(), label, number)
