"""The command line: it parses and prints, and decides nothing. What is heavy is imported by the verb that needs it."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli.console import accept_any_text, print_table
from harness.cli.console import say as _say
from harness.errors import EXIT_INTERRUPTED, MeasurementError, PacbenchError, UsageError
from harness.plain import prose, visible

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.cluster.protocol import Cluster
    from harness.machine.calibrate import Calibration
    from harness.plan.plan import Plan
    from harness.plan.trial import Trial
    from harness.record.store import Store
    from harness.run.outcome import Progress
    from harness.scenario.schema import Scenario

RESULTS = Path("results")
MOST_ROUNDS = 30
"""Of a run with ``--until``, unless ``--rounds`` says otherwise."""

app = typer.Typer(
    name="pacbench",
    help="Would gradient compression make my training faster on my network, and does it keep the accuracy?",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

ScenarioName = Annotated[str, typer.Argument(metavar="SCENARIO", help="A name from `pacbench list`, or a .toml file.")]
ScenarioNames = Annotated[list[str], typer.Argument(metavar="SCENARIO...", help="Names or .toml files.")]
RunDir = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The folder of a run.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a field: train.steps=50.")]
Method = Annotated[list[str] | None, typer.Option("--method", help="Only these methods, and the baseline.")]
Rounds = Annotated[int | None, typer.Option("--rounds", help="Override the scenario's rounds.")]
On = Annotated[
    str,
    typer.Option(
        "--on",
        help="Where: netns (network namespaces), docker (containers), uml (a kernel with netem), auto (netns where it "
        "works, else docker), or fake (scripted, for tests).",
    ),
]
Gpu = Annotated[bool, typer.Option("--gpu", help="On docker: short for --set cluster.device=cuda.")]
Keep = Annotated[bool, typer.Option("--keep", help="On docker: leave the containers up, and say how to enter them.")]
Until = Annotated[
    str | None,
    typer.Option(
        "--until", metavar="PCT", help="Run rounds until every speedup's interval reaches no further, such as 2%."
    ),
]
Seeds = Annotated[
    int | None,
    typer.Option(
        "--seeds",
        min=0,
        help="Train more seeds on unshaped links, up to so many, where rounds leave it unknown if accuracy is kept.",
    ),
]
RunOrReference = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, or a reference.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_things(
    kind: Annotated[str | None, typer.Argument(metavar="[scenarios|methods|models|datasets]")] = None,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Methods, scenarios: all facts, as Markdown.")
    ] = False,
) -> None:
    """Show what can be named: scenarios, methods, models, data sets."""
    catalogues = {"scenarios": _scenarios, "methods": _methods, "models": _models, "datasets": _datasets}
    if kind is not None and kind not in catalogues:
        raise UsageError.at("command line", "list", kind, ", ".join(catalogues))
    if verbose:
        if kind not in ("methods", "scenarios"):
            found = f"list {kind or ''}".strip()
            raise UsageError.at("command line", "-v", found, "list methods -v, list scenarios -v")
        if kind == "methods":
            from harness.report.catalogue import page
        else:
            from harness.report.fields import page
        print(page(), end="")
        return
    for name in [kind] if kind else catalogues:
        print(f"{name}:")
        entries = catalogues[name]()
        width = max(map(len, entries), default=0)
        for entry, summary in entries.items():
            _say(f"  {entry:{width}}  {prose(summary)}")


@app.command("plan")
def show_plan(
    scenario: ScenarioName,
    on: On = "auto",
    set_: Set = None,
    method: Method = None,
    rounds: Rounds = None,
    show_tc: Annotated[
        bool, typer.Option("--show-tc", help="Print the network as commands to paste, instead.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show each trial with its bytes, lower bound and estimated time. Starts nothing."""
    from harness.plan.estimate import time_s, total_s

    plan = _plan(_load(scenario, set_, method, rounds), _cluster(on))
    if show_tc:
        for topology in dict.fromkeys(trial.expected.built_topology for trial in plan.trials):
            print(topology.script())
        return
    seconds, more_s = total_s(plan.trials, _cpu_count()), total_s(plan.more_seeds, _cpu_count())
    if as_json:
        rows = [{**_describe(trial), **_foreseen(trial)} for trial in plan.trials]
        print(
            json.dumps(
                {
                    "scenario": plan.scenario.name,
                    "trials": rows,
                    "total_s": seconds,
                    "more_seeds": len(plan.more_seeds),
                },
                indent=1,
            )
        )
        return
    from harness.units import format_rate, format_size, format_time

    title = f"{plan.scenario.name}: {len(plan.trials)} trials, about {format_time(seconds)}"
    if plan.more_seeds:
        title += f"; then up to {len(plan.more_seeds)} more seeds for accuracy, {format_time(more_s)} at most"
    print_table(
        title,
        ["method", "round", "workers", "rate", "bytes/step", "lower bound/step", "predicted step", "time"],
        [
            [
                trial.method.label,
                str(trial.round),
                str(trial.case.cluster.workers),
                format_rate(trial.case.link.rate_bps) if trial.case.link.rate_bps else "unshaped",
                format_size((known := trial.expected).wire_bytes_per_step),
                format_time(known.lower_bound_s_per_step),
                format_time(known.predicted_step_s) if known.predicted_step_s else "no profile",
                format_time(time_s(trial, _cpu_count())),
            ]
            for trial in plan.trials
        ],
    )


