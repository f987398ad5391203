"""A report of 500 trials: how long it takes to write, how large its page is, and how soon a browser can use it."""

from __future__ import annotations

import sys
from pathlib import Path
from time import perf_counter

import pytest
from chromium import started

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))
from synthetic import make_store

from harness.record.store import Store
from harness.report import page

WRITTEN_WITHIN_S, USABLE_WITHIN_S, BELOW_BYTES = 20.0, 2.0, 5_000_000

CRASHED = {"status": "crashed", "reason": "w1 ended with SIGKILL", "log_tail": "a line of a traceback\n" * 40}

SHAPES = {
    "one case, 84 rounds": (["rounds=84"], []),
    "25 cases, 5 rounds": (
        ['link.rate=["10mbit","50mbit","100mbit","500mbit","1gbit"]', "train.batch_size=[8,16,24,32,40]", "rounds=5"],
        ["topk", "bf16", "pactrain-ternary"],
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_500_trials(benchmark, tmp_path: Path, shape: str) -> None:  # type: ignore[no-untyped-def]
    overrides, methods = SHAPES[shape]
    ends = {("topk", number): CRASHED for number in range(2)}
    store = make_store(tmp_path / "run", ["train.steps=80", "train.pace=none", *overrides], methods=methods, ends=ends)
    trials = len(store.trials())
    seconds = benchmark.pedantic(write, (store,), rounds=1)
    page = store.folder / "report.html"
    usable_s = usable_within_s(page)
    size = page.stat().st_size
    print(f"{shape}: {trials} trials written in {seconds:.1f} s, {size / 1e6:.2f} MB, usable in {usable_s:.2f} s")
    assert trials >= 500
    assert size < BELOW_BYTES
    assert seconds < WRITTEN_WITHIN_S
    assert usable_s < USABLE_WITHIN_S


def write(store: Store) -> float:
    start = perf_counter()
    page.write(store)
    return perf_counter() - start


def usable_within_s(page: Path) -> float:
    """Seconds from the start of loading until the page can be used, its script run."""
    with started() as driver:
        driver.get(page.as_uri())
        milliseconds = driver.execute_script("return performance.getEntriesByType('navigation')[0].domComplete")
    return float(milliseconds) / 1e3
