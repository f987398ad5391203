"""Which method a pilot recommends, how sure that is, and what would change it."""

from __future__ import annotations

from collections.abc import Sequence

from harness.analysis.pilot.forecast import Forecast
from harness.methods import declared
from harness.record.pilot import Outcome, Phase, Sureness, Verdict
from harness.units import format_rate, format_size, format_time

WORTH_IT = 1.05
"""How many times sooner a method must be to be worth its trouble: less is the noise of a machine."""

NO_SEEDS_SURE = 2
"""Seeds below which nothing is said to be sure."""

SLACK = 1.1
"""How much longer than in the pilot a step may take in a roll-out, before somebody should look."""


def verdict(outcomes: Sequence[Outcome], plain: str, sixteen: str, tolerance: float, forecast: Forecast) -> Verdict:
    """The method that is soonest at dense's loss; the sooner all-reduce where none is worth it.

    A method may need more steps, which are shorter: what it lacks at equal steps is told, and decides nothing.
    """
    base = _soonest([each for each in outcomes if each.label in (plain, sixteen)])
    others = [each for each in outcomes if each.label not in (plain, sixteen) and each.time_to_loss_s is not None]
    best = _soonest(others) if others else None
    if best is not None and best.sooner is not None and best.sooner.value >= WORTH_IT:
        return _compress(best, base, _sixteen_or(outcomes, sixteen, base), tolerance, forecast)
    return _leave_it(base, best, outcomes, (plain, sixteen), tolerance, forecast)


def _soonest(outcomes: Sequence[Outcome]) -> Outcome:
    return min(outcomes, key=lambda each: float("inf") if each.time_to_loss_s is None else each.time_to_loss_s)


def _sixteen_or(outcomes: Sequence[Outcome], sixteen: str, otherwise: Outcome) -> Outcome:
    return next((each for each in outcomes if each.label == sixteen), otherwise)


def _compress(best: Outcome, base: Outcome, sixteen: Outcome, tolerance: float, forecast: Forecast) -> Verdict:
    assert best.sooner is not None
    sooner, factor = best.sooner, (best.steps_factor or 1.0) / (sixteen.steps_factor or 1.0)
    break_even_bps = forecast.break_even_bps(best.method, sixteen.method, factor)
    reasons = [
        f"At dense's loss it was {sooner.value:.2f} times as soon as {base.label}{_ends(sooner.low, sooner.high)}, "
        f"with {_seeds(best.seeds)}.",
        f"It needs {best.steps_factor or 1.0:.2f} times dense's steps. {_about_loss(best, tolerance)}",
        f"A step takes {format_time(best.pace_s)}, and {format_time(base.pace_s)} with {base.label}.",
    ]
    changes = []
    if break_even_bps is not None:
        changes.append(f"Links of {format_rate(break_even_bps)} or more: {sixteen.label} is as soon there (predicted).")
    elif forecast.is_sooner(best.method, sixteen.method, factor):
        changes.append(f"No rate of the links alone: it is predicted to be sooner than {sixteen.label} at every one.")
    else:
        changes.append(
            f"The model does not expect it to be sooner than {sixteen.label} on these links, but it was: measure again."
        )
    changes.append(f"Steps to the same loss that grow by {sooner.value - 1:.0%} or more later in the training.")
    if best.codec_s:
        changes.append("A faster device without faster links speaks for it, faster links alone against it.")
    return Verdict(
        label=best.label,
        method=best.method,
        compress=True,
        sentence=f"Use {best.label}: here it is {sooner.value:.2f} times as soon at the same loss as {base.label}.",
        sureness=_sureness(best),
        reasons=tuple(reasons),
        changes=tuple(changes),
        break_even_bps=break_even_bps,
    )


