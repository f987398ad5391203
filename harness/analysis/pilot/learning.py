"""What trainings that share their seeds have learnt: at equal steps, at equal time, and how soon."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import pandas as pd

from harness.analysis.estimates import Estimate, geometric_mean, mean
from harness.analysis.pilot.forecast import Forecast
from harness.analysis.quality import Keeps, quality
from harness.plan.expected import state_of
from harness.plan.status import DIVERGED, DONE
from harness.record.pilot import Interval, Outcome, Training

END_SHARE = 0.25
"""Share of the steps whose mean loss is that of the end: batches differ, and a single loss says little."""


def end_loss(losses: Sequence[float | None], steps: int | None = None, window: int | None = None) -> float:
    """The mean loss of the last steps.

    Args:
        steps: at which the end is taken to be; None: all.
        window: how many steps the last ones are; None: ``END_SHARE`` of all.
    """
    count = len(losses) if steps is None else min(steps, len(losses))
    window = window or _window(len(losses))
    known = [loss for loss in losses[max(0, count - window) : count] if loss is not None]
    return fmean(known) if known else math.nan


def steps_to(losses: Sequence[float | None], target: float, window: int | None = None, period: int = 1) -> int | None:
    """Steps until the mean loss of the last ones has come down to the target; None: it has not.

    Args:
        window: see ``end_loss``.
        period: steps from one meeting of all ranks to the next: only then they have one model. It is at their second
            meeting at the earliest, since until the first one each has trained alone.
    """
    window = window or _window(len(losses))
    least = first_common(period)
    for steps in range(max(window, least), len(losses) + 1):
        if steps % period == 0 and end_loss(losses, steps, window) <= target:
            return steps
    return None


def first_common(period: int) -> int:
    """After how many steps ranks that meet so seldom have met, gone on from there, and met again."""
    return 2 * period if period > 1 else 1


def _has_met(own: Training, steps: int) -> bool:
    return steps >= first_common(_period(own))


def _period(own: Training) -> int:
    return state_of(own.method).agrees_every


def target_of(dense: Training, tolerance: float) -> float:
    """The loss that counts as dense's."""
    end = end_loss(dense.losses)
    return end + tolerance * abs(end)


def without_repeats(trainings: Sequence[Training]) -> list[Training]:
    """All but those that learnt to the last bit what their method did with an earlier seed: these are one training."""
    seen: set[tuple[str, tuple[float | None, ...]]] = set()
    found = []
    for each in trainings:
        key = each.label, each.losses
        if key not in seen or not each.has_learnt:
            found.append(each)
        seen.add(key)
    return found


def told_of_repeats(trainings: Sequence[Training]) -> list[str]:
    """A sentence where seeds were the same training."""
    labels = Counter(each.label for each in trainings) - Counter(each.label for each in without_repeats(trainings))
    if not labels:
        return []
    return [
        f"Seeds with which {', '.join(labels)} learnt the same to the last bit count as one: the script sets its "
        "randomness so that no seed moves it, such as by torch.Generator().manual_seed or DistributedSampler(seed=...)."
    ]


def outcomes(
    trainings: Sequence[Training], plain: str, sixteen: str, tolerance: float, forecast: Forecast
) -> list[Outcome]:
    """What the trainings of each method show, in the order of their labels' first appearance.

    A seed with which dense has not learnt compares nothing; nor does one with which the same was learnt as before.

    Args:
        plain: label of the all-reduce in 32 bits, which others are compared with.
        sixteen: label of the 16-bit one.
    """
    by_label: dict[str, dict[int, Training]] = {}
    for training in without_repeats(trainings):
        by_label.setdefault(training.label, {})[training.seed] = training
    dense = {seed: training for seed, training in by_label[plain].items() if training.has_learnt}
    bar = _bar([by_label[each] for each in (plain, sixteen) if each in by_label], dense, tolerance)
    until_s = min(each.until_s(len(each.losses)) for each in trainings)
    return [_outcome(label, own, dense, bar, until_s, tolerance, forecast) for label, own in by_label.items()]


class _Bar(NamedTuple):
    """By seed, seconds until the sooner of the plain all-reduces has dense's loss: what others must beat.

    Not of them is one that diverged with a seed, or came there with none.
    """

    any_s: dict[int, float]
    """Of those that came there with this seed."""
    all_s: dict[int, float]
    """Of the seeds with which all of them came there: with another one the soonest may be missing."""


def _bar(plain: Sequence[Mapping[int, Training]], dense: Mapping[int, Training], tolerance: float) -> _Bar:
    steady = [own for own in plain if all(own[seed].has_learnt for seed in own.keys() & dense.keys())]
    came = [times for own in steady if (times := _times_s(own, dense, tolerance))]
    seeds: set[int] = set().union(*came)
    any_s = {seed: min(times[seed] for times in came if seed in times) for seed in sorted(seeds)}
    return _Bar(any_s, {seed: any_s[seed] for seed in any_s if all(seed in times for times in came)})


