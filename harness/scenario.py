"""The one schema: what a scenario file may say, and what it means.

A scenario holds sections ``[cluster]``, ``[link]``, ``[fabric]``, ``[train]`` and a list ``[[methods]]``. Any field of
them may hold a list instead of one value; the scenario then stands for every combination. Everything is checked when it
is read: an unknown key, a wrong unit or a value out of range is a ``UsageError`` that names file, field, what was found
and what is allowed.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
    model_serializer,
    model_validator,
)
from typing_extensions import Self

from harness.errors import UsageError
from harness.target import Target
from harness.units import RateBps, Share, SizeBytes, TimeS, format_time, parse_rate_bps

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

UNSHAPED = "unshaped"

SIXTEEN_BIT_METHODS = ("bf16", "fp16")
"""Plain all-reduces in 16 bits: what anyone has for one line of code, and so what a method must beat. The first that a
scenario has is its 16-bit baseline, unless it says otherwise."""

NO_TARGET = "none"

TOLERANCE = 0.02
"""What PacTrain's authors say that pruning may cost."""


def _rate_or_unshaped(given: object) -> int | None:
    if given in (UNSHAPED, None):
        return None
    try:
        return parse_rate_bps(given)
    except ValueError as error:
        raise ValueError(f"{error}, or '{UNSHAPED}'") from None


RateOrUnshaped = Annotated[
    int | None,
    BeforeValidator(_rate_or_unshaped),
    PlainSerializer(lambda bps: UNSHAPED if bps is None else f"{bps}bit"),
]


class Section(BaseModel):
    """A part of a scenario: strict and immutable. Keys in files are the fields' names without their unit."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


SectionT = TypeVar("SectionT", bound=Section)


class Resources(Section):
    """What each worker may use of the machine; None and the defaults leave it as it is."""

    cpuset: str | None = Field(None, pattern=r"^[0-9]+([-,][0-9]+)*(;[0-9]+([-,][0-9]+)*)*$")
    """CPUs, as taskset(1) takes them: one set for all workers, or several, parted by ``;``, that they take in turn."""
    memory_bytes: Annotated[SizeBytes | None, Field(alias="memory")] = None
    """A worker that needs more is ended by the kernel."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where workers compute. On GPUs NCCL synchronises them, or Gloo, where there are fewer GPUs than workers."""

    def cpuset_of(self, worker: int) -> str | None:
        """The CPUs of one worker."""
        sets = self.cpuset.split(";") if self.cpuset else [None]
        return sets[worker % len(sets)]


GLOO = "gloo"
BACKEND_VARIABLE = "PACBENCH_BACKEND"
"""Which collectives training uses: whoever gives out GPUs knows whether each worker has its own, as NCCL asks."""

NO_LIMITS = Resources.model_validate({})


class Cluster(Resources):
    """Who takes part, and what each may use."""

    workers: int = Field(4, ge=2, le=128)

    @property
    def resources(self) -> Resources:
        """The part that is not the network's."""
        return Resources.model_validate(self.model_dump(by_alias=True, include=set(Resources.model_fields)))


class GilbertElliott(Section):
    """Loss that comes in bursts: a chain that steps once a packet between a good and a bad state, each with its loss.

    E. N. Gilbert, Bell Syst. Tech. J. 39 (1960); E. O. Elliott, ibid. 42 (1963); ``loss gemodel`` of tc-netem(8).
    """

    p: Share
    """From good to bad, a packet."""
    r: Share
    """From bad to good, a packet: left alone, a burst is 1 / r packets long."""
    loss_bad: Share = 1.0
    loss_good: Share = 0.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not (self.p > 0 and self.r > 0):
            raise ValueError("p and r above 0: a state that is never left is no burst")
        return self

    @property
    def bad_share(self) -> float:
        """The share of packets that meet the bad state."""
        return self.p / (self.p + self.r)

    @property
    def mean_loss(self) -> float:
        """The share of packets that are lost."""
        return self.bad_share * self.loss_bad + (1 - self.bad_share) * self.loss_good


