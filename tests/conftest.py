"""Beside one another: the tiers that wait for networks more than they compute. Within a tier, one test at a time."""

from __future__ import annotations

import pytest


@pytest.hookimpl(tryfirst=True)  # xdist's own looks at the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For ``pytest -n 2 --dist loadgroup tests/netns tests/netem``."""
    for item in items:
        if (tier := item.path.parent.name) in ("netns", "netem"):
            item.add_marker(pytest.mark.xdist_group(tier))
