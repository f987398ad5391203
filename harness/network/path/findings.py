"""What was found of the path between two hosts, and how it varies; and the link that it makes in a scenario."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from typing_extensions import Self

from harness.network.datagrams import Trip
from harness.network.readings import Counts
from harness.network.tolerances import RTT_TOLERANCE_S, burst_spread
from harness.scenario.limits import ROW
from harness.scenario.links import MTU_BYTES, USUAL_MTU_BYTES, WAYS, Direction
from harness.scenario.section import Section
from harness.scenario.traces import LEAST_BPS
from harness.units import format_time

LEAST_JITTER_S = RTT_TOLERANCE_S / 2
"""Less of a round trip's deviation may be the hosts' own, and not the path's."""

FEWEST_BURSTS = 10
"""Before losses are said to come in bursts, so many must have been seen."""


class Spread(Section):
    """How something varies: its 5th, 50th and 95th percentile."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """The percentiles of some values, at least one."""
        low, median, high = map(float, np.quantile(values, (0.05, 0.5, 0.95)))
        return cls(low=low, median=median, high=high)


class Round(Section):
    """One of several equal looks at the path; rates in bits per second on the wire, headers included."""

    at_s: float
    """When it began, from the first one on."""
    rtt_s: float | None
    """The median round trip over the idle path; None where no datagram came back."""
    up_bps: float
    down_bps: float
    up_lost: float | None
    """The share of packets that were lost; None where it could not be counted."""
    down_lost: float | None


class Way(Section):
    """One direction of the path: up to the server, or down from it."""

    rate_bps: Spread
    """On the wire, headers included, once it is steady."""
    by_datagrams: bool = False
    """Whether the rate is that at which datagrams arrive when more are sent. Where packets are lost TCP slows down."""
    tcp_bps: float
    """What one TCP flow gets, likewise; the median."""
    jitter_s: float | None = None
    """The deviation of the time on this way, from differences in which the two clocks' offset cancels (RFC 3393)."""
    counts: Counts | None = None
    """What became of datagrams well below the rate; None where they could not be counted."""

    @property
    def loss(self) -> float:
        """The share of packets that were lost, as counted; 0 where nothing was counted."""
        return self.counts.loss if self.counts else 0.0

    @property
    def loss_in_bursts(self) -> bool:
        """Whether losses surely come together more than chance would have it."""
        if self.counts is None or self.counts.bursts < FEWEST_BURSTS:
            return False
        alone = 1 / (1 - self.counts.loss)
        return self.counts.lost / self.counts.bursts > alone + burst_spread(alone, self.counts.bursts)


class Sample(Section):
    """The rate of a moment of the trace."""

    t_s: float
    rate_bps: float


class Findings(Section):
    """What was found. All that could not be measured is None, and ``notes`` say why."""

    host: str
    port: int
    ip_version: int
    began_at: str
    """In ISO 8601, UTC."""
    took_s: float
    mtu_bytes: int
    rtt_s: Spread | None
    jitter_s: float | None
    """The deviation of the round trip over the idle path."""
    up: Way
    down: Way
    rounds: tuple[Round, ...]
    traced: Direction | None = None
    """The way whose rate was followed, if one was: the slower one."""
    trace: tuple[Sample, ...] = ()
    notes: tuple[str, ...] = ()

    def way(self, name: Direction) -> Way:
        """One of the two."""
        return self.up if name == "up" else self.down


def deviation_s(values: Sequence[float]) -> float:
    """Half of what holds the middle 68 %: a normal distribution's deviation, which a few late values do not change."""
    low, high = np.quantile(values, (0.16, 0.84))
    return float(high - low) / 2


def pooled_deviation_s(rounds: Iterable[Sequence[float]]) -> float | None:
    """The deviation within rounds; None of nothing. What differs from round to round, such as a clock that drifts, is
    left out."""
    around = [value - statistics.median(values) for values in rounds if values for value in values]
    return deviation_s(around) if len(around) > 1 else None


def without_holes(rates_bps: Sequence[float]) -> list[float]:
    """Each rate as the median of itself and its neighbours: steps stay, and what one of them alone shows goes.

    TCP hands out nothing while it waits for a lost segment, and much at once when it has it: neither is the path's.
    """
    ends = [*rates_bps[:1], *rates_bps, *rates_bps[-1:]]
    return [statistics.median(three) for three in zip(ends, ends[1:], ends[2:], strict=False)]


def jitter_of(rounds: Sequence[Sequence[Trip]], part: str) -> float | None:
    """The deviation of ``round_trip_s``, ``there_s`` or ``back_s``."""
    return pooled_deviation_s([[float(getattr(trip, part)) for trip in trips] for trips in rounds])


