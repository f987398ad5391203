"""Why a trial ended: of all that its workers say, what explains most."""

from __future__ import annotations

import itertools
import signal

import pytest
from synthetic import only

from harness.messages import Exit, Failed, Message
from harness.plan.plan import make
from harness.plan.status import DISTURBED
from harness.plan.trial import Trial
from harness.run.outcome import Outcome, Progress
from harness.scenario.load import load

PEER_IS_GONE = Failed(node="w0", reason="RuntimeError: connection closed by peer")
FAILED_ITSELF = Exit(node="w0", code=1)
KILLED = Exit(node="w1", code=-signal.SIGKILL)
ABORTED = Exit(node="w1", code=-signal.SIGABRT)
LOST = Failed(node="w2", reason="its agent is lost", lost=True)
ENDED_WELL = Exit(node="w1", code=0)


@pytest.fixture(scope="module")
def trial() -> Trial:
    return make(only(load("quickstart", []), ["topk"]), "fake").trials[0]


def reason_of(trial: Trial, *said: Message) -> str | None:
    outcome = Outcome()
    for message in said:
        outcome.take(message, trial, _unwatched)
    return outcome.reason


@pytest.mark.parametrize("said", [*itertools.permutations((PEER_IS_GONE, FAILED_ITSELF, KILLED, ENDED_WELL))])
def test_who_was_killed_is_named_whoever_is_heard_first(trial: Trial, said: tuple[Message, ...]) -> None:
    assert reason_of(trial, *said) == "w1 ended with SIGKILL"


@pytest.mark.parametrize("said", [*itertools.permutations((PEER_IS_GONE, KILLED, LOST))])
def test_a_node_that_is_lost_explains_most(trial: Trial, said: tuple[Message, ...]) -> None:
    assert reason_of(trial, *said) == "w2: its agent is lost"


@pytest.mark.parametrize("said", [*itertools.permutations((PEER_IS_GONE, FAILED_ITSELF, ABORTED))])
def test_of_those_that_failed_by_themselves_the_first_counts(trial: Trial, said: tuple[Message, ...]) -> None:
    assert reason_of(trial, *said) == reason_of(trial, said[0])


def test_what_the_harness_ended_is_not_what_its_workers_say_then(trial: Trial) -> None:
    outcome = Outcome()
    outcome.fail(DISTURBED, "this machine added too much")
    for message in (PEER_IS_GONE, KILLED):
        outcome.take(message, trial, _unwatched)
    assert (outcome.status, outcome.reason) == (DISTURBED, "this machine added too much")


def _unwatched(_: Progress) -> None:
    pass
