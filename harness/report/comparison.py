"""Runs of one scenario on two kinds of cluster, side by side on a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from harness.analysis.cross_cluster import compare
from harness.files import write_whole
from harness.plain import markdown
from harness.record.store import Store
from harness.report.text import NOTHING

FILE = "comparison.md"


def write(first: Store, second: Store) -> Path:
    """Write ``comparison.md`` into the second run's folder; returns it. Raises what ``compare`` does."""
    lines = compare(first, second)
    names = [markdown(f"{_cluster(store)} (torch {_torch(store)})") for store in (first, second)]
    folders = [markdown(str(store.folder)) for store in (first, second)]
    rows = [
        f"| {markdown(line.case)} | {markdown(line.label)} "
        f"| {line.samples_per_s[0]:.1f} | {line.samples_per_s[1]:.1f} | {line.ratio:.3f} "
        f"| {_of(line.same_curves, line.rounds)} | {_of(line.same_parameters, line.rounds)} |"
        for line in lines
    ]
    page = second.folder / FILE
    write_whole(
        page,
        f"# {markdown(first.scenario().name)}: {names[0]} against {names[1]}\n\n"
        f"Runs: {folders[0]}, {folders[1]}. Samples/s are medians over rounds.\n\n"
        f"| case | method | samples/s on {names[0]} | on {names[1]} | ratio | same accuracy curve | same parameters |\n"
        "|---|---|--:|--:|--:|--:|--:|\n" + "\n".join(rows) + "\n",
    )
    return page


def _of(count: int | None, rounds: int) -> str:
    return NOTHING if count is None else f"{count} of {rounds}"


def _cluster(store: Store) -> str:
    trials: pd.DataFrame = store.trials()
    return str(trials["cluster"].iloc[0])


def _torch(store: Store) -> str:
    """The build that the workers ran, by the last start of the run."""
    latest: dict[str, Any] = store.provenance()[-1] if store.provenance() else {}
    where = latest.get("container", latest)
    return str(where.get("libraries", {}).get("torch", "unknown"))
