"""Real gates: runs of unchanged code, and of code with a method made slower, alternately; how many of each are found.

    nox -s gates -- --count 12 --out results/gates      # five minutes a pair, on a machine that does nothing else

It needs a reference, made on the same machine: `pacbench reference ci --on netns`.

The slower code is a copy of this tree in which top-k computes more in each step: a tenth of the time that a step takes
in the reference. What it comes to is measured, and stands in the table. A gate that was made is not made again: the
same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SLOWED = "topk"
SLOWDOWN = 0.10

MORE_CODEC_WORK = '''

_hook, EXTRA_S = topk_hook, {extra_s!r}


def topk_hook(state, bucket):
    """The same, after {extra_s:.2e} s of selecting what is then not sent."""
    from time import thread_time

    until = thread_time() + EXTRA_S * bucket.is_last()
    with state.stopwatch("encode"):
        while thread_time() < until:
            exact_top(bucket.buffer()[:8192], 82)
    return _hook(state, bucket)
'''


def main() -> None:
    parser = argparse.ArgumentParser(description="Make real gates and count their verdicts.")
    parser.add_argument("--count", type=int, default=12, help="of each kind")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "gates")
    parser.add_argument("--scenario", default="ci")
    parser.add_argument("--against", default="ci", help="a reference")
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    trees = {"unchanged": ROOT, "slower": slower_tree(out / "slower-code", options.against)}
    for number in range(options.count):
        for kind, tree in trees.items():
            verdict = out / f"{kind}-{number}.json"
            if not verdict.exists():
                make_gate(tree, out / f"{kind}-{number}", options.scenario, options.against, verdict)
            print(line(verdict), flush=True)
    for kind in trees:
        verdicts = Counter(json.loads(path.read_text())["verdict"] for path in out.glob(f"{kind}-*.json"))
        print(f"{kind}: {dict(verdicts)}")


def slower_tree(folder: Path, against: str) -> Path:
    """A copy of the code in which a method's step takes longer."""
    from harness.analysis import reference

    trials = reference.read(Path(against)).trials
    of_method = trials[trials["label"] == SLOWED]
    step_s = float((of_method["workers"] * of_method["batch_size"] / of_method["samples_per_s"]).mean())
    shutil.rmtree(folder, ignore_errors=True)
    for package in ("baselines", "harness", "scenarios"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "baselines" / f"{SLOWED}.py").open("a") as file:
        file.write(MORE_CODEC_WORK.format(extra_s=SLOWDOWN * step_s))
    return folder


def make_gate(tree: Path, run: Path, scenario: str, against: str, verdict: Path) -> None:
    """Run the scenario with a tree's code, and hold it against the reference with this one's."""
    started = time.monotonic()
    pacbench(tree, "run", scenario, "--on", "netns", "--out", str(run))
    taken_s = time.monotonic() - started
    found = pacbench(ROOT, "gate", str(run), "--against", against, "--json", str(verdict))
    content = json.loads(verdict.read_text()) if verdict.exists() else {"verdict": "failed", "methods": []}
    content |= {"taken_s": taken_s, "exit_code": found.returncode}
    verdict.write_text(json.dumps(content, indent=1))


def pacbench(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "harness", *arguments], cwd=tree, env=environment, capture_output=True, text=True
    )
    if done.returncode == 2:
        sys.exit(done.stderr)
    return done


def line(verdict: Path) -> str:
    content = json.loads(verdict.read_text())
    slowdowns = [
        f"{method['label']} {100 * method['slowdown']['value']:+.1f} %"
        for method in content["methods"]
        if method["slowdown"]
    ]
    return f"{verdict.stem}: {content['verdict']}, {', '.join(slowdowns)}, {content['taken_s']:.0f} s"


if __name__ == "__main__":
    main()
