"""A few faults of many, drawn over their kinds."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

KINDS = ("process", "disk", "memory", "links", "engine", "clock", "folder", "machine")


def of_kind(kind: str, names: Iterable[str]) -> list[Any]:
    """Faults as parameters of a test, each with its kind."""
    assert kind in KINDS
    return [pytest.param(name, marks=pytest.mark.fault(kind)) for name in names]


def drawn(kinds: Sequence[str], count: int, chance: random.Random) -> list[int]:
    """The places of some faults, in order: none of a kind is drawn again before each other kind had its turn.

    Args:
        kinds: of all faults.
        count: how many to draw; all where there are no more.
        chance: which kinds come first, and which of a kind.
    """
    names = sorted(set(kinds))
    turn = {kind: number for number, kind in enumerate(chance.sample(names, len(names)))}
    lap, shuffled = {}, chance.sample(range(len(kinds)), len(kinds))
    seen: Counter[str] = Counter()
    for place in shuffled:
        lap[place] = seen[kinds[place]]
        seen[kinds[place]] += 1
    return sorted(sorted(shuffled, key=lambda place: (lap[place], turn[kinds[place]]))[:count])
