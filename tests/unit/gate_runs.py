"""Runs of dense and top-k with chosen throughputs, for tests of gates and comparisons."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import make_store

from harness.analysis.reference import Measured, read
from harness.record.store import Store

Rates = Mapping[str, list[float | None]]


MakeRun = Callable[..., Measured]


EVIL = "w1: <script>alert(1)</script> | `x` *y* \"&'\x1b]]>"


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """A run of dense and top-k with these samples per second by round; None is a trial that crashed."""
    folders = (tmp_path / f"run{number}" for number in range(99))

    def make(topk: list[float | None], dense: list[float | None] | None = None, **how: Any) -> Measured:
        return read(store_of(next(folders), topk, dense or [100.0] * len(topk), **how).folder)

    return make


def store_of(folder: Path, topk: list[float | None], dense: list[float | None], **how: Any) -> Store:
    ends = {
        (label, number): {"status": "crashed", "reason": EVIL} if value is None else {"samples_per_s": value}
        for label, values in (("topk", topk), ("dense", dense))
        for number, value in enumerate(values)
    }
    overrides = [f"rounds={len(dense)}", "train.steps=8", *how.pop("overrides", ())]
    return make_store(folder, overrides, methods=["topk"], ends=ends, **how)


def around(value: float, spread: float = 0.01, rounds: int = 5) -> list[float | None]:
    """Five rounds whose geometric mean is the value; the spread is that of neighbours."""
    jumps = np.linspace(-1, 1, rounds) if spread else np.zeros(rounds)
    return [float(value * math.exp(spread * jump)) for jump in jumps]
