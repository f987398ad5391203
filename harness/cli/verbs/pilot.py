"""Look at a training script, put methods to the test on an emulated network, and say which of them pays."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli.console import print_table, say, tell
from harness.cli.json_of_jobs import OutcomeJson, PilotJson, RecheckJson
from harness.cli.json_output import print_json, words_aside
from harness.cli.options import (
    AsJson,
    Method,
    On,
    PerNode,
    Rate,
    SetLinks,
    Workers,
    check_emulated,
    command,
    current_folder,
    refuse_beside,
    time_above_zero,
    topology,
)
from harness.errors import EXIT_INCONCLUSIVE, EXIT_REGRESSION, UsageError
from harness.plain import UTF_8, is_utf_8

if TYPE_CHECKING:
    from harness.analysis.pilot.worth import Price
    from harness.network.topology import Topology
    from harness.record.pilot import Pilot
    from harness.run.pilot.request import Request
    from harness.scenario.schema import MethodSpec

ANSWERS = {"holds": "it holds", "drifted": "it has drifted", "cannot tell": "it cannot be told whether it holds"}

RECHECKED_WITH = ("recheck", "command_", "link", "as_json")
"""Parameters that a recheck reads."""

SETTINGS = {"allow_interspersed_args": False}
"""What follows the command is the command's own."""


def verb(
    context: typer.Context,
    command_: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="-- COMMAND...", help="As of `pacbench exec`; with --model options: --batch-size, --lr."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Train this in place of a command: a name, or FILE.py:NAME.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(metavar="DATASET", help="What it is trained on, likewise.")] = None,
    link: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A .toml file of a [link] table; instead of --rate and --set.")
    ] = None,
    workers: Workers = 4,
    per_node: PerNode = 1,
    rate: Rate = "100mbit",
    set_: SetLinks = None,
    on: On = "auto",
    tolerance: Annotated[str, typer.Option(help="How much worse than dense's the loss may be.")] = "2%",
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="How long it may take, such as 20min; what has no room is told.")
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be run; starts nothing.")] = False,
    recheck: Annotated[
        Path | None, typer.Option(metavar="PILOT.JSON", help="Look whether it holds: exit 0; drifted: 3; unknown: 4.")
    ] = None,
    price: Annotated[str | None, typer.Option(metavar="MONEY", help="Of a worker: 2.49/h, in any currency.")] = None,
    egress: Annotated[str | None, typer.Option(metavar="MONEY", help="Of what a worker sends: 0.09/GB.")] = None,
    job_steps: Annotated[
        int, typer.Option("--job-steps", min=1, help="Steps of the whole training, for hours and money.")
    ] = 100_000,
    steps: Annotated[
        int, typer.Option(min=24, max=4000, help="Steps of dense here; methods whose steps are shorter make more.")
    ] = 60,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Trainings of each method.")] = 3,
    tested: Annotated[int, typer.Option(min=1, help="Methods that are put to the test, beside dense and bf16.")] = 3,
    scenario: Annotated[str, typer.Option(metavar="SCENARIO", help="Whose methods are looked at.")] = "convergence",
    method: Method = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Its folder; default: results/pilot-SCRIPT. Goes on there.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Would compression pay for this script on this network? Look, predict, put to the test, decide.

    The same command goes on where it was ended.
    """
    from harness.cli.progress import tell_of_unknown_commit
    from harness.cluster import registry
    from harness.run import RESULTS, piloting
    from harness.run.pilot.request import Request

    if recheck is not None:
        others = [each.name for each in context.command.params if each.name and each.name not in RECHECKED_WITH]
        refuse_beside(
            context, "--recheck", others, "--link, --json and the pilot's command; all else is as it was there"
        )
        _recheck(recheck, command_, link, as_json)
        return
    if plan and as_json:
        raise UsageError.at("command line", "--json", "--plan", "a pilot that runs, or --recheck")
    if link:
        refuse_beside(context, "--link", ["rate", "set_"], "the links of the file")
    prices = _prices(price, egress)
    words, name = _training(command_ or (), model, dataset)
    network = _network(link, workers) if link else topology(workers, rate, set_)
    here = current_folder()
    _check_can_be_told(words, here)
    _check_ranks(network, per_node)
    kind, _ = registry.choose(on)
    registry.make_for_commands(kind)
    methods, plain, sixteen, unsuited = _methods(scenario, method or ())
    asked = Request(
        command=tuple(words),
        folder=here,
        environment=dict(os.environ),
        network=network,
        per_node=per_node,
        on=kind,
        methods=methods,
        unsuited=unsuited,
        plain=plain,
        sixteen=sixteen,
        tolerance=_share(tolerance),
        steps=steps,
        seeds=seeds,
        tested=tested,
        budget_s=time_above_zero("--budget", budget, "20min"),
        out=out or RESULTS / f"pilot-{name}",
        command_line=tuple(command()),
    )
    if plan:
        _show_plan(asked)
        return
    tell_of_unknown_commit()
    with words_aside(as_json):
        found = piloting.pilot(asked, say)
        page = _report(found, asked.out, job_steps, prices)
    if as_json:
        print_json(_as_json(found, page))


def _training(words: Sequence[str], model: str | None, dataset: str | None) -> tuple[list[str], str]:
    """The command that is looked at, and what it is called: the user's, or our script with his model."""
    if model is None and dataset is None:
        if not words:
            allowed = "what to run, such as: pacbench pilot -- python train.py"
            raise UsageError.at("command line", "COMMAND", "nothing", allowed)
        return [*words], next((Path(word).stem for word in words if word.endswith(".py")), Path(words[0]).stem)
    if model is None or dataset is None:
        option = "--dataset" if dataset is None else "--model"
        raise UsageError.at(
            "command line", option, "nothing", "a name, or FILE.py:NAME; --model and --dataset go together"
        )
    from harness.plugins import anchored, plain
    from harness.programs import python
    from harness.worker import script

    here = current_folder()
    options = ["--model", anchored(model, here), "--dataset", anchored(dataset, here), *words]
    script.parsed(options)
    return python(script.__name__, *options), plain(model)


