"""What the tier of engines shares: a look at the host."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from host import host_network, universes, wait_until


@pytest.fixture(autouse=True)
def _host_is_left_as_it_was(processes_are_known: None) -> Iterator[None]:
    """Around every test: no process stays, and the host's network is not touched."""
    before = host_network()
    yield
    wait_until(lambda: not universes())
    assert host_network() == before
