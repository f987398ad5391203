"""What a pilot found, as ``pilot.json`` holds it: the job, its gradients, predictions, trainings, and the verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator
from typing_extensions import Self

from harness.errors import UsageError, short_repr
from harness.files import read_given, write_whole
from harness.network.topology import Topology
from harness.scenario.schema import MethodSpec
from harness.scenario.section import Section, in_words
from harness.workload.profile import Profile

SCHEMA = 1
"""Version of the file. A field that changes its meaning makes a new one."""

FILE = "pilot.json"

Sureness = Literal["sure", "likely", "unsure"]

Finite = Annotated[float, Field(allow_inf_nan=False)]
Pace = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""Seconds of a step. A file of JSON may say 1e999, which no time is."""


class Fit(Section):
    """What a method makes of the job's own gradients; see ``attach.findings.Looked``."""

    method: MethodSpec
    refused: str | None
    """Why it cannot synchronise this training; None: it can."""
    nmse: float | None = None
    cosine: float | None = None
    progress: float | None = None
    codec_s: float | None = None
    """Seconds of a step for encoding and decoding, and for what it adds to the optimizer's."""
    held_bytes: int | None = None


class Job(Section):
    """The user's training as two observed workers on unshaped links had it."""

    profile: Profile
    """A step without a network, and the codec of every method."""
    between_s: float
    """From the end of a step to the next one's beginning: reading data, say."""
    bucket_bytes: int
    """At which DDP closes a bucket."""
    first_bucket_bytes: int | None = None
    """At which it closes the first one; None: as the others."""
    compute_s: tuple[Pace, ...] = Field(min_length=1)
    """What each timed step computed: forward and backward passes and the optimizer."""
    non_zero: float
    """Share of a gradient's entries that are not zero."""
    holding_90: float
    """The least share of the entries that holds 90 % of the squared norm."""
    holding_99: float
    fits: tuple[Fit, ...]
    overhead_s: Finite
    """What a command takes beside its steps: starting Python, and looking."""

    def fit(self, label: str) -> Fit:
        """That of a method."""
        return next(fit for fit in self.fits if fit.method.label == label)


class Predicted(Section):
    """A method's step on the pilot's network, by the step model."""

    label: str
    step_s: float
    rank_s: float | None
    """Seconds for as much progress as an exact step makes: by this the methods to be tested are chosen. None: it
    cannot run in this script."""
    knows_progress: bool = True
    """Whether its progress was seen; a method that synchronises parameters is taken to be exact."""


class Training(Section):
    """The script with a method, on the emulated network."""

    label: str
    method: MethodSpec
    seed: int
    steps: int
    pace_s: Pace
    """From the end of a step to the end of the next, the mean of the steady steps."""
    lead_s: Finite = 0.0
    """What the method's warm-up took longer than as many steady steps."""
    exposed_s: float | None
    """Communication, and decoding, that hid behind nothing, in a step. None: it comes at the step's end, where nobody
    times it apart."""
    compute_s: float
    """The rest of a step, without what lies between steps."""
    encode_s: float | None
    decode_s: float | None
    sent_bytes: float | None
    """Payload a step and rank, counted."""
    formula_bytes: float | None
    peak_memory_bytes: int | None
    """Of the worker that took most."""
    losses: tuple[float | None, ...]
    """By step, means over ranks."""
    wall_s: float
    """What the trial took here."""
    record: str
    """Folder of its own record, within the pilot's."""
    learnt_in: str | None = None
    """That of the same training on another network, whose losses these are, where only the pace was measured: its steps
    learnt bit for bit what that one's first ones did. None: its own."""

    def until_s(self, steps: int) -> float:
        """Seconds to the end of so many steps, the warm-up's among them."""
        return self.lead_s + steps * self.pace_s

    def steps_in(self, seconds: float) -> int:
        """Steps that have ended after so many seconds; one at least."""
        return max(1, int((seconds - self.lead_s) / self.pace_s))

    @property
    def has_learnt(self) -> bool:
        """Whether every loss is known and finite."""
        return all(loss is not None and abs(loss) < float("inf") for loss in self.losses)


class Interval(Section):
    """A mean over seeds with its interval of 95 %; one seed has none."""

    value: float
    low: float | None
    high: float | None
    n: int


