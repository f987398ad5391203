"""The rows that a store keeps: a dataclass a table, the one place of each column, its type and its meaning.

The parquet schemas come from here, and so do the table of columns in results/README.md and the tooltips of reports. To
add a column, add a field to ``TrialRow`` and give it a value in ``harness/run/row.py``. What was stored before has null
there.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import pyarrow as pa
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated_dataclass
from typing_extensions import dataclass_transform

from harness.errors import short_repr
from harness.network.readings import LinkReading, Readings
from harness.plan.status import Status
from harness.scenario.target import Target

SCHEMA = 2
"""Version of what a store holds. Raise it where a reader of the version before would misunderstand what is stored; a
new column is no such change."""

T = TypeVar("T")

Int32 = Annotated[int, pa.int32(), Field(ge=-(2**31), lt=2**31)]
Int64 = Annotated[int, pa.int64(), Field(ge=-(2**63), lt=2**63)]

Finite = Annotated[float, pa.float64(), Field(allow_inf_nan=False)]
"""What may be negative: differences, and times of which what a machine added was taken off, which it is known too
roughly for at low dilations. A plain ``float`` may be anything."""
NotNegative = Annotated[float, pa.float64(), Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, pa.float64(), Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, pa.float64(), Field(ge=0, le=1, allow_inf_nan=False)]

ARROW_TYPES: dict[type, pa.DataType] = {str: pa.string(), int: pa.int64(), float: pa.float64()}


@dataclass_transform(kw_only_default=True, frozen_default=True)
def row(cls: type[T]) -> type[T]:
    """Make a class's annotated fields the columns of a table. A wrong type or an unknown name raises ``ValueError``."""
    config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)
    checked: Any = validated_dataclass(frozen=True, kw_only=True, config=config)(cls)
    return cast(type[T], checked)


