"""How much faster processes that share a run are than one: replays over slow links, which mostly wait.

    python tests/bench/joined.py --processes 4 --rounds 40 --out results/joined    # on a machine that does nothing else

The dilation is fixed, so that all of them tell the same story at the same pace. One process runs all rounds, then as
many as are asked for share them; the ratio of trials in a second is printed. What was run is not run again, so that
each of both times counts only where its run began with nothing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from harness.plan.status import DONE
from harness.record.store import Store

SCENARIO = """
description = "A replay over slow links, to be shared"
rounds = {rounds}

[cluster]
workers = 2

[link]
rate = "{rate}"

[train]
replay = "{replay}"
model = "{model}"
target = "none"
steps = {steps}
batch_size = {batch_size}
dilation = {dilation}

[[methods]]
name = "bf16"

[[methods]]
name = "topk"
ratio = 0.01
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare processes that share a run with one alone.")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--rate", default="10mbit")
    parser.add_argument("--replay", default="digits-cnn-epyc")
    parser.add_argument("--model", default="digits-cnn")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--dilation", type=float, default=2)
    parser.add_argument("--out", type=Path, default=Path("results/joined"))
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    (out / "shared.toml").write_text(SCENARIO.format(**vars(options)))
    alone, together = (trials_per_s(out, count) for count in (1, options.processes))
    print(f"1 process: {alone:.3f} trials/s; {options.processes} processes: {together:.3f} trials/s")
    print(f"{options.processes} processes over one, {options.rounds} rounds at {options.rate}: {together / alone:.2f}")


def trials_per_s(out: Path, processes: int) -> float:
    """Run all rounds by so many processes, and count."""
    run = out / f"by-{processes}"
    if run.exists():
        sys.exit(f"{run}: found a run; allowed: none, or its time would not count (move it away)")
    command = [sys.executable, "-m", "harness", "run", "shared.toml", "--on", "netns", "--join", "--out", str(run)]
    begun_s = time.monotonic()
    started = [subprocess.Popen(command, cwd=out, stdout=subprocess.DEVNULL) for _ in range(processes)]
    codes = [process.wait() for process in started]
    took_s = time.monotonic() - begun_s
    trials = Store.open(run).trials()
    if any(codes) or not (trials["status"] == DONE).all():
        sys.exit(f"{run}: exit codes {codes}; not all trials are done")
    return len(trials) / took_s


if __name__ == "__main__":
    main()
