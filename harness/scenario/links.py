"""What links and what joins them may be: rates, delays, losses, changes over time, and the fabric of switches."""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, model_serializer, model_validator
from typing_extensions import Self

from harness.errors import short_repr
from harness.files import is_file
from harness.scenario import properties
from harness.scenario.properties import slowed
from harness.scenario.section import Section

Direction = Literal["up", "down"]
WAYS: tuple[Direction, ...] = ("up", "down")

USUAL_MTU_BYTES = 1500
MTU_BYTES = (576, 9000)
"""What a link may have: from what every host of the internet takes (RFC 791) to jumbo frames."""


class Pipe(properties.LinkProperties):
    """One direction of a link: what happens to a packet between two neighbours."""

    @property
    def disturbed_shares(self) -> list[float]:
        """Shares of packets that are lost, doubled, damaged or out of turn, those above 0."""
        return [share for row in PROPERTIES if (share := row.share(self)) > 0]

    @property
    def disturbs(self) -> bool:
        """Whether single packets are lost, doubled, damaged or out of turn."""
        return _disturbs(self)

    @property
    def needs_netem(self) -> bool:
        """Whether the kernel must have netem, since this is more than a rate."""
        return _needs_netem(self)

    def changed_by(self, *changes: Pipe | None) -> Pipe:
        """This one with the fields that were set in each change, the last of them in force."""
        values = {
            name: getattr(change, name)
            for change in changes
            if change
            for name in change.model_fields_set & Pipe.model_fields.keys()
        }
        return Pipe.model_construct(_fields_set=None, **{**{n: getattr(self, n) for n in Pipe.model_fields}, **values})

    def slowed(self, dilation: float, shrink: float = 1.0) -> Self:
        """The same so many times slower, and so many times thinner.

        What takes its time on it takes that many times longer; what has that many times fewer bytes takes no longer.
        """
        slower = {
            row.name: slowed(row.name, getattr(self, row.name), dilation, shrink)
            for row in PROPERTIES
            if row.unit.slowed
        }
        return self.model_copy(update=self._in_force(slower))

    def _in_force(self, changes: dict[str, Any]) -> dict[str, Any]:
        """Those of the changes that concern a field which says something here."""
        return changes

    def contradiction(self) -> str | None:
        """What cannot be had together, as ``field: found ...; allowed: ...``."""
        for row in PROPERTIES:
            if row.contradiction and (complaint := row.contradiction(self)):
                return f"{row.key}: {complaint}"
        return None


PROPERTIES = properties.rows(Pipe)
"""What a direction of a link can have, a row each."""


@lru_cache
def _disturbs(pipe: Pipe) -> bool:
    return bool(pipe.disturbed_shares)


@lru_cache  # thousands of workers ask the same of links that are alike
def _needs_netem(pipe: Pipe) -> bool:
    return any(row.is_netems(pipe) for row in PROPERTIES)


class PipeChange(Pipe):
    """What is different for a direction, a worker or a trunk: only the fields that are given."""

    def _in_force(self, changes: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in changes.items() if name in self.model_fields_set}

    @model_serializer(mode="wrap")
    def _only_what_was_given(self, handler: Any, info: Any) -> dict[str, Any]:
        dumped = handler(self)
        aliases = {name: (info.by_alias and field.alias) or name for name, field in type(self).model_fields.items()}
        given = {aliases[name] for name in self.model_fields_set}
        return {key: value for key, value in dumped.items() if key in given}


class TwoWay(PipeChange):
    """What is different for a link: in both directions, and further in one of them."""

    up: PipeChange | None = None
    """Away from the worker, or from the group's switch."""
    down: PipeChange | None = None

    def slowed(self, dilation: float, shrink: float = 1.0) -> Self:
        """See ``Pipe.slowed``."""
        ways: dict[str, Pipe] = {way: pipe.slowed(dilation, shrink) for way in WAYS if (pipe := getattr(self, way))}
        return super().slowed(dilation, shrink).model_copy(update=ways)


