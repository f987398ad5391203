"""What a terminal shows of a run while it goes on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from harness import provenance
from harness.cli.console import say
from harness.cli.options import cpu_count
from harness.plain import visible
from harness.plan.estimate import total_s
from harness.plan.status import DISTURBED
from harness.plan.trial import Trial
from harness.run.outcome import Progress
from harness.run.session import Outlook, Watcher
from harness.units import format_time


class ProgressBar(Watcher):
    """Says what is about to run, then shows a bar on a terminal; elsewhere it tells only what went wrong.

    Args:
        where: the cluster, in words.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._bar: Any = None

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
        about = format_time(total_s(outlook.pending, cpu_count()))
        name, count = outlook.plan.scenario.name, len(outlook.pending)
        say(f"{name}: {count} trials, about {about}, {self._where}, into {outlook.folder}")

    @contextmanager
    def running(self, outlook: Outlook) -> Iterator[None]:
        """Show the bar."""
        silent = not sys.stderr.isatty()
        with tqdm(total=len(outlook.plan.trials), initial=outlook.done, unit="trial", disable=silent) as self._bar:
            yield

    def progress(self, progress: Progress) -> None:
        """Show step and pace beside the bar."""
        trial = progress.trial
        self._bar.set_postfix_str(
            f"round {trial.round} {visible(trial.method.label)} step {progress.step}/{trial.case.train.steps} "
            f"{progress.samples_per_s:.0f} samples/s"
        )

    def ended(self, trial: Trial, status: str, reason: str | None) -> None:
        """Move the bar on, and tell of what went wrong."""
        if reason:
            lost = f"{trial.method.label}, round {trial.round}: {status}: {reason}"
            self._bar.write(visible(lost), file=sys.stderr)
        if status != DISTURBED:  # it is run again at once
            self._bar.update()


def tell_of_unknown_commit() -> None:
    """Say so where git does not read pacbench's own checkout: what is measured now cannot be traced to a commit."""
    if problem := provenance.described(provenance.ROOT).problem:
        print(f"pacbench: {visible(problem)}", file=sys.stderr, flush=True)
