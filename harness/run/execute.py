"""Run a plan: every pending trial on a cluster whose links were verified, each stored as soon as it has ended."""

from __future__ import annotations

import bisect
import itertools
import json
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from harness.analysis import stats
from harness.cluster.protocol import Cluster, ClusterBrokenError, TaskTimeoutError
from harness.errors import MeasurementError, PacbenchError, UsageError
from harness.messages import Message
from harness.network.addresses import worker_number
from harness.network.queues import QueueUse
from harness.network.readings import Readings
from harness.network.topology import Topology
from harness.plan.estimate import lower_bound_s, memory_bytes, predicted_step_s, wire_bytes
from harness.plan.plan import Plan
from harness.plan.status import ACCURACY, DONE
from harness.plan.trial import Trial, built_topology_of, profile_of, state_of, topology_of
from harness.provenance import code_digest, commit
from harness.record.steady import is_long_enough, settling_steps
from harness.record.store import WORKLOAD_COLUMNS, Event, Store
from harness.scenario.schema import Resources, Train
from harness.scenario.target import EVENT_KINDS, FINAL_COLUMNS, Evaluation, crossing
from harness.units import format_size
from harness.workload import profile as profiles

LOG_TAIL_LINES = 40
LAST_WORDS_S = 2.0
"""How long the others may still talk once one worker has failed: their logs help, their waiting for it does not."""

FIRST_PORT, PORTS = 29500, 1000

NO_RANK = -1
"""Of events that no worker reported."""

MIN_SHARE_SEEN = 0.5
"""Of the bytes a method must send, the share below which they cannot have crossed the shaped link."""


@dataclass(frozen=True)
class Progress:
    """What a watcher may show while trials run."""

    trial: Trial
    step: int
    samples_per_s: float


Watch = Callable[[Progress], None]
Ended = Callable[[Trial, str, str | None], None]
"""Hears of each trial's status and reason."""


@dataclass
class Outcome:
    """What is known of a trial when it has ended, however it ended."""

    status: str = DONE
    reason: str | None = None
    readings: Readings | None = None
    events: list[Event] = field(default_factory=list)
    results: dict[int, Message] = field(default_factory=dict)
    queues: dict[str, Mapping[str, QueueUse]] = field(default_factory=dict)
    """Of each node, by interface."""
    changes: list[Message] = field(default_factory=list)
    """Of the links, by the player of their trace."""
    log: deque[str] = field(default_factory=lambda: deque(maxlen=LOG_TAIL_LINES))


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
        if (outcome := _run_one(trial, store, cluster, next(ports), watch, ended)).status == DONE
    ]
    if finished:
        _verify_again(finished, store, cluster, ended)


def _prepare(plan: Plan, pending: Sequence[Trial], cluster: Cluster) -> None:
    """Have files and data ready on the cluster, and refuse what this machine or the cluster cannot carry."""
    _check_memory(plan, pending)
    for checkpoint in {named for trial in pending if (named := trial.case.train.checkpoint)}:
        cluster.share_file(Path(checkpoint))
    for path in {Path(named) for trial in pending if (named := trial.case.train.replay) and named.endswith(".json")}:
        cluster.share_file(path)
    for train in {_materials_of(trial.case.train): trial.case.train for trial in pending}.values():
        cluster.preload(train)
    for wanted in dict.fromkeys((built_topology_of(trial), trial.case.cluster.resources) for trial in pending):
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
    undecided = {each for each in stats.undecided(store.trials(), plan.scenario) if each[1] in labels}
    asked = undecided | {(workload, plan.scenario.baseline) for workload, _ in undecided}
    return plan.pending_seeds(store.attempts(), lambda trial: (workload_of(trial), trial.method.label) in asked)


def workload_of(trial: Trial) -> tuple[Any, ...]:
    """The trial's values of ``WORKLOAD_COLUMNS``, None where nothing is said."""
    settings = _settings(trial)
    return tuple(settings[column] for column in WORKLOAD_COLUMNS)


def _check_memory(plan: Plan, pending: Iterable[Trial]) -> None:
    """Refuse replays whose workers would not fit into memory together."""
    available = psutil.virtual_memory().available
    for trial in pending:
        if (needed := memory_bytes(trial) or 0) > available:
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
    return built_topology_of(trial), trial.case.cluster.resources, trial.round


