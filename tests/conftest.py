"""Tiers that wait for networks more than they compute run beside one another; within a tier, one test at a time."""

from __future__ import annotations

import gc

import pytest
from xdist.scheduler import LoadScopeScheduling

from harness.cli.main import OBJECTS_BETWEEN_COLLECTIONS

gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)  # as the command line does; here it saves a sixth of the time


class ByTier(LoadScopeScheduling):
    """All tests of a folder in one process. (Groups would do, were pytest 9 to show them to xdist 3.8.)"""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid.split("::")[0].rpartition("/")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByTier | None:
    """For ``pytest tests/netns tests/netem -n 2 --dist loadscope``."""
    return ByTier(config, log) if config.getvalue("dist") == "loadscope" else None
