"""Say how far a run is that several processes share."""

from __future__ import annotations

from harness.cli.console import print_table, say
from harness.cli.options import RunDir


def verb(run_dir: RunDir) -> None:
    """Say how far a run is, who is at work on it, and how long the rest may take."""
    from harness.record.store import Store
    from harness.run.sharing import standing_of
    from harness.units import format_time

    standing = standing_of(Store.open(run_dir))
    failed = f", {standing.failed} did not finish" if standing.failed else ""
    say(f"{standing.done} of {standing.trials} trials are done{failed}")
    if standing.at_work:
        rows = [
            (claim.holder.machine, str(claim.holder.pid), claim.part, format_time(claim.age_s))
            for claim in standing.at_work
        ]
        print_table("at work", ["machine", "process", "round and case", "seen ago"], rows, words=["round and case"])
    elif standing.done < standing.trials:
        say("nobody is at work on it")
    if standing.left_s is not None:
        say(f"the rest may take {format_time(standing.left_s)}")