def _run_one(trial: Trial, store: Store, cluster: Cluster, port: int, watch: Watch, ended: Ended) -> Outcome:
    """Run a trial and store what became of it."""
    started, outcome = time.monotonic(), Outcome()
    try:
        _attempt(trial, cluster, port, outcome, watch)
    except KeyboardInterrupt:
        outcome.status, outcome.reason = "interrupted", "interrupted by the user"
        raise
    except PacbenchError as error:
        outcome.status, outcome.reason = "failed", str(error)
        if isinstance(error, (ClusterBrokenError, UsageError)):
            raise
    finally:
        store.append(_row(trial, store.attempts_of(trial.id), outcome, time.monotonic() - started), outcome.events)
    ended(trial, outcome.status, outcome.reason)
    return outcome


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
        told = _as_json(readings.undilated(trial.dilation)) if readings else None
        store.append_verification(trial.id, attempt, told, complaints)
        if complaints:
            drifted = Outcome("failed", f"the links had changed after it: {'; '.join(complaints)}", readings)
            store.append(_row(trial, attempt + 1, drifted, 0.0), [])
            ended(trial, drifted.status, drifted.reason)


def _attempt(trial: Trial, cluster: Cluster, port: int, outcome: Outcome, watch: Watch) -> None:
    """Run one trial on a verified network and gather what comes of it."""
    train = trial.case.train
    outcome.readings = cluster.use(built_topology_of(trial), trial.case.cluster.resources)
    spec = {"trial": trial.model_dump(mode="json", by_alias=True), "port": port}
    if trial.case.link.trace:
        spec["start_file"] = f"/run/trace-{port}"  # of the universe, which ends with the cluster
    try:
        for message in _until_failure(cluster.run("train", spec, train.timeout_s), outcome):
            _take(message, trial, outcome, watch)
    except TaskTimeoutError:
        outcome.status, outcome.reason = "timeout", f"it took longer than {train.timeout_s:g} s (train.timeout)"
    outcome.events.extend(_changes_by_step(outcome, trial.dilation))
    if outcome.status == DONE:
        _check_results(trial, outcome)


def _until_failure(messages: Iterator[Message], outcome: Outcome) -> Iterator[Message]:
    """Messages until all workers ended, or until shortly after one of them failed."""
    deadline = None
    for message in messages:
        yield message
        if outcome.status != DONE and deadline is None:
            deadline = time.monotonic() + LAST_WORDS_S
        if deadline is not None and time.monotonic() > deadline:
            break


def _take(message: Message, trial: Trial, outcome: Outcome, watch: Watch) -> None:
    node = message.get("node", "")
    match message["kind"]:
        case "events":
            rank = worker_number(node)
            rows = [Event(rank, *row) for row in message["rows"]]
            outcome.events.extend(rows)
            if rank == 0 and rows:
                watch(_progress(trial, rows))
        case "result":
            outcome.results[worker_number(node)] = message
            outcome.queues[node] = message["queues"]
        case "queues":
            outcome.queues[node] = message["queues"]
        case "change":
            outcome.changes.append(message)
        case "log":
            outcome.log.append(f"{node}: {message['text']}")
        case "error" if outcome.status == DONE or message.get("lost"):
            outcome.status, outcome.reason = "crashed", f"{node}: {message['reason']}"
        case "exit" if message["code"] and outcome.status == DONE:
            how = f"signal {-message['code']}" if message["code"] < 0 else f"exit code {message['code']}"
            outcome.status, outcome.reason = "crashed", f"{node} ended with {how}"


def _progress(trial: Trial, rows: list[Event]) -> Progress:
    steps = [row.value for row in rows if row.kind == "step_s"]
    samples = trial.case.train.batch_size * trial.case.cluster.workers
    return Progress(trial, rows[-1].step + 1, samples * len(steps) / sum(steps) if steps else 0.0)


def _changes_by_step(outcome: Outcome, dilation: float) -> Iterator[Event]:
    """The links' changes as events of no rank, in the step and at the training time in which rank 0 was then."""
    ends = [event for event in outcome.events if event.kind == "monotonic_s" and event.rank == 0]
    for change in outcome.changes:
        place = bisect.bisect_right([end.value for end in ends], change["at_s"])
        step, time_s = (ends[place].step, ends[place].time_s) if place < len(ends) else (len(ends), 0.0)
        if ends and place == len(ends):
            time_s = ends[-1].time_s
        told = {
            "rate_bps": dilation * change["rate_bps"],
            "late_s": change["late_s"] / dilation,
            "at_s": change["at_s"],
        }
        for kind, value in told.items():
            yield Event(NO_RANK, step, time_s, f"link_{kind}", float(value))


