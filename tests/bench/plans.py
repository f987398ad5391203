"""What a plan says a run takes, and what it takes: shipped scenarios, one after the other.

    nox -s plans -- --for 4min --out results/plans              # two hours, on a machine that does nothing else
    nox -s plans -- --scenarios quickstart racks --for 1h       # minutes: both end by themselves

Of a scenario that would take longer, the trials are compared that end within this time, at least one; what was spent on
others is taken off. A trial is run with all of its steps. A scenario that was run is not run again. The command ends
with an exit code of 3 unless all plans are near what runs took; one that cannot be run is not.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

from harness.cluster import registry
from harness.cluster.protocol import Cluster
from harness.errors import EXIT_REGRESSION, PacbenchError
from harness.plan.estimate import total_s
from harness.plan.plan import Plan
from harness.plan.status import DONE
from harness.record.store import TRIALS, Store
from harness.run.planning import plan_run
from harness.scenario.load import available
from harness.units import parse_time_s

SHIPPED = list(available())
NEAR = 0.2
"""Share by which a plan may be off."""
LOOK_EVERY_S = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare what runs take with what was planned.")
    parser.add_argument("--out", type=Path, default=Path("results/plans"))
    parser.add_argument("--scenarios", nargs="+", default=SHIPPED, metavar="SCENARIO")
    parser.add_argument("--for", dest="for_s", type=parse_time_s, default=4 * 60.0, help="of each; 4min by default")
    parser.add_argument("--on", default="auto")
    parser.add_argument("--netem-on", default="uml", help="where links are made that need netem; uml by default")
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    for scenario in options.scenarios:
        rows.append({"scenario": scenario, **compared(out, scenario, options)})
        pd.DataFrame(rows).to_csv(out / "plans.csv", index=False, float_format="%.4g")
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    near = (table["taken_over_planned"] - 1).abs() <= NEAR
    print(f"planned within {NEAR:.0%}: {near.sum()} of {len(table)}")
    sys.exit(0 if near.all() else EXIT_REGRESSION)


def compared(out: Path, scenario: str, options: argparse.Namespace) -> dict[str, object]:
    """A run that failed has no time; what was begun before and not ended is begun anew, or it would take too little."""
    folder = out / scenario.replace("/", "-")
    kept = folder.with_suffix(".json")
    try:
        cluster, plan = planned(scenario, options)
        if not kept.exists():
            shutil.rmtree(folder, ignore_errors=True)
            kept.write_text(json.dumps(measured(folder, scenario, cluster, plan, options.for_s)))
    except (PacbenchError, subprocess.CalledProcessError) as error:
        return {"taken_over_planned": math.nan, "failed": str(error)}
    found = json.loads(kept.read_text())
    planned_s = total_s([plan.trials[place] for place in found["ran"]], cluster.machine)
    times = {"planned_s": planned_s, "taken_s": found["taken_s"], "taken_over_planned": found["taken_s"] / planned_s}
    return {"on": cluster.name, "trials": len(plan.trials), "ran": len(found["ran"]), **times}


def measured(folder: Path, scenario: str, cluster: Cluster, plan: Plan, for_s: float) -> dict[str, object]:
    """Run one round of a scenario as far as its time goes: which trials ended, by their places in it, and when.

    They are planned by whatever code reads this.

    Raises:
        CalledProcessError: it cannot be run.
    """
    began_s = time.time()
    run_for(for_s, folder, ["run", scenario, "--on", cluster.name, "--rounds", "1", "--out", str(folder)])
    attempts = Store.open(folder).attempts()
    attempts["ended_s"] = [
        (folder / TRIALS / f"{row.trial_id}-{row.attempt}.parquet").stat().st_mtime for row in attempts.itertuples()
    ]
    done = done_in(folder)
    counts = attempts["trial_id"].isin(done)
    last_s = attempts.loc[counts, "ended_s"].max()
    on_others_s = attempts.loc[~counts & (attempts["ended_s"] < last_s), "wall_time_s"].sum()
    ran = [place for place, trial in enumerate(plan.trials) if trial.id in done]
    return {"ran": ran, "taken_s": last_s - began_s - on_others_s}


def done_in(folder: Path) -> set[str]:
    """The ids of trials that are done."""
    trials = Store.open(folder).trials()
    return set(trials.loc[trials["status"] == DONE, "trial_id"])


def planned(scenario: str, options: argparse.Namespace) -> tuple[Cluster, Plan]:
    """One round of it, where it can be run.

    Raises:
        PacbenchError: it cannot be planned here.
    """
    cluster = registry.make(registry.choose(options.on)[0])
    plan = plan_run(scenario, cluster, rounds=1)
    if cluster.name == "netns" and any(trial.expected.topology.needs_netem for trial in plan.trials):
        cluster = registry.make(options.netem_on)
        plan = plan_run(scenario, cluster, rounds=1)
    return cluster, plan


def run_for(least_s: float, folder: Path, words: list[str]) -> None:
    """Run a command until it ends, or is interrupted: after so long, and with a trial that is done in its folder.

    Raises:
        CalledProcessError: it failed by itself.
    """
    with subprocess.Popen([sys.executable, "-m", "harness", *words]) as running:
        interrupted_at_s = time.monotonic() + least_s
        while running.poll() is None and (time.monotonic() < interrupted_at_s or nothing_is_done(folder)):
            time.sleep(LOOK_EVERY_S)
        if running.poll() is None:
            running.send_signal(signal.SIGINT)
        elif running.returncode:
            raise subprocess.CalledProcessError(running.returncode, running.args)


def nothing_is_done(folder: Path) -> bool:
    return not any(folder.glob(f"{TRIALS}/*")) or not done_in(folder)


if __name__ == "__main__":
    main()
