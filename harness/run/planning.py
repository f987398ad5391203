"""From what a user asks for to a plan, on a cluster. Light to import: it is all that ``pacbench plan`` needs."""

from __future__ import annotations

from collections.abc import Sequence

from harness.cluster.protocol import Cluster
from harness.errors import UsageError
from harness.plan import plan as plans
from harness.plan.plan import FEWEST_SEEDS, Plan
from harness.scenario.load import load
from harness.scenario.schema import Case, Scenario

MOST_ROUNDS = 30
"""Rounds of a run that ends when its intervals are narrow enough, unless it is told how many."""


def plan_run(
    scenario: str,
    cluster: Cluster,
    overrides: Sequence[str] = (),
    methods: Sequence[str] = (),
    rounds: int | None = None,
    until: float | None = None,
    seeds: int | None = None,
) -> Plan:
    """Read a scenario and order its trials on a cluster. The arguments are those of ``run_scenario``.

    Raises:
        UsageError: it cannot be read, or cannot be run like this.
    """
    if until is not None and rounds is None:
        rounds = MOST_ROUNDS
    plan = plan_on(asked(scenario, overrides, methods, rounds, seeds), cluster)
    if seeds and (until is not None or not plan.more_seeds):
        allowed = f"more than the rounds, of which there are {FEWEST_SEEDS} or more; not with --until, nor for replays"
        raise UsageError.at("command line", "--seeds", seeds, allowed)
    return plan


def asked(
    scenario: str,
    overrides: Sequence[str] = (),
    methods: Sequence[str] = (),
    rounds: int | None = None,
    seeds: int | None = None,
) -> Scenario:
    """The scenario as it is asked for, wherever it is to run. The arguments are those of ``run_scenario``.

    Raises:
        UsageError: it cannot be read.
    """
    settings = list(overrides)
    settings += [f"accuracy_seeds={seeds}"] if seeds is not None else []
    settings += [f"rounds={rounds}"] if rounds is not None else []
    return load(scenario, settings, methods)


def plan_on(scenario: Scenario, cluster: Cluster) -> Plan:
    """Order a scenario's trials on a cluster.

    Raises:
        UsageError: it cannot be run like this, or no report could be made of it.
    """
    plan = plans.make(scenario, cluster.name, cluster.image_digest())
    if len(scenario.cases) > 1:
        _check_told_apart(plan)
    return plan


def _check_told_apart(plan: Plan) -> None:
    """Refuse cases that rows cannot tell apart, before they are run for hours."""
    from harness.run.row import case_of

    methods, cases = len(plan.scenario.methods), plan.scenario.cases
    known: dict[object, Case] = {}
    for trial in plan.trials[: methods * len(cases) : methods]:  # the first of each case
        key = case_of(trial)
        if key in known:
            field, found = _first_difference(known[key], trial.case)
            allowed = "one value a run: results do not tell cases apart by it"
            raise UsageError.at(plan.scenario.name, field, found, allowed)
        known[key] = trial.case


def _first_difference(one: Case, other: Case) -> tuple[str, list[object]]:
    """The field in which two cases differ, as files call it, and both of its values."""
    for name in Case.model_fields:
        sections = [each.model_dump(mode="json", by_alias=True)[name] for each in (one, other)]
        for field in sections[0]:
            if sections[0][field] != sections[1][field]:
                return f"{name}.{field}", [section[field] for section in sections]
    return "lists", ["the same case twice"]
