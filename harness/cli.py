"""The command line: it parses and prints, and decides nothing. What is heavy is imported by the verb that needs it."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.errors import EXIT_INTERRUPTED, MeasurementError, PacbenchError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.calibrate import Calibration
    from harness.cluster.base import Cluster
    from harness.execute import Progress
    from harness.plan import Plan, Trial
    from harness.scenario import Scenario
    from harness.store import Store

RESULTS = Path("results")
PIPE_COLUMNS = 160

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
On = Annotated[str, typer.Option("--on", help="Where: netns (namespaces), uml (a kernel with netem), fake (scripted).")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_things(
    kind: Annotated[str | None, typer.Argument(metavar="[scenarios|methods|models|datasets]")] = None,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Methods only: all facts, as Markdown.")] = False,
) -> None:
    """Show what can be named: scenarios, methods, models, data sets."""
    catalogues = {"scenarios": _scenarios, "methods": _methods, "models": _models, "datasets": _datasets}
    if kind is not None and kind not in catalogues:
        raise UsageError.at("command line", "list", kind, ", ".join(catalogues))
    if verbose:
        if kind != "methods":
            raise UsageError.at("command line", "-v", f"list {kind or ''}".strip(), "list methods -v")
        from harness import catalogue

        print(catalogue.page(), end="")
        return
    for name in [kind] if kind else catalogues:
        print(f"{name}:")
        entries = catalogues[name]()
        width = max(map(len, entries), default=0)
        for entry, summary in entries.items():
            print(f"  {entry:{width}}  {summary}")


@app.command("plan")
def show_plan(
    scenario: ScenarioName,
    on: On = "netns",
    set_: Set = None,
    method: Method = None,
    rounds: Rounds = None,
    show_tc: Annotated[
        bool, typer.Option("--show-tc", help="Print the network as commands to paste, instead.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show each trial with its bytes, lower bound and estimated time. Starts nothing."""
    from harness.plan import estimate, topology_of, total_s

    plan = _plan(_load(scenario, set_, method, rounds), on)
    if show_tc:
        for topology in dict.fromkeys(topology_of(trial.case) for trial in plan.trials):
            print(topology.script())
        return
    estimates = [estimate(trial, _cpu_count()) for trial in plan.trials]
    seconds = total_s(plan.trials, _cpu_count())
    if as_json:
        rows = [{**_describe(trial), **vars(each)} for trial, each in zip(plan.trials, estimates, strict=True)]
        print(json.dumps({"scenario": plan.scenario.name, "trials": rows, "total_s": seconds}, indent=1))
        return
    from harness.units import format_rate, format_size, format_time

    _print_table(
        f"{plan.scenario.name}: {len(plan.trials)} trials, about {format_time(seconds)}",
        ["method", "round", "workers", "rate", "bytes/step", "lower bound/step", "time"],
        [
            [
                trial.method.label,
                str(trial.round),
                str(trial.case.cluster.workers),
                format_rate(trial.case.link.rate_bps) if trial.case.link.rate_bps else "unshaped",
                format_size(each.wire_bytes_per_step),
                format_time(each.lower_bound_s_per_step),
                format_time(each.time_s),
            ]
            for trial, each in zip(plan.trials, estimates, strict=True)
        ],
    )


@app.command()
def run(
    scenarios: ScenarioNames,
    on: On = "netns",
    out: Annotated[Path | None, typer.Option(help="The run's folder; default: results/SCENARIO-TIME.")] = None,
    set_: Set = None,
    method: Method = None,
    rounds: Rounds = None,
) -> None:
    """Run scenarios, store every trial as it ends, and write the report. Goes on where an earlier run stopped."""
    failed = 0
    for name in scenarios:
        plan = _plan(_load(name, set_, method, rounds), on)
        folder = out / plan.scenario.name if out and len(scenarios) > 1 else out
        failed += _run_one(plan, _open_store(plan, folder), on)
    if failed:
        raise MeasurementError(f"{failed} of the trials did not finish; the report lists each with its reason")


