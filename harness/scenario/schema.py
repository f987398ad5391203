"""The one schema: what a scenario file may say, and what it means.

A scenario holds sections ``[cluster]``, ``[link]``, ``[fabric]``, ``[train]`` and a list ``[[methods]]``. Any field of
them may hold a list instead of one value; the scenario then stands for every combination. Everything is checked when it
is read: an unknown key, a wrong unit or a value out of range is a ``UsageError`` that names file, field, what was found
and what is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, field_validator, model_validator
from typing_extensions import Self

from harness.errors import short_repr
from harness.files import NAMES_IN_WORDS, is_name
from harness.methods import declared
from harness.scenario import limits
from harness.scenario.links import WAYS, Fabric, Link
from harness.scenario.optimisation import (
    ADAMW_DEFAULTS,
    MOST_LR,
    MOST_STEPS,
    NONE,
    AugmentField,
    AutocastField,
    Optimizer,
    OptimizerField,
    PretrainField,
    SavesField,
    Schedule,
    ScheduleField,
    none_or,
)
from harness.scenario.section import Section
from harness.scenario.target import Target
from harness.units import SizeBytes, TimeS

AUTO = "auto"

SELF = "self"
"""A ``train.pace``: the profile of this machine, which a run makes when it starts."""

SLOWED_TO = "slowed_to"
"""A key that methods had once. Runs of then are still read; no new file may have it."""

MOST_EMULATED, MOST_WORKERS = 128, 16_384
"""Workers that a run may have, and those of which a plan may predict what they would do."""

MOST_DILATION = 10_000
MOST_SHRINK = 64

MOST_CPUS = 8192
"""Linux's own limit."""

TOLERANCE = 0.02
"""What PacTrain's authors say that pruning may cost."""


class Resources(Section):
    """What each worker may use of the machine; None and the defaults leave it as it is."""

    cpuset: str | None = Field(None, pattern=r"^[0-9]+([-,][0-9]+)*(;[0-9]+([-,][0-9]+)*)*$")
    """CPUs, as taskset(1) takes them: one set for all workers, or several, parted by ``;``, that they take in turn."""
    memory_bytes: Annotated[Annotated[SizeBytes, Field(ge=50_000_000, le=10**14)] | None, Field(alias="memory")] = None
    """A worker that needs more is ended by the kernel."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where workers compute. On GPUs NCCL synchronises them, or Gloo, where there are fewer GPUs than workers."""

    @field_validator("cpuset")
    @classmethod
    def _check_cpuset(cls, given: str | None) -> str | None:
        for part in re.split("[,;]", given or ""):
            first, _, last = part.partition("-")
            if part and not int(first) <= int(last or first) < MOST_CPUS:
                raise ValueError(f"CPUs from 0 to {MOST_CPUS - 1}, and no range from a greater to a lesser one")
        return given

    def cpuset_of(self, worker: int) -> str | None:
        """The CPUs of one worker."""
        sets = self.cpuset.split(";") if self.cpuset else [None]
        return sets[worker % len(sets)]


NO_LIMITS = Resources.model_validate({})


class ClusterSpec(Resources):
    """Who takes part, and what each may use."""

    workers: int = Field(4, ge=2, le=MOST_WORKERS)
    """World size: each worker is one rank, with a link of its own. Beyond 128 there are predictions only: ``pacbench
    plan`` makes them, and nothing runs."""

    @property
    def resources(self) -> Resources:
        """The part that is not the network's."""
        return Resources.model_validate(self.model_dump(by_alias=True, include=set(Resources.model_fields)))


def _read_target(given: object) -> Target | None:
    if given is None or given == NONE:
        return None
    if isinstance(given, Target):
        return given
    try:
        return Target.parse(given)
    except ValueError as error:
        raise ValueError(f"{error}, or '{NONE}'") from None


NonEmpty = Annotated[str, Field(min_length=1)]

ProfileName = Annotated[NonEmpty | None, BeforeValidator(none_or)]


def _target_as_text(target: Target | None) -> str | None:
    return target and str(target)


