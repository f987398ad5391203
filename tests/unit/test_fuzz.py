"""A fuzz that was given a time takes it, and not much more."""

from __future__ import annotations

import fuzz
import pytest
from hypothesis import given
from hypothesis import strategies as st


@given(st.floats(0.0, 1e5), st.floats(1.0, 60.0), st.floats(0.1, 60.0), st.integers(0, 9999))
def test_rounds_fill_the_time(for_s: float, start_s: float, each_s: float, first: int) -> None:
    """Of rounds that take some time to start, and more the larger they are."""
    now_s, seeds, sizes = [0.0], [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fuzz.time, "monotonic", lambda: now_s[0])
        for seed, size in fuzz.rounds(for_s, first):
            seeds.append(seed)
            sizes.append(size)
            now_s[0] += start_s + each_s * size
    assert seeds == [*range(first, first + len(seeds))]
    assert sizes[0] == 1
    assert now_s[0] <= max(for_s, each_s) + start_s
    assert now_s[0] > for_s - (start_s + each_s)
