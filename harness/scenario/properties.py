"""The properties of a link, a row each: what a file may say, how tc(8) is told, and how the kernel shows it.

A row is a field of ``LinkProperties``: its name with its unit, its type, its default, its meaning, and a ``Property``
with the rest. Schema, tc's words, read-back, calibration and the slowing of replays all follow from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator
from typing_extensions import Self

from harness.scenario.section import Section
from harness.units import (
    Share,
    SizeBytes,
    TimeS,
    format_rate,
    format_size,
    format_time,
    parse_rate_bps,
    parse_size_bytes,
    parse_time_s,
)

UNSHAPED = "unshaped"


def rate_or_unshaped(given: object) -> int | None:
    """Bits per second, or None for what has no rate.

    Raises:
        ValueError: it is neither.
    """
    if given in (UNSHAPED, None):
        return None
    try:
        return parse_rate_bps(given)
    except ValueError as error:
        raise ValueError(f"{error}, or '{UNSHAPED}'") from None


RateOrUnshaped = Annotated[
    int | None,
    BeforeValidator(rate_or_unshaped),
    PlainSerializer(lambda bps: UNSHAPED if bps is None else f"{bps}bit"),
]


@dataclass(frozen=True)
class Unit:
    """What follows from the unit at the end of a field's name."""

    read: Callable[[Any], Any] = lambda text: text
    """It reads the value that a file holds."""
    said: Callable[[Any], object] = lambda value: value
    """How people say a value."""
    tc: Callable[[Any], str] = str
    """How tc(8) is told a value."""
    slowed: Callable[[Any, float, float], Any] | None = None
    """The value on a link that is so many times slower, and so many times thinner; None where it stays."""
    shown_times: float = 1.0
    """What tc shows must be multiplied by this."""
    shown_within: float = 1e-8
    """The rounding of what tc shows. Shares are 32 bits in the kernel."""


def percent(share: float) -> str:
    """A share as tc(8) is told it."""
    return f"{100 * share:.9g}%"


UNITS = {
    "_bps": Unit(
        read=rate_or_unshaped,
        said=lambda bps: UNSHAPED if bps is None else format_rate(bps),
        tc=lambda bps: f"{bps}bit",
        slowed=lambda bps, dilation, shrink: max(1, round(bps / dilation / shrink)),
        shown_times=8,  # whole bytes per second
        shown_within=8,
    ),
    "_bytes": Unit(
        read=parse_size_bytes,
        said=format_size,
        slowed=lambda size_bytes, dilation, shrink: max(1, round(size_bytes / shrink)),
    ),
    "_s": Unit(
        read=parse_time_s,
        said=format_time,
        tc=lambda time_s: f"{1e6 * time_s:.9g}us",
        slowed=lambda time_s, dilation, shrink: time_s * dilation,
        shown_within=1.1e-6,  # microseconds, rounded down
    ),
}

NO_UNIT = Unit(tc=lambda value: value if isinstance(value, str) else percent(value))
"""Shares and words."""


def unit_of(name: str) -> Unit:
    """The unit that a field's name ends with."""
    return next((unit for suffix, unit in UNITS.items() if name.endswith(suffix)), NO_UNIT)


def slowed(name: str, value: Any, dilation: float, shrink: float) -> Any:
    """A field's value on a link that is so many times slower, and so many times thinner.

    What takes its time takes that many times longer; what holds bytes, or lets them pass, does so for that many fewer.
    """
    slow = unit_of(name).slowed
    return value if value is None or slow is None else slow(value, dilation, shrink)


class ReadBack(NamedTuple):
    """A value as it was asked, and as the kernel has it."""

    name: str
    asked: float
    found: float
    rounding: float

    @property
    def agrees(self) -> bool:
        """Whether the kernel has what was asked."""
        return abs(self.found - self.asked) <= max(1e-6 * self.asked, self.rounding)