@app.command()
def run(
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
    from harness.cluster import registry
    from harness.plan.plan import FEWEST_SEEDS

    share = _share("--until", until) if until else None
    if share:
        rounds = rounds or MOST_ROUNDS
    failed = 0
    kind, why = registry.choose(on)
    for name in scenarios:
        cluster = registry.make(kind, keep)
        own = [*(set_ or []), *(["cluster.device=cuda"] if gpu else [])]
        own += [f"accuracy_seeds={seeds}"] if seeds is not None else []
        plan = _plan(_load(name, own, method, rounds), cluster)
        if seeds and (share or not plan.more_seeds):
            allowed = (
                f"more than the rounds, of which there are {FEWEST_SEEDS} or more; not with --until, nor for replays"
            )
            raise UsageError.at("command line", "--seeds", seeds, allowed)
        folder = out / plan.scenario.name if out and len(scenarios) > 1 else out
        failed += _run_one(plan, _open_store(plan, folder), cluster, why, share)
    if failed:
        raise MeasurementError(f"{failed} of the trials did not finish; the report lists each with its reason")


@app.command()
def report(
    run_dir: RunDir,
    for_paper: Annotated[
        bool, typer.Option("--paper", help="Also write paper/: figures and tables for LaTeX.")
    ] = False,
) -> None:
    """Write report.html, report.md and plots/ into a run's folder."""
    from harness.record.store import Store

    store = Store.open(run_dir)
    _report(store)
    if for_paper:
        from harness.report import paper

        _say(f"paper: {paper.write(store)}")


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(metavar="RUN_A", help="The folder of a run, or a reference.")],
    after: Annotated[Path, typer.Argument(metavar="RUN_B", help="Likewise.")],
    as_json: AsJson = False,
) -> None:
    """Show what changed from RUN_A to RUN_B. Exit code: 0 nothing is slower, 3 something is, 4 unknown, 5 failed.

    Runs on two kinds of cluster are held against each other instead: speeds, accuracy curves, bits.
    """
    from harness.analysis import compare as comparison
    from harness.analysis import reference
    from harness.record.store import Store
    from harness.report import changes as report
    from harness.report import comparison as across

    old, new = reference.read(before), reference.read(after)
    if old.clusters.isdisjoint(new.clusters):
        page = across.write(Store.open(before), Store.open(after))
        print(page.read_text(encoding="utf-8"))
        _say(f"comparison: {page}")
        return
    changes = comparison.changes(old, new)
    if as_json:
        print(json.dumps(report.as_json(old, new, changes), indent=1))
    else:
        for case in dict.fromkeys(change.case for change in changes):
            own = [report.cells(change) for change in changes if change.case == case]
            print_table(case, list(own[0]), [list(cells.values()) for cells in own], words=[""])
        for line in report.notes(old, new, changes):
            _say(line)
    raise typer.Exit(comparison.exit_code(changes, new.scenario.baseline))


