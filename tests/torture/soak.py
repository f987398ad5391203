"""Thousands of short replays on one cluster: does memory grow, are descriptors lost, is anything left at the end?

    nox -s soak -- --replays 2000 --out results/soak      # half an hour

One ``pacbench run`` on network namespaces makes all of them. While it does, three processes are looked at again and
again: the harness, the agent of its cluster, and the largest worker, of which each trial has new ones. A line is drawn
through what each held against the trials that were done, without the first tenth. Its slope is told for each 1,000
trials, with its 95 % interval. It passes where each whole interval is below its limit: what was never seen, or too
little, does not. All looks are in ``soak.csv``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from host import MARK, PACBENCH, host_network, universes

from harness.record.store import Store

SCENARIO = """
description = "Short replays, many of them"
rounds = {rounds}
baseline = "bf16"

[cluster]
workers = 2

[link]
rate = "1gbit"

[train]
model = "digits-cnn"
replay = "digits-cnn-epyc"
batch_size = 16
steps = 6
dilation = 1

[[methods]]
name = "bf16"

[[methods]]
name = "topk"
ratio = 0.01
"""
METHODS, MOST_ROUNDS = 2, 1000

LOOK_EVERY_S = 2.0
SETTLED_AFTER = 0.1
"""The share of all trials after which growth counts: before that caches fill."""
BLOCKS = 10
"""Looks are averaged over so many equal parts of the run: one look resembles the one before it, so that an interval
from single looks would be too narrow."""
FEWEST_BLOCKS = 5
LEFT_PATIENCE_S = 30.0

PROCESSES = ("harness", "agent", "worker")
MOST_GROWTH = {"memory_bytes": 20e6, "descriptors": 2.0, "threads": 2.0}
"""What each may gain in 1,000 trials. The harness keeps what trials found, some kB each."""


def looks(run: subprocess.Popen[bytes], folder: Path) -> pd.DataFrame:
    """What the harness, its agent and the largest worker hold, as long as the run goes on: a row a process and look.

    Memory is what a process would free if it ended: the unique set size, without what others share with it.
    """
    rows = []
    while run.poll() is None:
        done = sum(1 for _ in (folder / "run" / "trials.parquet").glob("[!.]*.parquet"))
        rows += [(done, *held) for held in _held(psutil.Process(run.pid))]
        time.sleep(LOOK_EVERY_S)
    return pd.DataFrame(rows, columns=["done", "process", "pid", *MOST_GROWTH])


def _held(harness: psutil.Process) -> Iterator[tuple[str, int, int, int, int]]:
    """Name, id, memory, descriptors and threads of each that is there."""
    yield from _of("harness", harness)
    with suppress(psutil.Error, StopIteration):
        outer = next(each for each in harness.children() if each.name() == "unshare")
        (agent,) = outer.children()
        yield from _of("agent", agent)
        workers = [held for each in agent.children() for held in _of("worker", each)]
        yield from sorted(workers, key=lambda held: held[2])[-1:]


def _of(name: str, process: psutil.Process) -> Iterator[tuple[str, int, int, int, int]]:
    """The same of one process; nothing where it has just ended."""
    with suppress(psutil.Error), process.oneshot():
        yield name, process.pid, process.memory_full_info().uss, process.num_fds(), process.num_threads()


def growth(seen: pd.DataFrame, trials: int) -> pd.DataFrame:
    """Of each process and resource: how much it gains in 1,000 trials, with its 95 % interval, and what that means.

    A line through the means of ``BLOCKS`` parts (method of batch means; Law, Simulation Modeling and Analysis, 9.5.3).

    Returns:
        A row each. Its ``verdict`` is "flat" where the whole interval is below the limit, "grew" where the whole
        interval is above it, and else "unknown".
    """
    settled = seen[seen["done"] > SETTLED_AFTER * trials]
    rows = [
        (name, resource, *_slope(settled[settled["process"] == name], resource, trials))
        for name, resource in product(PROCESSES, MOST_GROWTH)
    ]
    found = pd.DataFrame(rows, columns=["process", "resource", "looks", "mean", "per_1000_trials", "low", "high"])
    found["limit"] = found["resource"].map(MOST_GROWTH)
    is_flat, grew = found["high"] <= found["limit"], found["low"] > found["limit"]
    return found.assign(verdict=np.select([is_flat, grew], ["flat", "grew"], "unknown"))


def _slope(own: pd.DataFrame, resource: str, trials: int) -> tuple[int, float, float, float, float]:
    """Looks, mean, slope and its interval; no slope where there are too few parts to draw a line through."""
    parts = own.groupby((own["done"] * BLOCKS) // trials)[["done", resource]].mean()
    if len(parts) < FEWEST_BLOCKS:
        return len(own), own[resource].mean(), np.nan, np.nan, np.nan
    line = stats.linregress(parts["done"] / 1000, parts[resource])
    if np.ptp(parts[resource]) == 0:
        return len(own), own[resource].mean(), 0.0, 0.0, 0.0  # of which linregress has no error
    half = stats.t.ppf(0.975, len(parts) - 2) * line.stderr
    return len(own), own[resource].mean(), line.slope, line.slope - half, line.slope + half


def left() -> int:
    """How many processes of ours are left when the run has had time to end."""
    deadline = time.monotonic() + LEFT_PATIENCE_S
    while universes() and time.monotonic() < deadline:
        time.sleep(0.1)
    return len(universes())


def replays(text: str) -> int:
    """A number of trials that is whole rounds."""
    count = int(text)
    if count % METHODS or not 0 < count <= METHODS * MOST_ROUNDS:
        raise ValueError
    return count


def main() -> None:
    """Run, look, and say what grew; exit code 1 unless everything surely stayed flat and nothing was left."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    allowed = f"an even number up to {METHODS * MOST_ROUNDS}"
    parser.add_argument("--replays", type=replays, default=METHODS * MOST_ROUNDS, help=allowed)
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the run and what was seen")
    asked = parser.parse_args()
    folder = asked.out.resolve()
    folder.mkdir(parents=True)
    (folder / "soak.toml").write_text(SCENARIO.format(rounds=asked.replays // METHODS))
    os.environ[MARK] = uuid.uuid4().hex
    before = host_network()
    command = [*PACBENCH, "run", "soak.toml", "--on", "netns", "--out", "run"]
    run = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    seen = looks(run, folder)
    seen.to_csv(folder / "soak.csv", index=False)
    trials = Store.open(folder / "run").trials() if Store.is_run(folder / "run") else pd.DataFrame({"status": []})
    done, processes = int((trials["status"] == "done").sum()), left()
    is_same = host_network() == before
    found = growth(seen, asked.replays)
    print(f"{done} of {asked.replays} trials are done, exit code {run.returncode}; 1,000 trials more add:")
    print(found.to_string(index=False, float_format=lambda value: f"{value:,.2f}"))
    network = "as it was" if is_same else "NOT as it was"
    print(f"{processes} processes are left; the host's network and sysctls are {network}")
    is_flat = (found["verdict"] == "flat").all()
    sys.exit(0 if is_flat and is_same and not processes and not run.returncode and done == asked.replays else 1)


if __name__ == "__main__":
    main()
