"""Shapes of what verbs print about runs: planned, done, compared, held against a reference, predicted."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import TypedDict


class Interval(TypedDict):
    """A mean and its 95 % interval."""

    value: float
    low: float | None
    """None: of a single round nothing is known."""
    high: float | None
    n: int
    """Rounds."""


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
    """Payload of the mean worker, by the method's formula."""
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
    """Of a run that processes share."""
    is_locked: bool
    """Whether one process is at work that shares it with nobody."""
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
    """Whether the model is as good as the baseline's, by that interval, which is of 95 % over all looks at seeds."""


class RunJson(TypedDict):
    """``pacbench run`` (a list, one a scenario), ``pacbench worker`` and ``pacbench report``."""

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


class GateNoise(TypedDict):
    """How much a machine's figures differ when nothing has changed."""

    sd: float
    """Of the logarithm of a round's speedup."""
    pairs: int
    """Pairs of trials of one method, of which that is known."""


class GateSide(TypedDict):
    """A run that is held against another."""

    where: str
    commits: list[str]
    made_by: str
    """The version and the digest of the code, and the commit, in words."""
    machine: str
    noise: GateNoise | None
    trials: dict[str, int]
    """How many ended in which way."""


class Slowdown(TypedDict):
    """The share by which a step takes longer than in the reference; negative: it is faster."""

    value: float
    low: float | None
    high: float | None


class GatedMethod(TypedDict):
    """The verdict on one method."""

    case: str
    label: str
    verdict: Literal["pass", "regression", "inconclusive", "failed"]
    reason: str
    computing: float
    """How much longer the machine surely computes than in the reference; 1: no difference seen."""
    slowdown: Slowdown | None
    speedup_reference: Interval | None
    speedup: Interval | None
    unfinished: list[str]


class GateJson(TypedDict):
    """What ``pacbench gate --json FILE`` writes into the file."""

    verdict: Literal["pass", "regression", "inconclusive", "failed"]
    exit_code: int
    scenario: str
    max_slowdown: float
    """As a share."""
    run: GateSide
    reference: GateSide
    notes: list[str]
    methods: list[GatedMethod]


class ReferenceJson(TypedDict):
    """``pacbench reference``."""

    reference: str
    """The file."""
    run: RunJson
    """The run that it was made of."""


class ReproduceJson(TypedDict):
    """``pacbench reproduce``; claims.json holds the same."""

    provenance: dict[str, Any]
    """Who judged, by which code, and the ``runs``; ``differs`` says of runs of other settings than the scenario's which
    these are."""
    claims: list[dict[str, Any]]
    """Each as claims.toml has it, with ``verdict``, ``found``, ``by_device`` (the verdict with each share of the
    source's device), ``reason``, ``decides`` (what would, where it is open), ``explanation``, ``origins`` and
    ``in_one_piece``: of a time to accuracy what was measured beside the product, with ``found``, ``over_product`` and
    ``answer`` (differs, the same, unknown)."""


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
