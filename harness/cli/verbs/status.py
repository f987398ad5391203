"""Say how far a run is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.cli.console import print_table, say
from harness.cli.json_of_runs import StatusJson
from harness.cli.json_output import print_json
from harness.cli.options import AsJson, RunDir
from harness.cli.reporting import tell_of_lost_files

if TYPE_CHECKING:
    from harness.run.sharing import Standing


def verb(run_dir: RunDir, as_json: AsJson = False) -> None:
    """Say how far a run is, who is at work on it, and how long the rest may take."""
    from harness.record.store import Store
    from harness.run.sharing import standing_of

    standing = standing_of(Store.open(run_dir))
    if as_json:
        print_json(_as_json(standing))
    else:
        _tell(standing)
    tell_of_lost_files(run_dir)


def _as_json(standing: Standing) -> StatusJson:
    return {
        "trials": standing.trials,
        "done": standing.done,
        "failed": standing.failed,
        "at_work": [
            {"machine": claim.holder.machine, "pid": claim.holder.pid, "part": claim.part, "age_s": claim.age_s}
            for claim in standing.at_work
        ],
        "is_locked": standing.is_locked,
        "left_s": standing.left_s,
    }


def _tell(standing: Standing) -> None:
    from harness.units import format_time

    failed = f", {standing.failed} did not finish" if standing.failed else ""
    say(f"{standing.done} of {standing.trials} trials are done{failed}")
    if standing.at_work:
        rows = [
            (claim.holder.machine, str(claim.holder.pid), claim.part, format_time(claim.age_s))
            for claim in standing.at_work
        ]
        print_table("at work", ["machine", "process", "round and case", "seen ago"], rows, words=["round and case"])
    elif standing.is_locked:
        say("a process is at work on it, which shares it with nobody")
    elif standing.done < standing.trials:
        say("nobody is at work on it")
    if standing.left_s is not None:
        say(f"the rest may take {format_time(standing.left_s)}")
