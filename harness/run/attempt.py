"""An attempt at a trial: one training on a network that was verified, and what its workers say of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from harness.cluster.emulated import as_json
from harness.cluster.protocol import Cluster, TaskTimeoutError
from harness.messages import HANDED, KEPT, Message
from harness.network.addresses import worker_name
from harness.plan.estimate import time_s
from harness.plan.machine import Machine
from harness.plan.status import DISTURBED, DONE, TIMEOUT
from harness.plan.trial import Trial
from harness.record.checkpoint import Checkpoint
from harness.run.added import Added
from harness.run.checkpoints import Keeper
from harness.run.outcome import Outcome, Watch
from harness.units import format_time

LAST_WORDS_S = 2.0
"""How long the others may still talk once one worker has failed: their logs help, their waiting for it does not."""

PATIENCE, PATIENCE_WITH_LOSSES, SHORTEST_TIMEOUT_S = 3, 30, 300.0
"""How many times what is planned a trial may take, also where links lose packets, for which no plan knows how long TCP
waits; and how long at least, unless its scenario says."""


def attempt(
    trial: Trial,
    cluster: Cluster,
    port: int,
    outcome: Outcome,
    watch: Watch,
    judge: Callable[[Trial, Outcome], Added | None] | None = None,
    keeper: Keeper | None = None,
    begun: Checkpoint | None = None,
) -> None:
    """Run one trial on a verified network and gather what comes of it.

    Args:
        judge: tells what this machine adds to a step, once the trial has come so far. Where it is too much, the trial
            ends then. Without a judge it never does.
        keeper: keeps what the trial saves.
        begun: what it goes on from.
    """
    outcome.readings = cluster.use(trial.network, trial.case.cluster.resources)
    spec: dict[str, Any] = {"trial": trial.for_workers.model_dump(mode="json", by_alias=True), "port": port}
    if trial.slowing.changes:
        spec["undilated"] = as_json(trial.expected.thinned)
    if begun:
        outcome.go_on_from(begun.about.steps, begun.events)
        spec[HANDED] = {worker_name(rank): part for rank, part in enumerate(begun.parts)}
    timeout_s, which = _timeout_s(trial, cluster.machine)
    try:
        for message in _until_failure(cluster.run("train", spec, timeout_s), outcome):
            outcome.take(message, trial, watch)
            if keeper and keeper.take(message, outcome.events):
                cluster.signal(KEPT)
            if judge and outcome.status == DONE and (within := judge(trial, outcome)):
                judge = None  # it is known now whether it goes on
                if why := within.why_too_much(trial.dilation, trial.case.train.most_added):
                    outcome.fail(DISTURBED, why)
    except TaskTimeoutError:
        outcome.fail(TIMEOUT, f"it took longer than {timeout_s:g} s ({which})")
    outcome.note_changes_of_links(trial)
    if outcome.status == DONE:
        outcome.check(trial)


def _timeout_s(trial: Trial, machine: Machine) -> tuple[float, str]:
    """How long a trial may take, and by what."""
    asked_s, slower = trial.case.train.timeout_s, max(1.0, trial.dilation)
    if asked_s is not None:
        return asked_s * slower, f"train.timeout, at a dilation of {slower:g}" if slower > 1 else "train.timeout"
    planned_s = time_s(trial, machine)
    patience = PATIENCE_WITH_LOSSES if trial.expected.topology.loses_packets else PATIENCE
    limit_s = float(round(max(SHORTEST_TIMEOUT_S * slower, patience * planned_s)))
    return limit_s, f"it was planned to take {format_time(planned_s)}; train.timeout sets another limit"


def _until_failure(messages: Iterator[Message], outcome: Outcome) -> Iterator[Message]:
    """Messages until all workers ended, or until shortly after one of them failed."""
    deadline = None
    for message in messages:
        yield message
        if outcome.status != DONE and deadline is None:
            deadline = time.monotonic() + LAST_WORDS_S
        if deadline is not None and time.monotonic() > deadline:
            break