class Pipe(Section):
    """One direction of a link: what happens to a packet between two neighbours."""

    rate_bps: Annotated[RateOrUnshaped, Field(alias="rate")] = 100_000_000
    """Bits per second on the wire, headers included; None leaves the direction unshaped."""
    burst_bytes: Annotated[SizeBytes | None, Field(alias="burst")] = None
    """The token bucket's size; None chooses one that neither stalls the rate nor hides it."""
    queue_bytes: Annotated[SizeBytes | None, Field(alias="queue")] = None
    """What may wait for the rate before packets are dropped; None lets 0.3 s of the rate wait."""
    delay_s: Annotated[TimeS, Field(alias="delay")] = 0.0
    """On the way in this direction. Two workers of a star are two links apart: their round trip takes it four times."""
    jitter_s: Annotated[TimeS, Field(alias="jitter")] = 0.0
    """The standard deviation of the delay (half its width, where the distribution is uniform); packets stay in order
    where there is a rate."""
    jitter_distribution: Literal["normal", "uniform", "pareto", "paretonormal"] = "normal"
    jitter_correlation: Share = 0.0
    """How much of a packet's delay is its predecessor's."""
    loss: Share = 0.0
    """Of packets, each by itself."""
    loss_bursts: GilbertElliott | None = None
    duplicate: Share = 0.0
    corrupt: Share = 0.0
    """Of packets, which get one wrong bit."""
    reorder: Share = 0.0
    """Of packets, which overtake those that wait for their delay."""

    @property
    def mean_loss(self) -> float:
        """The share of packets that are lost on purpose."""
        return self.loss_bursts.mean_loss if self.loss_bursts else self.loss

    @property
    def disturbs(self) -> bool:
        """Whether single packets are lost, doubled, damaged or out of turn."""
        return self.mean_loss + self.duplicate + self.corrupt + self.reorder > 0

    @property
    def needs_netem(self) -> bool:
        """Whether the kernel must have netem, since this is more than a rate."""
        return self.delay_s + self.jitter_s > 0 or self.disturbs

    def changed_by(self, *changes: Pipe | None) -> Pipe:
        """This one with the fields that were set in each change, the last of them in force."""
        values = {
            name: getattr(change, name)
            for change in changes
            if change
            for name in change.model_fields_set & Pipe.model_fields.keys()
        }
        return Pipe.model_construct(_fields_set=None, **{**{n: getattr(self, n) for n in Pipe.model_fields}, **values})

    def slowed(self, dilation: float) -> Self:
        """The same so many times slower: what takes its time on it takes that many times longer."""
        slower = {
            "rate_bps": self.rate_bps and max(1, round(self.rate_bps / dilation)),
            "delay_s": self.delay_s * dilation,
            "jitter_s": self.jitter_s * dilation,
        }
        return self.model_copy(update=self._in_force(slower))

    def _in_force(self, changes: dict[str, Any]) -> dict[str, Any]:
        """Those of the changes that concern a field which says something here."""
        return changes

    def contradiction(self) -> str | None:
        """What cannot be had together, as ``field: found ...; allowed: ...``."""
        if self.jitter_s > self.delay_s:
            found, most = format_time(self.jitter_s), format_time(self.delay_s)
            return f"jitter: found {found!r}; allowed: at most the delay, {most}: no packet arrives before it left"
        if self.reorder and not self.delay_s:
            return f"reorder: found {self.reorder}; allowed: 0 without a delay, since there is nobody to overtake"
        if self.loss and self.loss_bursts:
            return f"loss: found {self.loss} beside loss_bursts; allowed: one of the two"
        if self.mean_loss >= 1:
            return f"loss: found {self.mean_loss}; allowed: below 1"
        return None