class Outcome(Section):
    """What all trainings of a method show."""

    label: str
    method: MethodSpec
    seeds: int
    """With which dense has learnt, too; those that learnt the same count as one."""
    pace_s: Pace
    predicted_pace_s: Pace
    exposed_share: float | None
    """Of a step; None: see ``Training.exposed_s``."""
    end_loss: float | None
    """Mean of the last steps, over seeds."""
    loss_difference: Interval | None
    """At dense's number of steps, over dense's, as a share of it."""
    timely_difference: Interval | None
    """The same at equal time: when the first of all trainings is over."""
    keeps: Literal["yes", "no", "unknown"]
    steps_factor: float | None
    """Steps to dense's loss, within the tolerance, over those of dense; None where a seed did not come there."""
    time_to_loss_s: float | None
    tried_for: float | None = None
    """Of seeds that did not come there: the least time that one trained for, over what the sooner of dense and the
    16-bit all-reduce took until that loss. None: there is no such seed."""
    sooner: Interval | None
    """How many times sooner than the sooner of dense and the 16-bit all-reduce, by seeds with which both came there;
    than dense, where the other one never did."""
    codec_s: float
    held_bytes: int | None
    peak_memory_bytes: int | None


class Verdict(Section):
    """What is recommended."""

    label: str
    method: MethodSpec
    compress: bool
    """Whether that is more than an all-reduce, in 32 or 16 bits."""
    sentence: str
    sureness: Sureness
    reasons: tuple[str, ...]
    changes: tuple[str, ...]
    """What would change it."""
    break_even_bps: float | None
    """Rate of the links from which on an all-reduce is as soon as what compresses (predicted): the 16-bit one, or that
    which is recommended. None: at no rate that was looked at, or what is predicted of these links was not found."""


class Probe(Section):
    """A setting that was tried in search of the smallest that keeps the loss."""

    label: str
    parameter: str
    value: float
    difference: float | None
    """Of the loss at equal steps, as a share of dense's; None: it diverged."""
    within: bool


class Phase(Section):
    """A part of the roll-out, what is looked at in it, and the limit of each."""

    name: str
    what: str
    limits: tuple[tuple[str, str], ...]


class Pilot(Section):
    """See the module."""

    version: Annotated[int, Field(alias="schema", ge=1, le=SCHEMA)] = SCHEMA
    command: tuple[Annotated[str, Field(pattern=r"^[^\x00]*$")], ...] = Field(min_length=1)
    folder: Annotated[str, Field(pattern=r"^[^\x00]+$")]
    """In which it runs."""
    cluster: str
    """Kind of cluster that emulates."""
    network: Topology
    per_node: int = Field(1, ge=1)
    """Ranks behind each link."""
    tolerance: float = Field(ge=0)
    steps: int = Field(ge=1)
    """Of trainings with the all-reduce in 32 bits."""
    seeds: int = Field(ge=1)
    plain_label: str
    """Label of the all-reduce in 32 bits."""
    sixteen_label: str
    """Label of the 16-bit one."""
    job: Job
    predictions: tuple[Predicted, ...]
    trainings: tuple[Training, ...] = Field(min_length=1)
    beyond_s: float = 0.0
    """What a step that synchronises took beyond the step model, by the trainings with the plain all-reduces."""
    probes: tuple[Probe, ...] = ()
    outcomes: tuple[Outcome, ...] = Field(min_length=1)
    verdict: Verdict
    phases: tuple[Phase, ...]
    left_out: tuple[str, ...]
    """What had no room in the budget, or failed, a sentence each."""
    unsuited: str = ""
    """Which methods were not looked at, and why."""
    took_s: float
    provenance: dict[str, Any]

    @model_validator(mode="after")
    def _check(self) -> Self:
        """What a recheck looks up must be there."""
        fits, trained, shown = (
            {each.label for each in parts}
            for parts in ([fit.method for fit in self.job.fits], self.trainings, self.outcomes)
        )
        for field, label in (("plain_label", self.plain_label), ("sixteen_label", self.sixteen_label)):
            if label not in fits:
                raise ValueError(f"{field}: found {short_repr(label)}; allowed: a method of job.fits")
        if self.verdict.label not in fits & trained:
            raise ValueError(
                f"verdict.label: found {short_repr(self.verdict.label)}; allowed: a method of job.fits that was trained"
            )
        if lacking := {self.plain_label, self.verdict.label} - shown:
            raise ValueError(f"outcomes: found none of {min(lacking)!r}; allowed: one of each method that was trained")
        return self

    def outcome(self, label: str) -> Outcome | None:
        """That of a method; None where it was not trained."""
        return next((each for each in self.outcomes if each.label == label), None)

    def save(self, folder: Path) -> Path:
        """Write it; returns the file."""
        path = folder / FILE
        write_whole(path, self.model_dump_json(by_alias=True, indent=1))
        return path


def load(path: Path) -> Pilot:
    """Read a pilot's file.

    Raises:
        UsageError: there is none, or it is not one of this version's.
    """
    try:
        return Pilot.model_validate_json(read_given(path))
    except ValidationError as error:
        raise UsageError(f"{path}: not a pilot of this version: {in_words(error)}") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{path}: cannot be read: {error}") from None
