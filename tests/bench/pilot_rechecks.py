"""Rechecks of a pilot: of nothing changed, of a slower script, of a slower link, and of a broken method.

    nox -s pilots -- rechecks --out results/pilot-rechecks      # an hour, on a machine that does nothing else
    nox -s pilots -- rechecks --times 1                         # minutes

What was run is not run again.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pandas as pd

from harness.record.pilot import FILE, load

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RATE_MBPS = 5
SLOWER = 0.3
HOLDS, DRIFTED = 0, 3

SCRIPT, METHOD = "train.py", "block_sign.py"


def main() -> None:
    parser = argparse.ArgumentParser(description="Count what rechecks of a pilot find.")
    parser.add_argument("--out", type=Path, default=Path("results/pilot-rechecks"))
    parser.add_argument("--times", type=int, default=20, help="each kind of recheck")
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    restore(out)
    if not (out / "found" / FILE).exists():
        asked = ("--on", "netns", "--workers", "2", "--rate", f"{RATE_MBPS}mbit", "--tested", "1", "-o", "found")
        method = ("--method", f"{METHOD}:block_sign")
        done = pacbench(out, "pilot", *asked, *method, "--", sys.executable, SCRIPT, "--steps", "100000")
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
    decided = load(out / "found" / FILE).verdict
    if not decided.compress:
        sys.exit(f"{decided.sentence} So there is no method to break.")
    file = out / "rechecks.csv"
    table = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=["change", "time", "code"])
    for time in range(options.times):
        for change, make in CHANGES.items():
            if ((table["change"] == change) & (table["time"] == time)).any():
                continue
            restore(out)
            done = pacbench(out, "pilot", "--recheck", f"found/{FILE}", *make(out))
            row = {"change": change, "time": time, "code": done.returncode}
            table = pd.concat([table, pd.DataFrame([row])], ignore_index=True)
            table.to_csv(file, index=False)
            print(change, done.returncode, done.stdout + done.stderr, sep="\n", flush=True)
    restore(out)
    for change in CHANGES:
        expected = HOLDS if change == "nothing" else DRIFTED
        own = table[table["change"] == change]
        print(f"{change}: exit code {expected} in {(own['code'] == expected).sum()} of {len(own)}")


def restore(out: Path) -> None:
    """Script and method as the pilot had them."""
    shutil.copy(EXAMPLES / "scripts" / "ddp_cnn.py", out / SCRIPT)
    shutil.copy(EXAMPLES / "plugins" / METHOD, out / METHOD)


def nothing(out: Path) -> tuple[str, ...]:
    return ()


def slower_script(out: Path) -> tuple[str, ...]:
    """Each step computes longer by a share of what it computed in the pilot."""
    more_s = SLOWER * median(load(out / "found" / FILE).job.compute_s)
    wait = f"    until = time.perf_counter() + {more_s}\n    while time.perf_counter() < until:\n        pass\n"
    replaced(out / SCRIPT, "    optimizer.step()\n", f"{wait}    optimizer.step()\n")
    replaced(out / SCRIPT, "import argparse\n", "import argparse\nimport time\n")
    return ()


def slower_link(out: Path) -> tuple[str, ...]:
    (out / "half.toml").write_text(f'[link]\nrate = "{RATE_MBPS / 2}mbit"\n')
    return ("--link", "half.toml")


def broken_method(out: Path) -> tuple[str, ...]:
    """It sends as many bytes, and gives gradients of the wrong sign."""
    replaced(out / METHOD, ".div_(state.world_size)", ".div_(-state.world_size)")
    return ()


CHANGES: dict[str, Callable[[Path], tuple[str, ...]]] = {
    "nothing": nothing,
    "a script 30 % slower": slower_script,
    "links half as fast": slower_link,
    "a broken method": broken_method,
}


def replaced(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1, f"{file}: {old!r}"
    file.write_text(text.replace(old, new))


def pacbench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


if __name__ == "__main__":
    main()
