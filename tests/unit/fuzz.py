"""New input for an hour or a night: the property tests of all that is read, with more examples than CI tries.

    nox -s fuzz -- --for 20min --seed 7

Scenarios, overrides, traces, profiles, claims, checkpoints, data, stored runs, and what harness, agents and workers say
to each other. It goes in rounds, each with a seed of its own that it prints, and each up to twice as long as the one
before. The first one takes a minute or two. What is found becomes a test: Hypothesis prints an example and how to see
it again.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tries import FUZZ, TIMES_AS_MANY

from harness.units import parse_time_s

TESTS = Path(__file__).parent

TEST_S = 600
"""How long a test may take of as much as CI tries: what hangs is found, too."""


def rounds(left_s: float, seed: int) -> Iterator[tuple[int, int]]:
    """Seed and size of each round until the time is up, a size being how many times as much as CI it tries.

    A round starts if one of its size should end in time, as the last one went. One is made in any case.
    """
    ends_at_s, size = time.monotonic() + left_s, 1
    while size:
        began_at_s = time.monotonic()
        yield seed, size
        now_s = time.monotonic()
        fit = int((ends_at_s - now_s) / (now_s - began_at_s) * size)
        seed, size = seed + 1, max(0, min(2 * size, fit))


def main() -> None:
    """Try until the time is up, or until something is found; exit code 1 then."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--for", dest="for_s", type=parse_time_s, default=20 * 60.0, help="such as 20min, the default")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10_000), help="of the first round")
    asked = parser.parse_args()
    for seed, size in rounds(asked.for_s, asked.seed):
        options = [f"--hypothesis-profile={FUZZ}", f"--hypothesis-seed={seed}", f"--timeout={TEST_S * size}"]
        print(f"fuzz: --seed {seed}, {size} times as much as CI tries", flush=True)
        command = [sys.executable, "-m", "pytest", str(TESTS), "-q", "-m", "fuzz", *options]
        if subprocess.run(command, env={**os.environ, TIMES_AS_MANY: str(size)}).returncode:
            sys.exit(f"fuzz: something was found; the same again: {TIMES_AS_MANY}={size} {' '.join(command)}")


if __name__ == "__main__":
    main()
