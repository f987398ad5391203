"""Show what a run would do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli.console import print_table
from harness.cli.json_output import print_json
from harness.cli.options import AsJson, LinkFile, Method, On, Rounds, ScenarioName, Set, with_link
from harness.errors import UsageError

if TYPE_CHECKING:
    from harness.plan.machine import Machine
    from harness.plan.plan import Plan
    from harness.plan.trial import Trial


def verb(
    scenario: ScenarioName,
    on: On = "auto",
    set_: Set = None,
    link: LinkFile = None,
    method: Method = None,
    rounds: Rounds = None,
    show_tc: Annotated[
        bool, typer.Option("--show-tc", help="Print the network as commands to paste, instead.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show each trial with its bytes, lower bound, predicted step and estimated time. Starts nothing."""
    from harness.cluster import registry
    from harness.plan.check import check_size
    from harness.run.planning import plan_run

    if show_tc and as_json:
        raise UsageError.at("command line", "--json", "with --show-tc", "a plan as JSON; commands are to be pasted")
    cluster = registry.make(registry.choose(on)[0])
    plan = plan_run(scenario, cluster, with_link(link, set_), method or (), rounds)
    if show_tc:
        check_size(plan.scenario)
        for topology in dict.fromkeys(trial.expected.built_topology for trial in plan.trials):
            print(topology.script())
    elif as_json:
        print_json(_as_json(plan, cluster.machine))
    else:
        _print(plan, cluster.machine)


def _as_json(plan: Plan, machine: Machine) -> dict[str, Any]:
    from harness.plan.estimate import total_s

    return {
        "scenario": plan.scenario.name,
        "trials": [{**_describe(trial), **_foreseen(trial, machine)} for trial in plan.trials],
        "total_s": total_s(emulated, machine) if (emulated := _emulated(plan)) else None,
        "more_seeds": len(plan.more_seeds),
    }


def _print(plan: Plan, machine: Machine) -> None:
    from harness.plan.estimate import lose_packets, total_as_text, total_s, waits_without_mean
    from harness.scenario.schema import MOST_EMULATED
    from harness.units import format_time

    emulated = _emulated(plan)
    took = f", {total_as_text(emulated, machine)}" if emulated else ""
    title = f"{plan.scenario.name}: {len(emulated)} trials{took}"
    if predicted := len(plan.trials) - len(emulated):
        title += f"; {predicted} predicted, with more than the {MOST_EMULATED} workers that can be emulated"
    if plan.more_seeds:
        more_s = total_s(plan.more_seeds, machine)
        title += f"; then up to {len(plan.more_seeds)} more seeds for accuracy, {format_time(more_s)} at most"
    columns = ["method", "round", "workers", "rate", "bytes/step", "lower bound/step", "predicted step", "time"]
    print_table(title, columns, [_cells(trial, machine) for trial in plan.trials])
    if lose_packets(plan.trials):
        print(
            "Links lose packets. What waiting for them takes is not in these times: steps may be several times longer."
        )
    if lost_again := waits_without_mean(plan.trials):
        print(
            f"In a burst {lost_again:.0%} of the packets that TCP sends again alone are lost again, and it waits "
            "twice as long each time: single steps may take minutes. A greater r or a smaller loss_bad avoids that."
        )


def _cells(trial: Trial, machine: Machine) -> list[str]:
    from harness.plan.estimate import time_s
    from harness.units import format_rate, format_size, format_time

    known = trial.expected
    return [
        trial.method.label,
        str(trial.round),
        str(trial.case.cluster.workers),
        format_rate(trial.case.link.rate_bps) if trial.case.link.rate_bps else "unshaped",
        format_size(known.wire_bytes_per_step),
        format_time(known.lower_bound_s_per_step),
        format_time(known.predicted_step_s) if known.predicted_step_s else "no profile",
        format_time(time_s(trial, machine)) if trial.case.can_be_emulated else "predicted",
    ]


def _emulated(plan: Plan) -> list[Trial]:
    """The trials that can be run, too."""
    return [trial for trial in plan.trials if trial.case.can_be_emulated]


def _foreseen(trial: Trial, machine: Machine) -> dict[str, Any]:
    from harness.plan.estimate import time_s

    known = trial.expected
    return {
        "wire_bytes_per_step": known.wire_bytes_per_step,
        "lower_bound_s_per_step": known.lower_bound_s_per_step,
        "time_s": time_s(trial, machine) if trial.case.can_be_emulated else None,
        "predicted_step_s": known.predicted_step_s,
        "memory_bytes": known.memory_bytes,
    }


def _describe(trial: Trial) -> dict[str, Any]:
    from harness.plugins import short

    return {
        "trial_id": trial.id,
        "round": trial.round,
        "seed": trial.seed,
        "method": short(trial.method.name),
        "label": trial.method.label,
        "params": trial.method.params,
        "workers": trial.case.cluster.workers,
        "rate_bps": trial.case.link.rate_bps,
        "model": short(trial.case.train.model),
        "steps": trial.case.train.steps,
    }
