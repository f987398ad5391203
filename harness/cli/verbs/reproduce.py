"""Judge the claims of papers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli.console import print_table, say
from harness.cli.json_output import print_json, words_aside
from harness.cli.options import AsJson, On, command, refuse_beside
from harness.errors import MeasurementError, UsageError
from harness.files import NoRoomError, check_folder
from harness.run import RESULTS

if TYPE_CHECKING:
    from harness.analysis.claims.figures import Run
    from harness.analysis.claims.judgements import Judgement
    from harness.analysis.claims.schema import Claim
    from harness.plan.machine import Machine
    from harness.plan.plan import Plan
    from harness.report.figures.registry import Drawing

ALL_ROUNDS = range(1000)


def verb(
    context: typer.Context,
    claim: Annotated[
        list[str] | None, typer.Option("--claim", metavar="ID", help="Only this one; default: all.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only what can be judged in minutes, in three rounds.")
    ] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would run, and for how long. Starts nothing.")] = False,
    judge: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Judge by the runs there, whatever code made them; run none.")
    ] = None,
    on: On = "auto",
    out: Annotated[Path, typer.Option(help="Where the verdicts go.")] = RESULTS / "claims",
    as_json: AsJson = False,
) -> None:
    """Judge claims of papers: run what they need, resume, and give each its verdict with interval and explanation."""
    from harness import provenance
    from harness.analysis.claims import schema
    from harness.cluster import registry
    from harness.report import claims_page
    from harness.run.stored import differences, runs_beside, stored_runs

    if plan and as_json:
        raise UsageError.at("command line", "--json", "with --plan", "verdicts as JSON, which a plan has none of")
    if judge:
        refuse_beside(context, "--judge", ["quick", "plan", "on"], "--claim, --out and --json")
    known = schema.load()
    chosen = schema.select(known, claim or [], quick)
    with words_aside(as_json):
        if judge:
            collected = provenance.collect(command())
            (chosen, runs), failed = stored_runs(chosen, judge), 0
            beside = runs_beside(runs, known, judge)
            collected |= {"differs": differing} if (differing := differences(chosen, runs)) else {}
        else:
            beside, (kind, why) = {}, registry.choose(on)
            runs = _planned(chosen, kind, quick)
            _announce(chosen, runs, registry.make(kind).machine)
            if plan:
                return
            check_folder(out)
            collected = provenance.collect(command())
            runs, failed = _carried_out(chosen, runs, kind, why, collected, out)
        judged, origin = _conclude(chosen, runs, collected, out, beside)
    if as_json:
        print_json(claims_page.as_json(judged, origin))
    if failed:
        raise MeasurementError(f"{failed} of the trials did not finish; each run's report lists them with their reason")


def _planned(chosen: Sequence[Claim], kind: str, quick: bool) -> dict[str, Run]:
    """Of each scenario that the claims need its plan, and what there is of it already."""
    from harness.analysis.claims import plans
    from harness.analysis.claims.figures import Run
    from harness.cluster import registry
    from harness.run.planning import plan_on
    from harness.run.session import latest_run

    planned = plans.plans(chosen, lambda scenario: plan_on(scenario, registry.make(kind)), quick)
    return {name: Run(each, latest_run(each), too_large=_too_large(each)) for name, each in planned.items()}


def _carried_out(
    chosen: Sequence[Claim],
    runs: Mapping[str, Run],
    kind: str,
    why: str,
    collected: Mapping[str, Any],
    out: Path,
) -> tuple[dict[str, Run], int]:
    """Run what the claims need; what had finished is judged when it is interrupted."""
    from harness.cluster import registry
    from harness.run.reproducing import reproduce
    from harness.run.session import latest_run

    try:
        runs, failed = reproduce(
            chosen, runs, lambda name, run, part: _carry_out(run, part, kind, why), registry.make(kind).machine
        )
    except KeyboardInterrupt:
        kept = {name: replace(run, store=latest_run(run.plan)) for name, run in runs.items()}
        _report_runs(kept)
        _conclude(chosen, kept, collected, out)
        raise
    _report_runs(runs)
    return runs, failed


def _too_large(plan: Plan) -> dict[str, str]:
    """Labels of methods that do not fit into this machine's memory, and what would."""
    from harness.run.execute import too_large

    return {label: allowed for label, (_, allowed) in too_large(plan.trials).items()}