def _read_dilation(given: object) -> float | None:
    if given is None or given == AUTO:
        return None
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 < given <= MOST_DILATION:
        raise ValueError(f"a number greater than 0, up to {MOST_DILATION}, or {AUTO!r}")
    return float(given)


def _dilation_as_text(dilation: float | None) -> float | str:
    return AUTO if dilation is None else dilation


def _read_timeout(given: object) -> object:
    return None if given == AUTO else given


def _timeout_as_text(timeout_s: float | None) -> str:
    return AUTO if timeout_s is None else f"{timeout_s!r}s"


Timeout = Annotated[
    Annotated[TimeS, Field(gt=0, le=7 * 24 * 3600)] | None,
    BeforeValidator(_read_timeout),
    PlainSerializer(_timeout_as_text),
]


def _read_shrink(given: object) -> int | None:
    if given is None or given == AUTO:
        return None
    if isinstance(given, bool) or not isinstance(given, int) or not 1 <= given <= MOST_SHRINK:
        raise ValueError(f"a whole number from 1 to {MOST_SHRINK}, or {AUTO!r}")
    return given


def _shrink_as_text(shrink: int | None) -> int | str:
    return AUTO if shrink is None else shrink


class Train(Section):
    """What each worker computes, and for how long."""

    model: str = "digits-cnn"
    """A name from ``pacbench list models``, or ``FILE.py:NAME``, whose path starts where the scenario's file lies."""
    dataset: str = "digits"
    """A name from ``pacbench list datasets``, or ``FILE.py:NAME``."""
    data_dir: NonEmpty | None = None
    """A folder that holds the data set; None looks in the usual places, then downloads."""
    checkpoint: NonEmpty | None = None
    """A file with the model's ``state_dict()``, by ``torch.save``, to start from; None draws weights by the seed."""
    replay: ProfileName = None
    """A profile, by name or file (``workload/profile.py``), whose times are waited for instead of computing: gradients
    are made up, nothing is learnt and no data set is read. ``NAME@50%`` is for who has half of its device. None, which
    files write ``none``, trains for real."""
    pace: ProfileName = None
    """A profile, by name or file: workers really train, and each part of a step takes as long as the profile's device
    would, so that this machine's processor decides nothing. ``self``: as it takes one worker that has a core of this
    machine to itself, measured when a run starts. None, which files write ``none``, takes the time that it takes here.
    """
    dilation: Annotated[float | None, BeforeValidator(_read_dilation), PlainSerializer(_dilation_as_text)] = None
    """With ``pace`` or ``replay``: links, delays and the profile's device are so many times slower than what is said
    here, and all times are divided by it before they are told. So a machine can carry rates that are beyond it. Below 1
    all is faster than real time, on links without delay or loss. None, which files write ``auto``: the run finds the
    least one for each method, by steps that run slower still, or by short trials (``run/dilation.py``); where time
    cannot be dilated it is 1."""
    most_added: float = Field(0.05, ge=0.01, le=0.2)
    """Where a run finds dilations: share of a step that this machine may add to it. It is measured, to a fifth of this
    or 1 % of the step, and taken off. The more it may be, the sooner a run is done, and the wider its intervals are."""
    gradient_density: float = Field(1.0, ge=1e-6, le=1)
    """Replays only: the share of a gradient's entries that are not zero."""
    gradient_overlap: Literal["random", "full"] = "random"
    """Replays only: whether each worker has a gradient of its own, or all have the same one."""
    shrink: Annotated[int | None, BeforeValidator(_read_shrink), PlainSerializer(_shrink_as_text)] = 1
    """Replays only: tensors, DDP's buckets and the links' rates are so many times smaller, so that all times stay what
    they are, and bytes are multiplied before they are told. A machine carries larger models so, and sooner. Refused for
    methods whose bytes do not shrink with their tensors. At most 64. None, which files write ``auto``: as small for
    each method as leaves its predicted step as it is, within 2.5 % (``plan/expected.py``)."""
    steps: int = Field(100, ge=4, le=MOST_STEPS)
    """The cap: every trial goes on to it, whether it has reached the target or not, so that final accuracies are those
    of the same step."""
    batch_size: int = Field(32, ge=1, le=1_000_000)
    """Samples per worker and forward pass."""
    accumulate: int = Field(1, ge=1, le=10_000)
    """Forward and backward passes of each worker in a step. Gradients travel in the last one, as their mean."""
    augment: AugmentField = None
    """``crop-flip``: images are padded by 4, cropped at random, and half of them mirrored, by seed, rank and step."""
    optimizer: OptimizerField = Optimizer.model_validate({})
    """``sgd``, ``nesterov`` or ``adamw``; or a table with ``name``, and AdamW's ``betas`` and ``eps``."""
    lr: float = Field(0.05, gt=0, le=MOST_LR)
    """Learning rate; 0.001 with AdamW. A method's own ``lr`` comes before it."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD; 0 with AdamW, which has its betas."""
    weight_decay: float = Field(5e-4, ge=0, le=100)
    """Weight decay: of SGD a part of the gradient, of AdamW decoupled from it, and 0.01 there."""
    schedule: ScheduleField = Schedule.model_validate({})
    """``constant``, ``cosine`` or ``step``; or a table with ``kind``, ``warmup_steps``, ``decay_every``, ``decay``."""
    autocast: AutocastField = None
    """``bf16``: forward passes under ``torch.autocast``; weights and gradients stay fp32. None, which
    files write ``none``, computes in fp32."""
    pretrain: PretrainField = None
    """A table with ``steps`` and ``lr``: a dense training, once for each seed and off the clock, that all methods start
    from. None, which files write ``none``: from ``checkpoint``, or from weights drawn by the seed."""
    save_every: SavesField = None
    """Steps between checkpoints, which pause the training clock. A trial that is interrupted goes on from its last one
    when the same command is started again, to the last bit. None, which files write ``none``: it starts anew."""
    eval_every: int = Field(10, ge=1, le=MOST_STEPS)
    """Steps between evaluations on the test set, which pause the training clock."""
    target: Annotated[Target | None, BeforeValidator(_read_target), PlainSerializer(_target_as_text)] = None
    """How good the model must be: ``accuracy 95%``, ``loss 0.35``, ``perplexity 12``. The time is read at the first
    crossing, between two evaluations by a line. None, which files write ``none``: no time to target is told."""
    bucket_bytes: Annotated[SizeBytes, Field(alias="bucket", ge=1000, le=100_000_000_000)] = 25_000_000
    """DDP's bucket size."""
    timeout_s: Annotated[Timeout, Field(alias="timeout")] = None
    """A trial that takes longer is ended and recorded as ``timeout``; one that runs slower may take as much longer.
    None, which files write ``auto``: three times as long as is planned, or thirty times where links lose packets; and
    five minutes at least."""

    @property
    def samples_per_step(self) -> int:
        """Samples of a worker in a step of the optimizer."""
        return self.batch_size * self.accumulate

    @property
    def sent_bucket_bytes(self) -> int:
        """DDP's bucket size where tensors are smaller than they are told."""
        return round(self.bucket_bytes / self.times_smaller)

    @property
    def times_smaller(self) -> int:
        """``shrink``, as a trial's own settings have it: theirs is a number."""
        assert self.shrink is not None, "see plan/expected.py"
        return self.shrink

    @property
    def profile(self) -> str | None:
        """The profile by which time is kept; None where this machine's own processor keeps it."""
        return self.replay or self.pace

    @property
    def known_profile(self) -> str | None:
        """Likewise, where there is one before a run starts."""
        return None if self.profile == SELF else self.profile

    @model_validator(mode="before")
    @classmethod
    def _read_older_files(cls, given: Any) -> Any:
        """Files written before there were other targets say ``target_accuracy = 0.95``. A replay's meant nothing."""
        if not isinstance(given, Mapping) or "target_accuracy" not in given or "target" in given:
            return given
        rest = {name: value for name, value in given.items() if name != "target_accuracy"}
        return rest if given.get("replay") else {**rest, "target": f"accuracy {given['target_accuracy']}"}

    @model_validator(mode="before")
    @classmethod
    def _as_the_optimizer_has_it(cls, given: Any) -> Any:
        """What is not said of AdamW is torch's default for it."""
        optimizer = given.get("optimizer") if isinstance(given, Mapping) else None
        name = optimizer.get("name") if isinstance(optimizer, Mapping) else optimizer
        return {**ADAMW_DEFAULTS, **given} if name == "adamw" else given

    @model_validator(mode="after")
    def _check_optimizer(self) -> Self:
        if self.optimizer.name == "adamw" and self.momentum:
            raise ValueError(f"momentum: found {self.momentum:g}; allowed: 0 with adamw, which has betas")
        if self.optimizer.name == "nesterov" and not self.momentum:
            raise ValueError("momentum: found 0; allowed: above 0 with nesterov")
        if self.schedule.warmup_steps >= self.steps:
            found = self.schedule.warmup_steps
            raise ValueError(f"schedule.warmup_steps: found {found}; allowed: fewer than train.steps, {self.steps}")
        return self


