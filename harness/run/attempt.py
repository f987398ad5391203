"""An attempt at a trial: one training on a network that was verified, and what its workers say of it."""

from __future__ import annotations

import time
from collections.abc import Iterator

from harness.cluster.emulated import as_json
from harness.cluster.protocol import Cluster, TaskTimeoutError
from harness.messages import Message
from harness.plan.status import DONE
from harness.plan.trial import Trial
from harness.run.outcome import Outcome, Watch

LAST_WORDS_S = 2.0
"""How long the others may still talk once one worker has failed: their logs help, their waiting for it does not."""


def attempt(trial: Trial, cluster: Cluster, port: int, outcome: Outcome, watch: Watch) -> None:
    """Run one trial on a verified network and gather what comes of it."""
    train = trial.case.train
    outcome.readings = cluster.use(trial.expected.built_topology, trial.case.cluster.resources)
    spec = {"trial": trial.model_dump(mode="json", by_alias=True), "port": port}
    if trial.slowing.phases:
        spec["undilated"] = as_json(trial.expected.topology)
    try:
        for message in _until_failure(cluster.run("train", spec, train.timeout_s), outcome):
            outcome.take(message, trial, watch)
    except TaskTimeoutError:
        outcome.fail("timeout", f"it took longer than {train.timeout_s:g} s (train.timeout)")
    outcome.note_changes_of_links(trial.dilation)
    if outcome.status == DONE:
        outcome.check(trial)


def _until_failure(messages: Iterator[Message], outcome: Outcome) -> Iterator[Message]:
    """Messages until all workers ended, or until shortly after one of them failed."""
    deadline = None
    for message in messages:
        yield message
        if outcome.status != DONE and deadline is None:
            deadline = time.monotonic() + LAST_WORDS_S
        if deadline is not None and time.monotonic() > deadline:
            break