def _announce(chosen: Sequence[Claim], runs: Mapping[str, Run], machine: Machine) -> None:
    """Show what is about to run: at least, since no verdict is looked for earlier, and at most, if none comes early."""
    from harness.analysis.claims.judgements import judge
    from harness.analysis.claims.sequential import FIRST_LOOK
    from harness.plan.estimate import total_s
    from harness.run.reproducing import measures_in_one_piece, needed, pending

    judged = [judge(claim, runs) for claim in chosen]
    rows, times = [], {"replays": (0.0, 0.0), "trainings": (0.0, 0.0)}
    for name, run in runs.items():
        least = needed(name, run, judged, range(FIRST_LOOK))
        most = needed(name, run, judged, ALL_ROUNDS, at_most=True)
        is_beside = measures_in_one_piece(name, judged)
        left = [pending(run, run.plan if is_beside else part) for part in (least, most)]
        seconds = [total_s(trials, machine) if trials else 0.0 for trials in left]
        what = "replays" if all(trial.case.train.replay for trial in run.plan.trials) else "trainings"
        times[what] = times[what][0] + seconds[0], times[what][1] + seconds[1]
        counts = [str(len(each)) for each in (run.plan.trials, *left)]
        rows.append([name, *counts, _from_to(seconds)])
    is_open = [bool(each.open_parts) for each in judged]
    told = [f"{_from_to(seconds)} of {what}" for what, seconds in times.items() if any(seconds)]
    title = (
        f"{len(chosen)} claims: about {' and '.join(told) or _from_to([0.0])} "
        f"({is_open.count(True)} are open; for {is_open.count(False)} nothing is to run)"
    )
    headings = ["scenario", "trials", "left at least", "left at most", "time left"]
    print_table(title, headings, rows, words=["time left"])
    for name, run in runs.items():
        for label, allowed in run.too_large.items():
            say(f"{name}: claims about {label} stay open; allowed: {allowed}")


def _from_to(seconds: Sequence[float]) -> str:
    from harness.units import format_time

    return " to ".join(dict.fromkeys(map(format_time, seconds)))


def _carry_out(run: Run, part: Plan, kind: str, why: str) -> tuple[Run, int]:
    """Run what is pending of a plan's part, or say why not: the claims of other scenarios are judged all the same."""
    from harness.cli.progress import ProgressBar
    from harness.cluster import registry
    from harness.run import session
    from harness.run.reproducing import not_run

    store, cluster = run.store or session.new_store(run.plan), registry.make(kind)
    try:
        result = session.run(part, store, cluster, command(), ProgressBar(cluster, why))
        return replace(run, store=store), result.failed
    except NoRoomError:
        raise
    except (MeasurementError, UsageError) as error:
        say(str(error))
        return not_run(replace(run, store=store), error), len(part.pending(store.attempts()))


def _conclude(
    chosen: Sequence[Claim],
    runs: Mapping[str, Run],
    collected: Mapping[str, Any],
    out: Path,
    beside: Mapping[str, Run] = {},
) -> tuple[list[Judgement], dict[str, Any]]:
    """Judge the claims by what has run, and write it all down; returns that, and where it comes from.

    Args:
        beside: runs that only tell how much rounds usually vary.
    """
    from harness import provenance
    from harness.analysis.claims.judgements import judge
    from harness.report import claims_page

    judged = [judge(claim, {**beside, **runs}) for claim in chosen]
    stores = [run.store for run in runs.values() if run.store]
    origin = {**collected, "runs": {store.folder.name: provenance.run_by(store.provenance()) for store in stores}}
    page = claims_page.write(judged, out, origin, _draw(judged, runs, out))
    _print(judged)
    for sentence in claims_page.differing(origin):
        say(sentence)
    say(f"verdicts, reasons, origins: {page}")
    return judged, origin


def _report_runs(runs: Mapping[str, Run]) -> None:
    from harness.cli.reporting import write_report
    from harness.plan.status import DONE

    for run in runs.values():
        if run.store and (run.trials["status"] == DONE).any():
            write_report(run.store)


def _draw(judged: Sequence[Judgement], runs: Mapping[str, Run], out: Path) -> list[Drawing]:
    import pandas as pd

    from harness.analysis import crossover
    from harness.report.figures.claims import write_claims
    from harness.report.figures.crossover import write_crossover

    drawings = write_claims(judged, out)
    frames = [crossover.speedups(run.plan) for run in runs.values()]
    if frames and len(predicted := pd.concat(frames)):
        methods = {method.label: method for run in runs.values() for method in run.plan.scenario.methods}
        drawings.append(write_crossover(predicted, list(methods.values()), out))
    return drawings


def _print(judged: Sequence[Judgement]) -> None:
    from harness.analysis.claims.judgements import families
    from harness.analysis.claims.summary import papers
    from harness.report import citing
    from harness.report import claims as report

    rows = [report.cells(each) for each in judged]
    print_table("claims", list(rows[0]), [list(row.values()) for row in rows], ["method", "over", "of", "verdict"])
    for family, own in families(judged).items():
        say(f"{family}: {report.sentence(own)}")
    for own in papers(judged).values():
        for sentence in citing.citable(own):
            say(sentence)
