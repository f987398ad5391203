"""What a profile is to be made of."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from harness.scenario.schema import MethodSpec

WARM_UP_STEPS = 3
"""DDP regroups its buckets, and memory is found."""

BUCKET_BYTES = 25_000_000

SGD: dict[str, Any] = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}


@dataclass(frozen=True)
class ProfileRequest:
    """What is to be measured."""

    model: str
    batch_size: int
    device: str
    """``cpu`` or ``cuda``."""
    workers: int
    steps: int
    methods: tuple[MethodSpec, ...]
    made_by: str
    dataset: str | None = None
    """Whose samples are computed; None for made-up ones."""


Timed = dict[str, Any]
"""Seconds by the profile's fields."""


def median(values: Iterable[float]) -> float:
    return float(statistics.median(values))
