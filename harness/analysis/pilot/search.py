"""The smallest share of the entries that keeps the loss: what to try next."""

from __future__ import annotations

import math
from collections.abc import Mapping

STEP = 4.0
"""By how many times it goes down, or up, until both sides are known."""

NEAR = 1.5
"""How near the two sides must come, the larger over the smaller."""

LEAST = 1e-4


def next_value(tried: Mapping[float, bool]) -> float | None:
    """The share to try next, by which of those that were tried keep the loss; None: there is nothing more to learn."""
    within = [value for value, kept in tried.items() if kept]
    if not within:
        largest = max(tried)
        return min(1.0, STEP * largest) if largest < 1 else None
    smallest = min(within)
    outside = [value for value, kept in tried.items() if not kept and value < smallest]
    if not outside:
        return smallest / STEP if smallest / STEP >= LEAST else None
    return math.sqrt(smallest * max(outside)) if smallest / max(outside) > NEAR else None