class Change(Pipe):
    """What is different for a direction, a worker or a trunk: only the fields that are given."""

    def _in_force(self, changes: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in changes.items() if name in self.model_fields_set}

    @model_serializer(mode="wrap")
    def _only_what_was_given(self, handler: Any, info: Any) -> dict[str, Any]:
        dumped = handler(self)
        aliases = {name: (info.by_alias and field.alias) or name for name, field in type(self).model_fields.items()}
        given = {aliases[name] for name in self.model_fields_set}
        return {key: value for key, value in dumped.items() if key in given}


class TwoWay(Change):
    """What is different for a link: in both directions, and further in one of them."""

    up: Change | None = None
    """Away from the worker, or from the group's switch."""
    down: Change | None = None

    def slowed(self, dilation: float) -> Self:
        """See ``Pipe.slowed``."""
        ways = {way: pipe.slowed(dilation) for way in ("up", "down") if (pipe := getattr(self, way))}
        return super().slowed(dilation).model_copy(update=ways)


class TraceRow(Section):
    """What a link is from a moment on."""

    t_s: float = Field(ge=0)
    rate_bps: int = Field(gt=0)
    delay_s: float | None = Field(default=None, ge=0)
    """None leaves the link's own."""
    loss: float | None = Field(default=None, ge=0, lt=1)

    def changed(self, pipe: Pipe) -> Pipe:
        """A direction of a link in this moment."""
        given = {"rate_bps": self.rate_bps, "delay_s": self.delay_s, "loss": self.loss}
        return pipe.model_copy(update={name: value for name, value in given.items() if value is not None})

    def slowed(self, dilation: float) -> TraceRow:
        """See ``Pipe.slowed``."""
        return TraceRow(
            t_s=self.t_s * dilation,
            rate_bps=max(1, round(self.rate_bps / dilation)),
            delay_s=None if self.delay_s is None else self.delay_s * dilation,
            loss=self.loss,
        )


class Trace(Section):
    """Links that change over time, from the moment training begins."""

    rows: Annotated[tuple[TraceRow, ...], Field(min_length=1, strict=False)]
    period_s: float | None = Field(default=None, gt=0)
    """When it begins anew; None keeps the last row in force."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        times_s = [row.t_s for row in self.rows]
        if times_s[0] != 0 or times_s != sorted(set(times_s)):
            raise ValueError("t_s: found times that do not begin at 0 and grow; allowed: 0, then later and later")
        if self.period_s is not None and self.period_s <= times_s[-1]:
            raise ValueError(f"period_s: found {self.period_s}; allowed: after the last row")
        for name in ("delay_s", "loss"):
            if len({getattr(row, name) is None or getattr(row, name) > 0 for row in self.rows}) > 1:
                raise ValueError(f"{name}: found rows with and without; allowed: above 0 in all rows, or in none")
        return self

    def slowed(self, dilation: float) -> Trace:
        """See ``Pipe.slowed``."""
        period_s = None if self.period_s is None else self.period_s * dilation
        return Trace(rows=tuple(row.slowed(dilation) for row in self.rows), period_s=period_s)


def _read_trace(given: object, info: ValidationInfo) -> object:
    """Rows instead of a file's name, so that what was run is known when the file has changed."""
    if not isinstance(given, str):
        return given
    from harness import trace

    folders = [Path(), *filter(None, [(info.context or {}).get("folder")]), Path(str(files("scenarios")))]
    candidates = [folder / given for folder in folders]
    return trace.read(next((path for path in candidates if path.is_file()), candidates[0]))


