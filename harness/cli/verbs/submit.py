"""Hand a shared run to Slurm or Ray."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.console import say
from harness.cli.options import Method, On, Rounds, ScenarioName, Set


def verb(
    scenario: ScenarioName,
    engine: Annotated[str, typer.Option(help="What starts the tasks: slurm or ray.")],
    out: Annotated[Path, typer.Option(help="The run's folder, which all machines share.")],
    tasks: Annotated[int, typer.Option(min=1, help="How many processes share the run.")] = 4,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="LINE", help="One for the engine: --option=--time=2:00:00 for Slurm, num_cpus=4 for Ray."),
    ] = None,
    template: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Fill in this script instead of the one that comes with it.")
    ] = None,
    go: Annotated[bool, typer.Option("--go", help="Hand the script over, too.")] = False,
    on: On = "auto",
    set_: Set = None,
    method: Method = None,
    rounds: Rounds = None,
) -> None:
    """Write the script of a job whose tasks share a run, and with --go hand it over.

    Each task is `pacbench run SCENARIO --join --out OUT`. What else it is to be given is edited in the script.
    """
    from harness.cluster import registry
    from harness.files import write_whole
    from harness.plan.check import check_size
    from harness.plugins import anchored
    from harness.record.store import Store
    from harness.run import submit
    from harness.run.planning import asked

    chosen = submit.engine_named(engine)
    registry.check_name(on)
    wanted = asked(scenario, set_ or (), method or (), rounds)
    check_size(wanted)
    if go:
        submit.check_engine(chosen)
    folder = out.absolute()
    arguments = [str(Path(scenario).absolute()) if scenario.endswith(".toml") else scenario, "--on", on]
    arguments += [word for each in set_ or () for word in ("--set", each)]
    arguments += [word for each in method or () for word in ("--method", anchored(each, Path()))]
    arguments += ["--rounds", str(rounds)] if rounds is not None else []
    script, content = submit.script(chosen, folder, arguments, tasks, option or (), template)
    Store.create(folder, wanted)
    write_whole(script, content)
    say(f"script: {script}")
    if go:
        submit.hand_over(chosen, script)
    else:
        say(f"hand it over: {shlex.join(chosen.hand_over(script))}")
    say(f"how far it is: pacbench status {shlex.quote(str(folder))}")
    say(f"what came out: pacbench report {shlex.quote(str(folder))}")
