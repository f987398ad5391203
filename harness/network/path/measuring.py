"""Measure the path to a server: equal rounds of round trips, bulk flows and counted datagrams, until the time is over.

Beware of three things. A shaper lets a burst pass ahead of its rate, and TCP takes its time to find the rate: so of
each flow only its second half counts. Where packets are lost TCP slows down, and its rate is not the path's: there
datagrams are sent, ever more, until no more of them arrive. And two hosts' clocks do not agree: so nobody can say how
much of a round trip is spent on which way, but only how much each way varies.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import NamedTuple

from harness.errors import MeasurementError
from harness.network.bounds import ETHERNET_HEADER_BYTES
from harness.network.datagrams import Trip
from harness.network.measure import COUNTED_PER_S, SETTLE_ROUND_TRIPS, SETTLE_S
from harness.network.path.bulk import WINDOW_S
from harness.network.path.client import Peer, UncountableError
from harness.network.path.findings import (
    Findings,
    Round,
    Sample,
    Spread,
    Way,
    deviation_s,
    jitter_of,
    summed,
    without_holes,
)
from harness.network.path.protocol import (
    MOST_DATAGRAM_BYTES,
    MOST_DATAGRAMS,
    MOST_FLOW_S,
    MOST_PER_S,
    MOST_SENDING_S,
)
from harness.network.readings import Counts
from harness.network.tolerances import COUNTED_BYTES
from harness.scenario.links import WAYS, Direction
from harness.units import format_rate, format_time

LEAST_S, MOST_S = 6.0, MOST_FLOW_S
"""How long a measurement may be told to take: one round, and what a server allows."""

PINGS, PING_GAP_S, PING_WAIT_S = 40, 0.02, 1.0

FEWEST_ROUNDS = 3
"""So many are tried, longer than was asked if need be, before a path is said to carry nothing."""

FLOW_S = 2.0
"""How long a flow lasts at least; its second half is what counts."""

COUNT_S, COUNT_SHARE, FEWEST_COUNTED = 0.5, 0.25, 10
"""How long datagrams are counted in a round, which share of the rate they take, so few that they crowd out none, and
how many they are at least."""

UDP_HEADER_BYTES = 8

FLOOD_S, MORE, FEWEST_FLOODING = 1.0, 1.5, 50
"""How long each flood of datagrams lasts, how many times more the next one has, until no more arrive, and how many the
first one has at least."""

ENOUGH = 0.9
"""Below this share of what was sent, though those that are lost anyway are made up for, a flood has found the rate."""

TRACE_WINDOWS = 2
"""Windows to a sample of the trace."""

Tell = Callable[[str], None]


def measure(peer: Peer, host: str, port: int, seconds: float, trace: bool, tell: Tell) -> Findings:
    """Measure for about so long.

    Args:
        trace: after one round, follow the rate of the slower way for the rest of the time.
        tell: hears how far it is, a line for each round.

    Raises:
        MeasurementError: the server is gone, or the path carries nothing.
    """
    try:
        return _Measuring(peer, tell).run(host, port, seconds, trace)
    except OSError as error:
        raise MeasurementError(f"{host} port {port}: {error.strerror or error}; what was measured is lost") from None


class _Looked(NamedTuple):
    """What one round found, as it came."""

    at_s: float
    trips: list[Trip]
    flows_bps: dict[Direction, list[float]]
    counts: dict[Direction, Counts | None]
    floods_bps: dict[Direction, float]


class _Measuring:
    """A measurement from its beginning to its end."""

    def __init__(self, peer: Peer, tell: Tell) -> None:
        self._peer, self._tell = peer, tell
        self._began_s = time.monotonic()
        self._looks: list[_Looked] = []
        self._flow_s = FLOW_S
        self._notes: dict[str, None] = {}
        self._silent: Direction | None = None

    def run(self, host: str, port: int, seconds: float, trace: bool) -> Findings:
        began_at = datetime.now(timezone.utc).isoformat(timespec="seconds")
        tried = 0
        while self._wants_round(tried, seconds, trace):
            self._look()
            tried += 1
        if not self._looks:
            raise MeasurementError(f"the path carries nothing {self._silent}, most of the time, in {tried} rounds")
        traced: Direction | None = None
        samples: list[Sample] = []
        if trace:
            slower: Direction = min(WAYS, key=self._typical_bps)
            traced, samples = slower, self._follow(slower, max(seconds - self._now_s(), self._flow_s))
        rounds = [look.trips for look in self._looks]
        trips = [trip.round_trip_s for trips in rounds for trip in trips]
        return Findings(
            host=host,
            port=port,
            ip_version=self._peer.ip_version,
            began_at=began_at,
            took_s=self._now_s(),
            mtu_bytes=self._peer.packet_bytes,
            rtt_s=Spread.of(trips) if trips else None,
            jitter_s=jitter_of(rounds, "round_trip_s"),
            up=self._way("up", jitter_of(rounds, "there_s"), samples if traced == "up" else []),
            down=self._way("down", jitter_of(rounds, "back_s"), samples if traced == "down" else []),
            rounds=tuple(map(self._round, self._looks)),
            traced=traced,
            trace=tuple(samples),
            notes=tuple(self._notes),
        )

    def _now_s(self) -> float:
        return time.monotonic() - self._began_s

    def _wants_round(self, tried: int, seconds: float, trace: bool) -> bool:
        """Whether to try one more: until one counts, and without a trace until what ends nearest to the time."""
        if not self._looks and tried < FEWEST_ROUNDS:
            return True
        if self._looks and trace:
            return False
        now_s = self._now_s()
        return now_s + now_s / tried / 2 <= seconds

    def _look(self) -> None:
        """One round. It does not count where a way carried nothing for most of the time: that is no rate."""
        at_s = self._now_s()
        trips = self._peer.round_trips(PINGS, PING_GAP_S, PING_WAIT_S)
        if not trips:
            self._note("no round trip, jitter or loss: no datagram came back; is the server's port open for UDP, too?")
        rtt_s = _median([trip.round_trip_s for trip in trips]) if trips else 0.0
        self._flow_s = max(FLOW_S, 2 * (SETTLE_S + SETTLE_ROUND_TRIPS * rtt_s))
        flows = {way: self._rates_bps(self._peer.flow(way, self._flow_s)) for way in WAYS}
        steady = {way: rates[len(rates) // 2 :] for way, rates in flows.items()}
        self._silent = next((way for way in WAYS if not _median(steady[way])), None)
        if self._silent:
            at = format_time(at_s)
            left_out = f"the round at {at} does not count: most of the time nothing arrived {self._silent}"
            self._note(left_out)
            self._tell(left_out)
            return
        wait_s = _wait_s(trips)
        counts = {way: self._count(way, _median(steady[way]), wait_s) if trips else None for way in WAYS}
        floods = {
            way: self._flood_bps(way, _median(steady[way]), found.loss, wait_s)
            for way, found in counts.items()
            if found and (found.lost or way in self._flooded)
        }
        self._looks.append(_Looked(at_s, trips, steady, counts, floods))
        self._say_round(self._round(self._looks[-1]))

    @property
    def _flooded(self) -> set[Direction]:
        """The ways on which packets were lost in an earlier round."""
        return {way for look in self._looks for way in look.floods_bps}

    def _rates_bps(self, arrivals: Sequence[int]) -> list[float]:
        """Bits per second on the wire, for each window of a flow: by then TCP knows how large its segments may be."""
        wire_share = (self._peer.packet_bytes + ETHERNET_HEADER_BYTES) / self._peer.segment_bytes
        return [8 * payload_bytes * wire_share / WINDOW_S for payload_bytes in arrivals]

    def _count(self, way: Direction, rate_bps: float, wait_s: float) -> Counts | None:
        """Numbered datagrams, well below the rate; None where a host could not take them."""
        frame_bytes = COUNTED_BYTES + UDP_HEADER_BYTES + self._peer.ip_header_bytes + ETHERNET_HEADER_BYTES
        packets, per_s = pace(min(COUNTED_PER_S / 2, COUNT_SHARE * rate_bps / 8 / frame_bytes), COUNT_S, FEWEST_COUNTED)
        try:
            return self._peer.count(way, packets, COUNTED_BYTES, per_s, wait_s).counts
        except UncountableError as error:
            self._note(f"some datagrams {way} are not counted: {error}")
            return None

    def _flood_bps(self, way: Direction, least_bps: float, loss: float, wait_s: float) -> float:
        """At what rate datagrams of the largest size arrive, in bits per second on the wire, when more are sent."""
        packet_bytes = min(self._peer.packet_bytes, MOST_DATAGRAM_BYTES)
        size_bytes = packet_bytes - UDP_HEADER_BYTES - self._peer.ip_header_bytes
        frame_bytes = packet_bytes + ETHERNET_HEADER_BYTES
        sent_bps, found_bps = MORE * least_bps, least_bps
        while True:
            packets, per_s = pace(sent_bps / 8 / frame_bytes, FLOOD_S, FEWEST_FLOODING)
            try:
                arrived = self._peer.count(way, packets, size_bytes, per_s, wait_s).arrived_per_s
            except UncountableError as error:
                self._note(f"the rate {way} may be more than TCP's: {error}")
                return found_bps
            found_bps = max(found_bps, 8 * frame_bytes * arrived)
            if arrived < ENOUGH * per_s * (1 - loss):
                return found_bps
            if per_s == MOST_PER_S:
                self._note(f"the rate {way} may be more: all of {MOST_PER_S} datagrams a second arrived")
                return found_bps
            sent_bps *= MORE

    def _follow(self, way: Direction, seconds: float) -> list[Sample]:
        """The rate of a way from moment to moment, by one flow, from when TCP has found it."""
        if way in self._flooded:
            self._note(f"the trace is TCP's rate {way}, which may be less than the path's: packets are lost")
        found = self._rates_bps(self._peer.flow(way, seconds))[int(self._flow_s / 2 / WINDOW_S) :]
        starts = range(0, len(found) - TRACE_WINDOWS + 1, TRACE_WINDOWS)
        smooth = without_holes([sum(found[start : start + TRACE_WINDOWS]) / TRACE_WINDOWS for start in starts])
        return [Sample(t_s=start * WINDOW_S, rate_bps=rate) for start, rate in zip(starts, smooth, strict=True)]

    def _typical_bps(self, way: Direction) -> float:
        return _median([rate for look in self._looks for rate in look.flows_bps[way]])

    def _way(self, name: Direction, jitter_s: float | None, samples: Sequence[Sample]) -> Way:
        by_tcp = [rate for look in self._looks for rate in look.flows_bps[name]]
        by_datagrams = [look.floods_bps[name] for look in self._looks if name in look.floods_bps]
        followed = [sample.rate_bps for sample in samples]
        counts = [found for look in self._looks if (found := look.counts[name])]
        return Way(
            rate_bps=Spread.of(followed or by_datagrams or by_tcp),
            by_datagrams=bool(by_datagrams) and not followed,
            tcp_bps=_median(by_tcp),
            jitter_s=jitter_s,
            counts=summed(counts),
        )

    def _round(self, look: _Looked) -> Round:
        up, down = (look.floods_bps.get(way) or _median(look.flows_bps[way]) for way in WAYS)
        up_lost, down_lost = (found.loss if (found := look.counts[way]) else None for way in WAYS)
        rtt_s = _median([trip.round_trip_s for trip in look.trips]) if look.trips else None
        return Round(at_s=look.at_s, rtt_s=rtt_s, up_bps=up, down_bps=down, up_lost=up_lost, down_lost=down_lost)

    def _note(self, line: str) -> None:
        self._notes[line] = None

    def _say_round(self, found: Round) -> None:
        trip = f"round trip {format_time(found.rtt_s)}" if found.rtt_s is not None else "no round trip"
        at = format_time(found.at_s)
        self._tell(f"{at}: up {format_rate(found.up_bps)}, down {format_rate(found.down_bps)}, {trip}")


def pace(wanted_per_s: float, seconds: float, fewest: int) -> tuple[int, float]:
    """How many datagrams to send, and how many a second: what is wanted for so long, within what a server allows."""
    per_s = min(max(wanted_per_s, fewest / MOST_SENDING_S), MOST_PER_S)
    return min(max(fewest, round(per_s * seconds)), MOST_DATAGRAMS), per_s


def _wait_s(trips: Sequence[Trip]) -> float:
    """How long to wait for the last datagram; what floods have queued comes before it."""
    if not trips:
        return PING_WAIT_S
    times = [trip.round_trip_s for trip in trips]
    return 0.3 + 2 * (_median(times) / 2 + 4 * deviation_s(times))


def _median(values: Sequence[float]) -> float:
    return Spread.of(values).median