def _check_results(trial: Trial, outcome: Outcome) -> None:
    """The proofs that make a finished trial count."""
    results = outcome.results
    if len(results) < trial.case.cluster.workers:
        outcome.status, outcome.reason = "crashed", "a worker ended without a result"
    elif any(result["diverged"] for result in results.values()):
        outcome.status, outcome.reason = "diverged", _divergence(results)
    elif not all(result["parameters_identical"] for result in results.values()):
        outcome.status, outcome.reason = "failed", "the ranks ended with different parameters"
    elif (seen := _payload_per_step(outcome)) < MIN_SHARE_SEEN * (expected := wire_bytes(trial)):
        outcome.status = "failed"
        outcome.reason = f"only {seen:.0f} of {expected:.0f} bytes a step crossed the shaped link"


def _divergence(results: Mapping[int, Message]) -> str:
    reason = f"the test loss was not finite after step {results[0]['steps']}"
    found = [(*first, rank) for rank, result in results.items() if (first := result.get("first_non_finite"))]
    if not found:
        return f"{reason}; every gradient was"
    step, parameter, rank = min(found)
    return f"{reason}; the first gradient that was not: {parameter} on rank {rank} in step {step}"


def _row(trial: Trial, attempt: int, outcome: Outcome, wall_time_s: float) -> dict[str, Any]:
    """The trial's row in the columns of ``store.TRIAL_SCHEMA``; what is not known stays out of it."""
    row = {
        **_settings(trial),
        "attempt": attempt,
        "status": outcome.status,
        "reason": outcome.reason,
        "wall_time_s": wall_time_s,
        "log_tail": "\n".join(outcome.log) or None,
        "formula_bytes_per_step": wire_bytes(trial),
        "lower_bound_s_per_step": lower_bound_s(trial) or None,
        "predicted_step_s": predicted_step_s(trial),
    }
    if outcome.readings:
        readings = outcome.readings.undilated(trial.dilation)
        row |= {
            "measured_rate_bps": readings.slowest_bps,
            "measured_rtt_s": readings.rtt_median_s,
            "links": json.dumps([link.model_dump() for link in readings.links]),
            "verified_before": _as_json(readings),
        }
    if len(outcome.results) == trial.case.cluster.workers:
        row |= _measured(trial, outcome)
    return row


def _settings(trial: Trial) -> dict[str, Any]:
    """What was asked of the trial, and who asked, in the columns of ``store.TRIAL_SCHEMA``."""
    case, train, replayed = trial.case, trial.case.train, profile_of(trial.case)
    return {
        "trial_id": trial.id,
        "scenario": trial.scenario,
        "cluster": trial.cluster,
        "method": trial.method.name,
        "label": trial.method.label,
        "params": json.dumps(trial.method.params),
        "model": train.model,
        "dataset": _what_is_fed(train),
        "replay": train.replay and Path(train.replay).stem,
        "replay_source": replayed and replayed.source,
        "dilation": train.dilation,
        "trial_dilation": trial.dilation,
        "workers": case.cluster.workers,
        "batch_size": train.batch_size,
        "rate_bps": case.link.trace.rows[0].rate_bps if case.link.trace else case.link.rate_bps,
        "delay_s": case.link.delay_s,
        "loss": case.link.mean_loss,
        "network": topology_of(case).describe_extras(),
        "seed": trial.seed,
        "round": trial.round,
        "purpose": ACCURACY if trial.for_accuracy else None,
        "target": train.target and str(train.target),
        "commit": commit(),
        "code_digest": code_digest(),
        "image_digest": trial.image or None,
        "cpuset": case.cluster.cpuset,
        "memory_limit_bytes": case.cluster.memory_bytes,
        "device": case.cluster.device,
    }


def _what_is_fed(train: Train) -> str:
    """The data set, or what stands in its place."""
    if not train.replay:
        return train.dataset
    return f"made-up gradients (replay of {Path(train.replay).stem}, {profiles.read(train.replay).origin})"


def _as_json(readings: Readings) -> str:
    return readings.model_dump_json()


