"""Communication over computation as it is told of a script, against torch's profiler on the same run.

    nox -s pilots -- profiler --rate 20mbit     # on a machine that does nothing else; half a minute a script

The profiler sees every operator on every thread. Communication that hides behind nothing is here the time of a step in
which Gloo is at work and no operator of another kind is.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

from harness.record.execution import Execution

SCRIPTS = ("ddp_cnn.py", "ddp_language_model.py", "accelerate_digits.py")
EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "scripts"
MOST_OFF = 0.05
FOLDER = "PROFILED_FOLDER"

Span = tuple[float, float]


def main() -> None:
    if FOLDER in os.environ:
        profile_script(Path(os.environ[FOLDER]))
        return
    parser = argparse.ArgumentParser(description="Compare exposed communication with what torch's profiler sees.")
    parser.add_argument("--rate", default="20mbit")
    parser.add_argument("--workers", default="2")
    parser.add_argument("--steps", default="40")
    parser.add_argument("--scripts", nargs="+", choices=SCRIPTS, default=SCRIPTS)
    options = parser.parse_args()
    worst = 0.0
    for script in options.scripts:
        told, seen = compared(EXAMPLES / script, options)
        worst = max(worst, abs(told - seen))
        print(f"{script}: told {told:.1%}, by the profiler {seen:.1%} of a step", flush=True)
    sys.exit(f"more than {MOST_OFF:.0%} apart" if worst > MOST_OFF else 0)


def compared(script: Path, options: argparse.Namespace) -> tuple[float, float]:
    """Shares of a step: what pacbench tells, and what the profiler of the same processes has seen."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "harness", "exec", "--on", "netns", "--observe", "--steps", options.steps]
        command += ["--rate", options.rate, "--workers", options.workers, "--out", f"{folder}/record"]
        command += ["--", sys.executable, __file__, str(script), "--steps", "100000"]
        done = subprocess.run(command, env={**os.environ, FOLDER: folder}, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        training = Execution.load(Path(folder) / "record").training
        assert training
        assert training.exposed_s is not None
        assert training.step_s
        assert training.steady_from_step is not None
        shares = [
            exposed_share(json.loads(file.read_text()), training.steady_from_step)
            for file in Path(folder).glob("*.json")
        ]
    return training.exposed_s / training.step_s, fmean(shares)


def profile_script(folder: Path) -> None:
    """Run the script that is named, as its own starter would, and write down what the profiler has seen."""
    from torch.profiler import ProfilerActivity, profile

    del sys.argv[0]
    profiler = profile(activities=[ProfilerActivity.CPU])
    profiler.start()
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:  # pacbench ends the script by an exception
        profiler.stop()
        events = [(each.name, each.time_range.start / 1e6, each.time_range.end / 1e6) for each in profiler.events()]
        (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(events))


def exposed_share(events: Sequence[tuple[str, float, float]], first: int) -> float:
    """Time in which Gloo alone is at work over the time of all steps from the first one on.

    A step is from the start of its first forward pass to the end of the optimizer's.
    """
    forwards = sorted(start for name, start, _ in events if name == "DistributedDataParallel.forward")
    ends = sorted(end for name, _, end in events if name.startswith("Optimizer.step#"))
    gloo = merged((start, end) for name, start, end in events if name.startswith("gloo:"))
    computing = merged((start, end) for name, start, end in events if name.startswith("aten::"))
    steps = []
    for previous, end in itertools.pairwise(ends):
        begun = [start for start in forwards if previous <= start < end]
        if begun:
            steps.append((begun[0], end))
    steps = steps[max(0, first - 1) :]
    exposed_s = sum(length(within(gloo, step)) - length(overlap(within(gloo, step), computing)) for step in steps)
    return exposed_s / length(steps)


def merged(spans: Iterator[Span]) -> list[Span]:
    """Spans that do not touch, which cover the same."""
    found: list[Span] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def within(spans: Sequence[Span], bounds: Span) -> list[Span]:
    return overlap(spans, [bounds])


def overlap(one: Sequence[Span], other: Sequence[Span]) -> list[Span]:
    return [(max(a, c), min(b, d)) for a, b in one for c, d in other if max(a, c) < min(b, d)]


def length(spans: Sequence[Span]) -> float:
    return sum(end - start for start, end in spans)


if __name__ == "__main__":
    main()
