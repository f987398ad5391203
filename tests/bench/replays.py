"""Replays against real training: the same model, methods and links, in turns, and how far their steps are apart.

    nox -s replays -- --model fashion-cnn --rounds 5 --out results/replays      # on a machine that does nothing else

Each round profiles the model anew, in as many processes as there are workers, then trains and replays it, or the other
way round: a machine's speed changes from one minute to the next. A round that was made is not made again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from harness.analysis.estimates import geometric_mean
from harness.plan.status import DONE
from harness.record.store import Store

SCENARIO = """
description = "{model}, trained or replayed, to be compared"
rounds = 1

[cluster]
workers = {workers}

[link]
rate = "{rate}"

[train]
model = "{model}"
dataset = "{dataset}"
steps = {steps}
eval_every = {steps}
batch_size = {batch_size}

[[methods]]
name = "dense"

[[methods]]
name = "topk"
ratio = 0.01

[[methods]]
name = "dgc"
ratio = 0.01
warmup_steps = 0

[[methods]]
name = "pactrain"
density = 0.2
values = ["fp32", "ternary"]
warmup_steps = 4
"""

LABELS = ("dense", "topk", "dgc", "pactrain-fp32", "pactrain-ternary")


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare replays with real training.")
    parser.add_argument("--model", default="fashion-cnn")
    parser.add_argument("--dataset", default="fashion-mnist")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rate", default="100mbit")
    parser.add_argument("--steps", type=int, default=32, help="of a trial, and of a profile")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("results/replays"))
    options = parser.parse_args()
    out = options.out.resolve() / options.model
    out.mkdir(parents=True, exist_ok=True)
    (out / "compared.toml").write_text(SCENARIO.format(**vars(options)))
    for number in range(options.rounds):
        make_round(out, number, options)
    print(
        f"{options.model}, batch {options.batch_size}, {options.workers} workers at {options.rate}: replayed over real"
    )
    for label in LABELS:
        ratios = [
            step_s(out, f"replay-{each}", label) / step_s(out, f"real-{each}", label) for each in range(options.rounds)
        ]
        mean = geometric_mean(ratios)
        interval = f" [{mean.low:.3f}, {mean.high:.3f}]" if mean.low and mean.high else ""
        print(f"  {label:17} {mean.value:.3f}{interval}, rounds: " + ", ".join(f"{ratio:.3f}" for ratio in ratios))


def make_round(out: Path, number: int, options: argparse.Namespace) -> None:
    """A profile, a training and a replay of it."""
    profile = f"profile-{number}.json"
    if not (out / profile).exists():
        order = ("--workers", options.workers, "--batch-size", options.batch_size, "--steps", options.steps)
        fed = ("--codecs", "compared.toml", "--dataset", options.dataset)
        pacbench(out, "profile", options.model, *order, *fed, "-o", profile)
    runs = {f"real-{number}": (), f"replay-{number}": ("--set", f"train.replay={profile}")}
    for run, settings in list(runs.items())[:: 1 if number % 2 else -1]:
        if not (out / run / "report.md").exists():
            pacbench(out, "run", "compared.toml", "--on", "netns", "--out", run, *settings)


def pacbench(folder: Path, *arguments: object) -> None:
    command = [sys.executable, "-m", "harness", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def step_s(out: Path, run: str, label: str) -> float:
    trials = Store.open(out / run).trials()
    (found,) = trials.loc[(trials["label"] == label) & (trials["status"] == DONE), "step_time_median_s"]
    return float(found)


if __name__ == "__main__":
    main()
