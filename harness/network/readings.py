"""What was measured of links, and what of it is not what was asked."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from harness.scenario.links import Direction
from harness.scenario.section import Section
from harness.units import format_time


class Counts(Section):
    """What became of numbered datagrams."""

    sent: int
    lost: int
    bursts: int
    """Runs of one or more that are lost."""
    duplicated: int
    overtook: int

    @property
    def loss(self) -> float:
        """The share that was lost."""
        return self.lost / self.sent


class LinkReading(Section):
    """One direction of one link: rates in bits per second on the wire, headers included; shares of packets."""

    worker: int | None
    """Whose link it is; None for a trunk."""
    link: str
    direction: Direction
    rate_bps_asked: int | None
    rate_bps_measured: float
    loss_asked: float = 0.0
    counts: Counts | None = None
    """Only where packets are lost or disturbed on purpose."""
    complaints: tuple[str, ...] = ()
    """One line for everything that is not what was asked, within the stated tolerances."""

    @property
    def is_slow(self) -> bool:
        """Whether it carries less than was asked, by however little."""
        return self.rate_bps_asked is not None and self.rate_bps_measured < self.rate_bps_asked


class RoundTrip(Section):
    """An idle link, there and back: the least round trip, or their median where they vary on purpose; in seconds."""

    link: str
    rtt_s_asked: float
    rtt_s_measured: float
    jitter_s_asked: float = 0.0
    jitter_s_measured: float = 0.0
    complaints: tuple[str, ...] = ()


class Readings(Section):
    """What was measured of a whole topology."""

    links: tuple[LinkReading, ...]
    round_trips: tuple[RoundTrip, ...] = ()
    """The round trip over each link."""
    rtt_s: tuple[float, ...]
    """The round trip between each pair of neighbours, over all links between them: the least, or the median where they
    vary."""
    rtt_s_asked: tuple[float, ...] = ()
    rtt_s_allowed: tuple[float, ...] = ()
    """How far from what was asked each may be."""
    took_s: float
    """How long it took to measure all this."""

    @property
    def rtt_median_s(self) -> float:
        """The median over the pairs."""
        return statistics.median(self.rtt_s)

    def undilated(self, dilation: float, shrink: float = 1.0) -> Readings:
        """What the links stand for that were made so many times slower and thinner.

        Complaints are of what was made, and say so.
        """
        if dilation == shrink == 1:
            return self
        wider, made = dilation * shrink, f"at a dilation of {dilation:g}"
        made += f", {shrink:g} times thinner" if shrink != 1 else ""

        def told(complaints: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(f"{complaint} ({made})" for complaint in complaints)

        links = tuple(
            link.model_copy(
                update={
                    "rate_bps_asked": link.rate_bps_asked and round(link.rate_bps_asked * wider),
                    "rate_bps_measured": link.rate_bps_measured * wider,
                    "complaints": told(link.complaints),
                }
            )
            for link in self.links
        )
        trips = tuple(
            trip.model_copy(
                update={
                    name: getattr(trip, name) / dilation
                    for name in ("rtt_s_asked", "rtt_s_measured", "jitter_s_asked", "jitter_s_measured")
                }
                | {"complaints": told(trip.complaints)}
            )
            for trip in self.round_trips
        )
        times = {
            name: tuple(seconds / dilation for seconds in getattr(self, name))
            for name in ("rtt_s", "rtt_s_asked", "rtt_s_allowed")
        }
        return self.model_copy(update={"links": links, "round_trips": trips, **times})

    @property
    def slowest_bps(self) -> float:
        """The rate of the slowest direction of all links."""
        return min(link.rate_bps_measured for link in self.links)

    def complaints(self) -> list[str]:
        """One line for everything that is not what was asked, within the stated tolerances."""
        found = [complaint for link in self.links for complaint in link.complaints]
        found += [complaint for trip in self.round_trips for complaint in trip.complaints]
        workers = len(self.rtt_s)
        pairs = zip(self.rtt_s_asked, self.rtt_s, self.rtt_s_allowed, strict=False)
        for worker, (asked_s, measured_s, allowed_s) in enumerate(pairs):
            if abs(measured_s - asked_s) > allowed_s:
                allowed = f"within {format_time(allowed_s)}"
                found.append(
                    f"round trip w{worker} to w{(worker + 1) % workers}: "
                    f"{off(asked_s, measured_s, format_time, allowed)}"
                )
        return found


def off(asked: float, measured: float, form: Callable[[float], str], allowed: str) -> str:
    """In words that something is not what was asked.

    Args:
        form: writes a value with its unit.
    """
    return f"asked {form(asked)}, measured {form(measured)} (allowed: {allowed})"
