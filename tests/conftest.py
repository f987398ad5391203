"""All tiers run beside one another: those that measure networks wait more than they compute, and go first."""

from __future__ import annotations

import gc
import os
import uuid
from collections.abc import Iterator

import pytest
from host import MARK
from xdist.scheduler import LoadScopeScheduling

from harness.cli.main import OBJECTS_BETWEEN_COLLECTIONS

gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)  # as the command line does; here it saves a sixth of the time

ONE_AT_A_TIME = "tests/netem"
"""A kernel of user-mode-linux has one processor, and is slow: two of them beside one another measure amiss."""


class ByFile(LoadScopeScheduling):
    """In one process: all tests of a file, which share its fixtures, or all of a folder where one goes at a time.

    Whatever comes first on the command line starts first. (Groups would do, were pytest 9 to show them to xdist 3.8.)
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        folder = file.rpartition("/")[0]
        return folder if folder == ONE_AT_A_TIME else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByFile | None:
    """For ``--dist loadscope``; see the noxfile."""
    return ByFile(config, log) if config.getvalue("dist") == "loadscope" else None


@pytest.fixture(scope="session")
def processes_are_known() -> Iterator[None]:
    """Others may run tests on the same machine: what this process starts bears its mark."""
    os.environ[MARK] = uuid.uuid4().hex
    yield
    del os.environ[MARK]
