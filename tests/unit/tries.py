"""How much is tried of what is made by chance: in CI the same few each time, by hand many new ones for hours.

pytest tests/unit -k "any or damage or conversation or nonsense" --hypothesis-profile=long --timeout=0
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

SHORT, LONG = "timing is for benchmarks", "long"
"""Hypothesis's profiles of these tests."""

TIMES_AS_MANY = 50

BY_DEFAULT = 100
"""What hypothesis tries where a test does not say how much."""

settings.register_profile(SHORT, deadline=None)
settings.register_profile(LONG, deadline=None, max_examples=TIMES_AS_MANY * BY_DEFAULT, print_blob=True)


def tries(count: int) -> settings:
    """The settings of a test that tries so many things."""
    is_long = settings.default.max_examples > BY_DEFAULT
    return settings(
        max_examples=TIMES_AS_MANY * count if is_long else count,
        derandomize=not is_long,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
