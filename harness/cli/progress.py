"""What a terminal shows of a run while it goes on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from harness import provenance
from harness.cli.console import say, tell
from harness.cli.reporting import tell_of_lost_files
from harness.cluster.protocol import Cluster
from harness.plain import visible
from harness.plan.estimate import time_s, total_as_text
from harness.plan.status import DISTURBED
from harness.plan.trial import Trial
from harness.run.outcome import Progress
from harness.run.session import Outlook, Watcher
from harness.scenario.schema import Case
from harness.units import format_time


class ProgressBar(Watcher):
    """Says what is about to run, then shows a bar on a terminal; elsewhere it tells only what went wrong.

    Args:
        why: why it is this kind of cluster, in words.
    """

    def __init__(self, cluster: Cluster, why: str) -> None:
        self._where, self._machine = f"on {cluster.name} ({why})", cluster.machine
        self._bar: Any = None
        self._left: dict[str, float] = {}
        """What each trial that is to run may take, in seconds, by id."""
        self._pace: dict[tuple[Case, str], float] = {}
        """Samples per second of the last trial, or of the one that runs, by case and label."""
        self._rounds, self._baseline = 0, ""

    def about_to_run(self, outlook: Outlook) -> None:
        """One line or two: what is done already, and how long the rest takes."""
        if outlook.is_narrow_enough:
            say(f"{outlook.folder}: every interval is narrow enough already; nothing is run (--out starts another run)")
        elif not outlook.pending:
            then = "more seeds for accuracy follow" if outlook.wants_more_seeds else "nothing is run again"
            say(f"{outlook.folder}: all {outlook.done} trials are done already; {then}")
        else:
            self._announce(outlook)

    def _announce(self, outlook: Outlook) -> None:
        if outlook.tried:
            unfinished = outlook.tried - outlook.done
            again = f"; {unfinished} that did not finish run again" if unfinished > 0 else ""
            say(f"resuming {outlook.folder}: {outlook.done} of {len(outlook.plan.trials)} trials are done{again}")
        tell_of_unknown_commit()
        tell_of_lost_files(outlook.folder)
        about = total_as_text(outlook.pending, self._machine)
        name, count = outlook.plan.scenario.name, len(outlook.pending)
        say(f"{name}: {count} trials, {about}, {self._where}, into {outlook.folder}")

    @contextmanager
    def running(self, outlook: Outlook) -> Iterator[None]:
        """Show the bar."""
        silent = not sys.stderr.isatty()
        self._left = {trial.id: time_s(trial, self._machine) for trial in outlook.pending}
        self._rounds, self._baseline = outlook.plan.scenario.rounds, outlook.plan.scenario.baseline
        with tqdm(total=len(outlook.plan.trials), initial=outlook.done, unit="trial", disable=silent) as self._bar:
            yield

    def progress(self, progress: Progress) -> None:
        """Show the round, how long the rest may take, and how the trial does, also against the baseline."""
        trial, label = progress.trial, progress.trial.method.label
        self._pace[trial.case, label] = progress.samples_per_s
        baseline = self._pace.get((trial.case, self._baseline))
        over = f", {progress.samples_per_s / baseline:.2f}x {self._baseline}" if baseline else ""
        left = format_time(sum(self._left.values()))
        self._bar.set_postfix_str(
            f"round {trial.round + 1} of {self._rounds}, {left} left, {visible(label)}: "
            f"step {progress.step} of {trial.case.train.steps}, {progress.samples_per_s:.0f} samples/s{visible(over)}"
        )

    def told(self, line: str) -> None:
        """Tell it."""
        self._bar.write(visible(line), file=sys.stderr)

    def ended(self, trial: Trial, status: str, reason: str | None) -> None:
        """Move the bar on, and tell of what went wrong."""
        if reason:
            lost = f"{trial.method.label}, round {trial.round}: {status}: {reason}"
            self._bar.write(visible(lost), file=sys.stderr)
        if status != DISTURBED:  # it is run again at once
            self._left.pop(trial.id, None)
            self._bar.update()


def tell_of_unknown_commit() -> None:
    """Say so where git does not read pacbench's own checkout: what is measured now cannot be traced to a commit."""
    if problem := provenance.described(provenance.ROOT).problem:
        tell(problem)