def _outcome(
    label: str,
    own: Mapping[int, Training],
    dense: Mapping[int, Training],
    bar: _Bar,
    until_s: float,
    tolerance: float,
    forecast: Forecast,
) -> Outcome:
    first = next(iter(own.values()))
    paired = sorted(own.keys() & dense.keys())
    learnt = [seed for seed in paired if own[seed].has_learnt]
    keeps, difference = _kept(label, own, dense, tolerance)
    times = _times_s(own, dense, tolerance)
    all_came = len(times) == len(paired) > 0
    factors = [
        steps / dense_steps
        for seed, steps in _steps_to_loss(own, dense, tolerance).items()
        if (dense_steps := _own_steps(dense[seed], tolerance))
    ]
    ratios = [bar.all_s[seed] / times[seed] for seed in times if seed in bar.all_s]
    tried = [own[seed].until_s(len(own[seed].losses)) / bar.any_s[seed] for seed in learnt if seed not in times]
    timely = [seed for seed in learnt if _has_met(own[seed], own[seed].steps_in(until_s))]
    in_time = mean([_timely(own[seed], dense[seed], until_s) for seed in timely])
    fit = forecast.job.fit(label) if any(each.method.label == label for each in forecast.job.fits) else None
    return Outcome(
        label=label,
        method=first.method,
        seeds=len(paired),
        pace_s=_pace_s(own),
        predicted_pace_s=forecast.pace_s(first.method),
        exposed_share=_exposed_share([*own.values()]),
        end_loss=_finite(fmean(end_loss(each.losses) for each in own.values())),
        loss_difference=_interval(difference),
        timely_difference=_interval(in_time),
        keeps=keeps,
        steps_factor=_finite(geometric_mean(factors).value) if all_came and factors else None,
        time_to_loss_s=fmean(times.values()) if all_came else None,
        tried_for=min(tried, default=None),
        sooner=_interval(geometric_mean(ratios)) if all_came and ratios else None,
        codec_s=fmean((each.encode_s or 0.0) + (each.decode_s or 0.0) for each in own.values()),
        held_bytes=fit.held_bytes if fit else None,
        peak_memory_bytes=max((each.peak_memory_bytes or 0 for each in own.values()), default=0) or None,
    )


def _exposed_share(own: Sequence[Training]) -> float | None:
    """Of a step; None where the method synchronises at its end, which nobody times apart."""
    known = [each.exposed_s for each in own if each.exposed_s is not None]
    if len(known) < len(own):
        return None
    return sum(known) / (sum(known) + sum(each.compute_s for each in own))


def _kept(
    label: str, own: Mapping[int, Training], dense: Mapping[int, Training], tolerance: float
) -> tuple[Keeps, Estimate | None]:
    """Whether the loss at dense's number of steps is kept, by the same rule as in runs.

    Nothing is known of it where ranks meet more seldom: each has trained alone.
    """
    steps = min(len(each.losses) for each in dense.values())
    rows = [
        {
            "label": name,
            "round": seed,
            "status": DONE if training.has_learnt else DIVERGED,
            "final_loss": end_loss(training.losses, steps, _window(steps)) if _has_met(training, steps) else math.nan,
        }
        for name, of_method in ((label, own), (BASE, dense))
        for seed, training in of_method.items()
    ]
    found = quality(pd.DataFrame(rows), label, BASE, "loss", tolerance)
    return found.keeps, found.difference


BASE = "\0dense"
"""A label that no method has: dense may be compared with itself."""


def _times_s(own: Mapping[int, Training], dense: Mapping[int, Training], tolerance: float) -> dict[int, float]:
    """Seconds to dense's loss, by seed, those of a warm-up too; of those seeds that came there."""
    return {seed: own[seed].until_s(steps) for seed, steps in _steps_to_loss(own, dense, tolerance).items()}


def _steps_to_loss(own: Mapping[int, Training], dense: Mapping[int, Training], tolerance: float) -> dict[int, int]:
    """Steps to dense's loss, by seed; of those seeds that came there."""
    found = {}
    for seed in sorted(own.keys() & dense.keys()):
        if own[seed].has_learnt:
            target, window = target_of(dense[seed], tolerance), _window(len(dense[seed].losses))
            steps = steps_to(own[seed].losses, target, window, _period(own[seed]))
            if steps is not None:
                found[seed] = steps
    return found


def _own_steps(dense: Training, tolerance: float) -> int | None:
    return steps_to(dense.losses, target_of(dense, tolerance))


def _timely(own: Training, dense: Training, until_s: float) -> float:
    """The loss over dense's, as a share of it, after so many seconds."""
    window = _window(len(dense.losses))
    mine, theirs = (end_loss(each.losses, each.steps_in(until_s), window) for each in (own, dense))
    return (mine - theirs) / abs(theirs) if theirs else 0.0


def _pace_s(own: Mapping[int, Training]) -> float:
    return fmean(each.pace_s for each in own.values())


def _window(steps: int) -> int:
    return max(1, round(END_SHARE * steps))


def _interval(found: Estimate | None) -> Interval | None:
    """None where it is no number, as over a loss of 0."""
    if found is None or not math.isfinite(found.value):
        return None
    ends = [None if end is None else _finite(end) for end in (found.low, found.high)]
    return Interval(value=found.value, low=ends[0], high=ends[1], n=found.n)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
