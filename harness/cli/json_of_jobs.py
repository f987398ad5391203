"""Shapes of what verbs print about users' own jobs: a pilot, a recheck, a command over links."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import TypedDict

from harness.cli.json_of_runs import Interval


class OutcomeJson(TypedDict):
    """What a pilot's trainings with one method show."""

    label: str
    seeds: int
    """With which dense has learnt, too; those that learnt the same count as one."""
    pace_s: float
    """From the end of a step to the end of the next."""
    predicted_pace_s: float
    exposed_share: float | None
    """Share of a step that is communication which hides behind nothing. None: it comes, untimed, as a step ends."""
    end_loss: float | None
    loss_difference: Interval | None
    """At dense's number of steps, over dense's, as a share of it. Its rounds are seeds."""
    timely_difference: Interval | None
    """The same at equal time."""
    keeps: Literal["yes", "no", "unknown"]
    """Whether the loss at equal steps is dense's, within the tolerance."""
    steps_factor: float | None
    """Steps to dense's loss over those of dense; None: a seed did not come there."""
    time_to_loss_s: float | None
    sooner: Interval | None
    """How many times sooner than the sooner of dense and the 16-bit all-reduce, by seeds with which both came there."""
    codec_s: float
    held_bytes: int | None
    """What it holds between steps."""
    peak_memory_bytes: int | None


class PilotJson(TypedDict):
    """``pacbench pilot``; pilot.json holds all of it."""

    command: list[str]
    recommended: str
    """Label of the method."""
    method: str
    params: dict[str, Any]
    compress: bool
    """Whether that is more than an all-reduce."""
    sentence: str
    sureness: Literal["sure", "likely", "unsure"]
    reasons: list[str]
    changes: list[str]
    """What would change it."""
    break_even_bps: float | None
    """Rate of the links from which on an all-reduce is as soon as what compresses (predicted)."""
    methods: list[OutcomeJson]
    left_out: list[str]
    took_s: float
    written: str
    """The folder with pilot.html, pilot.json, recommended.toml and snippet.py."""


class CheckJson(TypedDict):
    """One thing that a recheck looked at again."""

    what: str
    answer: Literal["holds", "drifted", "cannot tell"]
    found: str


class RecheckJson(TypedDict):
    """``pacbench pilot --recheck``."""

    answer: Literal["holds", "drifted", "cannot tell"]
    exit_code: int
    checks: list[CheckJson]


class ExecutedLink(TypedDict):
    """What one direction of one link carried."""

    link: str
    direction: Literal["up", "down"]
    worker: int | None
    """None: a trunk."""
    rate_bps_asked: int | None
    """None: unshaped."""
    wire_bytes: int
    """Headers included."""
    payload_bytes: int
    mean_bps: float
    """On the wire, over the whole time."""
    packets: int
    drops: int
    most_backlog_bytes: int
    """The most that was seen waiting."""


class ExecutedWorker(TypedDict):
    """What the command was and took on one worker. None: the worker was lost, or ended before it told."""

    worker: str
    exit_codes: dict[str, int]
    """By rank, of those that ended; negative: the signal that ended it."""
    retransmits: int
    """TCP segments that it sent again."""
    cpu_s: float | None
    peak_memory_bytes: int | None


class ObservedTraining(TypedDict):
    """What was put into scripts, and seen there. Means are over ranks and steady steps; None: nobody looked."""

    method: str | None
    """None: DDP, as the script has it."""
    method_code: str | None
    """Hash of the code of a plug-in."""
    params: dict[str, Any]
    seed: int | None
    steps_asked: int | None
    steps: int
    """Steps that every rank has made."""
    shortfall: str | None
    """Why this is no training on all ranks; None: it is."""
    world_size: int | None
    device: str | None
    optimizer: str | None
    parameters: int | None
    buckets_bytes: list[int]
    steady_from_step: int | None
    step_s: float | None
    forward_s: float | None
    exposed_s: float | None
    """Communication, and decoding, that hid behind nothing. None also where it comes as a step ends."""
    encode_s: float | None
    decode_s: float | None
    first_loss: float | None
    last_loss: float | None
    formula: str | None
    """Method whose formula gives the bytes."""
    sent_bytes: float | None
    """Payload a step, by the counters of a rank's link."""
    formula_bytes: float | None


class ToldMetric(TypedDict):
    """A metric that the script told."""

    name: str
    times: int
    first: float | None
    """Null: no finite number."""
    last: float | None
    """Likewise."""


class ExecJson(TypedDict):
    """``pacbench exec``; exec.json holds all of it. What ranks print goes to stderr."""

    command: list[str]
    ending: Literal["finished", "failed", "timed out", "interrupted"]
    reason: str
    exit_code: int
    wall_time_s: float
    cluster: str
    workers: int
    per_node: int
    network: str
    """In words."""
    links: list[ExecutedLink]
    uses: list[ExecutedWorker]
    drift: list[str]
    """What of the links was not what was asked any more: then the figures cannot be trusted."""
    training: ObservedTraining | None
    metrics: list[ToldMetric]
    report: str
