"""Run a plan: every pending trial on a cluster whose links were verified, each stored as soon as it has ended."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import psutil

from harness.analysis.stopping import undecided_accuracies
from harness.cluster.protocol import Cluster, ClusterBrokenError, TaskTimeoutError
from harness.errors import MeasurementError, PacbenchError, UsageError
from harness.messages import Message
from harness.network.topology import Topology
from harness.plan.plan import Plan
from harness.plan.status import DISTURBED, DONE
from harness.plan.trial import Trial
from harness.record.far_out import MOST_DISTURBED
from harness.record.row import TrialRow, VerificationRow
from harness.record.store import Store
from harness.run.interference import Moment
from harness.run.outcome import Ended, Outcome, Watch
from harness.run.row import row_of, workload_of
from harness.scenario.schema import Resources, Train
from harness.units import format_size

LAST_WORDS_S = 2.0
"""How long the others may still talk once one worker has failed: their logs help, their waiting for it does not."""

FIRST_PORT, PORTS = 29500, 1000

MOST_REPEATS = 2
"""How often a disturbed trial is run again; then it stays as it is, and analysis decides whether it is used."""


def run(
    plan: Plan,
    store: Store,
    cluster: Cluster,
    watch: Watch,
    ended: Ended,
    enough: Callable[[], bool] = lambda: False,
) -> None:
    """Run the trials that the store does not hold as done, in the plan's order.

    A trial that fails becomes a row with its reason, and the next one runs. Between two rounds ``enough`` is asked;
    where it is true, the later rounds are not run.

    Raises:
        UsageError: the machine cannot carry a case, or the store holds other trials.
        ClusterBrokenError: the cluster itself ended.
        KeyboardInterrupt: passed on once the trial that it hit is stored as interrupted.
    """
    attempts = store.attempts()
    if foreign_trial_ids := plan.foreign_trial_ids(attempts):
        raise UsageError(
            f"{store.folder}: holds {len(foreign_trial_ids)} trials of other code or of another kind of cluster, "
            "which are not to be mixed with new ones; choose another --out"
        )
    pending = plan.pending(attempts)
    _prepare(plan, pending, cluster)
    ports = itertools.cycle(range(FIRST_PORT, FIRST_PORT + PORTS))
    first_round = min((trial.round for trial in pending), default=0)
    for (_, _, number), trials in itertools.groupby(pending, key=_network_and_round):
        if number > first_round and enough():
            return
        _run_between_verifications(trials, store, cluster, ports, watch, ended)


def _run_between_verifications(
    trials: Iterable[Trial], store: Store, cluster: Cluster, ports: Iterator[int], watch: Watch, ended: Ended
) -> None:
    """Run trials that share a network, and measure it again after the last of them."""
    finished = [
        (trial, outcome)
        for trial in trials
        if (outcome := _run_undisturbed(trial, store, cluster, ports, watch, ended)).status == DONE
    ]
    if finished:
        _verify_again(finished, store, cluster, ended)


def _prepare(plan: Plan, pending: Sequence[Trial], cluster: Cluster) -> None:
    """Have files and data ready on the cluster, and refuse what this machine or the cluster cannot carry."""
    _check_memory(plan, pending)
    for checkpoint in {named for trial in pending if (named := trial.case.train.checkpoint)}:
        cluster.share_file(Path(checkpoint))
    for path in {Path(named) for trial in pending if (named := trial.case.train.profile) and named.endswith(".json")}:
        cluster.share_file(path)
    for train in {_materials_of(trial.case.train): trial.case.train for trial in pending}.values():
        cluster.preload(train)
    for wanted in dict.fromkeys((trial.expected.built_topology, trial.case.cluster.resources) for trial in pending):
        cluster.check(*wanted)


def run_more_seeds(plan: Plan, store: Store, cluster: Cluster, watch: Watch, ended: Ended) -> None:
    """Train seeds beyond the rounds', on unshaped links, of methods that are undecided and of the baseline beside them.

    One seed after another, until all is decided or ``Scenario.accuracy_seeds`` have been trained. What fails is not
    tried again before the next start. Raises what ``run`` does.
    """
    ports = itertools.cycle(range(FIRST_PORT, FIRST_PORT + PORTS))
    tried: set[str] = set()
    while pending := [trial for trial in pending_seeds(plan, store) if trial.id not in tried]:
        seed = [trial for trial in pending if trial.round == pending[0].round]
        _prepare(plan, seed, cluster)
        tried |= {trial.id for trial in seed}
        _run_between_verifications(seed, store, cluster, ports, watch, ended)


def pending_seeds(plan: Plan, store: Store) -> list[Trial]:
    """Further seeds, in their order, of what is undecided and of the baseline beside it, that are not done."""
    if not plan.more_seeds:
        return []
    labels = {trial.method.label for trial in plan.more_seeds}
    undecided = {each for each in undecided_accuracies(store.trials(), plan.scenario) if each[1] in labels}
    asked = undecided | {(workload, plan.scenario.baseline) for workload, _ in undecided}
    return plan.pending_seeds(store.attempts(), lambda trial: (workload_of(trial), trial.method.label) in asked)


def _check_memory(plan: Plan, pending: Iterable[Trial]) -> None:
    """Refuse replays whose workers would not fit into memory together."""
    available = psutil.virtual_memory().available
    for trial in pending:
        if (needed := trial.expected.memory_bytes or 0) > available:
            found = f"{trial.case.train.model} on {trial.case.cluster.workers} workers with {trial.method.label}"
            allowed = (
                f"what fits into the {format_size(available)} that are free; this needs about {format_size(needed)}"
            )
            raise UsageError.at(plan.scenario.name, "train.model", found, allowed)


def _materials_of(train: Train) -> tuple[object, ...]:
    """What trials that read the same data, or replay the same model, share."""
    if train.replay:
        return train.replay, train.gradient_density
    return train.dataset, train.data_dir


def _network_and_round(trial: Trial) -> tuple[Topology, Resources, int]:
    """What trials that follow one another share until the links are measured again."""
    return trial.expected.built_topology, trial.case.cluster.resources, trial.round


def _run_undisturbed(
    trial: Trial, store: Store, cluster: Cluster, ports: Iterator[int], watch: Watch, ended: Ended
) -> Outcome:
    """Run a trial, and again while it ends disturbed: ``MOST_REPEATS`` allows that a few times, and never for ever."""
    while (outcome := _run_one(trial, store, cluster, next(ports), watch, ended)).status == DISTURBED:
        pass
    return outcome


def _run_one(trial: Trial, store: Store, cluster: Cluster, port: int, watch: Watch, ended: Ended) -> Outcome:
    """Run a trial and store what became of it."""
    started, outcome, before = time.monotonic(), Outcome(), Moment.now()
    try:
        _attempt(trial, cluster, port, outcome, watch)
    except KeyboardInterrupt:
        outcome.fail("interrupted", "interrupted by the user")
        raise
    except PacbenchError as error:
        outcome.fail("failed", str(error))
        if isinstance(error, (ClusterBrokenError, UsageError)):
            raise
    finally:
        outcome.interference = before.until_now()
        row = row_of(trial, store.attempts_of(trial.id), outcome, time.monotonic() - started)
        if _is_to_be_repeated(row, store):
            outcome.fail(DISTURBED, _what_disturbed(row))
            row = replace(row, status=outcome.status, reason=outcome.reason)
        store.append(row, outcome.events)
    ended(trial, outcome.status, outcome.reason)
    return outcome


def _is_to_be_repeated(row: TrialRow, store: Store) -> bool:
    """Whether a trial that finished was disturbed, and not yet run again often enough; accuracy alone takes no time."""
    if row.status != DONE or row.purpose or (row.disturbed_share or 0.0) <= MOST_DISTURBED:
        return False
    attempts = store.attempts()
    earlier = (attempts["trial_id"] == row.trial_id) & (attempts["status"] == DISTURBED)
    return int(earlier.sum()) < MOST_REPEATS


def _what_disturbed(row: TrialRow) -> str:
    return (
        f"{row.far_out_steps} of {row.steps} steps took far longer than their like: "
        f"{100 * (row.disturbed_share or 0.0):.0f} % of its training time"
    )


def _verify_again(finished: list[tuple[Trial, Outcome]], store: Store, cluster: Cluster, ended: Ended) -> None:
    """Measure the links after the last trial on them; where they drifted, the trials in between do not count."""
    try:
        readings = cluster.verify()
        complaints = readings.complaints()
    except MeasurementError as error:
        if isinstance(error, ClusterBrokenError):
            raise
        readings, complaints = None, [str(error)]
    for trial, _ in finished:
        attempt = store.attempts_of(trial.id) - 1
        told = readings.undilated(trial.dilation).model_dump_json() if readings else None
        drift = "; ".join(complaints) or None
        store.append_verification(VerificationRow(trial_id=trial.id, attempt=attempt, verified_after=told, drift=drift))
        if complaints:
            drifted = Outcome("failed", f"the links had changed after it: {'; '.join(complaints)}", readings)
            store.append(row_of(trial, attempt + 1, drifted, 0.0), [])
            ended(trial, drifted.status, drifted.reason)


def _attempt(trial: Trial, cluster: Cluster, port: int, outcome: Outcome, watch: Watch) -> None:
    """Run one trial on a verified network and gather what comes of it."""
    train = trial.case.train
    outcome.readings = cluster.use(trial.expected.built_topology, trial.case.cluster.resources)
    spec = {"trial": trial.model_dump(mode="json", by_alias=True), "port": port}
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
