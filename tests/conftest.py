"""All tiers run beside one another: those that measure networks wait more than they compute, and go first."""

from __future__ import annotations

import gc
import os
import uuid
from collections.abc import Iterator

import pytest
from host import MARK
from xdist.scheduler import LoadScopeScheduling

from harness.programs import OBJECTS_BETWEEN_COLLECTIONS

gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)  # as the command line does; here it saves a sixth of the time

TOGETHER = (
    "tests/netem",  # a kernel of user-mode-linux has one processor, and is slow: two beside one another measure amiss
    "tests/unit/test_report",  # files on reports of the same runs, whose figures take longer than all the rest
)
"""Files whose names begin so go into one process, one after the other."""

LONG = (
    *("tests/netem", "tests/netns/test_checkpoints_on_links.py", "tests/netns/test_pilot_on_links.py"),
    *("tests/netns/test_runs.py", "tests/netns/test_replays.py", "tests/netns"),
    *("tests/unit/test_trainings.py", "tests/unit/test_methods.py"),
)
"""What takes long starts first, in this order: else one such file begins late, and at the end all wait for it."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """See ``LONG``."""
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    return next((turn for turn, long in enumerate(LONG) if item.nodeid.startswith(long)), len(LONG))


class ByFile(LoadScopeScheduling):
    """In one process: all tests of a file, which share its fixtures, or of files that go together.

    (Groups would do, were pytest 9 to show them to xdist 3.8.)
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return next((start for start in TOGETHER if file.startswith(start)), file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByFile | None:
    """For ``--dist loadscope``; see the noxfile."""
    return ByFile(config, log) if config.getvalue("dist") == "loadscope" else None


@pytest.fixture(scope="session")
def processes_are_known() -> Iterator[None]:
    """Others may run tests on the same machine: what this process starts bears its mark."""
    os.environ[MARK] = uuid.uuid4().hex
    yield
    del os.environ[MARK]
