"""How much is tried of what is made by chance: in CI the same few each time, by ``nox -s fuzz`` many new ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

SHORT, FUZZ = "timing is for benchmarks", "fuzz"
"""Hypothesis's profiles of these tests."""

TIMES_AS_MANY = "PACBENCH_FUZZ_TIMES"
"""The variable that says how many times as much as in CI is tried."""

settings.register_profile(SHORT, deadline=None)
settings.register_profile(FUZZ, deadline=timedelta(minutes=1), print_blob=True)


def tries(count: int) -> Callable[[Any], Any]:
    """Makes of a test one that tries so many things in CI, and that ``nox -s fuzz`` finds."""
    is_fuzz = settings.get_current_profile_name() == FUZZ
    given = settings(
        max_examples=count * int(os.environ[TIMES_AS_MANY]) if is_fuzz else count,
        derandomize=not is_fuzz,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    return lambda test: pytest.mark.fuzz(given(test))