@app.command()
def gate(
    run_dir: RunOrReference,
    against: Annotated[
        Path, typer.Option(help="A reference: a name from results/reference, a file, or a run's folder.")
    ],
    max_slowdown: Annotated[str, typer.Option(help="The slowdown that is no longer accepted.")] = "10%",
    markdown: Annotated[Path | None, typer.Option(help="Write a summary for a pull request.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit's XML.")] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="Write JSON.")] = None,
    benchmark_json: Annotated[Path | None, typer.Option(help="Write the run as pytest-benchmark's JSON.")] = None,
) -> None:
    """Hold a run's speedups against a reference's. Exit code: 0 pass, 3 regression, 4 inconclusive, 5 failed."""
    from harness.analysis import gate as gates
    from harness.analysis import reference
    from harness.report import export, verdicts

    limit = _share("--max-slowdown", max_slowdown)
    run_side = reference.read(run_dir)
    found = gates.judge(run_side, reference.read(against), limit)
    for path, content in (
        (markdown, lambda: verdicts.as_markdown(found)),
        (junit, lambda: verdicts.as_junit(found)),
        (json_, lambda: json.dumps(verdicts.as_json(found), indent=1) + "\n"),
        (benchmark_json, lambda: json.dumps(export.benchmark_json(run_side), indent=1) + "\n"),
    ):
        if path:
            _write(path, content())
    for case in dict.fromkeys(method.change.case for method in found.methods):
        own = [verdicts.cells(method) for method in found.methods if method.change.case == case]
        print_table(case, list(own[0]), [list(cells.values()) for cells in own], words=["why"])
    for note in verdicts.notes(found):
        _say(note)
    _say(verdicts.sentence(found))
    raise typer.Exit(found.exit_code)


@app.command("reference")
def make_reference(
    scenario: ScenarioName,
    on: On = "auto",
    out: Annotated[Path | None, typer.Option(help="The file; default: results/reference/SCENARIO.json.")] = None,
    set_: Set = None,
    method: Method = None,
    rounds: Rounds = None,
    from_run: Annotated[Path | None, typer.Option("--from", help="Make it of this run; nothing is run.")] = None,
) -> None:
    """Run a scenario, ten rounds unless said otherwise, and make of it a reference for gates."""
    from harness.analysis import reference
    from harness.cluster import registry
    from harness.record.store import Store

    kind, why = registry.choose(on)
    cluster = registry.make(kind)
    plan = _plan(_load(scenario, set_, method, rounds or reference.ROUNDS), cluster)
    if from_run:
        store = Store.open(from_run)
        if (found := store.scenario().name) != plan.scenario.name:
            raise UsageError.at(
                "command line", "--from", str(from_run), f"a run of {plan.scenario.name}, not of {found}"
            )
    else:
        store = _open_store(plan, None)
        if failed := _run_one(plan, store, cluster, why):
            raise MeasurementError(
                f"{store.folder}: {failed} trials did not finish; of such a run no reference is made"
            )
    path = reference.write(store, out or RESULTS / "reference" / f"{plan.scenario.name}.json")
    _say(f"reference: {path}")


