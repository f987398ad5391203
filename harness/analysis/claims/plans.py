"""What must be run to judge claims: of each scenario's trials those that some claim asks for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from baselines._calls import AllGather, AllReduce
from harness.analysis.claims import schema
from harness.analysis.claims.schema import Cell, Claim
from harness.errors import UsageError
from harness.methods import method_named
from harness.plan.expected import communication_over_computation, shapes_of, state_of
from harness.plan.plan import Plan
from harness.plan.trial import Trial
from harness.scenario import load as scenarios
from harness.scenario.schema import Case, MethodSpec, Scenario
from harness.units import format_rate

QUICK_ROUNDS = 3
"""How many ``--quick`` runs: the fewest whose interval says something."""

NEAR = 0.1
"""Share by which two ratios of communication to computation may differ, to be taken for the same."""


def plans(chosen: Sequence[Claim], make: Callable[[Scenario], Plan], quick: bool = False) -> dict[str, Plan]:
    """Of each scenario its plan, without what no claim asks for. A trial that several ask for is in it once.

    Args:
        make: a plan of a whole scenario.
        quick: only ``QUICK_ROUNDS`` rounds of it.

    Raises:
        UsageError: a claim asks for a case or method that its scenario does not have.
    """
    names = dict.fromkeys(name for claim in chosen for name in claim.needs)
    made = {name: make(scenarios.load(name)) for name in names}
    for name, plan in made.items():
        for claim in chosen:
            if name in claim.needs:
                _check(claim, name, plan.scenario)
    _check_alike(chosen, made)
    known = {name: plan.scenario for name, plan in made.items()}
    found = {}
    for name, plan in made.items():
        asking = [claim for claim in chosen if name in claim.needs]
        beside = _asked_for_beside(name, asking, known)
        wanted = partial(_is_wanted, scenario=name, asking=asking, beside=beside, quick=quick)
        found[name] = replace(plan.only(wanted), more_seeds=())
    return found


def _is_wanted(
    trial: Trial, scenario: str, asking: Sequence[Claim], beside: Sequence[tuple[Case, str]], quick: bool
) -> bool:
    if quick and trial.round >= QUICK_ROUNDS:
        return False
    return (trial.case, trial.method.label) in beside or any(
        is_asked_for(trial, scenario, claim, device, claim.cells) for claim in asking for device in claim.devices
    )


def is_asked_for(trial: Trial, scenario: str, claim: Claim, device: float, cells: Sequence[Cell]) -> bool:
    """Whether some of a claim's cases need a scenario's trial, with such a share of the device."""
    label = trial.method.label
    return any(
        label in (cell.method, *claim.compared)
        and (scenario == claim.convergence or (scenario == cell.scenario and cell.is_about(trial.case, device)))
        for cell in cells
    )


def _asked_for_beside(name: str, asking: Sequence[Claim], known: Mapping[str, Scenario]) -> list[tuple[Case, str]]:
    """The cases and labels of a scenario that are run to be told beside verdicts."""
    return [
        (found[0], label)
        for claim in asking
        if claim.in_one_piece == name
        for device in claim.devices
        if (found := case_beside(claim, device, known))
        for label in claim.labels
    ]


def case_beside(claim: Claim, device: float, known: Mapping[str, Scenario]) -> tuple[Case, Case] | None:
    """The case in which a claim is measured in one piece, and the claim's own: their ratios are about the same.

    Args:
        known: by names, at least the scenarios that the claim needs.

    Returns:
        None where there is none.
    """
    (cell,) = claim.cells
    own = next(each for each in known[cell.scenario].cases if cell.is_about(each, device))
    ratio = communication_over_computation(own)

    def apart(case: Case) -> float:
        return abs(math.log(communication_over_computation(case) / ratio))

    nearest = min(known[str(claim.in_one_piece)].cases, key=apart)
    return (nearest, own) if apart(nearest) <= math.log1p(NEAR) else None


def _check(claim: Claim, name: str, scenario: Scenario) -> None:
    _check_labels(claim, scenario)
    _check_counted(claim, scenario)
    if name == claim.convergence and len(scenario.cases) != 1:
        raise UsageError.at(schema.FILE, f"{claim.id}: convergence", scenario.name, "a scenario with a single case")
    _check_trains(claim, name, scenario)
    _check_cases(claim, name, scenario)


def _check_trains(claim: Claim, name: str, scenario: Scenario) -> None:
    learns = "convergence" if name == claim.convergence else "scenario" if claim.quantity == "accuracy" else ""
    if learns and any(case.train.replay for case in scenario.cases):
        allowed = "a scenario that trains: who replays learns nothing"
        raise UsageError.at(schema.FILE, f"{claim.id}: {learns}", scenario.name, allowed)


def _check_labels(claim: Claim, scenario: Scenario) -> None:
    known = [method.label for method in scenario.methods]
    asked = [("method", label) for label in claim.method]
    asked += [("baseline", claim.baseline), *([("without", claim.without)] if claim.without else [])]
    for field, label in asked:
        if label not in known:
            raise UsageError.at(schema.FILE, f"{claim.id}: {field}", label, f"of {scenario.name}: {', '.join(known)}")


def _check_counted(claim: Claim, scenario: Scenario) -> None:
    """What one worker's gradient takes can be told of methods that send it once."""
    for label in claim.labels if claim.counted == "gradient" else ():
        calls = state_of(_method(scenario, label)).calls(shapes_of(claim.model[0]), claim.workers)
        if not all(isinstance(call, (AllGather, AllReduce)) for call in calls):
            allowed = f"wire, since {label} does not send a gradient at once"
            raise UsageError.at(schema.FILE, f"{claim.id}: counted", claim.counted, allowed)