def _leave_it(
    base: Outcome,
    best: Outcome | None,
    outcomes: Sequence[Outcome],
    plain: tuple[str, str],
    tolerance: float,
    forecast: Forecast,
) -> Verdict:
    others = [each for each in outcomes if each.label not in plain]
    sentence = f"Do not compress: {base.label} is as good as anything that was tested on this network."
    if not others:
        sentence = f"Do not compress yet: nothing that compresses was tested. Of what was, {base.label} is soonest."
        reasons = ["No method that compresses was trained, so none can be recommended."]
    elif best is None or best.sooner is None:
        reasons = [
            f"None of {', '.join(each.label for each in others)} came to dense's loss in the steps that were made."
        ]
    else:
        reasons = [
            f"The soonest of the others at dense's loss, {best.label}, was {best.sooner.value:.2f} times as soon "
            f"as {base.label}{_ends(best.sooner.low, best.sooner.high)}; less than {WORTH_IT} is not worth it."
        ]
        reasons.append(_about_loss(best, tolerance))
    reasons.append(f"With {base.label}, communication that hides behind nothing is {base.exposed_share:.0%} of a step.")
    changes = []
    if best is not None:
        factor = (best.steps_factor or 1.0) / (base.steps_factor or 1.0)
        slower_bps, own_bps = forecast.break_even_bps(best.method, base.method, factor), forecast.network.slowest_bps
        if slower_bps is not None and own_bps is not None and slower_bps > own_bps:
            changes.append(
                f"The model expects {best.label} to be sooner below {format_rate(slower_bps)}, so on these links too, "
                "where it was not: measure again."
            )
        elif slower_bps is not None:
            changes.append(f"Links below {format_rate(slower_bps)}: {best.label} is sooner there (predicted).")
    changes.append("A faster device on the same links: communication becomes a larger part of a step.")
    return Verdict(
        label=base.label,
        method=base.method,
        compress=False,
        sentence=sentence,
        sureness=_sureness_of_leaving(best, others),
        reasons=tuple(reasons),
        changes=tuple(changes),
        break_even_bps=None,
    )


def _sureness(best: Outcome) -> Sureness:
    assert best.sooner is not None
    if best.seeds < NO_SEEDS_SURE or best.sooner.low is None:
        return "unsure"
    return "sure" if best.sooner.low > 1 else "likely"


def _sureness_of_leaving(best: Outcome | None, others: Sequence[Outcome]) -> Sureness:
    if not others or min(each.seeds for each in others) < NO_SEEDS_SURE:
        return "unsure"
    if best is None or best.sooner is None:
        return "likely"
    return "sure" if best.sooner.high is not None and best.sooner.high < WORTH_IT else "likely"


def _about_loss(outcome: Outcome, tolerance: float) -> str:
    found = outcome.loss_difference
    words = {"yes": "kept", "no": "not kept", "unknown": "not known to be kept"}[outcome.keeps]
    if found is None:
        return f"Its loss at equal steps is {words}: it cannot be compared."
    ends = "" if found.low is None or found.high is None else f" [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    return f"Its loss at equal steps is {words}: {100 * found.value:+.1f} %{ends}; allowed are {100 * tolerance:g} %."


def phases(found: Verdict, outcomes: Sequence[Outcome], tolerance: float) -> tuple[Phase, ...]:
    """A roll-out in three parts: what is looked at in each, and its limit."""
    own = next(each for each in outcomes if each.label == found.label)
    step = ("time from step to step", f"at most {format_time(SLACK * own.pace_s)}, {SLACK - 1:.0%} above the pilot's")
    recheck = ("pacbench pilot --recheck", "exit code 0")
    needed = SLACK * (own.steps_factor or 1.0)
    loss = (f"steps to dense's loss, within {tolerance:.1%}", f"at most {needed:.2f} times dense's")
    memory = ("memory that the method holds on each worker", f"{format_size(own.held_bytes or 0)}")
    return (
        Phase(name="pilot", what="This page.", limits=(("how sure", found.sureness), loss)),
        Phase(
            name="one job",
            what="One whole training beside one as it was, to the same target.",
            limits=(step, loss, memory, recheck),
        ),
        Phase(
            name="all jobs",
            what="Every training of this kind; a recheck nightly, and whenever network, model or code change.",
            limits=(step, recheck),
        ),
    )


def swept_parameter(outcome: Outcome) -> str | None:
    """The parameter that says which share of the entries is sent; None: the method has none."""
    method = declared(outcome.method.name)
    return next(iter(method.State.swept), None) if method else None


def _ends(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds"