def _check_can_be_told(words: Sequence[str], folder: Path) -> None:
    """Refuse bytes that are no text: a pilot's file holds command and folder, and a recheck runs the same again."""
    for field, found in (*(("COMMAND", word) for word in words), ("current folder", str(folder))):
        if not is_utf_8(found):
            raise UsageError.at("command line", field, found, UTF_8)


def _methods(scenario: str, only: Sequence[str]) -> tuple[tuple[MethodSpec, ...], str, str, str]:
    """A scenario's methods, the plain ones first; the labels of these, the all-reduces in 32 and in 16 bits; and a
    sentence on those that a pilot does not look at.

    These have a learning rate or an optimizer of their own, and a script keeps its own; or are 16 bits once more.
    """
    from harness.methods import method_named
    from harness.scenario.load import load
    from harness.scenario.schema import DENSE

    loaded = load(scenario, (), only)
    if loaded.sixteen_bit is None:
        found = ", ".join(each.label for each in loaded.methods)
        raise UsageError.at(scenario, "methods", found, "a 16-bit all-reduce among them, such as bf16")
    baseline = next(each for each in loaded.methods if each.label == loaded.baseline)
    if baseline.name != DENSE.name:
        raise UsageError.at(
            scenario, "baseline", loaded.baseline, f"the label of the method {DENSE.name}, as scripts have it"
        )
    plain = (loaded.baseline, loaded.sixteen_bit)
    others = [each for each in loaded.methods if each.label not in plain]
    own = [each for each in others if each.lr is not None or each.optimizer is not None]
    again = [each for each in others if method_named(each.name).State.is_sixteen_bit]
    suited = [each for each in loaded.methods if each not in [*own, *again]]
    told = []
    if own:
        labels = ", ".join(each.label for each in own)
        told.append(f"Not looked at, since it takes an optimizer or a learning rate that the script has not: {labels}.")
    if again:
        labels = ", ".join(each.label for each in again)
        told.append(f"Not looked at, since {loaded.sixteen_bit} is the 16-bit all-reduce here: {labels}.")
    return tuple(sorted(suited, key=lambda each: each.label not in plain)), *plain, " ".join(told)


def _network(file: Path, workers: int) -> Topology:
    """The network of a file's ``[link]`` table, and ``[fabric]``, if it has one."""
    from harness.network.topology import Topology
    from harness.scenario import limits
    from harness.scenario.link_file import read_tables
    from harness.scenario.section import checked_section

    tables = read_tables(file)
    if not isinstance(tables.get("link"), dict):
        raise UsageError.at(file, "link", tables.get("link"), "a table [link], as in scenarios")
    if others := tables.keys() - {"link", "fabric"}:
        raise UsageError(f"{file}: {min(others)}: unknown key; allowed: link, fabric")
    values: dict[str, object] = {
        "workers": workers,
        **{key: tables[key] for key in ("link", "fabric") if key in tables},
    }
    found = checked_section(Topology, values, str(file))
    check_emulated(workers)
    if complaint := limits.complaint(found.link, found.fabric, found.workers):
        raise UsageError(f"{file}: {complaint}")
    return found


def _check_ranks(network: Topology, per_node: int) -> None:
    if per_node > 1 and network.fabric.names:
        raise UsageError.at("command line", "--per-node", per_node, "1 where workers are in groups ([fabric])")