OWN_SETTINGS = ("lr", "optimizer")
"""What a method may have of its own, of the settings in ``[train]``."""


class MethodSpec(Section):
    """A method with its parameters, and the label that tells it from its siblings."""

    name: str
    """A name from ``pacbench list methods``, or ``FILE.py:NAME``."""
    label: str = Field(min_length=1, max_length=200)
    """What tables and figures call it. Without one it is the name, and what tells it from others of that name."""
    params: dict[str, Any] = Field(default_factory=dict)
    lr: float | None = Field(None, gt=0, le=MOST_LR)
    """Learning rate of this method; None takes ``train.lr``."""
    optimizer: OptimizerField | None = None
    """Optimizer of this method, for one that brings Adam's or Muon's arithmetic with it and needs plain SGD under it;
    None takes ``train.optimizer``."""

    @model_validator(mode="before")
    @classmethod
    def _read_older_files(cls, given: Any) -> Any:
        """A method could once say ``slowed_to``. What runs of then really did stands in their rows, as ``dilation``."""
        return {key: given[key] for key in given if key != SLOWED_TO} if isinstance(given, Mapping) else given

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    def settings(self, train: Train) -> Train:
        """What it trains with: the settings of all, but for its own."""
        own = {key: getattr(self, key) for key in OWN_SETTINGS}
        return train.model_copy(update={key: value for key, value in own.items() if value is not None})