class Link(Pipe):
    """What connects each worker to its switch: both directions alike, but for ``up``, ``down`` and ``workers``."""

    mtu_bytes: int = Field(1500, alias="mtu", ge=576, le=9000)
    congestion_control: str = Field("cubic", pattern=r"^[a-z0-9_]{1,15}$")
    """TCP's, on every worker, whatever the host's own is. BBR pauses for 0.2 s every 10 s to look at the path's RTT,
    which shows in single steps."""
    trace: Annotated[Trace | None, BeforeValidator(_read_trace)] = None
    """A file, CSV or mahimahi's (``harness/trace.py``): rates over time, on all workers' links, in both directions."""
    up: Change | None = None
    """From a worker to its switch."""
    down: Change | None = None
    workers: dict[str, TwoWay] = Field(default_factory=dict)
    """What is different for single workers, by name: ``[link.workers.w3]`` makes a straggler."""

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    def pipe(self, worker: str, direction: Literal["up", "down"]) -> Pipe:
        """One direction of a worker's link, all changes applied."""
        own = self.workers.get(worker)
        asked = self.changed_by(getattr(self, direction), own, own and getattr(own, direction))
        return self.trace.rows[0].changed(asked) if self.trace else asked

    def slowed(self, dilation: float) -> Self:
        """See ``Pipe.slowed``."""
        parts = {name: part.slowed(dilation) for name in ("up", "down", "trace") if (part := getattr(self, name))}
        workers = {name: own.slowed(dilation) for name, own in self.workers.items()}
        return super().slowed(dilation).model_copy(update={**parts, "workers": workers})

    @model_validator(mode="after")
    def _check(self) -> Self:
        _refuse_contradictions({"": self, "up.": self.pipe("", "up"), "down.": self.pipe("", "down")})
        for worker in self.workers:
            _refuse_contradictions({f"workers.{worker} ({way}).": self.pipe(worker, way) for way in ("up", "down")})
        return self


class Fabric(Section):
    """What connects the switches. Without groups there is one switch, and the network is a star.

    Workers are dealt to groups in order, each group with a switch of its own. A trunk leads from each group to a core
    (racks); or, as a ``mesh``, from each group to each other one (regions of a wide area network).
    """

    groups: str = Field("", pattern=r"^([a-z][a-z0-9-]*( [a-z][a-z0-9-]*)*)?$")
    """Names, with blanks between them."""
    mesh: bool = False
    oversubscription: float | None = Field(None, gt=0)
    """The sum of a group's uplinks over the rate of its trunk to the core; None takes the trunk's own rate."""
    trunk: TwoWay = TwoWay()
    """Every trunk; unshaped where no rate is given."""
    trunks: dict[str, TwoWay] = Field(default_factory=dict)
    """What is different for single trunks, by the group's name, or the two groups' (``"tokyo virginia"``)."""

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    @property
    def names(self) -> list[str]:
        """Names of the groups."""
        return self.groups.split()

    @property
    def trunk_names(self) -> list[str]:
        """Names of the trunks, in the order of the groups."""
        return [" ".join(pair) for pair in itertools.combinations(self.names, 2)] if self.mesh else self.names

    def pipe(self, trunk: str, direction: Literal["up", "down"], rate_bps: int | None) -> Pipe:
        """One direction of a trunk, all changes applied; ``rate_bps`` is in force where none is given."""
        own = self.trunks.get(trunk)
        plain = Pipe.model_construct(rate_bps=rate_bps)
        return plain.changed_by(self.trunk, getattr(self.trunk, direction), own, own and getattr(own, direction))

    def slowed(self, dilation: float) -> Fabric:
        """See ``Pipe.slowed``."""
        trunks = {name: own.slowed(dilation) for name, own in self.trunks.items()}
        return self.model_copy(update={"trunk": self.trunk.slowed(dilation), "trunks": trunks})

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = self.names
        if len(names) == 1 or len(names) != len(set(names)) or any(re.fullmatch(r"w\d+|switch", n) for n in names):
            raise ValueError(f"groups: found {self.groups!r}; allowed: two or more names, all different, no worker's")
        if self.mesh and self.oversubscription is not None:
            raise ValueError("oversubscription: found with mesh; allowed: trunks to a core only")
        for trunk in self.trunks:
            if trunk not in self.trunk_names:
                known = ", ".join(map(repr, self.trunk_names)) or "none without groups"
                raise ValueError(f"trunks: found {trunk!r}; allowed: {known}")
        for trunk in self.trunk_names:
            _refuse_contradictions({f"trunk {trunk} ({way}).": self.pipe(trunk, way, None) for way in ("up", "down")})
        return self


