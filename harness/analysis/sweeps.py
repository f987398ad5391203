"""Sweeps: variants of one method that differ in one parameter, and how far down its accuracy holds."""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness.analysis.cases import CaseResult
from harness.analysis.methods import MethodResult
from harness.methods import declared

LEAST_SWEEP = 3
"""Points below which a line would show nothing."""


@dataclass(frozen=True)
class Sweep:
    """Variants of one method that differ in nothing but the share of entries that they keep."""

    title: str
    parameter: str
    points: tuple[tuple[float, MethodResult], ...]
    """Share and result of each variant that finished, from the largest share down."""
    limit: float | None
    """The convergence limit: the share down to which the mean final accuracy stays within the tolerance of the
    baseline's; None where not even the largest does, or the baseline has none."""


def sweeps(case: CaseResult, baseline: str, tolerance: float) -> list[Sweep]:
    """The sweeps that a case holds, over the parameters that its methods declare as ``swept``.

    Args:
        tolerance: by how much less accurate than the baseline a method may be, absolute.
    """
    return [
        _sweep(parameter, family, case, baseline, tolerance)
        for parameter in sorted({name for result in case.methods for name in _swept(result)})
        for family in _families(case, parameter)
        if len(family) >= LEAST_SWEEP
    ]


def _swept(result: MethodResult) -> tuple[str, ...]:
    found = declared(result.method)
    return found.State.swept if found else ()


def _families(case: CaseResult, parameter: str) -> list[list[MethodResult]]:
    """The methods that declare the parameter as swept and have an accuracy, grouped by all else."""
    families: dict[str, list[MethodResult]] = {}
    for result in case.methods:
        if parameter in _swept(result) and parameter in result.params and result.final_accuracy:
            families.setdefault(repr((result.method, {**result.params, parameter: None})), []).append(result)
    return list(families.values())


def _sweep(parameter: str, family: list[MethodResult], case: CaseResult, baseline: str, tolerance: float) -> Sweep:
    points = sorted(((float(result.params[parameter]), result) for result in family), key=lambda point: -point[0])
    reference = case.method(baseline).final_accuracy
    limit = None
    for share, result in points:
        if not (reference and result.final_accuracy):
            break
        if result.final_accuracy.mean < reference.mean - tolerance:
            break
        limit = share
    title = re.sub(rf"-?{parameter}=[^-]*", "", family[0].label)
    return Sweep(title, parameter, tuple(points), limit)
