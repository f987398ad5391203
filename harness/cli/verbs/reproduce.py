"""Judge the claims of papers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.console import print_table, say
from harness.cli.options import On, command
from harness.errors import MeasurementError, UsageError
from harness.files import NoRoomError
from harness.run import RESULTS

if TYPE_CHECKING:
    from harness.analysis.judgements import Judgement, Run
    from harness.plan.plan import Plan
    from harness.record.store import Store


def verb(
    claim: Annotated[
        list[str] | None, typer.Option("--claim", metavar="ID", help="Only this one; default: all.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only what can be judged in minutes, in three rounds.")
    ] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would run, and for how long. Starts nothing.")] = False,
    on: On = "auto",
    out: Annotated[Path, typer.Option(help="Where the verdicts go.")] = RESULTS / "claims",
) -> None:
    """Judge claims of papers: run what they need, resume, and give each its verdict with interval and explanation."""
    from harness import provenance
    from harness.analysis import claims, judgements
    from harness.cli.progress import announce_all
    from harness.cluster import registry
    from harness.report import claims as report
    from harness.run.planning import plan_on
    from harness.run.session import latest_run

    chosen = claims.select(claims.load(), claim or [], quick)
    kind, why = registry.choose(on)
    plans = claims.plans(chosen, lambda scenario: plan_on(scenario, registry.make(kind)), quick)
    stores = {name: latest_run(each) for name, each in plans.items()}
    announce_all(f"{len(chosen)} claims", plans, stores)
    if plan:
        return
    failed, runs = 0, {}
    for name, each in plans.items():
        runs[name], lost = _run(each, stores[name], kind, why)
        failed += lost
    judged = [judgements.judge(each, runs) for each in chosen]
    page = report.write(judged, out, provenance.collect(command()))
    _draw(judged, plans, out)
    _print(judged)
    say(f"verdicts, reasons, origins: {page}")
    if failed:
        raise MeasurementError(f"{failed} of the trials did not finish; each run's report lists them with their reason")


def _run(plan: Plan, store: Store | None, kind: str, why: str) -> tuple[Run, int]:
    """Run what is pending of a plan, or say why not: the claims of other scenarios are judged all the same.

    Returns:
        The run, and how many of its trials did not finish.
    """
    from harness.analysis.judgements import Run
    from harness.cli.running import run_and_report
    from harness.cluster import registry
    from harness.run.session import new_store

    store = store or new_store(plan)
    try:
        return Run(plan, store), run_and_report(plan, store, registry.make(kind), why).failed
    except NoRoomError:
        raise
    except (MeasurementError, UsageError) as error:
        say(str(error))
        return Run(plan, store, str(error)), len(plan.pending(store.attempts()))


def _draw(judged: Sequence[Judgement], plans: Mapping[str, Plan], out: Path) -> None:
    import pandas as pd

    from harness.analysis import crossover
    from harness.report.figures.claims import write_claims
    from harness.report.figures.crossover import write_crossover

    write_claims(judged, out)
    if len(predicted := pd.concat([crossover.speedups(each) for each in plans.values()])):
        methods = {method.label: method for each in plans.values() for method in each.scenario.methods}
        write_crossover(predicted, list(methods.values()), out)


def _print(judged: Sequence[Judgement]) -> None:
    from harness.analysis.judgements import families
    from harness.report import claims as report

    rows = [report.cells(each) for each in judged]
    print_table("claims", list(rows[0]), [list(row.values()) for row in rows], ["method", "over", "of", "verdict"])
    for family, own in families(judged).items():
        say(f"{family}: {report.sentence(own)}")
