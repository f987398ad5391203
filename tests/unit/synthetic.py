"""Runs that nothing was measured for: made through the real store, with numbers that tests choose or can recompute."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from harness.plan import plan
from harness.plan.expected import state_of
from harness.plan.status import first_steady_step
from harness.plan.trial import Trial
from harness.record.row import TRIAL_SCHEMA, Event, TrialRow
from harness.record.store import Store
from harness.scenario.load import load
from harness.scenario.schema import Scenario
from harness.scenario.target import Evaluation, crossing

COMPUTE_S = 0.012
CODEC_S = {"dense": 0.0, "bf16": 0.001, "topk": 0.02, "dgc": 0.008, "pactrain": 0.003}
OVERLAPPED_BPS = 4e9
"""What an unshaped link carries."""


def make_store(
    folder: Path,
    overrides: Sequence[str] = (),
    scenario: str = "quickstart",
    cluster: str = "netns",
    methods: Sequence[str] = (),
    ends: Mapping[tuple[str, int], Mapping[str, Any]] = {},
) -> Store:
    """A run of a scenario, each of whose trials is invented.

    Args:
        overrides: of the scenario's fields, as the command line takes them.
        methods: those to keep beside the baseline, the 16-bit one only if it is named; all when empty.
        ends: (label, round) -> columns that replace the invented ones; a trial with another status than ``done``
            keeps none of the measured columns.
    """
    loaded = only(load(scenario, overrides, methods), methods)
    store = Store.create(folder, loaded)
    for trial in plan.make(loaded, cluster).trials:
        row, events = invent(trial)
        changed = ends.get((trial.method.label, trial.round), {})
        if changed.get("status", "done") != "done":
            row, events = {key: row[key] for key in IDENTITY}, []
        store.append(TrialRow(**{**row, **changed}), events)
    store.add_provenance(
        {"command": ["pacbench", "run", scenario], "commit": "0123456789ab", "libraries": {"torch": "2.13"}}
    )
    return store


def a_row(trial_id: str, **columns: Any) -> TrialRow:
    """The row of some trial of which nothing matters but these columns."""
    asked = {"scenario": "quickstart", "cluster": "netns", "method": "dense", "label": "dense", "params": "{}"}
    workload = {"model": "digits-cnn", "dataset": "digits", "workers": 4, "batch_size": 32}
    links = {"rate_bps": 1e8, "delay_s": 0.0, "loss": 0.0}
    rest = {"attempt": 0, "seed": 0, "round": 0, "status": "done"}
    return TrialRow(**{"trial_id": trial_id, **asked, **workload, **links, **rest, **columns})


def row_again(stored: Mapping[Any, Any], **changes: Any) -> TrialRow:
    """A row of a store's frame as it was written, with changes."""
    integers = [each.name for each in TRIAL_SCHEMA if pa.types.is_integer(each.type)]
    known = {name: None if pd.isna(stored[name]) else stored[name] for name in TRIAL_SCHEMA.names}
    whole = {name: int(known[name]) for name in integers if known[name] is not None}
    return TrialRow(**{**known, **whole, **changes})


def only(scenario: Scenario, methods: Sequence[str]) -> Scenario:
    """With these methods, by name or label, and the baseline alone; with all when empty."""
    kept = [each for each in scenario.methods if not methods or {each.name, each.label} & {*methods, scenario.baseline}]
    return scenario.model_copy(update={"methods": tuple(kept)})