class TraceRow(Section):
    """What a link is from a moment on."""

    t_s: float = Field(ge=0)
    rate_bps: int = Field(gt=0)
    delay_s: float | None = Field(default=None, ge=0)
    """None leaves the link's own."""
    loss: float | None = Field(default=None, ge=0, lt=1)

    def changed(self, pipe: Pipe) -> Pipe:
        """A direction of a link in this moment."""
        given = {name: value for name, value in self if name != "t_s" and value is not None}
        return pipe.model_copy(update=given)

    def slowed(self, dilation: float, shrink: float = 1.0) -> TraceRow:
        """See ``Pipe.slowed``."""
        return TraceRow(**{name: slowed(name, value, dilation, shrink) for name, value in self})


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

    def at(self, seconds: float) -> TraceRow:
        """What links are so long after training began."""
        within_s = seconds % self.period_s if self.period_s else seconds
        return next(row for row in reversed(self.rows) if row.t_s <= within_s)

    @property
    def mean(self) -> TraceRow:
        """What links are in the mean over time, at whose rate as many bytes pass as at those of all rows.

        A last row that nothing ends counts for as long as the one before it: files end where a measurement did.
        """
        times_s = [row.t_s for row in self.rows]
        lasted_s = [after_s - before_s for before_s, after_s in itertools.pairwise(times_s)]
        lasted_s.append(self.period_s - times_s[-1] if self.period_s else lasted_s[-1] if lasted_s else 1.0)

        def mean_of(name: str) -> float | None:
            values = [getattr(row, name) for row in self.rows]
            return None if None in values else sum(map(operator.mul, values, lasted_s)) / sum(lasted_s)

        rate_bps = round(mean_of("rate_bps") or 0)
        return TraceRow(t_s=0.0, rate_bps=rate_bps, delay_s=mean_of("delay_s"), loss=mean_of("loss"))

    def slowed(self, dilation: float, shrink: float = 1.0) -> Trace:
        """See ``Pipe.slowed``."""
        rows = tuple(row.slowed(dilation, shrink) for row in self.rows)
        return Trace(rows=rows, period_s=slowed("period_s", self.period_s, dilation, shrink))


def _read_trace(given: object, info: ValidationInfo) -> object:
    """Rows instead of a file's name, so that what was run is known when the file has changed."""
    if not isinstance(given, str):
        return given
    from harness.scenario import traces

    folders = [Path(), *filter(None, [(info.context or {}).get("folder")]), Path(str(files("scenarios")))]
    candidates = [folder / given for folder in folders]
    return traces.read(next((path for path in candidates if is_file(path)), candidates[0]))


class Link(Pipe):
    """What connects each worker to its switch: both directions alike, but for ``up``, ``down`` and ``workers``."""

    mtu_bytes: int = Field(USUAL_MTU_BYTES, alias="mtu", ge=MTU_BYTES[0], le=MTU_BYTES[1])
    congestion_control: str = Field("cubic", pattern=r"^[a-z0-9_]{1,15}$")
    """TCP's, on every worker, whatever the host's own is. BBR pauses for 0.2 s every 10 s to look at the path's RTT,
    which shows in single steps."""
    trace: Annotated[Trace | None, BeforeValidator(_read_trace)] = None
    """A file, CSV or mahimahi's (``traces.py``): rates over time, on all workers' links, in both directions."""
    up: PipeChange | None = None
    """What is different on the way from a worker to its switch."""
    down: PipeChange | None = None
    workers: dict[str, TwoWay] = Field(default_factory=dict)
    """What is different for single workers, by name: ``[link.workers.w3]`` makes a straggler."""

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    def pipe(self, worker: str, direction: Direction) -> Pipe:
        """One direction of a worker's link, all changes applied."""
        own = self.workers.get(worker)
        asked = self.changed_by(getattr(self, direction), own, own and getattr(own, direction))
        return self.trace.rows[0].changed(asked) if self.trace else asked

    def slowed(self, dilation: float, shrink: float = 1.0) -> Self:
        """See ``Pipe.slowed``."""
        parts = {name: part.slowed(dilation, shrink) for name in (*WAYS, "trace") if (part := getattr(self, name))}
        workers = {name: own.slowed(dilation, shrink) for name, own in self.workers.items()}
        return super().slowed(dilation, shrink).model_copy(update={**parts, "workers": workers})

    @model_validator(mode="after")
    def _check(self) -> Self:
        _refuse_contradictions({"": self, "up.": self.pipe("", "up"), "down.": self.pipe("", "down")})
        for worker in self.workers:
            _refuse_contradictions({f"workers.{worker} ({way}).": self.pipe(worker, way) for way in WAYS})
        return self


