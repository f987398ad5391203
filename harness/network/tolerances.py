"""How far a measured link may be from what was asked: tolerances, and intervals of what is counted."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from harness.network.bounds import ETHERNET_HEADER_BYTES
from harness.network.readings import Counts, off
from harness.network.topology import Topology
from harness.network.wires import Queue
from harness.scenario.links import PROPERTIES, Pipe
from harness.scenario.properties import GilbertElliott
from harness.units import format_rate

PINGS = 10

COUNTED_BYTES = 100

UDP_IP_HEADER_BYTES = 28

RATE_TOLERANCE = (0.93, 1.04)
"""The measured rate over the asked one. It is looser at the low side, since a busy machine delays the receiver."""

RTT_TOLERANCE_S = 0.5e-3
"""The tolerance of one link. Between workers there are at least two."""

RTT_TOLERANCE_SHARE = 0.05

CONFIDENCE = 0.999
"""The confidence of the interval in which a counted share must lie, if the kernel does what it was asked."""

DEVIATIONS = 3.29
"""Standard deviations that hold the same share of a normal distribution."""

HARMLESS_CORRUPTION = 6 / (ETHERNET_HEADER_BYTES + UDP_IP_HEADER_BYTES + COUNTED_BYTES)
"""A wrong bit in the sender's hardware address harms nobody; any other is seen, and the packet dropped."""


def rtt_tolerance_s(asked_s: float) -> float:
    """How far from what was asked the round trip over an idle link without jitter may be."""
    return max(RTT_TOLERANCE_S, RTT_TOLERANCE_SHARE * asked_s)


