"""What a plan says a run takes, and what it takes: shipped scenarios, one after the other.

    nox -s plans -- --rounds 1 --out results/plans                  # days, on a machine that does nothing else
    nox -s plans -- --scenarios quickstart racks                    # minutes

A scenario that was run is not run again. Where its links need netem, it runs in a kernel that has it. The command ends
with an exit code of 3 unless all plans are near what runs took; one that cannot be run is not.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

from harness.errors import EXIT_REGRESSION
from harness.scenario.load import available

SHIPPED = list(available())
NEAR = 0.2
"""Share by which a plan may be off."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare what runs take with what was planned.")
    parser.add_argument("--out", type=Path, default=Path("results/plans"))
    parser.add_argument("--scenarios", nargs="+", default=SHIPPED, metavar="SCENARIO")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--on", default="auto")
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    for scenario in options.scenarios:
        rows.append(compared(out, scenario, options))
        pd.DataFrame(rows).to_csv(out / "plans.csv", index=False, float_format="%.4g")
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    near = (table["taken_over_planned"] - 1).abs() <= NEAR
    print(f"planned within {NEAR:.0%}: {near.sum()} of {len(table)}")
    sys.exit(0 if near.all() else EXIT_REGRESSION)


def compared(out: Path, scenario: str, options: argparse.Namespace) -> dict[str, object]:
    """A run that failed has no time; what was cut short is begun anew, or it would take too little."""
    asked = (scenario, "--on", options.on, "--rounds", str(options.rounds))
    folder = out / f"{scenario.replace('/', '-')}-{options.on}-{options.rounds}"
    kept = folder.with_suffix(".json")
    if not kept.exists():
        shutil.rmtree(folder, ignore_errors=True)
        planned_s = math.nan
        try:
            plan = json.loads(pacbench("plan", *asked, "--json"))
            planned_s = plan["total_s"]
            if plan["more_seeds"]:
                raise SystemExit(
                    f"--rounds: found {options.rounds}; allowed: fewer, since {scenario} trains more seeds then"
                )
            began_s = time.monotonic()
            pacbench("run", *asked, "--out", str(folder))
        except subprocess.CalledProcessError as error:
            return {
                "scenario": scenario,
                "planned_s": planned_s,
                "taken_over_planned": math.nan,
                "code": error.returncode,
            }
        kept.write_text(json.dumps({"planned_s": planned_s, "taken_s": time.monotonic() - began_s}))
    found = json.loads(kept.read_text())
    return {"scenario": scenario, **found, "taken_over_planned": found["taken_s"] / found["planned_s"]}


def pacbench(*words: str) -> str:
    """What a command prints.

    Raises:
        subprocess.CalledProcessError: it failed; what it said is on stderr.
    """
    command = [sys.executable, "-m", "harness", *words]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


if __name__ == "__main__":
    main()
