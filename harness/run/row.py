"""From a trial and its outcome to the row that is stored."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.analysis.trials import CASE_COLUMNS
from harness.plan.code import PluginCode
from harness.plan.dilation import whole_periods
from harness.plan.expected import state_of
from harness.plan.status import ACCURACY, DONE, UNSETTLED_STEPS
from harness.plan.trial import Trial
from harness.plugins import short
from harness.provenance import code_digest, commit, machine
from harness.record.far_out import FIRST_S, far_out
from harness.record.row import TrialRow, check_value
from harness.record.steady import is_long_enough, settling_steps
from harness.record.store import WORKLOAD_COLUMNS
from harness.run.outcome import Outcome
from harness.scenario.schema import Train
from harness.scenario.target import EVENT_KINDS, FINAL_COLUMNS, Evaluation, crossing


def row_of(trial: Trial, attempt: int, outcome: Outcome, wall_time_s: float) -> TrialRow:
    """The row of an attempt; what is not known stays null.

    So does a figure that its column cannot hold, such as a throughput of 0: a trial whose workers' reports lead to one
    has failed.
    """
    known: dict[str, Any] = {
        "formula_bytes_per_step": trial.expected.wire_bytes_per_step,
        "lower_bound_s_per_step": trial.expected.lower_bound_s_per_step or None,
        "predicted_step_s": trial.expected.predicted_step_s,
    }
    if outcome.readings:
        readings = trial.told(outcome.readings)
        known |= {
            "measured_rate_bps": readings.slowest_bps,
            "measured_rtt_s": readings.rtt_median_s,
            "links": json.dumps([link.model_dump() for link in readings.links]),
            "verified_before": readings.model_dump_json(),
        }
    known["resumed_from_step"] = outcome.resumed_from
    if outcome.added_s is not None:
        known["added_s_per_step"] = outcome.added_s / trial.dilation
    if outcome.interference:
        known |= vars(outcome.interference)
    if len(outcome.results) == trial.case.cluster.workers:
        known |= _measured(trial, outcome)
    impossible = _impossible(known)
    if impossible and outcome.status == DONE:
        outcome.fail("failed", f"what its workers reported cannot be: {next(iter(impossible.values()))}")
    return TrialRow(
        **_asked(trial),
        **{column: value for column, value in known.items() if column not in impossible},
        attempt=attempt,
        status=outcome.status,
        reason=outcome.reason,
        wall_time_s=wall_time_s,
        log_tail="\n".join(outcome.log) or None,
    )


def _impossible(known: Mapping[str, Any]) -> dict[str, str]:
    """The columns that cannot hold these values, and why."""
    found = {}
    for column, value in known.items():
        try:
            check_value(column, value)
        except ValueError as error:
            found[column] = str(error)
    return found


def workload_of(trial: Trial) -> tuple[Any, ...]:
    """The trial's values of ``WORKLOAD_COLUMNS``, None where nothing is said."""
    asked = _asked(trial)
    return tuple(asked[column] for column in WORKLOAD_COLUMNS)


def case_of(trial: Trial) -> tuple[Any, ...]:
    """Likewise its values of ``CASE_COLUMNS``: what tells its case from others in all that is made of a run."""
    asked = _asked(trial)
    return tuple(asked[column] for column in CASE_COLUMNS)


def told_replay(trial: Trial) -> str | None:
    """The profile that it replays, if any, as rows tell it."""
    replay = trial.case.train.replay
    return replay and Path(replay).stem


def _asked(trial: Trial) -> dict[str, Any]:
    """What was asked of the trial, and who asked."""
    case, train, replayed = trial.case, trial.case.train, trial.expected.profile
    return {
        "trial_id": trial.id,
        "scenario": trial.scenario,
        "cluster": trial.cluster,
        "method": short(trial.method.name),
        "label": trial.method.label,
        "params": json.dumps(trial.method.params),
        "model": short(train.model),
        "dataset": _what_is_fed(trial),
        "replay": told_replay(trial),
        "pace": train.pace and Path(train.pace).stem,
        "replay_source": replayed and replayed.source,
        "dilation": train.dilation,
        "trial_dilation": trial.dilation,
        "shrink": trial.shrink if train.replay else None,
        "workers": case.cluster.workers,
        "batch_size": train.samples_per_step,
        "training": _training_extras(train),
        "lr": trial.train.lr,
        "rate_bps": case.link.trace.rows[0].rate_bps if case.link.trace else case.link.rate_bps,
        "delay_s": case.link.delay_s,
        "loss": case.link.mean_loss,
        "network": trial.expected.topology.describe_extras(),
        "seed": trial.seed,
        "round": trial.round,
        "purpose": ACCURACY if trial.for_accuracy else None,
        "target": train.target and str(train.target),
        "machine": machine(),
        "commit": commit(),
        "code_digest": code_digest(),
        "plugin_code": trial.plugins.model_dump_json(exclude_none=True) if trial.plugins != PluginCode() else None,
        "image_digest": trial.image or None,
        "cpuset": case.cluster.cpuset,
        "memory_limit_bytes": case.cluster.memory_bytes,
        "device": case.cluster.device,
    }


