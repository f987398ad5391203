"""What the netem tier shares: one user-mode-linux kernel, in which the suite's own cluster runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.cluster.uml import UmlCluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[UmlCluster]:
    with UmlCluster() as opened:
        yield opened