def _measured(trial: Trial, outcome: Outcome) -> dict[str, Any]:
    """The figures of a trial whose ranks all reported: those a step belong to the steady state.

    Times begin where the steps have settled, bytes where the method declares its steady state.
    """
    results = list(outcome.results.values())
    first = outcome.results[0]
    steady_from_step, steps = first["steady_from_step"], first["steps"]
    all_step_s = [event.value for event in outcome.events if event.kind == "step_s" and event.rank == 0]
    settling = settling_steps(all_step_s[steady_from_step:], state_of(trial.method).agrees_every)
    timed_from_step = steady_from_step + settling
    steady = [event for event in outcome.events if event.step >= timed_from_step]
    step_s = all_step_s[timed_from_step:]
    steady_s = sum(step_s)
    timed = is_long_enough(len(step_s), steady_s, bool(trial.case.train.replay))
    samples_per_step = trial.case.train.batch_size * trial.case.cluster.workers

    def mean_of(*kinds: str) -> float:
        """Seconds a step over all ranks and steady steps, in these phases together."""
        total = sum(event.value for event in steady if event.kind in kinds)
        return total / max(len(step_s) * len(results), 1)

    return {
        "steps": steps,
        "steady_from_step": steady_from_step,
        "settling_steps": settling,
        "steady_steps": len(step_s),
        "steady_s": steady_s,
        "samples_per_s": samples_per_step * len(step_s) / steady_s if timed else None,
        "step_time_median_s": statistics.median(step_s) if step_s else None,
        "compute_s_per_step": mean_of("compute_s"),
        "codec_s_per_step": mean_of("encode_s", "decode_s"),
        "encode_s_per_step": mean_of("encode_s"),
        "decode_s_per_step": mean_of("decode_s"),
        "comm_s_per_step": mean_of("comm_s"),
        "overrun_s_per_step": mean_of("overrun_s") if trial.case.train.replay else None,
        "processor_s_per_step": mean_of(*_phases_of_the_processor(trial)),
        "yardstick_s": statistics.mean(result["yardstick_s"] for result in results),
        "wire_bytes_per_step": _payload_per_step(outcome),
        "header_bytes_per_step": _per_steady_step(outcome, "header_bytes"),
        "before_steady_s": sum(all_step_s[:timed_from_step]),
        **_learnt(trial, outcome),
        "train_time_s": first["train_time_s"],
        "evaluation_time_s": first["evaluation_time_s"],
        "peak_memory_bytes": max(result["peak_memory_bytes"] for result in results),
        "peak_gpu_memory_bytes": max(result.get("peak_gpu_memory_bytes") or 0 for result in results) or None,
        "own_memory_bytes": max(result["own_memory_bytes"] for result in results),
        "held_memory_bytes": max(result["held_memory_bytes"] for result in results),
        "retransmits": sum(result["retransmits"] for result in results),
        "transport_rtt_s": _median(result["smoothed_rtt_s"] for result in results),
        "cwnd_packets": _median(result["cwnd_packets"] for result in results),
        **_queues(trial, outcome),
        # A method whose bytes depend on the gradients' values notes what its formula gives for those it met.
        **({"formula_bytes_per_step": noted} if (noted := mean_of("formula_bytes")) else {}),
        "parameter_hash": first["parameter_hash"],
    }


def _learnt(trial: Trial, outcome: Outcome) -> dict[str, Any]:
    """What the last evaluation found, and when the target was first reached."""
    curves: dict[str, list[Evaluation]] = {metric: [] for metric in EVENT_KINDS}
    for event in outcome.events:
        for metric, kind in EVENT_KINDS.items():
            if event.kind == kind:
                curves[metric].append(Evaluation(event.step, event.time_s, event.value))
    target = trial.case.train.target
    reached = crossing(target, curves[target.metric]) if target else None
    return {
        **{column: curves[metric][-1].value if curves[metric] else None for metric, column in FINAL_COLUMNS.items()},
        "steps_to_target": reached and reached.steps,
        "time_to_target_s": reached and reached.time_s,
    }


def _phases_of_the_processor(trial: Trial) -> tuple[str, ...]:
    """The phases of a step that take as long as this machine's processor does: not what a GPU or a profile says."""
    replayed = profile_of(trial.case)
    if trial.case.cluster.device != "cpu" or (replayed and replayed.codec(trial.method, trial.case.cluster.workers)):
        return ()
    codec = ("encode_s", "decode_s")
    return codec if replayed else ("compute_s", *codec)


def _queues(trial: Trial, outcome: Outcome) -> dict[str, Any]:
    """What the links' queues dropped, and what waited in the fullest of them."""
    uses = {
        f"{queue.link} {queue.direction}": use
        for queue in topology_of(trial.case).queues()
        if (use := outcome.queues.get(queue.node, {}).get(queue.interface))
    }
    fullest = max(uses, key=lambda name: uses[name]["most_backlog_bytes"])
    return {
        "queue_drops": sum(use["drops"] for use in uses.values()),
        "queue_backlog_bytes": uses[fullest]["most_backlog_bytes"],
        "fullest_queue": fullest,
    }


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _payload_per_step(outcome: Outcome) -> float:
    return _per_steady_step(outcome, "payload_bytes")


def _per_steady_step(outcome: Outcome, counter: str) -> float:
    """A counter's mean over ranks and steps of the steady state."""
    steps = max(int(outcome.results[0]["steps"]) - int(outcome.results[0]["steady_from_step"]), 1)
    total: float = sum(float(result[counter]) for result in outcome.results.values())
    return total / len(outcome.results) / steps