@app.command()
def report(run_dir: RunDir) -> None:
    """Write report.html, report.md and plots/ into a run's folder."""
    from harness.store import Store

    _report(Store.open(run_dir))


@app.command()
def probe(
    workers: Annotated[int, typer.Option(help="How many.")] = 4,
    rate: Annotated[str, typer.Option(help="Of each link and direction, such as 100mbit; or unshaped.")] = "100mbit",
    on: On = "netns",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="More of the links: link.delay=5ms.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a cluster, measure every link and one large all-reduce against its ring bound."""
    from harness.network import Topology
    from harness.probe import probe as probe_cluster
    from harness.scenario import apply_override, checked_section

    values: dict[str, Any] = {"workers": workers, "link": {"rate": rate}}
    for override in set_ or []:
        apply_override(values, override)
    report = probe_cluster(_cluster(on), checked_section(Topology, values, "command line"))
    if as_json:
        print(json.dumps(report.as_json(), indent=1))
        return
    from harness.units import format_rate, format_size, format_time

    rows = [
        [
            link.link,
            link.direction,
            format_rate(link.rate_bps_asked) if link.rate_bps_asked else "unshaped",
            format_rate(link.rate_bps_measured),
        ]
        for link in report.readings.links
    ]
    _print_table(f"{workers} workers", ["link", "direction", "asked", "measured"], rows)
    reduced = report.all_reduce
    ratio = f", {reduced.ratio_to_ring_bound:.3f} x its ring bound" if reduced.ratio_to_ring_bound else ""
    print(f"all-reduce of {format_size(reduced.bytes)}: {format_time(reduced.seconds)}{ratio}")
    print(f"round trip: {format_time(report.readings.rtt_median_s)}; brought up in {format_time(report.bring_up_s)}")


@app.command()
def calibrate(
    on: Annotated[str, typer.Option("--on", help="netns, uml, or auto: this kernel where it can, else uml.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure many links, asked against found: rates, round trips, jitter, losses. Minutes."""
    from harness import calibrate as calibration

    if on not in ("auto", "netns", "uml"):
        raise UsageError.at("command line", "--on", on, "auto, netns, uml")
    found = list(calibration.calibrate(on))
    if as_json:
        print(json.dumps([{**vars(each), "ok": each.ok} for each in found], indent=1))
    else:
        _print_table(
            f"{len(found)} links, the worst reading of each",
            ["asked", "where", "rate", "RTT asked", "RTT measured", "lost, asked", "lost, counted", ""],
            [_calibration_row(each) for each in found],
        )
        for each in found:
            for complaint in each.complaints:
                print(f"{each.asked}: {complaint}")
    if failed := sum(not each.ok for each in found):
        raise MeasurementError(f"{failed} of {len(found)} links are not what was asked, or cannot be emulated here")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Tell what this machine can do, and how to mend what it cannot."""
    from harness.doctor import able, examine

    checks = examine()
    if as_json:
        print(json.dumps({"able": able(checks), "checks": [vars(check) for check in checks]}, indent=1))
    else:
        for check in checks:
            mark = "ok" if check.ok else "NO" if check.needed else "no"
            print(f"{mark:3} {check.name:24} {check.found}{f'  -> {check.fix}' if check.fix else ''}")
    if not able(checks):
        raise MeasurementError("no cluster can be run on this machine; see each NO above")


@app.command()
def clean(
    results: Annotated[Path, typer.Option(help="Where runs are kept.")] = RESULTS,
) -> None:
    """Remove what a killed run may have left: universes without a harness, and files half written."""
    from harness.clean import clean_up

    removed = clean_up(results)
    print("\n".join(removed) if removed else "nothing was left")


def main() -> None:
    """The console script: one clear line for every error, and the exit code that belongs to it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what has finished is kept
    try:
        if app(args=sys.argv[1:] or ["--help"], standalone_mode=False) == EXIT_INTERRUPTED:
            raise KeyboardInterrupt  # typer made an exit code of it
    except PacbenchError as error:
        _leave(str(error), error.exit_code)
    except typer.TyperException as error:
        _leave(f"command line: {error.format_message()}", UsageError.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _leave("interrupted; what had finished is kept", EXIT_INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone: nothing to tell it


def _leave(message: str, code: int) -> None:
    print(f"pacbench: {message}", file=sys.stderr)
    sys.exit(code)


def _load(name: str, set_: list[str] | None, method: list[str] | None, rounds: int | None) -> Scenario:
    from harness.scenario import load

    overrides = [*(set_ or []), *([f"rounds={rounds}"] if rounds is not None else [])]
    return load(name, overrides, method or [])


def _plan(scenario: Scenario, on: str) -> Plan:
    from harness import plan

    return plan.make(scenario, _cluster(on).name)


def _cluster(on: str) -> Cluster:
    from harness.cluster import fake, netns, uml

    kinds: dict[str, type[Cluster]] = {
        "netns": netns.NetnsCluster,
        "uml": uml.UmlCluster,
        "fake": fake.FakeCluster,
    }
    if on not in kinds:
        raise UsageError.at("command line", "--on", on, ", ".join(kinds))
    return kinds[on]()


def _open_store(plan: Plan, folder: Path | None) -> Store:
    from harness.execute import unfinished_run
    from harness.store import Store, new_folder

    folder = folder or unfinished_run(plan, RESULTS) or new_folder(RESULTS, plan.scenario)
    return Store.create(folder, plan.scenario)


def _run_one(plan: Plan, store: Store, on: str) -> int:
    """Run what is pending and report; how many trials did not finish."""
    from harness import execute, provenance

    cluster = _cluster(on)
    with store.locked():
        pending = plan.pending(store.attempts())
        _announce(plan, store, pending)
        if pending:
            store.add_provenance(provenance.collect(["pacbench", *sys.argv[1:]]))
            with _progress_bar(plan, pending) as watcher, cluster:
                execute.run(plan, store, cluster, watcher.watch, watcher.ended)
    _report(store)
    return len(plan.pending(store.attempts()))


def _announce(plan: Plan, store: Store, pending: list[Trial]) -> None:
    from harness.plan import total_s
    from harness.units import format_time

    done = len(plan.trials) - len(pending)
    if not pending:
        _say(f"{store.folder}: all {done} trials are done already; nothing is run again")
        return
    if tried := len(store.trials()):
        again = f"; {tried - done} that did not finish run again" if tried > done else ""
        _say(f"resuming {store.folder}: {done} of {len(plan.trials)} trials are done{again}")
    about = format_time(total_s(pending, _cpu_count()))
    _say(f"{plan.scenario.name}: {len(pending)} trials, about {about}, into {store.folder}")


def _report(store: Store) -> None:
    from harness import report

    page = report.write(store)
    summary = report.summary(store)
    summary.print()
    _say(f"report: {page}")


class _Watcher:
    """Shows trials as they go: a bar on a terminal, and elsewhere only what went wrong."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def watch(self, progress: Progress) -> None:
        trial = progress.trial
        self._bar.set_postfix_str(
            f"round {trial.round} {trial.method.label} step {progress.step}/{trial.case.train.steps} "
            f"{progress.samples_per_s:.0f} samples/s"
        )

    def ended(self, trial: Trial, status: str, reason: str | None) -> None:
        if reason:
            self._bar.write(f"{trial.method.label}, round {trial.round}: {status}: {reason}", file=sys.stderr)
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
        "ok" if each.ok else "NO",
    ]


def _say(line: str) -> None:
    print(line, flush=True)


def _cpu_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


def _print_table(title: str, columns: list[str], rows: Iterable[list[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=number == 0)
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS).print(table)


def _scenarios() -> dict[str, str]:
    from harness.scenario import available

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
