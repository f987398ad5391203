"""How much faster processes that share a run are than one: replays over slow links, which mostly wait.

    python tests/bench/joined.py --processes 4 --rounds 40 --out results/joined    # on a machine that does nothing else

The dilation is fixed, so that all of them tell the same story at the same pace. One process runs all rounds, then as
many as are asked for share them; the ratio of trials in a second is printed. Each of both is timed from an empty folder
to its last trial. The same command goes on where it was ended: what was timed to its end stays, and what was not begins
anew. The whole takes about twenty minutes: 40 rounds of 25 seconds each, and then a quarter of that.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from harness.plan.status import DONE
from harness.record.store import Store

SCENARIO = """
description = "A replay over slow links, to be shared"
rounds = {rounds}
baseline = "bf16"

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
    scenario, file = SCENARIO.format(**vars(options)), out / "shared.toml"
    if file.exists() and file.read_text() != scenario:
        sys.exit(f"{file}: found other settings; allowed: those that were begun with, or another --out")
    file.write_text(scenario)
    alone, together = (trials_per_s(out, count) for count in (1, options.processes))
    print(f"{options.processes} processes over one, {options.rounds} rounds at {options.rate}: {together / alone:.2f}")


def trials_per_s(out: Path, processes: int) -> float:
    """Run all rounds by so many processes, and count; or what was found before."""
    run, timed = out / f"by-{processes}", out / f"by-{processes}.json"
    if not timed.exists():
        shutil.rmtree(run, ignore_errors=True)
        timed.write_text(json.dumps(run_all(run, out, processes)))
    found = json.loads(timed.read_text())
    per_s = float(found["trials"] / found["took_s"])
    print(f"{processes} at once: {found['trials']} trials in {found['took_s']:.0f} s: {per_s:.3f}/s", flush=True)
    return per_s


def run_all(run: Path, out: Path, processes: int) -> dict[str, float]:
    """Run all rounds by so many processes: how many trials that were, and how long it took."""
    command = [sys.executable, "-m", "harness", "run", "shared.toml", "--on", "netns", "--join", "--out", str(run)]
    begun_s = time.monotonic()
    started = [subprocess.Popen(command, cwd=out, stdout=subprocess.DEVNULL) for _ in range(processes)]
    codes = [process.wait() for process in started]
    took_s = time.monotonic() - begun_s
    if any(codes):
        sys.exit(f"{run}: exit codes {codes}")
    trials = Store.open(run).trials()
    if not (trials["status"] == DONE).all():
        sys.exit(f"{run}: not all trials are done")
    return {"trials": len(trials), "took_s": took_s}


if __name__ == "__main__":
    main()
