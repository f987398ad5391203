"""What it is worth that no thread takes the processor from another: small all-reduces, both ways."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from harness.worker.process import prepare_process

REPETITIONS = 100


@pytest.mark.parametrize("compute_s", [0.0, 0.005])
@pytest.mark.parametrize("ranks", [2, 8])
def test_small_all_reduces_after_computation(benchmark, ranks: int, compute_s: float, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    undisturbed_s, as_it_comes_s = benchmark.pedantic(
        lambda: [mean_all_reduce_s(ranks, compute_s, tmp_path / f"{way}", way) for way in (True, False)], rounds=1
    )
    benchmark.extra_info |= {
        "undisturbed_s": undisturbed_s,
        "as_it_comes_s": as_it_comes_s,
        "times_faster": as_it_comes_s / undisturbed_s,
    }
    assert undisturbed_s < as_it_comes_s


def mean_all_reduce_s(ranks: int, compute_s: float, store: Path, undisturbed: bool) -> float:
    """Of so many processes at once, seconds."""
    orders = [(rank, ranks, compute_s, store, undisturbed) for rank in range(ranks)]
    with multiprocessing.get_context("spawn").Pool(ranks) as pool:
        return statistics.mean(pool.starmap(of_a_rank, orders, 1))


def of_a_rank(rank: int, ranks: int, compute_s: float, store: Path, undisturbed: bool) -> float:
    """Mean seconds of one rank's all-reduces."""
    if undisturbed:
        prepare_process()
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    gradient, matrix, seconds = torch.ones(256), torch.randn(300, 300), []
    for _ in range(REPETITIONS):
        until = time.perf_counter() + compute_s
        while time.perf_counter() < until:
            matrix @ matrix
        start = time.perf_counter()
        dist.all_reduce(gradient)
        seconds.append(time.perf_counter() - start)
    dist.destroy_process_group()
    return statistics.mean(seconds)