@dataclass(frozen=True, eq=False)
class Property:
    """The part of a row that is not said by the field itself."""

    tc: str = ""
    """The words that tell netem, with the value in braces. Empty: netem is not told, or by ``limit`` alone."""
    place: int = 2
    """Where the words stand in netem's line; those of the same place follow the order of the rows."""
    only_with: str = ""
    """The field without which the words would say nothing."""
    unsaid: object = None
    """The value that netem has without being told."""
    shown: str | Mapping[str, str] = ""
    """Where ``tc -j`` shows it: an option and a key in it, as in ``delay.jitter``. A section has one for each field."""
    needs_netem: bool = False
    """Whether a link that has it must have netem."""
    disturbs: bool = False
    """Whether it is a share of packets that are lost, doubled, damaged or out of turn."""
    counted: tuple[str, str] | None = None
    """The word for such packets, and the field of ``Counts`` that says how many they were."""
    contradiction: Callable[[LinkProperties], str | None] | None = None
    """What it cannot be had together with, as ``found ...; allowed: ...``."""
    least: float = 0.0
    """The least value that a file may give, beside none at all."""
    most: float = math.inf
    """The greatest value, or share of packets, that a file may give."""
    calibrated: tuple[Mapping[str, Any], ...] = ()
    """The links on which ``pacbench calibrate`` tries it, as files say them."""
    name: str = ""
    """The field's name; ``rows`` enters it."""
    key: str = ""
    """The name in files; ``rows`` enters it."""

    @property
    def unit(self) -> Unit:
        """What follows from the name."""
        return unit_of(self.name)

    def asked(self, pipe: LinkProperties) -> Any:
        """The value that netem must be told; None where it is not asked for."""
        if self.only_with and not getattr(pipe, self.only_with):
            return None
        return getattr(pipe, self.name) or None

    def share(self, pipe: LinkProperties) -> float:
        """The share of packets that it disturbs."""
        value = getattr(pipe, self.name) if self.disturbs else 0.0
        return value.mean_loss if isinstance(value, GilbertElliott) else float(value or 0.0)

    def beyond(self, pipe: LinkProperties) -> str | None:
        """Why a value is out of all sense, as ``found ...; allowed: ...``: no such link could be measured, or used."""
        value = self.share(pipe) if self.disturbs else getattr(pipe, self.name)
        if not isinstance(value, (int, float)) or not value or self.least <= value <= self.most:
            return None
        said = self.unit.said
        return f"found {said(value)!r}; allowed: {said(self.least)} to {said(self.most)}"

    def is_netems(self, pipe: LinkProperties) -> bool:
        """Whether this direction needs netem because of it."""
        return self.needs_netem and (self.share(pipe) > 0 if self.disturbs else bool(self.asked(pipe)))

    def words(self, pipe: LinkProperties) -> str:
        """What netem is told of it; empty where that is nothing."""
        value = self.asked(pipe)
        if value is None or value == self.unsaid:
            return ""
        if isinstance(value, Section):
            return self.tc.format(**{name: unit_of(name).tc(part) for name, part in value})
        return self.tc.format(self.unit.tc(value))

    def read_back(self, pipe: LinkProperties, options: Mapping[str, Any]) -> Iterator[ReadBack]:
        """What was asked, beside what ``tc -j`` shows among netem's ``options``."""
        value = self.asked(pipe)
        places = self.shown if isinstance(self.shown, Mapping) else {self.name: self.shown} if self.shown else {}
        for name, place in places.items():
            option, _, key = place.partition(".")
            asked = getattr(value, name) if isinstance(value, Section) else value
            unit = unit_of(name)
            found = unit.shown_times * options.get(option, {}).get(key, 0.0)
            yield ReadBack(name, asked or 0.0, found, unit.shown_within)


LEAST_STEP = 1e-6
"""The least probability of a step between the states of bursts."""