def summed(counts: Sequence[Counts]) -> Counts | None:
    """Several counts as one; None of none."""
    if not counts:
        return None
    return Counts(**{name: sum(getattr(each, name) for each in counts) for name in Counts.model_fields})


def loss_at_most(counts: Counts) -> float:
    """The greatest share of losses that such a count allows, with a confidence of 95 % on this one side.

    See Clopper and Pearson, Biometrika 26, 1934.
    """
    from scipy.special import betaincinv

    if counts.lost == counts.sent:
        return 1.0
    return float(betaincinv(counts.lost + 1, counts.sent - counts.lost, 0.95))


def link_table(findings: Findings, trace: str | None = None) -> dict[str, Any]:
    """The path as a ``[link]`` table: in a star of such links two workers are as far apart as these two hosts.

    Between two workers are two links, so each direction of each has a quarter of the round trip, half of its deviation,
    and the loss of which two make the path's. What the hosts' own timers may be is left out. The rate up is what this
    host could send, the rate down what it could receive.

    Args:
        trace: the file that holds the trace: the rate is then in both directions that of the way that was followed.
    """
    followed = findings.traced if trace else None
    rates = {way: _rate(findings.way(followed or way).rate_bps.median) for way in WAYS}
    table: dict[str, Any] = {"rate": rates["down"]}
    if trace:
        table["trace"] = trace
    if findings.mtu_bytes != USUAL_MTU_BYTES and MTU_BYTES[0] <= findings.mtu_bytes <= MTU_BYTES[1]:
        table["mtu"] = findings.mtu_bytes
    if findings.rtt_s and findings.rtt_s.median > RTT_TOLERANCE_S:
        delay_s = findings.rtt_s.median / 4
        table["delay"] = _time(delay_s)
        if findings.jitter_s and findings.jitter_s > LEAST_JITTER_S:
            table["jitter"] = _time(min(findings.jitter_s / 2, delay_s))
    up, down = (_losses(findings.way(way)) for way in WAYS)
    if rates["up"] != rates["down"]:
        up = {"rate": rates["up"], **up}
    return {**table, **{name: part for name, part in (("up", up), ("down", down)) if part}}


def _losses(way: Way) -> dict[str, Any]:
    share = 1 - math.sqrt(1 - min(way.loss, 0.999))
    if way.counts is None or share < ROW["loss"].least:
        return {}
    share = min(share, ROW["loss"].most)
    if not way.loss_in_bursts:
        return {"loss": _percent(share)}
    ends = min(1.0, way.counts.bursts / way.counts.lost)
    begins = min(1.0, ends * share / (1 - share))
    return {"loss_bursts": {"p": _percent(begins), "r": _percent(ends)}}


def notes_on_link(findings: Findings) -> Iterator[str]:
    """What a reader of the table must know: a line each."""
    if findings.rtt_s and findings.rtt_s.median <= RTT_TOLERANCE_S:
        rtt = format_time(findings.rtt_s.median)
        yield f"no delay: a round trip takes {rtt}, and an emulated one without a delay takes about as long"
    elif findings.jitter_s is not None and findings.jitter_s <= LEAST_JITTER_S:
        yield f"no jitter: {format_time(findings.jitter_s)} may be the hosts' own"
    for name in WAYS:
        counts = findings.way(name).counts
        if counts and not counts.lost:
            most = loss_at_most(counts)
            yield f"no loss {name}: none of {counts.sent} packets; below {most:.2g} with 95 % confidence"
    if findings.mtu_bytes > MTU_BYTES[1]:
        yield f"no mtu: {findings.mtu_bytes} B is more than a scenario's link may have"


def trace_csv(findings: Findings) -> str:
    """The trace as a file that ``link.trace`` names."""
    lines = [f"{sample.t_s:g},{max(LEAST_BPS, round(sample.rate_bps))}" for sample in findings.trace]
    about = f"# {findings.traced} between this host and {findings.host}, measured on {findings.began_at}"
    return "\n".join([about, "t_s,rate_bps", *lines, ""])


def _rate(rate_bps: float) -> str:
    rate_bps = max(rate_bps, LEAST_BPS)
    for unit, scale in (("gbit", 1e9), ("mbit", 1e6)):
        if rate_bps >= scale:
            return f"{rate_bps / scale:.4g}{unit}"
    return f"{rate_bps / 1e3:.4g}kbit"


def _time(time_s: float) -> str:
    return f"{1e3 * time_s:.4g}ms"


def _percent(share: float) -> str:
    return f"{100 * share:.4g}%"