def _refuse_contradictions(pipes: Mapping[str, Pipe]) -> None:
    for where, pipe in pipes.items():
        if complaint := pipe.contradiction():
            raise ValueError(f"{where}{complaint}")


def _read_target(given: object) -> Target | None:
    if given is None or given == NO_TARGET:
        return None
    if isinstance(given, Target):
        return given
    try:
        return Target.parse(given)
    except ValueError as error:
        raise ValueError(f"{error}, or '{NO_TARGET}'") from None


def _target_as_text(target: Target | None) -> str | None:
    return target and str(target)


class Train(Section):
    """What each worker computes, and for how long."""

    model: str = "digits-cnn"
    dataset: str = "digits"
    data_dir: str | None = None
    """A folder that holds the data set; None looks in the usual places, then downloads."""
    checkpoint: str | None = None
    """A file with the model's ``state_dict()``, by ``torch.save``, to start from; None draws weights by the seed."""
    replay: str | None = None
    """A profile, by name or file (``harness/profile.py``), whose times are waited for instead of computing: gradients
    are made up, nothing is learnt and no data set is read. None trains for real."""
    dilation: float = Field(1.0, ge=1)
    """Replays only: links, delays and the profile's device are so many times slower than what is said here, and all
    times are divided by it before they are told. So a machine can carry rates that are beyond it."""
    gradient_density: float = Field(1.0, gt=0, le=1)
    """Replays only: the share of a gradient's entries that are not zero."""
    gradient_overlap: Literal["random", "full"] = "random"
    """Replays only: whether each worker has a gradient of its own, or all have the same one."""
    steps: int = Field(100, ge=4)
    """The cap: every trial goes on to it, whether it has reached the target or not, so that final accuracies are those
    of the same step."""
    batch_size: int = Field(32, ge=1)
    """Samples per worker and step."""
    lr: float = Field(0.05, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    eval_every: int = Field(10, ge=1)
    """Steps between evaluations on the test set, which pause the training clock."""
    target: Annotated[Target | None, BeforeValidator(_read_target), PlainSerializer(_target_as_text)] = None
    """How good the model must be: ``accuracy 95%``, ``loss 0.35``, ``perplexity 12``. The time is read at the first
    crossing, between two evaluations by a line. None, which files write ``none``: no time to target is told."""
    bucket_bytes: Annotated[SizeBytes, Field(alias="bucket")] = 25_000_000
    """DDP's bucket size."""
    timeout_s: Annotated[TimeS, Field(alias="timeout", gt=0)] = 300.0
    """A trial that takes longer is ended and recorded as ``timeout``."""

    @model_validator(mode="before")
    @classmethod
    def _read_older_files(cls, given: Any) -> Any:
        """Files written before there were other targets say ``target_accuracy = 0.95``. A replay's meant nothing."""
        if not isinstance(given, Mapping) or "target_accuracy" not in given or "target" in given:
            return given
        rest = {name: value for name, value in given.items() if name != "target_accuracy"}
        return rest if given.get("replay") else {**rest, "target": f"accuracy {given['target_accuracy']}"}


class MethodSpec(Section):
    """A method of ``baselines/`` with its parameters, and the label that tells it from its siblings."""

    name: str
    label: str
    params: dict[str, Any] = Field(default_factory=dict)
    slowed_to_bps: Annotated[RateBps | None, Field(alias="slowed_to")] = None
    """Of a replay: links really have this rate, and time is dilated by as much, so that this machine has the time for
    what the method computes. Links that are no faster stay as they are. None: ``train.dilation`` alone says."""


class Case(Section):
    """One concrete combination of the sections."""

    cluster: Cluster
    link: Link
    fabric: Fabric = Fabric.model_validate({})
    train: Train

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = {f"w{worker}" for worker in range(self.cluster.workers)}
        if strangers := [name for name in self.link.workers if name not in names]:
            raise ValueError(f"link.workers: found {strangers[0]!r}; allowed: w0 to w{len(names) - 1}")
        if len(self.fabric.names) > len(names):
            raise ValueError(f"fabric.groups: found {self.fabric.groups!r}; allowed: at most {len(names)}, the workers")
        if self.train.dilation > 1 and not self.train.replay:
            raise ValueError(f"train.dilation: found {self.train.dilation:g}; allowed: 1 without train.replay")
        if self.train.dilation > 1 and None in (self.link.pipe("", way).rate_bps for way in ("up", "down")):
            raise ValueError(f"train.dilation: found {self.train.dilation:g}; allowed: 1 where links are unshaped")
        return self


class Scenario(Section):
    """A scenario as the rest of pacbench sees it: concrete cases, concrete methods, no lists left to expand."""

    name: str
    description: str = ""
    rounds: int = Field(5, ge=1)
    seed: int = Field(0, ge=0)
    baseline: str = "dense"
    """The label of the method that speedups are ratios to, and whose final accuracy the others must keep."""
    baseline_16bit: str | None = None
    """The label of the 16-bit all-reduce that speedups are told over first; None takes the first of
    ``SIXTEEN_BIT_METHODS`` that the scenario has."""
    tolerance: float = Field(TOLERANCE, ge=0, lt=1)
    """By how much a final accuracy may be worse than the baseline's: absolute, 0.02 being two points; of a loss or a
    perplexity relative."""
    accuracy_seeds: int = Field(0, ge=0, le=64)
    """Where the rounds leave it unknown whether a method keeps accuracy, more seeds are trained for that alone, on
    unshaped links, up to so many in all. 0: the rounds must do."""
    cases: tuple[Case, ...]
    methods: tuple[MethodSpec, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        slowed = next((method for method in self.methods if method.slowed_to_bps), None)
        if slowed and not all(case.train.replay and case.link.rate_bps for case in self.cases):
            raise ValueError(f"methods ({slowed.label}).slowed_to: allowed: in replays over links that have a rate")
        return self

    def is_same_run(self, other: Scenario) -> bool:
        """Whether a run of the other goes on as one of this: more seeds for accuracy change nothing that was run."""
        return self.model_copy(update={"accuracy_seeds": other.accuracy_seeds}) == other

    @property
    def sixteen_bit(self) -> str | None:
        """The label of the 16-bit baseline; None where the scenario has none."""
        if self.baseline_16bit:
            return self.baseline_16bit
        of_name = {method.name: method.label for method in reversed(self.methods)}
        return next((of_name[name] for name in SIXTEEN_BIT_METHODS if name in of_name), None)

    @property
    def baselines(self) -> tuple[str, ...]:
        """The labels that speedups are told over: the 16-bit all-reduce first, if there is one, then the baseline."""
        return tuple(dict.fromkeys([*([self.sixteen_bit] if self.sixteen_bit else []), self.baseline]))


def load(name_or_path: str, overrides: Iterable[str] = (), only_methods: Sequence[str] = ()) -> Scenario:
    """Read, override, expand and check a scenario.

    Args:
        name_or_path: a file, or the name of a scenario that comes with pacbench (``quickstart``, ``paper/ablation``).
        overrides: ``key=value`` pairs such as ``train.steps=50`` or ``link.rate=500mbit``; values are TOML, and what is
            not TOML is taken as text.
        only_methods: names or labels of the methods to keep; all when empty. Both baselines are always kept.

    Raises:
        UsageError: with one line that says what is wrong, and where.
    """
    path = _find(name_or_path)
    source, raw = str(path), read_toml(path)
    for override in overrides:
        apply_override(raw, override)
    raw.setdefault("name", Path(source).stem)
    scenario = _build(raw, source)
    return _only(scenario, only_methods) if only_methods else scenario


def checked_section(model: type[SectionT], values: Mapping[str, Any], source: str) -> SectionT:
    """A section from values as a file or command line gives them.

    Raises:
        UsageError: one line that names ``source``, the field, what was found and what is allowed.
    """
    try:
        return model.model_validate(values, context={"folder": Path(source).parent})
    except ValidationError as error:
        raise UsageError(_explain(error, source, model=model)) from None


def available() -> dict[str, str]:
    """The scenarios that come with pacbench: name -> description."""
    root = Path(str(files("scenarios")))
    found = {str(path.relative_to(root).with_suffix("")): read_toml(path) for path in sorted(root.rglob("*.toml"))}
    return {name: str(raw.get("description", "")) for name, raw in found.items() if "methods" in raw}


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a file.

    Raises:
        UsageError: it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from None


def _find(name_or_path: str) -> Path:
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = Path(str(files("scenarios"))) / f"{name_or_path}.toml"
        if not path.is_file():
            raise UsageError.at(
                "command line", "SCENARIO", name_or_path, f"a .toml file, or one of {', '.join(available())}"
            )
    return path


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set a field of a scenario's tables, in place, as ``--set`` does.

    Raises:
        UsageError: it is not ``key=value``, or the key leads nowhere.
    """
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UsageError.at("--set", "key=value", override, "for example train.steps=50")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, field = key.strip().split(".")
    table: Any = raw
    for section in sections:
        table = table.setdefault(section, {}) if isinstance(table, dict) else None
    if not isinstance(table, dict):
        raise UsageError.at("--set", key, override, "a field of [cluster], [link], [fabric], [train] or the top level")
    table[field] = value


def _build(raw: Mapping[str, Any], source: str) -> Scenario:
    top = {key: value for key, value in raw.items() if key not in Case.model_fields and key != "methods"}
    sections = {name: raw.get(name, {}) for name in Case.model_fields}
    for name, section in sections.items():
        if not isinstance(section, Mapping):
            raise UsageError.at(source, name, section, f"a table [{name}]")
    for name, section in sections.items():
        if empty := next((key for key, value in section.items() if value == []), None):
            raise UsageError.at(source, f"{name}.{empty}", [], "one value, or a list of some")
    cases = tuple(checked_section(Case, combination, source) for combination in _combinations(sections))
    methods = _methods(raw.get("methods"), source)
    scenario = checked_section(Scenario, {**top, "cases": cases, "methods": methods}, source)
    labels = [method.label for method in scenario.methods]
    for field in ("baseline", "baseline_16bit"):
        if (label := getattr(scenario, field)) is not None and label not in labels:
            raise UsageError.at(source, field, label, f"the label of a method: {', '.join(labels)}")
    return scenario


def _combinations(sections: Mapping[str, Mapping[str, Any]]) -> list[dict[str, dict[str, Any]]]:
    """Every choice of one element from each list that stands where one value is expected."""
    fields = [(name, key, value) for name, section in sections.items() for key, value in section.items()]
    choices = [value if isinstance(value, list) else [value] for _, _, value in fields]
    combinations = []
    for chosen in itertools.product(*choices):
        combination: dict[str, dict[str, Any]] = {name: {} for name in sections}
        for (name, key, _), value in zip(fields, chosen, strict=True):
            combination[name][key] = value
        combinations.append(combination)
    return combinations


def _methods(entries: object, source: str) -> tuple[MethodSpec, ...]:
    import baselines  # brings torch, which nothing else here needs

    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise UsageError.at(source, "methods", entries, "at least one [[methods]] table")
    specs = []
    for number, entry in enumerate(entries, start=1):
        where = f"methods[{number}]"
        name = entry.get("name")
        if name not in baselines.names():
            raise UsageError.at(source, f"{where}.name", name, ", ".join(baselines.names()))
        given = {key: value for key, value in entry.items() if key not in ("name", "label", "slowed_to")}
        for combination in _combinations({"params": given}):
            try:
                state = baselines.get(name).State(**combination["params"])
            except ValidationError as error:
                allowed = ", ".join(baselines.get(name).State().parameters) or "no parameters"
                raise UsageError(_explain(error, source, prefix=f"{where} ({name})", keys=allowed)) from None
            specs.append((entry, state.parameters))
    return _labelled(specs, source)


def _labelled(specs: Sequence[tuple[Mapping[str, Any], dict[str, Any]]], source: str) -> tuple[MethodSpec, ...]:
    """Give each method the label it was given, or its name and what tells it from others of that name."""
    methods = []
    for entry, params in specs:
        siblings = [other for other_entry, other in specs if other_entry["name"] == entry["name"]]
        differing = [key for key in params if any(other[key] != params[key] for other in siblings)]
        parts = [str(params[key]) if isinstance(params[key], str) else f"{key}={params[key]}" for key in differing]
        label = entry.get("label") or "-".join([entry["name"], *parts])
        fields = {"name": entry["name"], "label": label, "params": params, "slowed_to": entry.get("slowed_to")}
        methods.append(checked_section(MethodSpec, fields, f"{source}: methods ({label})"))
    repeated = [label for label, count in Counter(method.label for method in methods).items() if count > 1]
    if repeated:
        raise UsageError.at(source, "methods", repeated[0], "each method once, or a label of its own for each")
    return tuple(methods)


def _only(scenario: Scenario, wanted: Sequence[str]) -> Scenario:
    known = {key for method in scenario.methods for key in (method.name, method.label)}
    for name in wanted:
        if name not in known:
            raise UsageError.at("command line", "--method", name, ", ".join(sorted(known)))
    keep = {*wanted, *scenario.baselines}
    chosen = tuple(method for method in scenario.methods if method.name in keep or method.label in keep)
    return scenario.model_copy(update={"methods": chosen})


def _explain(
    error: ValidationError, source: str, prefix: str = "", keys: str = "", model: type[BaseModel] | None = None
) -> str:
    """Pydantic's first finding as one line: file, field, found, allowed."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    field = ".".join(([prefix] if prefix else []) + path)
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{source}: {field}: unknown key; allowed: {keys or _keys_beside(model, path)}"
    if first["type"] == "value_error" and isinstance(first["input"], (Mapping, Section)):  # of a section as a whole
        return f"{source}: {field}{'.' if field else ''}{first['msg'].removeprefix('Value error, ')}"
    if first["type"] == "missing":
        return f"{source}: {field}: missing"
    allowed = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return f"{source}: {field}: found {first['input']!r}; allowed: {allowed}"


def _section_at(model: type[BaseModel] | None, key: str) -> type[BaseModel] | None:
    """The section that a field of ``model`` holds: itself, or None in its place, or as a table of such sections."""
    if model is None or key not in {name for field, info in model.model_fields.items() for name in (field, info.alias)}:
        return model  # a name within a table of sections
    field = next(info for name, info in model.model_fields.items() if key in (name, info.alias))
    held = [field.annotation, *get_args(field.annotation)]
    return next((part for part in held if isinstance(part, type) and issubclass(part, BaseModel)), None)


def _keys_beside(model: type[BaseModel] | None, path: Sequence[str]) -> str:
    """The keys that are known where ``path`` ends."""
    for part in path[:-1]:
        model = _section_at(model, part)
    if model is None:
        return "see the documentation"
    keys = [field.alias or name for name, field in model.model_fields.items()]
    if model is Scenario:
        keys = [key for key in keys if key != "cases"] + list(Case.model_fields)
    return ", ".join(keys)
