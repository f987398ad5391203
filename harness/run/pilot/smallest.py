"""The search for the smallest setting of a method that keeps the loss."""

from __future__ import annotations

from typing import NamedTuple

from harness.analysis.pilot import search
from harness.analysis.pilot.verdict import how_soon, swept_parameter
from harness.plan.expected import state_of
from harness.record.pilot import Probe
from harness.run.pilot.bench import Bench
from harness.run.pilot.found import Found
from harness.run.pilot.request import MOST_PROBES
from harness.scenario.schema import MethodSpec


class Search(NamedTuple):
    """What was tried."""

    probes: tuple[Probe, ...] = ()
    left_open: str = ""
    """What nobody looked at any more, in a sentence; empty where the smallest setting was found."""


def smallest_setting(bench: Bench, found: Found) -> Search:
    """Settings of the most promising method that has one, down to the smallest that keeps the loss."""
    leader = _leader(found)
    if leader is None:
        return Search()
    base, parameter, first = leader
    tried = {first: _is_within(found, base.label)}
    probes: list[Probe] = []
    while (value := search.next_value(tried)) is not None:
        if len(probes) == MOST_PROBES:
            left_open = f"{base.name}: {MOST_PROBES} settings were tried; the next {parameter} would be {value:.3g}."
            return Search(tuple(probes), left_open)
        method = base.model_copy(
            update={"params": {**base.params, parameter: value}, "label": f"{base.name}, {parameter} {value:.3g}"}
        )
        known, before = found.job, len(found.trainings)
        found.add_setting(base, method)
        bench.train_in_turns(found, [method])
        if len(found.trainings) == before:
            found.job = known
            break
        own = next(each for each in found.outcomes() if each.label == method.label)
        tried[value] = _is_within(found, method.label)
        difference = own.loss_difference.value if own.loss_difference else None
        probes.append(
            Probe(label=method.label, parameter=parameter, value=value, difference=difference, within=tried[value])
        )
    return Search(tuple(probes))


def _leader(found: Found) -> tuple[MethodSpec, str, float] | None:
    """Of the methods that were trained and have a share to set, the soonest; with its share. A number is no share."""
    for outcome in sorted(found.outcomes(), key=how_soon):
        parameter = swept_parameter(outcome)
        value = getattr(state_of(outcome.method), parameter) if parameter else None
        if parameter and isinstance(value, float):
            return outcome.method, parameter, value
    return None


def _is_within(found: Found, label: str) -> bool:
    """Whether it came to dense's loss, within the tolerance, with every seed."""
    return next(each for each in found.outcomes() if each.label == label).time_to_loss_s is not None
