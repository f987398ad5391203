"""A few faults are of as many kinds as can be."""

from __future__ import annotations

import random
from collections import Counter

from drawing import KINDS, drawn
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(KINDS)), st.integers(0, 60), st.integers())
def test_no_kind_is_drawn_again_before_the_others(kinds: list[str], count: int, seed: int) -> None:
    places = drawn(kinds, count, random.Random(seed))
    assert places == sorted(set(places))
    assert len(places) == min(count, len(kinds))
    there, had = Counter(kinds), Counter(kinds[place] for place in places)
    most = max(had.values(), default=0)
    assert all(had[kind] >= min(most - 1, there[kind]) for kind in there)
    assert places == drawn(kinds, count, random.Random(seed))


def test_every_fault_is_drawn_by_some_seed() -> None:
    kinds = [*["process"] * 10, "clock", *["disk"] * 3]
    assert {place for seed in range(200) for place in drawn(kinds, 3, random.Random(seed))} == set(range(len(kinds)))