class GilbertElliott(Section):
    """Loss that comes in bursts: a chain that steps once a packet between a good and a bad state, each with its loss.

    E. N. Gilbert, Bell Syst. Tech. J. 39 (1960); E. O. Elliott, ibid. 42 (1963); ``loss gemodel`` of tc-netem(8).
    """

    p: Share
    """The probability of a step from good to bad, a packet."""
    r: Share
    """The probability of a step from bad to good, a packet. Left alone, a burst is 1 / r packets long."""
    loss_bad: Share = 1.0
    """Share of packets that are lost in the bad state."""
    loss_good: Share = 0.0
    """Share of packets that are lost in the good state."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not (self.p > 0 and self.r > 0):
            raise ValueError("p and r above 0: a state that is never left is no burst")
        if min(self.p, self.r) < LEAST_STEP:
            found = f"p = {self.p:g}, r = {self.r:g}"
            raise ValueError(f"p, r: found {found}; allowed: from {LEAST_STEP:g} on: a state must end")
        return self

    @property
    def bad_share(self) -> float:
        """The share of packets that meet the bad state."""
        return self.p / (self.p + self.r)

    @property
    def mean_loss(self) -> float:
        """The share of packets that are lost."""
        return self.bad_share * self.loss_bad + (1 - self.bad_share) * self.loss_good

    @property
    def lost_again(self) -> float:
        """The share of packets that are lost which come next after one that was lost in the bad state.

        The chain steps with packets, not with time: what TCP sends again after a silence is such a packet.
        """
        return (1 - self.r) * self.loss_bad + self.r * self.loss_good


def _jitter_beyond_delay(pipe: LinkProperties) -> str | None:
    if pipe.jitter_s <= pipe.delay_s:
        return None
    found, most = format_time(pipe.jitter_s), format_time(pipe.delay_s)
    return f"found {found!r}; allowed: at most the delay, {most}: no packet arrives before it left"


def _two_losses_or_all_lost(pipe: LinkProperties) -> str | None:
    if pipe.loss and pipe.loss_bursts:
        return f"found {pipe.loss} beside loss_bursts; allowed: one of the two"
    return f"found {pipe.mean_loss}; allowed: below 1" if pipe.mean_loss >= 1 else None


def _nobody_to_overtake(pipe: LinkProperties) -> str | None:
    if not pipe.reorder or pipe.delay_s:
        return None
    return f"found {pipe.reorder}; allowed: 0 without a delay, since there is nobody to overtake"


def each(key: str, *values: object, **beside: object) -> tuple[Mapping[str, Any], ...]:
    """Links to calibrate: one for each value of a property, beside the same others."""
    return tuple({**beside, key: value} for value in values)


RATES = ("1mbit", "5mbit", "10mbit", "50mbit", "100mbit", "500mbit", "1gbit", "2gbit", "3gbit", "5gbit")
DELAYS = (
    *each("delay", "50us", "0.25ms", "0.5ms", "1ms", "2.5ms", "10ms", rate="50mbit"),
    *each("delay", "25ms", "50ms", "100ms", rate="10mbit"),
    *({"rate": rate, "delay": "5ms"} for rate in ("200mbit", "500mbit")),
)
JITTERS = (
    {"rate": "20mbit", "delay": "10ms", "jitter": "1ms"},
    {"rate": "20mbit", "delay": "20ms", "jitter": "5ms"},
)
MOST_QUEUE_BYTES = 2_000_000_000
"""Bucket and queue together are 32 bits in the kernel."""

LEAST_SHARE = 1e-7
"""Of packets: less comes to one of a trial's only by chance. Shares are 32 bits in the kernel."""

BURSTS = ({"p": "1%", "r": "25%"}, {"p": "0.5%", "r": "10%", "loss_bad": 0.7, "loss_good": 0.001})
BURSTS_SHOWN = {
    "p": "loss-gemodel.p",
    "r": "loss-gemodel.r",
    "loss_bad": "loss-gemodel.1-h",
    "loss_good": "loss-gemodel.1-k",
}