@row
class TrialRow:
    """One attempt of one trial: what was asked, how it ended, what was measured. None becomes null: not known."""

    trial_id: str
    """Hash of all that makes two trials the same: case, method, seed, round, code, kind of cluster, image."""
    attempt: Int32
    """Number of this attempt, from 0. A trial that did not finish is attempted again."""
    scenario: str
    """Name of the scenario."""
    cluster: str
    """Kind of cluster."""
    method: str
    """Name of the method: its file in baselines/, or the plug-in's name."""
    label: str
    """Label of the method in the scenario."""
    params: str
    """Parameters of the method, as JSON."""
    model: str
    """Name of the model."""
    dataset: str
    """Data set; of a replay: whose times were waited for."""
    replay: str | None = None
    """Profile that was replayed; null: it trained for real."""
    pace: str | None = None
    """Profile whose times a real training kept; null: it took the time of this machine."""
    replay_source: str | None = None
    """Whether the profile that was replayed or kept was measured or modelled."""
    dilation: Positive | None = None
    """How many times slower everything ran than is told here, as the case asks; null: the run found it."""
    trial_dilation: Positive | None = None
    """How many times slower it really ran, in the steady state."""
    shrink: Int32 | None = None
    """How many times smaller than they are told a replay's tensors, buckets and links' rates were; null: it trained."""
    added_s_per_step: Finite | None = None
    """What this machine adds to a step, found by running slower, and taken off all times; null: not looked for."""
    workers: Int32
    """World size."""
    batch_size: Int32
    """Samples per worker and step."""
    training: str | None = None
    """What else was asked of the training, in words: optimizer, schedule, accumulation, autocast; null: plain SGD."""
    lr: NotNegative | None = None
    """Learning rate, which a schedule may lower."""
    rate_bps: Positive | None
    """Rate of the links that was asked for; null: unshaped."""
    delay_s: NotNegative
    """Delay of a link in one direction that was asked for."""
    loss: Fraction
    """Share of packets that links were asked to lose."""
    network: str = ""
    """What else was asked of links and topology, in words."""
    seed: Int64
    """Seed of weights and sample order."""
    round: Int32
    """Round of the run, from 0. Ratios are paired within a round."""
    purpose: str | None = None
    """Null: all that is told. ``accuracy``: one more seed, on unshaped links, for accuracy alone."""
    status: Status
    """How it ended: done, failed, crashed, diverged, timeout, interrupted or disturbed."""
    reason: str | None = None
    """Why it did not finish, or what disturbed it; of a trial that is done: at its last attempt, too."""
    steps: Int32 | None = None
    """Steps completed."""
    resumed_from_step: Int32 | None = None
    """Steps that earlier attempts had made when it went on from their last checkpoint; null: it began anew."""
    steady_from_step: Int32 | None = None
    """First step of the steady state, as the method declares it."""
    settling_steps: Int32 | None = None
    """Steps after the declared warm-up, or a resumption, that had not settled. They are left out of all times."""
    steady_steps: Int32 | None = None
    """Steps that were timed."""
    samples_per_s: Positive | None = None
    """Training throughput of all workers in the steady state; null: too few steps or too short a time."""
    step_time_median_s: Positive | None = None
    """Median time of a steady step on rank 0."""
    compute_s_per_step: Finite | None = None
    """Mean time of computation in a steady step, over ranks."""
    codec_s_per_step: Finite | None = None
    """Mean time of encoding and decoding together."""
    encode_s_per_step: Finite | None = None
    """Mean time of encoding."""
    decode_s_per_step: Finite | None = None
    """Mean time of decoding."""
    comm_s_per_step: Finite | None = None
    """Mean time of communication that nothing hides."""
    overrun_s_per_step: Finite | None = None
    """What this machine's slowness adds to a replayed step at most."""
    processor_s_per_step: Finite | None = None
    """Part of a step that takes as long as this machine's processor does."""
    far_out_steps: Int32 | None = None
    """Steps that took far longer than their like; null: the links are uneven themselves."""
    disturbed_share: NotNegative | None = None
    """Share of the training time that those steps took beyond the usual."""
    stolen_s: Finite | None = None
    """Time in the trial that other machines on the same host took from this one's CPUs, all together."""
    throttled_s: Finite | None = None
    """Time in the trial that the harness's cgroup and its parents were throttled, over all CPUs."""
    usable_cpus: Positive | None = None
    """CPUs that the harness might use, by affinity and by quotas of cgroups."""
    yardstick_s: NotNegative | None = None
    """Processor time of a fixed piece of work, mean of the trial's beginning and end; null: clocks are too coarse."""
    wire_bytes_per_step: Finite | None = None
    """Payload that a worker sent in a steady step, read from the kernel."""
    header_bytes_per_step: Finite | None = None
    """Packet headers that a worker sent in a steady step."""
    formula_bytes_per_step: NotNegative | None = None
    """Payload in a steady step by the method's formula."""
    lower_bound_s_per_step: Positive | None = None
    """Least time that those bytes need on the links; null: unshaped."""
    predicted_step_s: Positive | None = None
    """What a steady step was expected to take; null: there is no profile."""
    before_steady_s: Finite | None = None
    """Training time before the first timed step."""
    steady_s: Finite | None = None
    """Training time of all timed steps."""
    final_accuracy: Fraction | None = None
    """Share of the test set that the last evaluation found right."""
    final_loss: float | None = None
    """Mean cross entropy on the test set in the last evaluation, in nats."""
    final_perplexity: float | None = None
    """Perplexity in the last evaluation; null: no language."""
    target: str | None = None
    """Target of the scenario, such as ``accuracy 0.95``; null: none."""
    steps_to_target: NotNegative | None = None
    """Steps until the target was first reached, by a line between two evaluations; null: not reached."""
    time_to_target_s: NotNegative | None = None
    """Training time until then, evaluations excluded; null: not reached."""
    train_time_s: Finite | None = None
    """Training time of all steps, evaluations excluded."""
    evaluation_time_s: NotNegative | None = None
    """Time of all evaluations, and of checkpoints."""
    wall_time_s: NotNegative | None = None
    """Time of the whole trial as the harness saw it, verification included."""
    peak_memory_bytes: NotNegative | None = None
    """Most memory that any worker ever had resident, shared pages included."""
    own_memory_bytes: NotNegative | None = None
    """Most memory of any worker at the end, shared pages divided among those that share them."""
    held_memory_bytes: NotNegative | None = None
    """Most memory that the method held between steps on any worker: residuals, masks."""
    measured_rate_bps: NotNegative | None = None
    """Rate of the slowest direction of any link, measured before the trial."""
    measured_rtt_s: NotNegative | None = None
    """Median round trip between neighbours, measured before the trial."""
    links: str | None = None
    """Every link and direction, asked and measured, as JSON."""
    verified_before: str | None = None
    """All that was measured of the network before the trial, as JSON."""
    retransmits: NotNegative | None = None
    """TCP segments that all workers sent again."""
    transport_rtt_s: NotNegative | None = None
    """TCP's smoothed round trip at the end, queues included; median over workers."""
    cwnd_packets: NotNegative | None = None
    """TCP's congestion window at the end; median over workers."""
    queue_drops: NotNegative | None = None
    """Packets that all links dropped: for want of room, or because they were asked to."""
    queue_backlog_bytes: NotNegative | None = None
    """Most that was seen to wait in any link's queue."""
    fullest_queue: str | None = None
    """Link and direction of that queue."""
    parameter_hash: str | None = None
    """Hash of the trained parameters, the same on all ranks."""
    machine: str | None = None
    """Name of the machine that ran it."""
    claim: Int32 | None = None
    """Number of the claim by which a process took this round of its case; the last counts. Null: it was not shared."""
    commit: str | None = None
    """Commit of the code, with -dirty where files had changed."""
    code_digest: str | None = None
    """Hash of every Python file of harness/ and baselines/."""
    plugin_code: str | None = None
    """Hash of the code of each plug-in that took part, as JSON; null: all is pacbench's own."""
    image_digest: str | None = None
    """Digest of the workers' image; null: they ran in the harness's own environment."""
    cpuset: str | None = None
    """CPUs of each worker; null: any."""
    memory_limit_bytes: Positive | None = None
    """Memory limit of each worker; null: none."""
    device: str | None = None
    """Where workers computed: cpu or cuda."""
    peak_gpu_memory_bytes: NotNegative | None = None
    """Most memory that tensors had on a worker's GPU; null: on a CPU."""
    log_tail: str | None = None
    """Last lines that workers printed."""