def _check_cases(claim: Claim, name: str, scenario: Scenario) -> None:
    cells = [cell for cell in claim.cells if cell.scenario == name]
    for cell, device in itertools.product(cells, claim.devices):
        if not any(cell.is_about(case, device) for case in scenario.cases):
            share = f", {100 * device:g} % of the device" if device != 1 else ""
            asked = f"{cell.model}, {_said(cell.rate_bps)}, {cell.workers} workers{share}"
            cases = "; ".join(
                f"{case.train.model}, {_said(case.link.rate_bps)}, {case.cluster.workers} workers"
                for case in scenario.cases
            )
            allowed = f"the cases of {scenario.name}: {cases}"
            raise UsageError.at(schema.FILE, f"{claim.id}: model, rate, workers", asked, allowed)


def _said(rate_bps: int | None) -> str:
    return format_rate(rate_bps) if rate_bps else "unshaped"


def _check_alike(chosen: Sequence[Claim], found: Mapping[str, Plan]) -> None:
    """Steps and throughput must be of the same method: figures of two variants are not to be multiplied."""
    for claim in chosen:
        if not claim.convergence or not claim.needs:
            continue
        measured, trained = claim.cells[0].scenario, claim.convergence
        for label in claim.labels:
            methods = [_method(found[name].scenario, label) for name in (measured, trained)]
            if difference := _difference(*methods):
                allowed = f"the same {label} as in {measured} ({difference})"
                raise UsageError.at(schema.FILE, f"{claim.id}: convergence", trained, allowed)
        if claim.in_one_piece:
            scenarios_of = (found[name].scenario for name in (measured, trained, claim.in_one_piece))
            _check_same_trainings(claim, *scenarios_of)


def _check_same_trainings(claim: Claim, measured: Scenario, trained: Scenario, paced: Scenario) -> None:
    """What is measured in one piece must be the trainings that the steps to the target come from, with their seeds.

    And all has a ratio of communication to computation by which it is put beside the claim's own case.
    """
    same = _training(trained.cases[0])
    differing = [key for case in paced.cases for key, value in _training(case).items() if value != same[key]]
    differing += [label for label in claim.labels if _method(trained, label) != _method(paced, label)]
    differing += ["seed"] if trained.seed != paced.seed else []
    if differing:
        allowed = f"the trainings of {trained.name}, paced ({paced.name} differs in {differing[0]})"
        raise UsageError.at(schema.FILE, f"{claim.id}: in_one_piece", claim.in_one_piece, allowed)
    for scenario in (measured, paced):
        for case in scenario.cases:
            if not (case.train.known_profile and case.link.rate_bps):
                allowed = f"none, unless all cases of {scenario.name} have a rate, and a profile that is known before"
                raise UsageError.at(schema.FILE, f"{claim.id}: in_one_piece", claim.in_one_piece, allowed)


def _training(case: Case) -> dict[str, object]:
    """What decides what is learnt."""
    keeps_time = {"pace", "dilation", "most_added", "timeout_s", "save_every"}
    return {"workers": case.cluster.workers, **case.train.model_dump(exclude=keeps_time)}


def _difference(replayed: MethodSpec, trained: MethodSpec) -> str:
    """The first thing in which they differ; nothing if in none that matters.

    What belongs to the warm-up alone may differ. Throughput is that of the steady state, which a replay reaches at
    once.
    """
    if replayed.name != trained.name:
        return f"{trained.name} against {replayed.name}"
    warmup = method_named(replayed.name).State.warmup_parameters
    differing = [
        f"{key} = {trained.params.get(key)!r} against {value!r}"
        for key, value in replayed.params.items()
        if key not in warmup and trained.params.get(key) != value
    ]
    return differing[0] if differing else ""


def _method(scenario: Scenario, label: str) -> MethodSpec:
    return next(method for method in scenario.methods if method.label == label)
