"""What verbs that run trials share: a run with its progress and its report."""

from __future__ import annotations

from collections.abc import Sequence

from harness.cli.console import say
from harness.cli.options import command
from harness.cli.progress import ProgressBar
from harness.cli.reporting import write_report
from harness.cluster.protocol import Cluster
from harness.plan.plan import Plan
from harness.plan.trial import Trial
from harness.record.store import Store
from harness.run import session
from harness.run.session import Ending, Result
from harness.run.sharing import as_the_last


def run_and_report(
    plan: Plan,
    store: Store,
    cluster: Cluster,
    why: str,
    until: float | None = None,
    join: bool = False,
    later: Sequence[Trial] = (),
) -> Result:
    """Run what is pending, show how it goes, and write the report.

    Args:
        why: why it is this kind of cluster, in words.
        until: see ``session.run``.
        join: likewise.
        later: likewise.
    """
    bar = ProgressBar(cluster, why)
    result = session.run(plan, store, cluster, command(), bar, until, join, later)
    if join:
        with as_the_last(store) as is_last:
            write_report(store) if is_last else say(f"the report is written by another process: {store.folder}")
    else:
        write_report(store)
    if until is not None and result.ending is Ending.OUT_OF_ROUNDS:
        say(f"after {plan.scenario.rounds} rounds an interval still reaches further than {100 * until:g} %")
    return result
