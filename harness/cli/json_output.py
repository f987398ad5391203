"""What verbs print with ``--json``: one shape a verb. ``pacbench list json -v`` describes them; JSON.md is that.

Fields may be added; none changes its meaning or goes without a line in CHANGELOG.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from typing import Any, Literal, Union

from typing_extensions import TypedDict


class Interval(TypedDict):
    """A mean and its 95 % interval."""

    value: float
    low: float | None
    """None: of a single round nothing is known."""
    high: float | None
    n: int
    """Rounds."""


class Named(TypedDict):
    """What can be named."""

    name: str
    summary: str


class PlannedTrial(TypedDict):
    """A trial before it runs."""

    trial_id: str
    round: int
    seed: int
    method: str
    label: str
    params: dict[str, Any]
    workers: int
    rate_bps: float | None
    """None: links are unshaped."""
    model: str
    steps: int
    wire_bytes_per_step: float
    """On the busiest link, by the method's formula."""
    lower_bound_s_per_step: float
    time_s: float | None
    """What it may take on this machine; None: it can only be predicted."""
    predicted_step_s: float | None
    """None: no profile tells what is computed."""
    memory_bytes: float | None


class PlanJson(TypedDict):
    """``pacbench plan``."""

    scenario: str
    trials: list[PlannedTrial]
    total_s: float | None
    more_seeds: int
    """Trials for accuracy alone that may follow, at most."""


class AtWork(TypedDict):
    """A process that takes part in a run."""

    machine: str
    pid: int
    part: str
    """The round and case that it runs."""
    age_s: float
    """Since it was last heard of."""


class StatusJson(TypedDict):
    """``pacbench status``."""

    trials: int
    done: int
    failed: int
    """Those whose last attempt did not finish."""
    at_work: list[AtWork]
    left_s: float | None
    """None: nobody goes on, or no trial has told yet."""


class TriedRate(TypedDict):
    """A learning rate and how well it did."""

    lr: float
    score: float | None
    """The mean over seeds of the metric that the target is about; None: a training diverged."""


class TunedMethod(TypedDict):
    """What was found of one method."""

    label: str
    best_lr: float
    at_edge: bool
    """Whether a rate beyond those that were tried may be better."""
    tried: list[TriedRate]


class TuneJson(TypedDict):
    """``pacbench tune``."""

    scenario: str
    tuned: str
    """Command and budget, as the written scenario tells them."""
    methods: list[TunedMethod]
    written: str


class MethodSummary(TypedDict):
    """What a run says of one method in one case."""

    case: str
    label: str
    trials: int
    done: int
    samples_per_s: Interval | None
    over: dict[str, Interval | None]
    """Throughput over each baseline, by label."""
    sooner: dict[str, Interval | None]
    """How many times sooner the target is reached than with each baseline."""
    final: float | None
    """The metric that the target is about, at the end."""
    metric: str
    difference: Interval | None
    """``final`` less the baseline's: of accuracies in shares of all samples, else as a share of the baseline's."""
    keeps: str
    """Whether the model is as good as the baseline's, as the report says it."""


class RunJson(TypedDict):
    """``pacbench run`` (a list, one a scenario) and ``pacbench report``."""

    scenario: str
    folder: str
    report: str
    methods: list[MethodSummary]
    sentences: list[str]
    """What the report says first of each case."""


class ChangeJson(TypedDict):
    """How a method differs between two runs. Ratios are of the second to the first."""

    case: str
    label: str
    kind: str
    """What of it can be told."""
    problem: str
    """Why nothing can be said of the speedup, where that is so."""
    speedup: Interval | None
    samples_per_s: Interval | None
    final_accuracy: Interval | None
    bytes_ratio: float | None
    computing: float
    """How much longer the machine surely computes in the second; 1: no difference seen."""
    unfinished: list[str]


class CompareJson(TypedDict):
    """``pacbench compare``, of runs on the same kind of cluster."""

    exit_code: int
    before: str
    after: str
    changes: list[ChangeJson]


class ReproduceJson(TypedDict):
    """``pacbench reproduce``; claims.json holds the same."""

    provenance: dict[str, Any]
    claims: list[dict[str, Any]]
    """Each as claims.toml has it, with ``verdict``, ``found``, ``by_device`` (the verdict with each share of the
    source's device), ``reason``, ``decides`` (what would, where it is open), ``explanation`` and ``origins``."""


class Share(TypedDict):
    """In how much of the grid a method's step is shorter than that of the 16-bit all-reduce."""

    profile: str
    model: str
    base: str
    """The 16-bit all-reduce's label."""
    label: str
    share: float


class MapJson(TypedDict):
    """``pacbench map``."""

    cells: int
    """Networks in the grid."""
    shares: list[Share]
    page: str