@app.command()
def reproduce(
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
    import pandas as pd

    from harness import provenance
    from harness.analysis import claims, crossover, judgements
    from harness.cluster import registry
    from harness.record.store import Store, new_folder
    from harness.report import claims as report
    from harness.report.figures import plots
    from harness.run import execute

    chosen = claims.select(claims.load(), claim or [], quick)
    kind, why = registry.choose(on)
    plans = claims.plans(chosen, lambda scenario: _plan(scenario, registry.make(kind)), quick)
    stores = {name: execute.latest_run(each, RESULTS) for name, each in plans.items()}
    _announce_all(f"{len(chosen)} claims", plans, stores)
    if plan:
        return
    failed, runs = 0, {}
    for name, each in plans.items():
        store = stores[name] or Store.create(new_folder(RESULTS, each.scenario), each.scenario)
        problem = ""
        try:
            failed += _run_one(each, store, registry.make(kind), why)
        except (MeasurementError, UsageError) as error:  # the claims of other scenarios are judged all the same
            problem = str(error)
            failed += len(each.pending(store.attempts()))
            _say(problem)
        runs[name] = judgements.Run(each, store, problem)
    judged = [judgements.judge(each, runs) for each in chosen]
    page = report.write(judged, out, provenance.collect(["pacbench", *sys.argv[1:]]))
    plots.write_claims(judged, out)
    if len(predicted := pd.concat([crossover.speedups(each) for each in plans.values()])):
        methods = {method.label: method for each in plans.values() for method in each.scenario.methods}
        plots.write_turning(predicted, list(methods.values()), out)
    rows = [report.cells(each) for each in judged]
    words = ["method", "over", "of", "verdict"]
    print_table("claims", list(rows[0]), [list(row.values()) for row in rows], words)
    for family, own in judgements.families(judged).items():
        _say(f"{family}: {report.sentence(own)}")
    _say(f"verdicts, reasons, origins: {page}")
    if failed:
        raise MeasurementError(f"{failed} of the trials did not finish; each run's report lists them with their reason")


@app.command()
def probe(
    workers: Annotated[int, typer.Option(help="How many.")] = 4,
    rate: Annotated[str, typer.Option(help="Of each link and direction, such as 100mbit; or unshaped.")] = "100mbit",
    on: On = "auto",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="More of the links: link.delay=5ms.")
    ] = None,
    as_json: AsJson = False,
    keep: Keep = False,
) -> None:
    """Make a cluster, measure every link and one large all-reduce against its ring bound."""
    from harness.machine.probe import probe as probe_cluster
    from harness.network.topology import Topology
    from harness.scenario.load import apply_override
    from harness.scenario.section import checked_section

    values: dict[str, Any] = {"workers": workers, "link": {"rate": rate}}
    for override in set_ or []:
        apply_override(values, override)
    found = probe_cluster(_cluster(on, keep), checked_section(Topology, values, "command line"))
    if as_json:
        print(json.dumps(found.as_json(), indent=1))
        return
    from harness.units import format_rate, format_size, format_time

    rows = [
        [
            link.link,
            link.direction,
            format_rate(link.rate_bps_asked) if link.rate_bps_asked else "unshaped",
            format_rate(link.rate_bps_measured),
        ]
        for link in found.readings.links
    ]
    print_table(f"{workers} workers", ["link", "direction", "asked", "measured"], rows)
    reduced = found.all_reduce
    ratio = f", {reduced.ratio_to_ring_bound:.3f} x its ring bound" if reduced.ratio_to_ring_bound else ""
    print(f"all-reduce of {format_size(reduced.bytes)}: {format_time(reduced.seconds)}{ratio}")
    print(f"round trip: {format_time(found.readings.rtt_median_s)}; brought up in {format_time(found.bring_up_s)}")