def invent(trial: Trial) -> tuple[dict[str, Any], list[Event]]:
    """A trial's row and events: the lower bound and some overhead, with seeded noise; accuracy saturates."""
    dice = random.Random(f"{trial.method.label}/{trial.case.link.rate_bps}/{trial.round}")
    train, workers, rate_bps = trial.case.train, trial.case.cluster.workers, trial.case.link.rate_bps
    payload, bound_s = trial.expected.wire_bytes_per_step, trial.expected.lower_bound_s_per_step
    codec_s = CODEC_S.get(trial.method.name, 0.005) * dice.uniform(0.9, 1.1)
    comm_s = (bound_s or 8 * payload / OVERLAPPED_BPS) * dice.uniform(1.05, 1.12) + 0.002
    step_s = COMPUTE_S + codec_s + comm_s
    steady_from_step = first_steady_step(state_of(trial.method))
    ceiling = {"dense": 0.967, "topk": 0.945, "dgc": 0.955}.get(trial.method.name, 0.963)
    events = list(_events(trial, step_s, codec_s, comm_s, ceiling + dice.uniform(-0.006, 0.006)))
    accuracies = [Evaluation(event.step, event.time_s, event.value) for event in events if event.kind == "accuracy"]
    reached = train.target and crossing(train.target, accuracies)
    row = {
        "trial_id": trial.id,
        "attempt": 0,
        "scenario": trial.scenario,
        "cluster": trial.cluster,
        "method": trial.method.name,
        "label": trial.method.label,
        "params": json.dumps(trial.method.params),
        "model": train.model,
        "dataset": train.dataset,
        "workers": workers,
        "batch_size": train.samples_per_step,
        "rate_bps": rate_bps,
        "delay_s": 0.0,
        "loss": 0.0,
        "seed": trial.seed,
        "round": trial.round,
        "status": "done",
        "steps": train.steps,
        "steady_from_step": steady_from_step,
        "steady_steps": train.steps - steady_from_step,
        "samples_per_s": workers * train.samples_per_step / step_s,
        "step_time_median_s": step_s,
        "compute_s_per_step": COMPUTE_S,
        "codec_s_per_step": codec_s,
        "encode_s_per_step": codec_s,
        "decode_s_per_step": 0.0,
        "comm_s_per_step": comm_s,
        "wire_bytes_per_step": payload * dice.uniform(1.0, 1.01),
        "header_bytes_per_step": payload * 66 / 1448,
        "formula_bytes_per_step": payload,
        "lower_bound_s_per_step": bound_s or None,
        "before_steady_s": steady_from_step * step_s,
        "final_accuracy": accuracies[-1].value,
        "target": train.target and str(train.target),
        "steps_to_target": reached and reached.steps,
        "time_to_target_s": reached and reached.time_s,
        "train_time_s": train.steps * step_s,
        "evaluation_time_s": 0.5,
        "wall_time_s": train.steps * step_s + 2.0,
        "peak_memory_bytes": 4.1e8,
        "own_memory_bytes": 1.6e8,
        "held_memory_bytes": 1.2e6,
        "measured_rate_bps": 0.968 * (rate_bps or OVERLAPPED_BPS),
        "measured_rtt_s": 1.1e-4,
        "links": json.dumps(_links(workers, rate_bps, dice)),
        "parameter_hash": "0" * 16,
        "commit": "0123456789ab",
        "code_digest": "ba9876543210",
        "log_tail": None,
    }
    return row, events


IDENTITY = (
    *("trial_id", "attempt", "scenario", "cluster", "method", "label", "params", "model", "dataset", "workers"),
    *("batch_size", "rate_bps", "delay_s", "loss", "seed", "round", "target"),
)
"""The columns that a trial has also when it failed at once."""


def _events(trial: Trial, step_s: float, codec_s: float, comm_s: float, ceiling: float) -> Iterator[Event]:
    train = trial.case.train
    phases = {"step_s": step_s, "compute_s": COMPUTE_S, "encode_s": codec_s, "decode_s": 0.0, "comm_s": comm_s}
    yield Event(0, 0, 0.0, "accuracy", 0.1 * ceiling)
    for rank in range(trial.case.cluster.workers):
        for step in range(train.steps):
            clock_s = (step + 1) * step_s
            for kind, value in phases.items():
                yield Event(rank, step, clock_s, kind, value)
            done = step + 1
            if rank == 0 and (done % train.eval_every == 0 or done == train.steps):
                yield Event(0, done, clock_s, "accuracy", ceiling * (1 - 0.9 * math.exp(-6 * done / train.steps)))


def _links(workers: int, rate_bps: int | None, dice: random.Random) -> list[dict[str, Any]]:
    return [
        {
            "worker": worker,
            "direction": direction,
            "rate_bps_asked": rate_bps,
            "rate_bps_measured": (rate_bps or OVERLAPPED_BPS) * dice.uniform(0.965, 0.985),
        }
        for worker in range(workers)
        for direction in ("up", "down")
    ]
