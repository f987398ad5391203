"""Thousands of short replays on one cluster: does memory grow, are descriptors lost, is anything left at the end?

    nox -s soak -- --trials 2000 --out results/soak      # half an hour

One ``pacbench run`` on network namespaces makes all of them. While it does, its own process and the agent of its
cluster are looked at again and again. A line is drawn through what each held, without the first tenth, against the
trials that were done; its slope is told with its 95 % interval, for each 1,000 trials. All looks are in ``soak.csv``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pandas as pd
import psutil
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from host import MARK, PACBENCH, host_network, universes, wait_until

from harness.record.store import Store

SCENARIO = """
description = "Short replays, many of them"
rounds = {rounds}

[cluster]
workers = 2

[link]
rate = "1gbit"

[train]
model = "digits-cnn"
replay = "digits-cnn-epyc"
batch_size = 32
steps = 6
dilation = 1

[[methods]]
name = "bf16"

[[methods]]
name = "topk"
ratio = 0.01
"""
METHODS = 2
LOOK_EVERY_S = 2.0
SETTLED_AFTER = 0.1
"""The share of all trials after which growth counts: before that caches fill."""

MOST_GROWTH = {"memory_bytes": 20e6, "descriptors": 1.0, "threads": 1.0}
"""What each may surely gain in 1,000 trials. The harness keeps what trials found, some kB each."""


def looks(run: subprocess.Popen[bytes], folder: Path) -> pd.DataFrame:
    """What the harness and its agent hold, from the first trial to the last: a row a process and look."""
    rows = []
    while run.poll() is None:
        done = len(list((folder / "run" / "trials.parquet").glob("[!.]*.parquet")))
        for name, process in [("harness", psutil.Process(run.pid)), *(("agent", each) for each in _agents(run.pid))]:
            try:
                with process.oneshot():
                    held = (process.memory_full_info().uss, process.num_fds(), process.num_threads())
            except psutil.Error:
                continue  # it has just ended
            rows.append((done, name, process.pid, *held))
        time.sleep(LOOK_EVERY_S)
    return pd.DataFrame(rows, columns=["done", "process", "pid", *MOST_GROWTH])


def _agents(harness: int) -> list[psutil.Process]:
    """The process of the cluster from which workers are forked; its own copies come and go, it stays."""
    try:
        below = psutil.Process(harness).children(recursive=True)
        agents = [each for each in below if each.name() != "unshare" and "harness.cluster.universe" in each.cmdline()]
        return agents[:1]
    except psutil.Error:
        return []


def growth(seen: pd.DataFrame, trials: int) -> pd.DataFrame:
    """Of each process and resource: how much it gains in 1,000 trials, with its interval, and the mean."""
    rows = []
    for name, own in seen[seen["done"] > SETTLED_AFTER * trials].groupby("process"):
        for resource in MOST_GROWTH:
            line = stats.linregress(own["done"] / 1000, own[resource])
            half = stats.t.ppf(0.975, len(own) - 2) * line.stderr
            rows.append((name, resource, own[resource].mean(), line.slope, line.slope - half, line.slope + half))
    return pd.DataFrame(rows, columns=["process", "resource", "mean", "per_1000_trials", "low", "high"])


def main() -> None:
    """Run, look, and say what grew; exit code 1 where something surely grew too much, or was left."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--out", type=Path, required=True, help="a folder for the run and what was seen")
    asked = parser.parse_args()
    folder = asked.out.resolve()
    folder.mkdir(parents=True)
    (folder / "soak.toml").write_text(SCENARIO.format(rounds=asked.trials // METHODS))
    os.environ[MARK] = uuid.uuid4().hex
    before = host_network()
    command = [*PACBENCH, "run", "soak.toml", "--on", "netns", "--out", "run"]
    run = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    seen = looks(run, folder)
    seen.to_csv(folder / "soak.csv", index=False)
    wait_until(lambda: not universes(), 30)
    found = growth(seen, asked.trials)
    done = int((Store.open(folder / "run").trials()["status"] == "done").sum())
    print(f"{done} of {asked.trials} trials done, exit code {run.returncode}, by {seen['pid'].nunique()} processes")
    print(found.to_string(index=False, float_format=lambda value: f"{value:,.2f}"))
    grew = found[found["low"] > found["resource"].map(MOST_GROWTH)]
    is_same = host_network() == before
    network = "as it was" if is_same else "NOT as it was"
    print(f"{len(grew)} of {len(found)} surely grew too much; the host's network is {network}")
    sys.exit(1 if len(grew) or not is_same or run.returncode or done < asked.trials else 0)


if __name__ == "__main__":
    main()
