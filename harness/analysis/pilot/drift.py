"""Whether a pilot still holds: its job, its network and its verdict, by the same short measurements made again.

Noise makes steps longer, never shorter than they are. So the least of several attempts is compared, with a limit that
lies between nothing (1) and what must be found (1.3) by their logarithms. A single attempt within it will do to hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Literal

from harness.analysis.pilot.forecast import Forecast
from harness.analysis.pilot.learning import end_loss
from harness.analysis.pilot.verdict import WORTH_IT, as_soon_at_break_even, sooner_all_reduce
from harness.network.topology import Topology
from harness.record.pilot import Job, Outcome, Pilot, Training
from harness.units import format_rate, format_time

MOST_SLOWER = 1.14
"""How many times longer a step may compute: the middle between 1 and 1.3."""

LEAST_FASTER = 1 / 1.3

MOST_RATE_CHANGE = 1.25
"""How many times faster or slower links may be than the pilot's, and how many times as far away their ends."""

LEAST_RTT_CHANGE_S = 0.0005
"""By less than this no round trip of links that were measured has drifted."""

MOST_LOSS_CHANGE = MOST_RATE_CHANGE**2
"""How many times as many packets links may lose, or as few: TCP's rate falls with the root of it (Mathis, 1997)."""

LEAST_LOSS_CHANGE = 0.001
"""By a share less than this no loss of packets has drifted."""

MOST_BYTES_OFF = 0.05
"""Share by which a step may send other than in the pilot."""

LOSS_ROUNDING = 1e-6
"""Share by which a loss is not worse, however small the tolerance: sums in another order differ in the last of the 24
bits that 32-bit numbers have (6e-8), and a training adds some of that up."""

NOISY = 1.3
"""How far attempts may be from one another, the longest over the shortest, before nothing can be told of them."""

