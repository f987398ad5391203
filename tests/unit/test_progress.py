"""What a terminal shows of a run while it goes on: the round, what is left, how a trial does against the baseline."""

from __future__ import annotations

import fcntl
import io
import os
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import pytest
from synthetic import only

from harness.cli.progress import ProgressBar
from harness.cluster.fake import FakeCluster
from harness.messages import Events
from harness.plan.estimate import time_s
from harness.plan.plan import Plan, make
from harness.plan.status import DISTURBED
from harness.plan.trial import Trial
from harness.run.outcome import Outcome, Progress
from harness.run.session import Outlook
from harness.scenario.load import load
from harness.units import format_time

WIDTH, NARROW = 200, 48


class Terminal(io.StringIO):
    """One that can be read."""

    def __init__(self, columns: int = WIDTH) -> None:
        super().__init__()
        self._ends = os.openpty()
        fcntl.ioctl(self._ends[1], termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        """Of what has its size."""
        return self._ends[1]

    def close(self) -> None:
        for end in self._ends:
            os.close(end)
        super().close()

    @property
    def line(self) -> str:
        """What its last line shows."""
        return self.getvalue().split("\r")[-1].rstrip()


@pytest.fixture
def plan() -> Plan:
    return make(only(load("quickstart", ["rounds=2", "train.steps=40"]), ["topk"]), "fake")


@contextmanager
def running(plan: Plan, stderr: io.StringIO) -> Iterator[ProgressBar]:
    """The bar of a run of this plan."""
    bar = ProgressBar(FakeCluster(), "as asked")
    outlook = Outlook(plan, Path("run"), plan.trials, 0, is_narrow_enough=False, wants_more_seeds=False)
    with redirect_stderr(stderr), bar.running(outlook):
        yield bar


def first(plan: Plan, label: str, round_: int = 0) -> Trial:
    return next(trial for trial in plan.trials if (trial.method.label, trial.round) == (label, round_))


def left(plan: Plan, *ended: Trial) -> str:
    gone = {trial.id for trial in ended}
    return format_time(sum(time_s(trial, FakeCluster().machine) for trial in plan.trials if trial.id not in gone))


def test_a_trial_shows_its_round_what_is_left_and_its_figures(plan: Plan) -> None:
    with Terminal() as terminal, running(plan, terminal) as bar:
        bar.progress(Progress(first(plan, "topk", 1), step=5, samples_per_s=123.4))
        assert terminal.line.endswith(f"round 2 of 2, {left(plan)} left, topk: step 5 of 40, 123 samples/s]")
        assert f"0/{len(plan.trials)} " in terminal.line


def test_beside_the_baseline_it_shows_how_it_does_against_it(plan: Plan) -> None:
    with Terminal() as terminal, running(plan, terminal) as bar:
        bar.progress(Progress(first(plan, "dense"), step=40, samples_per_s=100.0))
        bar.progress(Progress(first(plan, "topk"), step=5, samples_per_s=250.0))
        assert terminal.line.endswith("topk: step 5 of 40, 250 samples/s, 2.50x dense]")


def test_what_has_ended_is_no_longer_left_and_what_runs_again_is(plan: Plan) -> None:
    done, disturbed = first(plan, "dense"), first(plan, "topk")
    with Terminal() as terminal, running(plan, terminal) as bar:
        bar.ended(done, "done", None)
        bar.ended(disturbed, DISTURBED, "other programs took the processor")
        bar.progress(Progress(disturbed, step=1, samples_per_s=1.0))
        assert f" {left(plan, done)} left, " in terminal.line
        assert f"1/{len(plan.trials)} " in terminal.line
        assert f"topk, round 0: {DISTURBED}: other programs took the processor\n" in terminal.getvalue()


def test_it_takes_one_line_of_a_narrow_terminal_and_has_no_colour(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    with Terminal(NARROW) as terminal, running(plan, terminal) as bar:
        bar.progress(Progress(first(plan, "topk"), step=5, samples_per_s=123.4))
        assert 0 < len(terminal.line) < NARROW
        assert "\x1b[3" not in terminal.getvalue()


def test_without_a_terminal_it_tells_only_what_went_wrong(plan: Plan) -> None:
    with running(plan, pipe := io.StringIO()) as bar:
        bar.progress(Progress(first(plan, "topk"), step=5, samples_per_s=123.4))
        bar.ended(first(plan, "topk"), "crashed", "it \x1b[31m fell")
    assert pipe.getvalue() == "topk, round 0: crashed: it \\x1b[31m fell\n"


def test_an_evaluation_says_nothing_of_the_pace(plan: Plan) -> None:
    outcome, seen = Outcome(), list[Progress]()
    trial = plan.trials[0]
    outcome.take(Events(node="w0", rows=[(0, 0.5, "step_s", 0.5), (0, 0.5, "loss", 2.0)]), trial, seen.append)
    outcome.take(Events(node="w0", rows=[(0, 0.5, "accuracy", 0.25)]), trial, seen.append)
    samples = trial.case.train.samples_per_step * trial.case.cluster.workers
    assert seen == [Progress(trial, 1, samples / 0.5)]