def loss_interval(pipe: Pipe, counts: Counts, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The least and the greatest loss that the confidence allows in so many packets: binomial, or wider for bursts.

    A chain's states last, so that its losses come together and their share varies more: by 2 lambda / (1 - lambda)
    times what the state explains of the variance, lambda = 1 - p - r being its correlation from packet to packet.
    """
    seen = copies(pipe).none
    if pipe.loss_bursts is None:
        return share_interval(seen, counts.sent, confidence)
    from scipy.special import ndtri

    chain = _as_packets_meet_it(pipe.loss_bursts, pipe.duplicate)
    stays = 1 - chain.p - chain.r
    by_state = (chain.loss_bad - chain.loss_good) ** 2 * chain.bad_share * (1 - chain.bad_share)
    variance = (seen * (1 - seen) + 2 * by_state * stays / (1 - stays)) / counts.sent
    half = float(ndtri((1 + confidence) / 2)) * math.sqrt(max(variance, 0.0))
    return max(0.0, seen - half), seen + half


class Copies(NamedTuple):
    """Shares of packets, by how often they arrive."""

    none: float
    twice: float


def copies(pipe: Pipe) -> Copies:
    """Of how many packets no copy arrives, and of how many two do.

    Netem draws whether a packet is doubled and whether it is lost; of one that is to be both, one copy goes on. Of a
    doubled one the second copy may be lost as any packet is, and each is damaged by itself (``netem_enqueue`` in
    Linux's sch_netem.c).
    """
    doubled, damaged = pipe.duplicate, pipe.corrupt * (1 - HARMLESS_CORRUPTION)
    lost, second_lost = _drawn_as_lost(pipe)
    one, two = doubled * lost + (1 - doubled) * (1 - lost), doubled * (1 - lost)
    second = (1 - second_lost) * (1 - damaged)
    none = (1 - doubled) * lost + one * damaged + two * damaged * (1 - second)
    return Copies(none, two * (1 - damaged) * second)


def _drawn_as_lost(pipe: Pipe) -> tuple[float, float]:
    """Of how many packets that is drawn; and of how many second copies, where the first was none of them."""
    chain = pipe.loss_bursts
    if chain is None:
        return pipe.loss, pipe.loss
    met = _as_packets_meet_it(chain, pipe.duplicate)
    after_good, after_bad = _then_lost(chain)
    passed_good, passed_bad = (1 - met.bad_share) * (1 - met.loss_good), met.bad_share * (1 - met.loss_bad)
    return met.mean_loss, (passed_good * after_good + passed_bad * after_bad) / (passed_good + passed_bad)


def _as_packets_meet_it(chain: GilbertElliott, doubled: float) -> GilbertElliott:
    """The chain from one packet to the next: it steps twice where a packet that is not lost is doubled."""
    again = doubled * (1 - chain.p - chain.r)
    p, r = chain.p * (1 + again * (1 - chain.loss_good)), chain.r * (1 + again * (1 - chain.loss_bad))
    return chain.model_copy(update={"p": p, "r": r})


def _then_lost(chain: GilbertElliott) -> tuple[float, float]:
    """The probability that the next one is drawn as lost, after one that found the good state, and the bad state.

    Netem draws each loss by the state in which the packet finds the chain, and steps it at the same time.
    """
    good, bad = chain.loss_good, chain.loss_bad
    return (1 - chain.p) * good + chain.p * bad, (1 - chain.r) * bad + chain.r * good


def share_interval(share: float, trials: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Between which shares a binomial count of so many trials lies with that confidence."""
    low, high = (_binomial_quantile((1 + side * confidence) / 2, trials, share) for side in (-1, 1))
    return low / trials, high / trials


def _binomial_quantile(probability: float, trials: int, share: float) -> int:
    """The least count that is not exceeded with this probability, without the slow import of scipy.stats."""
    from scipy.special import bdtr, bdtrik

    if share in (0.0, 1.0):
        return round(trials * share)
    count = math.ceil(bdtrik(probability, trials, share))
    return count - 1 if count and bdtr(count - 1, trials, share) >= probability else count


def mean_burst(chain: GilbertElliott, doubled: float = 0.0) -> float:
    """Packets in a run of losses: P(lost) / P(lost, and the next one not).

    Args:
        doubled: share of packets of which one copy arrives all the same.
    """
    met, (after_good, after_bad) = _as_packets_meet_it(chain, doubled), _then_lost(chain)
    both = (1 - met.bad_share) * met.loss_good * after_good + met.bad_share * met.loss_bad * after_bad
    return met.mean_loss / (met.mean_loss - (1 - doubled) * both)


def complaints_of_rate(where: str, asked_bps: int | None, measured_bps: float) -> Iterator[str]:
    """A line where a direction does not carry what was asked of it, if anything was."""
    low, high = RATE_TOLERANCE
    if asked_bps and not low <= measured_bps / asked_bps <= high:
        yield f"{where}: {off(asked_bps, measured_bps, format_rate, f'{low:.2f} to {high:.2f} of what was asked')}"


def complaints_of(queue: Queue, measured_bps: float, counts: Counts | None, pause_s: float = 0.0) -> Iterator[str]:
    """A line for all that a direction is not as it was asked.

    Args:
        pause_s: the longest between datagrams that were counted.
    """
    pipe, where = queue.pipe, f"link {queue.link} {queue.direction}"
    yield from complaints_of_rate(where, pipe.rate_bps, measured_bps)
    if counts is None:
        return
    shares = [
        ("lost", pipe.mean_loss, counts.loss, loss_interval(pipe, counts)),
        *_shares_counted(pipe, counts, pause_s),
    ]
    for name, asked, measured, (least, most) in shares:
        if not least <= measured <= most:
            allowed = f"{least:.3%} to {most:.3%}, in which {CONFIDENCE:.1%} of counts of {counts.sent} lie"
            yield f"{where}: packets {name}: {off(asked, measured, '{:.3%}'.format, allowed)}"
    if pipe.loss_bursts and counts.bursts:
        asked, measured = mean_burst(pipe.loss_bursts, pipe.duplicate), counts.lost / counts.bursts
        half = burst_spread(asked, counts.bursts)
        if abs(measured - asked) > half:
            yield f"{where}: packets in a burst: {off(asked, measured, '{:.2f}'.format, f'within {half:.2f}')}"


def burst_spread(mean: float, bursts: int) -> float:
    """How far the mean length of so many bursts may be from what it should be: lengths are geometric.

    Where hardly a burst is longer than one packet their variance is next to none, and a single longer one would be too
    much. So it is taken as 0.05 at least, times the mean.
    """
    return DEVIATIONS * math.sqrt(mean * max(mean - 1, 0.05) / bursts)


def _shares_counted(
    pipe: Pipe, counts: Counts, pause_s: float
) -> Iterator[tuple[str, float, float, tuple[float, float]]]:
    """Each share of packets that has a count of its own: its name, what was asked and measured, and the interval."""
    overtake_anyway = pipe.jitter_s and not pipe.rate_bps  # jitter alone lets packets overtake one another
    for row in PROPERTIES:
        if row.counted is None or (row.name == "reorder" and overtake_anyway):
            continue
        word, field = row.counted
        asked, measured = row.share(pipe), getattr(counts, field) / counts.sent
        expected = copies(pipe).twice if row.name == "duplicate" else asked
        least, most = share_interval(expected, counts.sent)
        if row.name == "reorder" and pipe.delay_s <= pause_s:
            least = 0.0  # who comes after the pause may find nobody there to overtake
        yield word, asked, measured, (least, most)


def pair_tolerance_s(topology: Topology, one: int, other: int) -> float:
    """How far from what was asked the round trip between two workers may be."""
    both_ways = topology.path(one, other) + topology.path(other, one)
    jitter_s = math.hypot(*(queue.pipe.jitter_s for queue in both_ways))
    return len(both_ways) / 2 * rtt_tolerance_s(topology.rtt_s(one, other)) + median_spread_s(jitter_s, PINGS)


def median_spread_s(jitter_s: float, pings: int) -> float:
    """How far the median of so many round trips may be from the delay, their deviation being the jitter's."""
    return DEVIATIONS * 1.25 * jitter_s / math.sqrt(pings)