class ProbedLink(TypedDict):
    """One direction of one link. Rates are on the wire, headers included."""

    worker: int | None
    """None: a trunk."""
    link: str
    direction: Literal["up", "down"]
    rate_bps_asked: int | None
    rate_bps_measured: float
    loss_asked: float
    counts: dict[str, Any] | None
    """Packets that were sent, came, came twice, and so on; only where some are lost or disturbed on purpose."""
    complaints: list[str]


class ProbedRoundTrip(TypedDict):
    """An idle link, there and back."""

    link: str
    rtt_s_asked: float
    rtt_s_measured: float
    jitter_s_asked: float
    jitter_s_measured: float
    complaints: list[str]


class ProbeJson(TypedDict):
    """``pacbench probe``."""

    workers: int
    links: list[ProbedLink]
    round_trips: list[ProbedRoundTrip]
    rtt_s: dict[str, Any]
    """``median``, and ``pairs``: between each pair of neighbours."""
    all_reduce: dict[str, float | None]
    """``bytes``, ``seconds``, ``ratio_to_ring_bound``."""
    bring_up_s: float
    verification_s: float


class Percentiles(TypedDict):
    """How something varies."""

    low: float
    """The 5th."""
    median: float
    high: float
    """The 95th."""


class PathWay(TypedDict):
    """One direction of a path between two hosts: up to the server, or down from it."""

    rate_bps: Percentiles
    """On the wire, headers included, once it is steady."""
    by_datagrams: bool
    """Whether the rate is that at which datagrams arrive when more are sent."""
    tcp_bps: float
    """What one TCP flow gets."""
    jitter_s: float | None
    counts: dict[str, Any] | None
    """What became of datagrams well below the rate."""


class PathRound(TypedDict):
    """One of several equal looks at the path."""

    at_s: float
    rtt_s: float | None
    up_bps: float
    down_bps: float
    up_lost: float | None
    """The share of packets that were lost."""
    down_lost: float | None


class PathSample(TypedDict):
    """The rate of a moment of the trace."""

    t_s: float
    rate_bps: float


class LinkJson(TypedDict):
    """``pacbench link HOST``."""

    host: str
    port: int
    ip_version: int
    began_at: str
    """In ISO 8601, UTC."""
    took_s: float
    mtu_bytes: int
    rtt_s: Percentiles | None
    jitter_s: float | None
    """The deviation of the round trip over the idle path."""
    up: PathWay
    down: PathWay
    rounds: list[PathRound]
    traced: Literal["up", "down"] | None
    """The way whose rate was followed, if one was."""
    trace: list[PathSample]
    notes: list[str]
    """Why something could not be measured."""


class OutcomeJson(TypedDict):
    """What a pilot's trainings with one method show."""

    label: str
    seeds: int
    pace_s: float
    """From the end of a step to the end of the next."""
    predicted_pace_s: float
    exposed_share: float
    """Share of a step that is communication, and decoding, which hides behind nothing."""
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
    """How many times sooner it is there than the faster of dense and the 16-bit all-reduce."""
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
    """Rate of the links from which on the 16-bit all-reduce is as soon there."""
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


class CalibratedLink(TypedDict):
    """A link's reading that is farthest from what was asked."""

    asked: str
    where: str
    rate_error: float | None
    """Relative to the rate."""
    rtt_s_asked: float | None
    rtt_s_measured: float | None
    loss_asked: float | None
    loss_measured: float | None
    counted: int | None
    times: int
    complaints: list[str]
    ok: bool


class Examined(TypedDict):
    """Something that pacbench needs or can use."""

    name: str
    ok: bool
    needed: bool
    found: str
    fix: str


class DoctorJson(TypedDict):
    """``pacbench doctor``."""

    able: bool
    checks: list[Examined]


SHAPES: Mapping[str, Any] = {
    "list": dict[str, list[Named]],
    "plan": PlanJson,
    "run": list[RunJson],
    "status": StatusJson,
    "tune": TuneJson,
    "report": RunJson,
    "compare": CompareJson,
    "reproduce": ReproduceJson,
    "map": MapJson,
    "pilot": Union[PilotJson, RecheckJson],  # noqa: UP007  # classes of TypedDict know no bar in Python 3.10
    "link": LinkJson,
    "probe": ProbeJson,
    "calibrate": list[CalibratedLink],
    "doctor": DoctorJson,
}
"""What each verb prints; ``gate --json FILE`` writes a file, which results/README.md describes."""


def words_aside(as_json: bool) -> AbstractContextManager[object]:
    """In which words go to stderr, where JSON alone is asked for on stdout."""
    return redirect_stdout(sys.stderr) if as_json else nullcontext()


def print_json(value: object) -> None:
    """Print it. Numbers that JSON does not have become null."""
    print(json.dumps(_finite(value), indent=1, ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value