DENSE = MethodSpec(name="dense", label="dense", lr=None)
"""What DDP does by itself."""


def _is_sixteen_bit(name: str) -> bool:
    """Whether a method declares itself a plain all-reduce in 16 bits; one that is no longer there does not."""
    found = declared(name)
    return found is not None and found.State.is_sixteen_bit


class Case(Section):
    """One concrete combination of the sections."""

    cluster: ClusterSpec
    link: Link
    fabric: Fabric = Fabric.model_validate({})
    train: Train

    @model_validator(mode="after")
    def _check(self) -> Self:
        if complaint := limits.complaint(self.link, self.fabric, self.cluster.workers):
            raise ValueError(complaint)
        names = {f"w{worker}" for worker in range(self.cluster.workers)}
        if unknown_workers := [name for name in self.link.workers if name not in names]:
            raise ValueError(f"link.workers: found {short_repr(unknown_workers[0])}; allowed: w0 to w{len(names) - 1}")
        if len(self.fabric.names) > len(names):
            found, most = short_repr(self.fabric.groups), len(names)
            raise ValueError(f"fabric.groups: found {found}; allowed: at most {most}, the workers")
        if self.train.dilation not in (None, 1.0) and not self.can_be_dilated:
            where = "where links are unshaped" if self.train.profile else "without train.pace or train.replay"
            raise ValueError(f"train.dilation: found {self.train.dilation:g}; allowed: 1 {where}")
        if (shrink := self.train.shrink or 1) > 1:
            self._check_shrink(shrink)
        return self

    def _check_shrink(self, shrink: int) -> None:
        """Only links with a rate shrink with a replay's tensors, and they must still let a frame pass."""
        if not self.can_shrink:
            where = "where links are unshaped" if self.train.replay else "without train.replay: what learns is whole"
            raise ValueError(f"train.shrink: found {shrink}; allowed: 1 {where}")
        if complaint := self.complaint_of_thinner_links(shrink):
            raise ValueError(f"train.shrink: found {shrink}; allowed: less, since links would have {complaint}")

    @property
    def can_shrink(self) -> bool:
        """Whether its tensors are made up, and all links have a rate that can be less."""
        return self.train.replay is not None and self.can_be_dilated

    def complaint_of_thinner_links(self, shrink: int) -> str | None:
        """Why links could not be so many times thinner; None: they could."""
        link, fabric = self.link.slowed(1.0, shrink), self.fabric.slowed(1.0, shrink)
        return limits.complaint(link, fabric, self.cluster.workers)

    @property
    def can_be_emulated(self) -> bool:
        """Whether a run may have so many workers, and not only a prediction."""
        return self.cluster.workers <= MOST_EMULATED

    @property
    def can_be_dilated(self) -> bool:
        """Whether a profile keeps the time, and all links have a rate: what has none is as fast as this machine."""
        rates = [self.link.pipe("", way).rate_bps for way in WAYS]
        return self.train.profile is not None and None not in rates

    @property
    def chooses_dilation(self) -> bool:
        """Whether a run has to find the dilation of its trials."""
        return self.train.dilation is None and self.can_be_dilated