def _what_is_fed(trial: Trial) -> str:
    """The data set, or what stands in its place."""
    train, replayed = trial.case.train, trial.expected.profile
    if not train.replay or not replayed:
        return short(train.dataset)
    made_up = "made-up gradients"
    if train.shrink is None:
        made_up += ", shrunk by method"
    elif train.shrink > 1:
        made_up += f", 1 entry in {train.shrink}"
    return f"{made_up} (replay of {Path(train.replay).stem}, {replayed.origin})"


def _training_extras(train: Train) -> str | None:
    """What is asked of the training beyond plain SGD, in words."""
    schedule = "" if train.schedule.kind == "constant" else f"{train.schedule.kind} schedule"
    parts = {
        train.optimizer.name: train.optimizer.name != "sgd",
        f"{train.accumulate} x accumulated": train.accumulate > 1,
        f"{train.autocast} autocast": train.autocast,
        schedule: schedule,
        f"{train.schedule.warmup_steps} warm-up steps": train.schedule.warmup_steps,
        f"{train.augment} augmentation": train.augment,
        f"pretrained {train.pretrain.steps if train.pretrain else 0} steps": train.pretrain,
    }
    return ", ".join(words for words, said in parts.items() if said) or None


def _measured(trial: Trial, outcome: Outcome) -> dict[str, Any]:
    """The figures of a trial whose ranks all reported: those a step belong to the steady state.

    Times begin where the steps have settled, bytes where the method declares its steady state.
    """
    results = list(outcome.results.values())
    first = outcome.results[0]
    all_step_s = outcome.step_s
    settling = settling_steps(all_step_s[first.steady_from_step :], state_of(trial.method).agrees_every)
    timed_from_step = first.steady_from_step + settling
    unsettled = _unsettled_again(trial, outcome, timed_from_step)
    steady = [event for event in outcome.events if event.step >= timed_from_step and event.step not in unsettled]
    step_s = [all_step_s[step] for step in range(timed_from_step, len(all_step_s)) if step not in unsettled]
    steady_s = sum(step_s)
    timed = is_long_enough(len(step_s), steady_s, trial.expected.profile is not None)
    samples_per_step = trial.case.train.samples_per_step * trial.case.cluster.workers

    def mean_of(*kinds: str) -> float:
        """Seconds a step over all ranks and steady steps, in these phases together."""
        total = sum(event.value for event in steady if event.kind in kinds)
        return total / max(len(step_s) * len(results), 1)

    return {
        "steps": first.steps,
        "steady_from_step": first.steady_from_step,
        "settling_steps": settling + len(unsettled),
        "steady_steps": len(step_s),
        "steady_s": steady_s,
        "samples_per_s": samples_per_step * len(step_s) / steady_s if timed else None,
        "step_time_median_s": statistics.median(step_s) if step_s else None,
        "compute_s_per_step": mean_of("compute_s"),
        "codec_s_per_step": mean_of("encode_s", "decode_s"),
        "encode_s_per_step": mean_of("encode_s"),
        "decode_s_per_step": mean_of("decode_s"),
        "comm_s_per_step": mean_of("comm_s"),
        "overrun_s_per_step": mean_of("overrun_s") if trial.expected.profile else None,
        "processor_s_per_step": mean_of(*_phases_of_the_processor(trial)),
        **_disturbance(trial, outcome, timed_from_step, unsettled),
        "yardstick_s": _average(statistics.mean, (result.yardstick_s for result in results)),
        "wire_bytes_per_step": outcome.payload_per_step,
        "header_bytes_per_step": outcome.headers_per_step,
        "before_steady_s": sum(all_step_s[:timed_from_step]),
        **_learnt(trial, outcome),
        "train_time_s": first.train_time_s,
        "evaluation_time_s": first.evaluation_time_s,
        "peak_memory_bytes": max(result.peak_memory_bytes for result in results),
        "peak_gpu_memory_bytes": max(result.peak_gpu_memory_bytes or 0 for result in results) or None,
        "own_memory_bytes": max(result.own_memory_bytes for result in results),
        "held_memory_bytes": max(result.held_memory_bytes for result in results),
        "retransmits": sum(result.retransmits for result in results),
        "transport_rtt_s": _average(statistics.median, (result.smoothed_rtt_s for result in results)),
        "cwnd_packets": _average(statistics.median, (result.cwnd_packets for result in results)),
        **_queues(trial, outcome),
        **_noted(outcome, first.steady_from_step),
        "parameter_hash": first.parameter_hash,
    }