NO_GROUP = re.compile(r"w\d+|switch|player|trial|.{65,}")
"""Names that no group may have: those of our own nodes (workers, ``SWITCH``, and beside the network ``PLAYER`` and
``TRIAL``), and what is too long for a host, whose name a group's switch has (sethostname(2))."""


class Fabric(Section):
    """What connects the switches. Without groups there is one switch, and the network is a star.

    Workers are dealt to groups in order, each group with a switch of its own. A trunk leads from each group to a core
    (racks); or, as a ``mesh``, from each group to each other one (regions of a wide area network).
    """

    groups: str = Field("", pattern=r"^([a-z][a-z0-9-]*( [a-z][a-z0-9-]*)*)?$")
    """Names, with blanks between them."""
    mesh: bool = False
    oversubscription: float | None = Field(None, ge=0.01, le=10_000)
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

    def group_of(self, worker: int, workers: int) -> str:
        """The group of one of so many workers: they are dealt to the groups in order."""
        return self.names[worker * len(self.names) // workers]

    def members(self, group: str, workers: int) -> range:
        """Those of so many workers who are in a group."""
        place, groups = self.names.index(group), len(self.names)
        first, end = (-(-each * workers // groups) for each in (place, place + 1))  # divided and rounded up
        return range(first, end)

    def shared_bps(self, group: str, direction: Direction, link: Link, workers: int) -> int | None:
        """The rate of a group's trunk by its oversubscription; None where it has none, or its links no rate."""
        if self.oversubscription is None:
            return None
        plain = link.pipe("", direction).rate_bps
        names = (f"w{worker}" for worker in self.members(group, workers))
        rates = [link.pipe(name, direction).rate_bps if name in link.workers else plain for name in names]
        return None if None in rates else round(sum(rate for rate in rates if rate) / self.oversubscription)

    def pipe(self, trunk: str, direction: Direction, rate_bps: int | None) -> Pipe:
        """One direction of a trunk, all changes applied; ``rate_bps`` is in force where none is given."""
        own = self.trunks.get(trunk)
        plain = Pipe.model_construct(rate_bps=rate_bps)
        return plain.changed_by(self.trunk, getattr(self.trunk, direction), own, own and getattr(own, direction))

    def slowed(self, dilation: float, shrink: float = 1.0) -> Fabric:
        """See ``Pipe.slowed``."""
        trunks = {name: own.slowed(dilation, shrink) for name, own in self.trunks.items()}
        return self.model_copy(update={"trunk": self.trunk.slowed(dilation, shrink), "trunks": trunks})

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = self.names
        if len(names) == 1 or len(names) != len(set(names)) or any(map(NO_GROUP.fullmatch, names)):
            allowed = "two or more names of up to 64 letters, all different, none of w0, w1, ..., switch, player, trial"
            raise ValueError(f"groups: found {short_repr(self.groups)}; allowed: {allowed}")
        if self.mesh and self.oversubscription is not None:
            raise ValueError("oversubscription: found with mesh; allowed: trunks to a core only")
        for trunk in self.trunks:
            if trunk not in self.trunk_names:
                known = ", ".join(map(repr, self.trunk_names)) or "none without groups"
                raise ValueError(f"trunks: found {short_repr(trunk)}; allowed: {known}")
        for trunk in self.trunk_names:
            _refuse_contradictions({f"trunk {trunk} ({way}).": self.pipe(trunk, way, None) for way in WAYS})
        return self


def _refuse_contradictions(pipes: Mapping[str, Pipe]) -> None:
    for where, pipe in pipes.items():
        if complaint := pipe.contradiction():
            raise ValueError(f"{where}{complaint}")
