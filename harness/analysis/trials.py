"""What a row of the frame of trials tells: its case, its workload, its target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from harness.plan.status import ACCURACY, DISTURBED, DONE
from harness.record.far_out import MOST_DISTURBED
from harness.record.store import WORKLOAD_COLUMNS
from harness.scenario.schema import Scenario
from harness.scenario.target import Target

FAKE = "fake"
"""The cluster whose numbers are scripted: whatever is made of them must say so."""

CASE_COLUMNS = ("rate_bps", "delay_s", "loss", "network", "dilation", "pace", *WORKLOAD_COLUMNS)
"""What trials must have in common to be compared."""


UNTIL = "until"
"""Key of an entry of provenance: how narrow intervals had to be for a run to end before its last round."""

FEWEST_UNDISTURBED = 2
"""Rounds of a method that must be left where disturbed ones are left out."""


def leave_out_disturbed(trials: pd.DataFrame) -> pd.DataFrame:
    """The same trials, but that those which are left out as disturbed have that status, so that no figure holds them.

    A trial that is done and has a reason all the same was disturbed, or slowed too little, at its last attempt, too. A
    method's rounds of which that is true in a case are left out where at least ``FEWEST_UNDISTURBED`` others of it
    remain. Else all are used.
    """
    done = trials["status"] == DONE
    disturbed = (trials["disturbed_share"] > MOST_DISTURBED) | (done & trials["reason"].notna())
    own = [trials[column] for column in ("label", *CASE_COLUMNS)]
    remaining = (done & ~disturbed).groupby(own, dropna=False).transform("sum")
    out = done & disturbed & (remaining >= FEWEST_UNDISTURBED)
    return trials.assign(status=trials["status"].mask(out, DISTURBED))


def on_links(trials: pd.DataFrame) -> pd.DataFrame:
    """Those that ran on the links that were asked for: all but further seeds for accuracy."""
    return trials[trials["purpose"] != ACCURACY]


def rounds_asked_for(trials: pd.DataFrame, scenario: Scenario, provenance: Sequence[Mapping[str, Any]]) -> int:
    """How many rounds a run was to have; where it was to end with the round that is enough, those that were begun."""
    if provenance and UNTIL in provenance[-1]:
        return int(on_links(trials)["round"].max()) + 1
    return scenario.rounds


def workload_of(row: Mapping[Any, Any] | pd.Series[Any]) -> tuple[Any, ...]:
    """A row's values of ``WORKLOAD_COLUMNS``, None where nothing is said."""
    return _said(row, WORKLOAD_COLUMNS)


def case_of_row(row: Mapping[Any, Any] | pd.Series[Any]) -> tuple[Any, ...]:
    """Likewise, of ``CASE_COLUMNS``."""
    return _said(row, CASE_COLUMNS)


def _said(row: Mapping[Any, Any] | pd.Series[Any], columns: Iterable[str]) -> tuple[Any, ...]:
    return tuple(None if pd.isna(row[column]) else row[column] for column in columns)


def target_of(row: Mapping[Any, Any] | pd.Series[Any]) -> Target | None:
    """A row's target."""
    return None if pd.isna(row["target"]) else Target.parse(row["target"])
