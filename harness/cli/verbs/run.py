"""Run scenarios."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import Gpu, Keep, Method, On, Rounds, ScenarioNames, Seeds, Set, Until, share
from harness.errors import MeasurementError


def verb(
    scenarios: ScenarioNames,
    on: On = "auto",
    out: Annotated[Path | None, typer.Option(help="The run's folder; default: results/SCENARIO-TIME.")] = None,
    set_: Set = None,
    method: Method = None,
    rounds: Rounds = None,
    seeds: Seeds = None,
    until: Until = None,
    keep: Keep = False,
    gpu: Gpu = False,
) -> None:
    """Run scenarios, store every trial as it ends, and write the report. Goes on where an earlier run stopped."""
    from harness.cli.running import run_and_report
    from harness.cluster import registry
    from harness.run.planning import plan_run
    from harness.run.session import open_store

    until_share = share("--until", until) if until else None
    overrides = [*(set_ or []), *(["cluster.device=cuda", "train.pace=none"] if gpu else [])]
    kind, why = registry.choose(on)
    failed = 0
    for name in scenarios:
        cluster = registry.make(kind, keep)
        plan = plan_run(name, cluster, overrides, method or (), rounds, until_share, seeds)
        folder = out / plan.scenario.name if out and len(scenarios) > 1 else out
        failed += run_and_report(plan, open_store(plan, folder), cluster, why, until_share).failed
    if failed:
        raise MeasurementError(f"{failed} of the trials did not finish; the report lists each with its reason")