def _show_plan(asked: Request) -> None:
    from harness.report.text import NOTHING
    from harness.run.pilot.planned import planned
    from harness.units import format_time

    stages = planned(asked)
    rows = []
    for stage in stages:
        steps = " to ".join(map(str, sorted(set(stage.steps))))
        about = NOTHING if stage.about_s is None else format_time(stage.about_s)
        rows.append([stage.name, str(stage.commands), str(stage.ranks), steps, about])
    print_table("what a pilot runs, at most", ["stage", "commands", "ranks", "steps of each", "about"], rows)
    labels = ", ".join(each.label for each in asked.methods)
    say(f"looked at: {labels}; put to the test: {asked.plain}, {asked.sixteen}, and the {asked.tested} most promising")
    if asked.unsuited:
        say(asked.unsuited)
    if stages[0].about_s is None:
        say("how long it takes is known once the job has been looked at: a start of the script, and its steps there")
    else:
        total_s = sum(stage.about_s or 0.0 for stage in stages)
        say(f"about {format_time(total_s)} in all: predicted for this network, from the job as it was looked at")
    if asked.budget_s is not None:
        say(f"budget: {format_time(asked.budget_s)}; what has no room in it is left out, and told")


def _recheck(file: Path, words: Sequence[str] | None, link: Path | None, as_json: bool) -> None:
    """Look whether a pilot still holds, and end with what was found."""
    from harness.analysis.pilot import drift
    from harness.cluster import registry
    from harness.record.pilot import load
    from harness.run import piloting
    from harness.run.pilot.request import again

    before = load(file)
    if words and tuple(words) != before.command:
        raise UsageError.at("command line", "COMMAND", " ".join(words), f"that of {file}: {' '.join(before.command)}")
    if before.cluster not in (able := registry.kinds_for_commands()):
        raise UsageError.at(file, "cluster", before.cluster, ", ".join(able))
    if not os.path.isdir(before.folder):
        raise UsageError.at(file, "folder", before.folder, "a folder of this machine, in which its command runs")
    if not link:
        tell("the network is taken to be what it was; `pacbench link` measures it, and --link takes what that writes")
    network = _network(link, before.network.workers) if link else before.network
    _check_ranks(network, before.per_node)
    asked = again(before, network, dict(os.environ), file.parent / f"recheck-{time.strftime('%Y%m%d-%H%M%S')}")
    with words_aside(as_json):
        checks = piloting.recheck(before, replace(asked, command_line=tuple(command())), say)
        print_table(
            f"{file}: {before.verdict.sentence}",
            ["what", "answer", "found"],
            [[check.what, check.answer, check.found] for check in checks],
            ["answer", "found"],
        )
        answer = drift.answer(checks)
        say(ANSWERS[answer])
    code = {"holds": 0, "drifted": EXIT_REGRESSION, "cannot tell": EXIT_INCONCLUSIVE}[answer]
    if as_json:
        found: list[Any] = [asdict(check) for check in checks]
        told: RecheckJson = {"answer": answer, "exit_code": code, "checks": found}
        print_json(told)
    if code:
        raise typer.Exit(code)


def _report(found: Pilot, folder: Path, job_steps: int, prices: tuple[Price | None, Price | None]) -> Path:
    """Write all files and say the answer; returns the page."""
    from harness.analysis.pilot.worth import worth
    from harness.report import pilot as report

    found.save(folder)
    page = report.write(found, worth(found, job_steps, *prices), folder)
    rows = report.outcomes(found)
    print_table("trainings on the emulated network", list(rows[0]), [list(row.values()) for row in rows], ["loss kept"])
    for sentence in found.left_out:
        say(f"left out: {sentence}")
    say(f"{found.verdict.sentence} How sure: {found.verdict.sureness}.")
    say(f"for who decides, and who implements: {page}")
    return page


def _as_json(found: Pilot, page: Path) -> PilotJson:
    told, shown = found.verdict, set(OutcomeJson.__annotations__)
    methods: list[Any] = [each.model_dump(include=shown) for each in found.outcomes]
    return {
        "command": [*found.command],
        "recommended": told.label,
        "method": told.method.name,
        "params": told.method.params,
        "compress": told.compress,
        "sentence": told.sentence,
        "sureness": told.sureness,
        "reasons": [*told.reasons],
        "changes": [*told.changes],
        "break_even_bps": told.break_even_bps,
        "methods": methods,
        "left_out": [*found.left_out],
        "took_s": found.took_s,
        "written": str(page.parent),
    }


def _share(text: str) -> float:
    from harness.units import parse_share

    try:
        return parse_share(text if text.strip().endswith("%") else float(text))
    except ValueError:
        raise UsageError.at("command line", "--tolerance", text, "a share such as 0.02, or '2%'") from None


def _prices(price: str | None, egress: str | None) -> tuple[Price | None, Price | None]:
    """Of a worker's hour, and of a gigabyte that is sent: in one currency, since they are added up."""
    of_hours, of_bytes = _price("--price", price, "h"), _price("--egress", egress, "GB")
    if of_hours and of_bytes and of_hours.currency != of_bytes.currency:
        raise UsageError.at("command line", "--egress", egress, f"an amount in the currency of --price ({price})")
    return of_hours, of_bytes


def _price(option: str, text: str | None, unit: str) -> Price | None:
    if text is None:
        return None
    from harness.analysis.pilot.worth import parse_price

    try:
        return parse_price(text, unit)
    except ValueError as error:
        raise UsageError.at("command line", option, text, str(error)) from None