@row
class VerificationRow:
    """What the links of an attempt were after it. It is known once the last trial on them has ended."""

    trial_id: str
    """Trial whose links they were."""
    attempt: Int32
    """Attempt whose links they were."""
    verified_after: str | None = None
    """All that was measured after the last trial on the same network, as JSON."""
    drift: str | None = None
    """What was out of tolerance then; null: nothing."""


class Event(NamedTuple):
    """One number that a worker reported. ``time_s`` is on the training clock, which evaluations pause."""

    rank: int
    step: int
    time_s: float
    kind: str
    value: float


def meanings(cls: type[Any]) -> dict[str, str]:
    """The columns of a table with what each means, in order."""
    return {name: info.description or "" for name, info in cls.__pydantic_fields__.items()}


@cache
def _columns() -> dict[str, TypeAdapter[Any]]:
    """What checks a value of each column of ``TrialRow``."""
    hints = get_type_hints(TrialRow, include_extras=True)
    return {name: TypeAdapter(hint, config=ConfigDict(strict=True)) for name, hint in hints.items()}


def check_value(column: str, value: object) -> None:
    """Refuse what a column of ``TrialRow`` cannot hold.

    Raises:
        ValueError: it says which, and why.
    """
    try:
        _columns()[column].validate_python(value)
    except ValidationError as error:
        raise ValueError(f"{column}: found {short_repr(value)}; {error.errors()[0]['msg']}") from None


FORMS: Mapping[str, Callable[[Any], object]] = {
    "target": Target.parse,
    "target_accuracy": lambda share: Target.parse(f"accuracy {share}"),  # as older rows have it
    "links": TypeAdapter(Annotated[tuple[LinkReading, ...], Field(min_length=1)]).validate_json,
    "verified_before": Readings.model_validate_json,
    "verified_after": Readings.model_validate_json,
}
"""What reads columns whose text has a form of its own."""


def check_form(column: str, value: object) -> None:
    """Refuse what is text, and not of the form that the column's has. What is null has none.

    Raises:
        ValueError: it says which.
    """
    if column in FORMS and value is not None:
        try:
            FORMS[column](value)
        except ValueError:
            raise ValueError(f"{column}: found {short_repr(value)}") from None


def arrow_schema(cls: type[Any]) -> pa.Schema:
    """The parquet schema of a table."""
    hints = get_type_hints(cls, include_extras=True)
    return pa.schema([(field.name, _arrow_type(hints[field.name])) for field in fields(cls)])


def _arrow_type(hint: Any) -> pa.DataType:
    """The type of a column; every column may be null."""
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (part for part in get_args(hint) if part is not type(None))
    if get_origin(hint) is Literal:
        return pa.string()
    return get_args(hint)[1] if get_origin(hint) is Annotated else ARROW_TYPES[hint]


TRIAL_SCHEMA = arrow_schema(TrialRow)
VERIFICATION_SCHEMA = arrow_schema(VerificationRow)
EVENT_SCHEMA = pa.schema(
    [
        ("trial_id", pa.string()),
        ("rank", pa.int32()),
        ("step", pa.int32()),
        ("time_s", pa.float64()),
        ("kind", pa.string()),
        ("value", pa.float64()),
    ]
)