class LinkProperties(Section):
    """The table: what one direction of a link can have."""

    rate_bps: Annotated[
        RateOrUnshaped,
        Field(alias="rate"),
        Property("rate {}", place=3, shown="rate.rate", least=8e3, most=1e13, calibrated=each("rate", *RATES)),
    ] = 100_000_000
    """Bits per second on the wire, headers included; None leaves the direction unshaped."""
    burst_bytes: Annotated[SizeBytes | None, Field(alias="burst"), Property(most=MOST_QUEUE_BYTES)] = None
    """The token bucket's size; None chooses one that neither stalls the rate nor hides it."""
    queue_bytes: Annotated[SizeBytes | None, Field(alias="queue"), Property(most=MOST_QUEUE_BYTES)] = None
    """What may wait for the rate before packets are dropped; None lets 0.3 s of the rate wait."""
    delay_s: Annotated[
        TimeS,
        Field(alias="delay"),
        Property("delay {}", place=0, shown="delay.delay", needs_netem=True, least=1e-6, most=10.0, calibrated=DELAYS),
    ] = 0.0
    """How long a packet is on its way in this direction. Two workers of a star are two links apart: their round trip
    takes it four times."""
    jitter_s: Annotated[
        TimeS,
        Field(alias="jitter"),
        Property(
            "{}",
            place=0,
            shown="delay.jitter",
            needs_netem=True,
            contradiction=_jitter_beyond_delay,
            least=1e-6,
            calibrated=JITTERS,
        ),
    ] = 0.0
    """The standard deviation of the delay (half its width, where the distribution is uniform); packets stay in order
    where there is a rate."""
    jitter_distribution: Annotated[
        Literal["normal", "uniform", "pareto", "paretonormal"],
        Property("distribution {}", place=1, only_with="jitter_s", unsaid="uniform"),
    ] = "normal"
    """The distribution of the delay."""
    jitter_correlation: Annotated[Share, Property("{}", place=0, only_with="jitter_s", shown="delay.correlation")] = 0.0
    """How much of a packet's delay is its predecessor's."""
    loss: Annotated[
        Share,
        Property(
            "loss random {}",
            shown="loss-random.loss",
            needs_netem=True,
            disturbs=True,
            contradiction=_two_losses_or_all_lost,
            least=LEAST_SHARE,
            most=0.5,
            calibrated=each("loss", "0.01%", "0.1%", "1%", "5%", rate="20mbit", delay="1ms"),
        ),
    ] = 0.0
    """Share of packets that are lost, each by itself."""
    loss_bursts: Annotated[
        GilbertElliott | None,
        Property(
            "loss gemodel {p} {r} {loss_bad} {loss_good}",
            shown=BURSTS_SHOWN,
            needs_netem=True,
            disturbs=True,
            least=LEAST_SHARE,
            most=0.5,
            calibrated=each("loss_bursts", *BURSTS, rate="20mbit", delay="1ms"),
        ),
    ] = None
    """Loss that comes in bursts, in place of ``loss``."""
    duplicate: Annotated[
        Share,
        Property(
            "duplicate {}",
            shown="duplicate.duplicate",
            needs_netem=True,
            disturbs=True,
            counted=("duplicated", "duplicated"),
            least=LEAST_SHARE,
            calibrated=each("duplicate", "1%", rate="20mbit", delay="1ms"),
        ),
    ] = 0.0
    """Share of packets that arrive twice."""
    corrupt: Annotated[
        Share,
        Property(
            "corrupt {}",
            shown="corrupt.corrupt",
            needs_netem=True,
            disturbs=True,
            least=LEAST_SHARE,
            most=0.5,
            calibrated=each("corrupt", "1%", rate="20mbit", delay="1ms"),
        ),
    ] = 0.0
    """Share of packets that get one wrong bit."""
    reorder: Annotated[
        Share,
        Property(
            "reorder {}",
            shown="reorder.reorder",
            needs_netem=True,
            disturbs=True,
            counted=("overtaking", "overtook"),
            contradiction=_nobody_to_overtake,
            least=LEAST_SHARE,
            calibrated=each("reorder", "2%", rate="20mbit", delay="5ms"),
        ),
    ] = 0.0
    """Share of packets that overtake those which wait for their delay."""

    @property
    def mean_loss(self) -> float:
        """The share of packets that are lost on purpose."""
        return self.loss_bursts.mean_loss if self.loss_bursts else self.loss


def rows(table: type[LinkProperties]) -> tuple[Property, ...]:
    """The rows of a table, in order.

    Raises:
        TypeError: a field has no ``Property``.
    """
    found = []
    for name, field in table.model_fields.items():
        row = next((each for each in field.metadata if isinstance(each, Property)), None)
        if row is None:
            raise TypeError(f"{table.__name__}.{name}: found no Property; allowed: one in its annotation")
        found.append(replace(row, name=name, key=field.alias or name))
    return tuple(found)
