"""Find each method's learning rate."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.console import print_table, say
from harness.cli.json_of_runs import TunedMethod
from harness.cli.json_output import print_json, words_aside
from harness.cli.options import AsJson, Method, On, ScenarioName, Set, command, write
from harness.errors import UsageError

if TYPE_CHECKING:
    from harness.run.tuning import Tried
    from harness.scenario.schema import Scenario


def verb(
    scenario: ScenarioName,
    out: Annotated[Path, typer.Option("--out", "-o", help="The scenario file to write, with a rate for each method.")],
    on: On = "auto",
    set_: Set = None,
    method: Method = None,
    grid: Annotated[
        str | None, typer.Option(metavar="LR,LR,...", help="Rates to try; default: the scenario's lr times 1/4 to 4.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Seeds for each method and rate.")] = 2,
    steps: Annotated[
        int | None, typer.Option(min=4, max=1_000_000, help="Steps of each trial; default: the scenario's.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where trials are stored; default: results/SCENARIO-tune. Goes on there.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find each method's learning rate, all at the same cost, and write a scenario file that has them."""
    from harness.files import check_writable
    from harness.run import RESULTS, tuning
    from harness.scenario.load import load, tables

    if out.suffix != ".toml":
        raise UsageError.at("command line", "-o", str(out), "a file whose name ends in .toml")
    check_writable(out)
    asked = load(scenario, set_ or (), method or ())
    train = asked.cases[0].train
    first = tuple(factor * train.lr for factor in tuning.GRID) if grid is None else _rates(grid)
    tuning.check(asked, first, steps)
    with words_aside(as_json):
        tried, stages = _tried(asked, on, first, seeds, steps or train.steps, folder or RESULTS / f"{asked.name}-tune")
    rates = tuning.best_rates(tried)
    budget = f"{len(first) + stages - 1} rates x {seeds} seeds x {steps or train.steps} steps for each method"
    tuned = f"{shlex.join(command())}; {budget}"
    write(out, tuning.as_toml(tables(scenario, set_ or ()), asked.methods, rates, tuned))
    if as_json:
        methods = [_as_json(each) for each in tried]
        print_json({"scenario": asked.name, "tuned": tuned, "methods": methods, "written": str(out)})
        return
    print_table(f"{asked.name}: {budget}", ["method", "best lr", "tried"], [_cells(each) for each in tried])
    for each in tried:
        if each.is_at_edge:
            say(f"{each.label}: its best rate is still at the edge of what was tried")
    say(f"written: {out}")


def _tried(
    asked: Scenario, on: str, first: tuple[float, ...], seeds: int, steps: int, folder: Path
) -> tuple[list[Tried], int]:
    """What all stages found, and how many there were."""
    from harness.cli.progress import ProgressBar
    from harness.cluster import registry
    from harness.record.store import Store
    from harness.run import session, tuning
    from harness.run.planning import plan_on

    kind, why = registry.choose(on)
    rates: dict[str, tuple[float, ...]] = {method.label: first for method in asked.methods}
    tried: list[Tried] = []
    for number in range(1, tuning.MOST_STAGES + 1):
        cluster = registry.make(kind)
        plan = plan_on(tuning.stage(asked, rates, seeds, steps), cluster)
        store = Store.create(tuning.stage_folder(folder, number), plan.scenario)
        result = session.run(plan, store, cluster, command(), ProgressBar(cluster, why))
        found = tuning.judge(asked, result.trials, rates)
        tried = tuning.together(tried, found) if tried else found
        edges = [each for each in tried if each.is_at_edge]
        if not edges or number == tuning.MOST_STAGES:
            return tried, number
        for each in edges:
            say(f"{each.label}: {each.best:.4g} is at the edge of the grid, which is widened to {each.next_rate():.4g}")
        rates = {each.label: (each.next_rate(),) for each in tried}
    raise AssertionError("the last stage has returned")


def _rates(text: str) -> tuple[float, ...]:
    from harness.scenario.optimisation import MOST_LR

    try:
        rates = tuple(float(part) for part in text.split(","))
    except ValueError:
        rates = ()
    if not rates or not all(0 < rate <= MOST_LR for rate in rates):
        raise UsageError.at("command line", "--grid", text, f"rates such as 0.01,0.02,0.04, up to {MOST_LR:g}")
    return rates


def _as_json(tried: Tried) -> TunedMethod:
    scores = sorted(tried.scores.items())
    return {
        "label": tried.label,
        "best_lr": tried.best,
        "at_edge": tried.is_at_edge,
        "tried": [{"lr": rate, "score": abs(score)} for rate, score in scores],
    }


def _cells(tried: Tried) -> list[str]:
    scores = ", ".join(f"{rate:.4g}: {abs(score):.4g}" for rate, score in sorted(tried.scores.items()))
    return [tried.label, f"{tried.best:.4g}", scores]
