"""What the tier of engines shares: a Slurm, a Ray cluster, and a look at the host."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from host import host_network, universes, wait_until
from slurm import Slurm


@pytest.fixture(autouse=True)
def _host_is_left_as_it_was(processes_are_known: None) -> Iterator[None]:
    """Around every test: no process stays, and the host's network is not touched."""
    before = host_network()
    yield
    wait_until(lambda: not universes())
    assert host_network() == before


@pytest.fixture
def slurm(_host_is_left_as_it_was: None) -> Iterator[Slurm]:
    """Four hosts and their controller."""
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, Slurm(Path(folder)) as cluster:
        yield cluster