def _check_name(name: str) -> str:
    if not is_name(name):
        raise ValueError(NAMES_IN_WORDS)
    return name


class Scenario(Section):
    """A scenario as the rest of pacbench sees it: concrete cases, concrete methods, no lists left to expand."""

    name: Annotated[str, AfterValidator(_check_name)]
    """What lists and folders call it; the file's name, unless it is given."""
    description: str = ""
    """The question that it answers, in one line."""
    rounds: int = Field(5, ge=1, le=1000)
    """How often every method is trained, each time with the next seed."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of the first round."""
    baseline: str = "dense"
    """The label of the method that speedups are ratios to, and whose final accuracy the others must keep."""
    baseline_16bit: str | None = None
    """The label of the 16-bit all-reduce that speedups are told over first; None takes the first, by its
    method's name, of those whose files declare them as plain all-reduces in 16 bits."""
    tolerance: float = Field(TOLERANCE, ge=0, lt=1)
    """By how much a final accuracy may be worse than the baseline's: absolute, 0.02 being two points; of a loss or a
    perplexity relative."""
    tuned: str | None = None
    """By which command, and at which cost for each method, learning rates were found; None: they were not tuned."""
    accuracy_seeds: int = Field(0, ge=0, le=64)
    """Where the rounds (three at least) leave it unknown whether a method keeps accuracy, more seeds are trained for
    that alone, on unshaped links, so many in all. 0: the rounds must do."""
    cases: tuple[Case, ...]
    methods: tuple[MethodSpec, ...]

    @classmethod
    def keys_in_files(cls) -> list[str]:
        """Files have the sections of a case instead of cases, which are what their lists stand for."""
        return [key for key in super().keys_in_files() if key != "cases"] + list(Case.model_fields)

    def is_same_run(self, other: Scenario) -> bool:
        """Whether a run of the other goes on as one of this: more seeds for accuracy change nothing that was run."""
        return self.model_copy(update={"accuracy_seeds": other.accuracy_seeds}) == other

    @property
    def sixteen_bit(self) -> str | None:
        """The label of the 16-bit baseline; None where the scenario has none."""
        if self.baseline_16bit:
            return self.baseline_16bit
        plain = [method for method in self.methods if _is_sixteen_bit(method.name)]
        return min(plain, key=lambda method: method.name).label if plain else None

    @property
    def baselines(self) -> tuple[str, ...]:
        """The labels that speedups are told over: the 16-bit all-reduce first, if there is one, then the baseline."""
        return tuple(dict.fromkeys([*([self.sixteen_bit] if self.sixteen_bit else []), self.baseline]))
