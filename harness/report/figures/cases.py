"""How cases become panels, and their results tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from harness.analysis.cases import CaseResult
from harness.analysis.estimates import Estimate


def shared_and_own(parts: Sequence[Sequence[str]]) -> tuple[str, list[str]]:
    """In words what all panels have in common, and what each has of its own."""
    shared = set.intersection(*map(set, parts))
    own = [", ".join(part for part in panel if part not in shared) for panel in parts]
    return ", ".join(part for part in parts[0] if part in shared), own


def by_all_but_rate(cases: Sequence[CaseResult]) -> dict[tuple[str, ...], list[CaseResult]]:
    """Parts -> the cases that differ in their links' rate alone."""
    groups: dict[tuple[str, ...], list[CaseResult]] = {}
    for case in cases:
        groups.setdefault(case.parts[1:], []).append(case)
    return groups


def have_several_rates(cases: Sequence[CaseResult]) -> bool:
    """Whether some cases differ in their links' rate alone."""
    return any(len(group) > 1 for group in by_all_but_rate(cases).values())


def of_case(frame: pd.DataFrame, case: CaseResult) -> pd.DataFrame:
    """The rows of one case."""
    same = [frame[column].isna() if pd.isna(value) else frame[column] == value for column, value in case.key.items()]
    return frame[np.logical_and.reduce(same)]


def means(case: CaseResult, columns: Sequence[str]) -> pd.DataFrame:
    """A row a method that finished: its means of these columns."""
    finished = [result for result in case.methods if len(result.done)]
    return pd.DataFrame(
        [{"label": result.label, **{column: result.mean(column) for column in columns}} for result in finished]
    )


def speedups(baseline: str, case: CaseResult) -> pd.DataFrame:
    """A row a method whose speedup over the baseline is known."""
    known = [(result.label, found) for result in case.methods if (found := result.over[baseline].throughput)]
    return pd.DataFrame([{"label": label, "baseline": baseline, **bounds("speedup", found)} for label, found in known])


def bounds(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    """The columns of an estimate."""
    value, low, high, rounds = estimate or (None, None, None, 0)
    return {name: value, f"{name}_low": low, f"{name}_high": high, "rounds": rounds}