def _unsettled_again(trial: Trial, outcome: Outcome, timed_from_step: int) -> set[int]:
    """Steps of the steady state with which a training began that went on from a checkpoint.

    Whole periods of a method that sends once in so many: so what is left holds as many sending steps as it should.
    """
    step_s, period = outcome.step_s, state_of(trial.method).agrees_every
    unsettled: set[int] = set()
    for begin, end in itertools.pairwise([*outcome.resumed_at, len(step_s)]):
        settled = begin + UNSETTLED_STEPS
        count = whole_periods(UNSETTLED_STEPS + settling_steps(step_s[settled:end], period), period)
        if begin + count > timed_from_step:
            begin = max(timed_from_step, min(begin, len(step_s) - count))
            unsettled |= {*range(begin, min(begin + count, len(step_s)))}
    return unsettled


def _noted(outcome: Outcome, steady_from_step: int) -> dict[str, Any]:
    """What a method's formula gives for the gradients that it met, where its bytes depend on them.

    Of the same steps as the bytes that were counted.
    """
    noted = [
        event.value for event in outcome.events if event.kind == "formula_bytes" and event.step >= steady_from_step
    ]
    steps = len(outcome.step_s) - steady_from_step
    return {"formula_bytes_per_step": sum(noted) / (steps * len(outcome.results))} if noted else {}


def _disturbance(trial: Trial, outcome: Outcome, steady_from: int, unsettled: Collection[int]) -> dict[str, Any]:
    """The steps that are far out, where links do not make single steps long by themselves."""
    if trial.expected.topology.is_uneven:
        return {}
    step_s, kinds = outcome.step_s, outcome.kinds_of_steps(trial)
    begun = {begin + step for begin in (0, *outcome.resumed_at) for step in range(UNSETTLED_STEPS)}
    first = {step: FIRST_S / trial.slowing.at(step) for step in begun if step < len(step_s)}
    own_s = _of_all_workers(outcome, first)
    judged_s = [seconds - own_s.get(step, 0.0) for step, seconds in enumerate(step_s)]
    found = far_out(judged_s, kinds, steady_from, first, {*unsettled} - {*first})
    return {"far_out_steps": found.steps, "disturbed_share": found.extra_s / sum(step_s) if found.steps else 0.0}


def _of_all_workers(outcome: Outcome, steps: Collection[int]) -> dict[int, float]:
    """What every worker took for itself in each of these steps, at least: all but its communication."""
    own_s: dict[int, dict[int, float]] = {step: {} for step in steps}
    for event in outcome.events:
        if event.step in steps and (sign := {"step_s": 1, "comm_s": -1}.get(event.kind)):
            of_ranks = own_s[event.step]
            of_ranks[event.rank] = of_ranks.get(event.rank, 0.0) + sign * event.value
    return {step: min(of_ranks.values()) for step, of_ranks in own_s.items()}


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
    replayed = trial.expected.profile
    if trial.case.cluster.device != "cpu" or (replayed and replayed.codec(trial.method, trial.case.cluster.workers)):
        return ()
    codec = ("encode_s", "decode_s")
    return codec if replayed else ("compute_s", *codec)


def _queues(trial: Trial, outcome: Outcome) -> dict[str, Any]:
    """What the links' queues dropped, and what waited in the fullest of them."""
    uses = {
        f"{queue.link} {queue.direction}": use
        for queue in trial.expected.topology.queues()
        if (use := outcome.queues.get(queue.node, {}).get(queue.interface))
    }
    fullest = max(uses, key=lambda name: uses[name].most_backlog_bytes)
    return {
        "queue_drops": sum(use.drops for use in uses.values()),
        "queue_backlog_bytes": trial.shrink * uses[fullest].most_backlog_bytes,
        "fullest_queue": fullest,
    }


def _average(kind: Callable[[list[float]], float], values: Iterable[float | None]) -> float | None:
    """Of those that are known."""
    known = [value for value in values if value is not None]
    return kind(known) if known else None
