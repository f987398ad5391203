"""A plan for 10,000 workers, on a star and on a hundred racks: how long the command takes."""

from __future__ import annotations

import json
import subprocess
import sys
from time import perf_counter

import pytest

WORKERS, GROUPS, WITHIN_S = 10_000, 100, 10.0

RACKS = " ".join(f"rack{number}" for number in range(GROUPS))

FABRICS = {"star": (), "racks": (f'fabric.groups="{RACKS}"', 'fabric.trunk.rate="10gbit"')}


@pytest.mark.parametrize("fabric", FABRICS)
def test_ten_thousand_workers(benchmark, fabric: str) -> None:  # type: ignore[no-untyped-def]
    settings = [word for each in FABRICS[fabric] for word in ("--set", each)]
    asked = ["plan", "replay", "--set", f"cluster.workers={WORKERS}", *settings, "--json"]
    seconds, plan = benchmark.pedantic(planned, (asked,), rounds=1)
    print(f"{fabric}: {WORKERS} workers planned in {seconds:.1f} s")
    assert all(trial["predicted_step_s"] > 0 for trial in plan["trials"])
    assert seconds < WITHIN_S


def planned(asked: list[str]) -> tuple[float, dict[str, list[dict[str, float]]]]:
    start = perf_counter()
    done = subprocess.run([sys.executable, "-m", "harness", *asked], capture_output=True, text=True, check=True)
    return perf_counter() - start, json.loads(done.stdout)