Answer = Literal["holds", "drifted", "cannot tell"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at again."""

    what: str
    answer: Answer
    found: str


def of_job(before: Job, attempts: Sequence[Job]) -> list[Check]:
    """Whether the model is the same, and computes as fast."""
    last = attempts[-1]
    shapes = [sorted((each.parameter, each.shape) for each in job.profile.gradients) for job in (before, last)]
    same = shapes[0] == shapes[1] and before.profile.batch_size == last.profile.batch_size
    found = "the same" if same else "other parameters, or another batch"
    return [Check("model and batch", "holds" if same else "drifted", found), _computing(before, attempts)]


def _computing(before: Job, attempts: Sequence[Job]) -> Check:
    own_s = median(before.compute_s)
    ratios = [median(each.compute_s) / own_s for each in attempts]
    found = f"{min(ratios):.2f} times the pilot's"
    if LEAST_FASTER <= min(ratios) <= MOST_SLOWER:
        return Check("computation of a step", "holds", found)
    if len(ratios) > 1 and max(ratios) / min(ratios) > NOISY:
        return Check(
            "computation of a step", "cannot tell", f"{found} to {max(ratios):.2f} times: this machine is busy"
        )
    return Check("computation of a step", "drifted", found)


def of_network(before: Topology, now: Topology) -> list[Check]:
    """Whether links that were measured anew are what the pilot had: how fast, how far apart, and what they lose."""
    return [_rate(before, now), _round_trip(before, now), _loss_of_packets(before, now)]


def of_break_even(pilot: Pilot, now: Topology) -> list[Check]:
    """Whether links that were measured anew are on the verdict's side of the rate at which both are as soon.

    They may have crossed it, and be almost as fast as they were. The step model says on which side they are: where
    directions or trunks differ, the rate of the slowest does not. Where a method was sooner, but by too little to be
    worth it, faster links are the verdict's side. Nothing is known where the verdict names no rate.
    """
    rate_bps, both = pilot.verdict.break_even_bps, as_soon_at_break_even(pilot)
    if rate_bps is None or both is None:
        return []
    method, plain = both
    factor = (method.steps_factor or 1.0) / (plain.steps_factor or 1.0)
    was_sooner, is_sooner = (
        Forecast(pilot.job, each, pilot.per_node, pilot.beyond_s).is_sooner(method.method, plain.method, factor)
        for each in (pilot.network, now)
    )
    found = (
        f"{method.label} is {'sooner' if is_sooner else 'no sooner'} than {plain.label} (predicted); where all links "
        f"are alike, it is below {format_rate(rate_bps)}"
    )
    holds = is_sooner in (was_sooner, pilot.verdict.compress)
    return [Check("break-even rate", "holds" if holds else "drifted", found)]


def _rates_bps(network: Topology) -> dict[str, float]:
    """By direction. Of links that change it is the mean over time: how fast they were in a moment is chance."""
    return {f"{each.link} {each.direction}": each.pipe.rate_bps or math.inf for each in network.at_mean.queues()}


def _rate(before: Topology, now: Topology) -> Check:
    """Each direction by itself: steps may wait for others than the slowest. The one that has changed most is told.

    Where links are joined in another way, the slowest of each network are compared.
    """
    was_bps, is_bps = _rates_bps(before), _rates_bps(now)
    if was_bps.keys() != is_bps.keys():
        was_bps, is_bps = ({"the slowest": min(each.values())} for each in (was_bps, is_bps))
    ratios = {way: 1.0 if was_bps[way] == is_bps[way] else is_bps[way] / was_bps[way] for way in was_bps}
    worst = max(ratios, key=lambda way: _change(ratios[way]))
    where = "" if len(set(ratios.values())) == 1 else f"{worst}: "
    found = f"{where}{ratios[worst]:.2f} times the pilot's"
    if math.inf in (was_bps[worst], is_bps[worst]):
        found = f"{where}unshaped" if ratios[worst] >= 1 else f"{where}unshaped in the pilot"
    within = _change(ratios[worst]) <= MOST_RATE_CHANGE
    return Check("rate of the links", "holds" if within else "drifted", found)


def _change(ratio: float) -> float:
    """How many times more or less it is."""
    return max(ratio, 1 / ratio) if ratio else math.inf


def _round_trip(before: Topology, now: Topology) -> Check:
    was_s, is_s = (_longest_rtt_s(each.at_mean) for each in (before, now))
    within = max(was_s, is_s) <= MOST_RATE_CHANGE * min(was_s, is_s) + LEAST_RTT_CHANGE_S
    found = f"{format_time(is_s)}; the pilot's {format_time(was_s)}"
    return Check("round trip of the links", "holds" if within else "drifted", found)


def _longest_rtt_s(network: Topology) -> float:
    workers = range(network.workers)
    return max(network.rtt_s(worker, (worker + 1) % network.workers) for worker in workers)


def _loss_of_packets(before: Topology, now: Topology) -> Check:
    was, is_ = (_most_loss(each) for each in (before, now))
    within = max(was, is_) <= MOST_LOSS_CHANGE * min(was, is_) + LEAST_LOSS_CHANGE
    found = f"{is_:.2%} are lost; of the pilot's {was:.2%}"
    return Check("packets on the links", "holds" if within else "drifted", found)


def _most_loss(network: Topology) -> float:
    """The share of packets that the worst direction of any link loses, now or later."""
    later = network.link.trace.rows if network.link.trace else ()
    return max(*(pipe.mean_loss for pipe in network.pipes), *(row.loss or 0.0 for row in later), 0.0)


def of_verdict(pilot: Pilot, again: Sequence[Training]) -> list[Check]:
    """Whether the recommended method still does what it did: its bytes, its loss, and sooner than what it replaces.

    Args:
        again: trainings of it, and of what it is compared with, with a seed that the pilot had.
    """
    own = [each for each in again if each.label == pilot.verdict.label]
    before = [each for each in pilot.trainings if each.label == pilot.verdict.label and each.seed == own[0].seed]
    checks = [_bytes(own[0], before), _loss(pilot, own[0], before)]
    others = [each for each in again if each.label != pilot.verdict.label]
    if pilot.verdict.compress:
        checks.append(_advantage(pilot, own, others))
    return checks


def _bytes(own: Training, before: Sequence[Training]) -> Check:
    sent = own.sent_bytes or own.formula_bytes
    was = before[0].sent_bytes or before[0].formula_bytes if before else None
    if not sent or not was:
        return Check("bytes of a step", "cannot tell", "nobody counted them")
    ratio = sent / was
    within = abs(ratio - 1) <= MOST_BYTES_OFF
    return Check("bytes of a step", "holds" if within else "drifted", f"{ratio:.3f} times the pilot's")


def _loss(pilot: Pilot, own: Training, before: Sequence[Training]) -> Check:
    """With the same seed a method that is not broken learns the same, but for what sums in another order bring."""
    if not before or not before[0].has_learnt:
        return Check("loss at the end", "cannot tell", "the pilot has none to compare")
    was = end_loss(before[0].losses)
    if not own.has_learnt:
        return Check("loss at the end", "drifted", "it diverged")
    worse = (end_loss(own.losses) - was) / abs(was) if was else 0.0
    within = worse <= max(pilot.tolerance, LOSS_ROUNDING)
    return Check("loss at the end", "holds" if within else "drifted", f"{100 * worse:+.1f} %")


def _advantage(pilot: Pilot, own: Sequence[Training], others: Sequence[Training]) -> Check:
    """By times from step to step: how many steps it takes is not looked at again.

    A single pair is as noisy as what is not worth it: by so little less than 1 nothing is told.
    """
    other = compared_with(pilot)
    if not others:
        return Check("advantage", "cannot tell", f"there is no training with {other.label} to compare with")
    outcome = pilot.outcome(pilot.verdict.label)
    assert outcome
    factor = (outcome.steps_factor or 1.0) / (other.steps_factor or 1.0)
    sooner = fmean(each.pace_s for each in others) / fmean(each.pace_s for each in own) / factor
    found = f"{sooner:.2f} times as soon as {other.label}"
    if sooner > 1:
        return Check("advantage", "holds", found)
    return Check("advantage", "cannot tell" if WORTH_IT * sooner > 1 else "drifted", found)


def compared_with(pilot: Pilot) -> Outcome:
    """The all-reduce that the recommended method was held against, and is trained beside again."""
    return sooner_all_reduce(pilot.outcomes, pilot.plain_label, pilot.sixteen_label)


def answer(checks: Sequence[Check]) -> Answer:
    """Of all: drift that is found is drift, whatever else cannot be told."""
    answers = {check.answer for check in checks}
    return next((each for each in ("drifted", "cannot tell") if each in answers), "holds")  # type: ignore[return-value]