@app.command()
def calibrate(
    on: Annotated[str, typer.Option("--on", help="netns, uml, or auto: this kernel where it can, else uml.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure many links, asked against found: rates, round trips, jitter, losses. Minutes."""
    from harness.machine import calibrate as calibration

    if on not in ("auto", "netns", "uml"):
        raise UsageError.at("command line", "--on", on, "auto, netns, uml")
    found = list(calibration.calibrate(on))
    if as_json:
        print(json.dumps([{**vars(each), "ok": each.ok} for each in found], indent=1))
    else:
        print_table(
            f"{len(found)} links, the worst reading of each",
            ["asked", "where", "rate", "RTT asked", "RTT measured", "lost, asked", "lost, counted", ""],
            [_calibration_row(each) for each in found],
        )
        for each in found:
            for complaint in each.complaints:
                _say(f"{each.asked}: {complaint}")
    if failed := sum(not each.ok for each in found):
        raise MeasurementError(f"{failed} of {len(found)} links are not what was asked, or cannot be emulated here")


@app.command()
def profile(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name from `pacbench list models`.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The profile, a .json file.")],
    device: Annotated[str, typer.Option(help="Where to time it: cpu or cuda.")] = "cpu",
    batch_size: Annotated[int, typer.Option(min=1, help="Samples a step.")] = 32,
    workers: Annotated[int, typer.Option(min=1, help="How many processes compute at once, sharing this machine.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="How many are timed, after a warm-up.")] = 10,
    codecs: Annotated[str | None, typer.Option(metavar="SCENARIO", help="Whose methods to time as well.")] = None,
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose samples to compute; default: random ones.")
    ] = None,
    derive_for: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="Derive it from a device's published figures: a40, a100, ...")
    ] = None,
    efficiency: Annotated[float | None, typer.Option(help="The share of its peak that it reaches.")] = None,
) -> None:
    """Time a model's steps and the methods' codecs, or derive them for a published device: what replays wait by."""
    from harness.units import format_time
    from harness.worker import derived, profile_request, profiler
    from harness.workload.data import DATASETS
    from harness.workload.models import MODELS

    if model not in MODELS:
        raise UsageError.at("command line", "MODEL", model, ", ".join(MODELS))
    fitting = [name for name, known in DATASETS.items() if MODELS[model].fits(known)]
    if dataset is not None and dataset not in fitting:
        raise UsageError.at("command line", "--dataset", dataset, ", ".join(fitting) or f"none: none fits {model}")
    if device not in ("cpu", "cuda"):
        raise UsageError.at("command line", "--device", device, "cpu, cuda")
    if derive_for is not None and derive_for not in derived.HARDWARE:
        raise UsageError.at("command line", "--derive-for", derive_for, ", ".join(derived.HARDWARE))
    if dataset is not None and derive_for is not None:
        raise UsageError.at("command line", "--dataset", dataset, "none with --derive-for, which computes no samples")
    if efficiency is not None and not (derive_for and 0 < efficiency <= 1):
        raise UsageError.at("command line", "--efficiency", efficiency, "above 0, up to 1, with --derive-for")
    if out.suffix != ".json":
        raise UsageError.at("command line", "-o", str(out), "a file whose name ends in .json")
    methods = _load(codecs, None, None, None).methods if codecs else ()
    made_by = shlex.join(["pacbench", *sys.argv[1:]])
    order = profile_request.ProfileRequest(model, batch_size, device, workers, steps, methods, made_by, dataset)
    if derive_for:
        hardware = derived.HARDWARE[derive_for]
        made = derived.derive(order, hardware, efficiency or derived.EFFICIENCY)
    else:
        made = profiler.measure(order)
    _write(out, made.as_json())
    times = ", ".join(
        f"{name} {format_time(getattr(made, f'{name}_s'))}" for name in ("forward", "backward", "optimizer")
    )
    _say(f"{out}: {made.model}, batch {made.batch_size}, {made.origin}: {times}")
    for codec in made.codecs:
        codec_s = codec.encode_s + codec.beside_s + codec.decode_s
        _say(f"  {codec.method}: codec {format_time(codec_s)}, optimizer {format_time(codec.optimizer_s)}")


@app.command()
def image(
    base: Annotated[str | None, typer.Option(help="The image to start from; default: the Dockerfile's.")] = None,
    torch: Annotated[str | None, typer.Option(help="As pip takes it, such as torch==2.13.0.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Take wheels from docker/wheels alone.")] = False,
    certificate: Annotated[Path | None, typer.Option(exists=True, help="Of a proxy that opens TLS.")] = None,
) -> None:
    """Build the image of the workers for --on docker. It holds no code of pacbench, so an edit needs no new one."""
    from harness.cluster.docker.engine import build_image
    from harness.units import format_size

    facts = build_image(base=base, torch=torch, offline=offline, certificate=certificate)
    print(f"{facts['image']}: {format_size(facts['size_bytes'])}, {facts['digest']}")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Tell what this machine can do, and how to mend what it cannot."""
    from harness.machine.doctor import able, examine

    checks = examine()
    if as_json:
        print(json.dumps({"able": able(checks), "checks": [vars(check) for check in checks]}, indent=1))
    else:
        for check in checks:
            mark = "ok" if check.ok else "NO" if check.needed else "no"
            _say(f"{mark:3} {check.name:24} {check.found}{f'  -> {check.fix}' if check.fix else ''}")
    if not able(checks):
        raise MeasurementError("no cluster can be run on this machine; see each NO above")


@app.command()
def clean(
    results: Annotated[Path, typer.Option(help="Where runs are kept.")] = RESULTS,
) -> None:
    """Remove what a killed run may have left: universes and containers without a harness, and files half written."""
    from harness.machine.clean import clean_up

    removed = clean_up(results)
    for line in removed or ["nothing was left"]:
        _say(line)


def main() -> None:
    """The console script: one clear line for every error, and the exit code that belongs to it."""
    accept_any_text()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what has finished is kept
    try:
        code = app(args=sys.argv[1:] or ["--help"], standalone_mode=False)
        if code == EXIT_INTERRUPTED:
            raise KeyboardInterrupt  # typer made an exit code of it
        if code:
            sys.exit(code)  # a verdict
    except PacbenchError as error:
        _leave(str(error), error.exit_code)
    except typer.TyperException as error:
        _leave(f"command line: {error.format_message()}", UsageError.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _leave("interrupted; what had finished is kept", EXIT_INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone: nothing to tell it


def _leave(message: str, code: int) -> None:
    print(f"pacbench: {visible(message)}", file=sys.stderr)
    sys.exit(code)


def _load(name: str, set_: list[str] | None, method: list[str] | None, rounds: int | None) -> Scenario:
    from harness.scenario.load import load

    overrides = [*(set_ or []), *([f"rounds={rounds}"] if rounds is not None else [])]
    return load(name, overrides, method or [])


def _plan(scenario: Scenario, cluster: Cluster) -> Plan:
    from harness.plan import plan

    return plan.make(scenario, cluster.name, cluster.image_digest())


def _cluster(on: str, keep: bool = False) -> Cluster:
    from harness.cluster import registry

    return registry.make(registry.choose(on)[0], keep)


def _open_store(plan: Plan, folder: Path | None) -> Store:
    from harness.record.store import Store, new_folder
    from harness.run.execute import unfinished_run

    folder = folder or unfinished_run(plan, RESULTS) or new_folder(RESULTS, plan.scenario)
    return Store.create(folder, plan.scenario)


def _run_one(plan: Plan, store: Store, cluster: Cluster, why: str, until: float | None = None) -> int:
    """Run what is pending and report; how many trials did not finish.

    Args:
        until: end with the round after which every speedup's interval is this narrow.
    """
    from harness import provenance
    from harness.analysis.stopping import narrow_enough
    from harness.run import execute

    def enough() -> bool:
        return until is not None and narrow_enough(store.trials(), plan.scenario, until)

    with store.locked():
        pending = plan.pending(store.attempts())
        if pending and enough():
            _say(f"{store.folder}: every interval is narrow enough already; nothing is run (--out starts another run)")
        else:
            _announce(plan, store, pending, f"on {cluster.name} ({why})")
            if pending or execute.pending_seeds(plan, store):
                store.add_provenance({**provenance.collect(["pacbench", *sys.argv[1:]]), **cluster.provenance()})
                with _progress_bar(plan, pending) as watcher, cluster:
                    execute.run(plan, store, cluster, watcher.watch, watcher.ended, enough)
                    execute.run_more_seeds(plan, store, cluster, watcher.watch, watcher.ended)
    _report(store)
    unfinished = plan.pending(store.attempts())
    if until is None:
        return len(unfinished)
    tried = set(store.trials()["trial_id"])
    if not enough():
        _say(f"after {plan.scenario.rounds} rounds an interval still reaches further than {100 * until:g} %")
    return sum(trial.id in tried for trial in unfinished)


def _announce(plan: Plan, store: Store, pending: list[Trial], where: str) -> None:
    from harness.plan.estimate import total_s
    from harness.run import execute
    from harness.units import format_time

    done = len(plan.trials) - len(pending)
    if not pending:
        then = "more seeds for accuracy follow" if execute.pending_seeds(plan, store) else "nothing is run again"
        _say(f"{store.folder}: all {done} trials are done already; {then}")
        return
    if tried := int(store.trials()["trial_id"].isin([trial.id for trial in plan.trials]).sum()):
        again = f"; {tried - done} that did not finish run again" if tried > done else ""
        _say(f"resuming {store.folder}: {done} of {len(plan.trials)} trials are done{again}")
    about = format_time(total_s(pending, _cpu_count()))
    _say(f"{plan.scenario.name}: {len(pending)} trials, about {about}, {where}, into {store.folder}")


def _announce_all(title: str, plans: Mapping[str, Plan], stores: Mapping[str, Store | None]) -> None:
    """What runs of several scenarios are about to take, and what earlier ones left to do."""
    from harness.plan.estimate import total_s
    from harness.units import format_time

    rows, seconds = [], 0.0
    for name, plan in plans.items():
        store = stores[name]
        pending = plan.pending(store.attempts()) if store else list(plan.trials)
        own_s = total_s(pending, _cpu_count()) if pending else 0.0
        seconds += own_s
        rows.append([name, str(len(plan.trials)), str(len(plan.trials) - len(pending)), format_time(own_s)])
    print_table(f"{title}: about {format_time(seconds)}", ["scenario", "trials", "done", "time left"], rows)


def _report(store: Store) -> None:
    from harness.report import page

    written = page.write(store)
    page.summary(store).print()
    _say(f"report: {written}")


class _Watcher:
    """Shows trials as they go: a bar on a terminal, and elsewhere only what went wrong."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def watch(self, progress: Progress) -> None:
        trial = progress.trial
        self._bar.set_postfix_str(
            f"round {trial.round} {visible(trial.method.label)} step {progress.step}/{trial.case.train.steps} "
            f"{progress.samples_per_s:.0f} samples/s"
        )

    def ended(self, trial: Trial, status: str, reason: str | None) -> None:
        if reason:
            lost = f"{trial.method.label}, round {trial.round}: {status}: {reason}"
            self._bar.write(visible(lost), file=sys.stderr)
        self._bar.update()


@contextmanager
def _progress_bar(plan: Plan, pending: list[Trial]) -> Iterator[_Watcher]:
    from tqdm import tqdm

    done = len(plan.trials) - len(pending)
    with tqdm(total=len(plan.trials), initial=done, unit="trial", disable=not sys.stderr.isatty()) as bar:
        yield _Watcher(bar)


def _calibration_row(each: Calibration) -> list[str]:
    from harness.units import format_time

    return [
        each.asked,
        each.where,
        "" if each.rate_error is None else f"{each.rate_error:+.1%}",
        "" if each.rtt_s_asked is None else format_time(each.rtt_s_asked),
        "" if each.rtt_s_measured is None else format_time(each.rtt_s_measured),
        "" if each.loss_asked is None else f"{each.loss_asked:.3%}",
        "" if each.loss_measured is None else f"{each.loss_measured:.3%} of {each.counted}",
        ("ok" if each.ok else "NO") + (f" ({each.times}x)" if each.times > 1 else ""),
    ]


def _share(option: str, text: str) -> float:
    """A percentage above zero: of none, nothing would ever be narrow enough, or slow enough."""
    from harness.units import parse_share

    try:
        share = parse_share(text)
    except ValueError:
        share = 0.0
    if not share:
        raise UsageError.at("command line", option, text, "a percentage above zero, such as '10%'")
    return share


def _write(path: Path, content: str) -> None:
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise UsageError.at("command line", "output", str(path), f"a file that can be written ({error})") from None


def _cpu_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _foreseen(trial: Trial) -> dict[str, Any]:
    from harness.plan.estimate import time_s

    known = trial.expected
    return {
        "wire_bytes_per_step": known.wire_bytes_per_step,
        "lower_bound_s_per_step": known.lower_bound_s_per_step,
        "time_s": time_s(trial, _cpu_count()),
        "predicted_step_s": known.predicted_step_s,
        "memory_bytes": known.memory_bytes,
    }


def _describe(trial: Trial) -> dict[str, Any]:
    return {
        "trial_id": trial.id,
        "round": trial.round,
        "seed": trial.seed,
        "method": trial.method.name,
        "label": trial.method.label,
        "params": trial.method.params,
        "workers": trial.case.cluster.workers,
        "rate_bps": trial.case.link.rate_bps,
        "model": trial.case.train.model,
        "steps": trial.case.train.steps,
    }


def _scenarios() -> dict[str, str]:
    from harness.scenario.load import available

    return available()


def _methods() -> dict[str, str]:
    import baselines

    return {name: baselines.get(name).summary for name in baselines.names()}


def _models() -> dict[str, str]:
    from harness.workload.models import MODELS

    return {name: model.summary for name, model in MODELS.items()}


def _datasets() -> dict[str, str]:
    from harness.workload.data import DATASETS

    return {name: dataset.summary for name, dataset in DATASETS.items()}
