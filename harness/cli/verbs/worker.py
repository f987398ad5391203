"""Be a rank of a run on real hosts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.json_output import print_json, words_aside
from harness.cli.options import Method, Rounds, ScenarioName, Seeds, Set, Until, share
from harness.errors import MeasurementError, UsageError


def verb(
    scenario: ScenarioName,
    out: Annotated[Path | None, typer.Option(help="The run's folder, on rank 0.")] = None,
    set_: Set = None,
    method: Method = None,
    rounds: Rounds = None,
    seeds: Seeds = None,
    until: Until = None,
    interface: Annotated[str | None, typer.Option(help="By which ranks talk; default: the way to rank 0.")] = None,
    address: Annotated[str | None, typer.Option(help="Of this host, where its interface has several.")] = None,
    backend: Annotated[str | None, typer.Option(help="gloo or nccl; default: nccl on GPUs.")] = None,
    shape: Annotated[
        bool, typer.Option("--shape", help="Shape the named --interface as the scenario asks, and put it back.")
    ] = False,
    wait: Annotated[int, typer.Option(min=1, help="Seconds that ranks may take to come.")] = 300,
    as_json: Annotated[bool, typer.Option("--json", help="On rank 0: print JSON.")] = False,
) -> None:
    """Run a scenario on the hosts of a cluster: a scheduler starts this once for each rank, on links as they are.

    srun pacbench worker quickstart --set link.rate=unshaped, or torchrun --no-python pacbench worker ...
    """
    from harness.cluster.hosts.follower import follow
    from harness.cluster.hosts.launch import Launch

    if backend not in (None, "gloo", "nccl"):
        raise UsageError.at("command line", "--backend", backend, "gloo, nccl")
    if shape and interface is None:
        raise UsageError.at("command line", "--shape", "no --interface", "the name of the interface to shape")
    launch = Launch.read(os.environ)
    if launch.rank:
        follow(launch, interface, address, float(wait), shape)
        return

    from harness.cluster.hosts.cluster import HostsCluster

    until_share = None if until is None else share("--until", until)
    with words_aside(as_json), HostsCluster(launch, interface, address, backend, float(wait), shape) as cluster:
        # They bring torch: ranks that cannot take part are told before.
        from harness.cli.running import run_and_report
        from harness.run.planning import plan_run
        from harness.run.session import check_start, open_store

        plan = plan_run(scenario, cluster, set_ or (), method or (), rounds, until_share, seeds)
        check_start(plan, cluster, out)
        store = open_store(plan, out)
        failed = run_and_report(plan, store, cluster, "as started", until_share).failed
    if as_json:
        from harness.report.export import figures_json

        print_json(figures_json(store))
    if failed:
        raise MeasurementError(f"{failed} of the trials did not finish; the report lists each with its reason")
