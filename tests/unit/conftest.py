"""What unit tests share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest
from gate_runs import make_run  # noqa: F401 - a fixture
from ranks import Ranks
from report_runs import one_case, three_rates, with_failures, without_figures  # noqa: F401 - likewise
from tries import SHORT

hypothesis.settings.load_profile(SHORT)  # which --hypothesis-profile=long replaces


@pytest.fixture(autouse=True, scope="session")
def _yields_to_whoever_measures() -> None:
    """Beside tiers that measure networks, take what they leave of the processors. Once nice, a process stays so."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.nice(19)


@pytest.fixture(scope="module")
def on_ranks() -> Iterator[Callable[..., list[Any]]]:
    """Call ``on_ranks(p, check, *arguments)``: what ``check`` returns on each of p ranks of one process group."""
    groups: dict[int, Ranks] = {}

    def run(world_size: int, check: Callable[..., Any], *arguments: Any) -> list[Any]:
        return groups.setdefault(world_size, Ranks(world_size)).run(check, *arguments)

    yield run
    for group in groups.values():
        group.close()
