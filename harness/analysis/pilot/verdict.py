"""Which method a pilot recommends, how sure that is, and what would change it."""

from __future__ import annotations

from collections.abc import Sequence

from harness.analysis.estimates import Estimate
from harness.analysis.pilot.forecast import Forecast
from harness.methods import declared
from harness.record.pilot import Outcome, Phase, Pilot, Sureness, Verdict
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
    base = sooner_all_reduce(outcomes, plain, sixteen)
    best = _soonest_other(outcomes, (plain, sixteen))
    if best is not None and best.sooner is not None and best.sooner.value >= WORTH_IT:
        return _compress(best, base, outcomes, (plain, sixteen), tolerance, forecast)
    return _leave_it(base, best, outcomes, (plain, sixteen), tolerance, forecast)


def as_soon_at_break_even(found: Pilot) -> tuple[Outcome, Outcome] | None:
    """The method, and the all-reduce, that are as soon at the rate that a verdict names; None where it names none."""
    decided, plain = found.verdict, (found.plain_label, found.sixteen_label)
    own, best = found.outcome(decided.label), _soonest_other(found.outcomes, plain)
    if decided.break_even_bps is None or own is None or best is None:
        return None
    return (own, rival(found.outcomes, *plain)) if decided.compress else (best, own)


def _soonest_other(outcomes: Sequence[Outcome], plain: tuple[str, str]) -> Outcome | None:
    """Of what compresses, and came to dense's loss."""
    others = [each for each in outcomes if each.label not in plain and each.time_to_loss_s is not None]
    return min(others, key=how_soon, default=None)


def rival(outcomes: Sequence[Outcome], plain: str, sixteen: str) -> Outcome:
    """The all-reduce that a method must beat on any links: in 16 bits; dense, where that one's steps are not known."""
    known = {each.label: each for each in outcomes}
    own = known.get(sixteen)
    return known[plain] if own is None or own.steps_factor is None else own


def sooner_all_reduce(outcomes: Sequence[Outcome], plain: str, sixteen: str) -> Outcome:
    """What methods must beat on these links; one that missed dense's loss with some seed is compared by the others."""
    known = {each.label: each for each in outcomes}
    dense, own = known[plain], known.get(sixteen)
    if own is None:
        return dense
    if own.time_to_loss_s is None:
        return own if dense.sooner is not None and dense.sooner.value < 1 else dense
    return min(dense, own, key=how_soon)


def how_soon(outcome: Outcome) -> tuple[int, float]:
    """A key by which the soonest at dense's loss comes first.

    Seeds differ, and not all methods may have trained with all of them: they are ranked by the seeds that both they and
    the all-reduces came there with. Behind them are those that nothing compares, by their seconds; last those that did
    not come there, by those of a step.
    """
    if outcome.sooner is not None:
        return 0, -outcome.sooner.value
    return (2, outcome.pace_s) if outcome.time_to_loss_s is None else (1, outcome.time_to_loss_s)


def _bar(base: Outcome, plain: tuple[str, str]) -> str:
    """What methods were held against, seed by seed: where that was not always the same all-reduce, both are named."""
    was_always_base = base.sooner is None or base.sooner.value == 1
    return base.label if was_always_base else f"the sooner of {' and '.join(plain)}"


def _cut_short(outcomes: Sequence[Outcome]) -> list[str]:
    """Those that had not come to dense's loss when they ended, so soon that they might yet have been worth it."""
    return [each.label for each in outcomes if each.tried_for is not None and WORTH_IT * each.tried_for < 1]


def _about_steps(outcomes: Sequence[Outcome], plain: tuple[str, str]) -> list[str]:
    """What of the comparison more steps might change."""
    missed = [each.label for each in outcomes if each.label in plain and each.time_to_loss_s is None]
    found = [f"{label} did not come to dense's loss with every seed." for label in missed]
    if short := _cut_short(outcomes):
        found.append(
            f"{', '.join(short)} ended before the time was over in which an all-reduce came to dense's loss, and had "
            "not come there: more steps might tell otherwise."
        )
    return found


def _compress(
    best: Outcome,
    base: Outcome,
    outcomes: Sequence[Outcome],
    plain: tuple[str, str],
    tolerance: float,
    forecast: Forecast,
) -> Verdict:
    assert best.sooner is not None
    sooner, bar, other = best.sooner, _bar(base, plain), rival(outcomes, *plain)
    reasons = [
        f"At dense's loss it was {sooner.value:.2f} times as soon as {bar}{_ends(sooner.low, sooner.high)}, "
        f"with {_seeds(sooner.n)}.",
        f"It needs {best.steps_factor or 1.0:.2f} times dense's steps. {_about_loss(best, tolerance)}",
        f"A step takes {format_time(best.pace_s)}, and {format_time(base.pace_s)} with {base.label}.",
        *_about_steps([each for each in outcomes if each.label in plain], plain),
    ]
    prediction, break_even_bps = _where_it_is_no_sooner(best, other, forecast)
    changes = [prediction]
    changes.append(f"Steps to the same loss that grow by {sooner.value - 1:.0%} or more later in the training.")
    if best.codec_s:
        changes.append("A faster device without faster links speaks for it, faster links alone against it.")
    return Verdict(
        label=best.label,
        method=best.method,
        compress=True,
        sentence=f"Use {best.label}: here it is {sooner.value:.2f} times as soon at the same loss as {bar}.",
        sureness=_sureness(best, base, outcomes, plain),
        reasons=tuple(reasons),
        changes=tuple(changes),
        break_even_bps=break_even_bps,
    )


def _where_it_is_no_sooner(best: Outcome, other: Outcome, forecast: Forecast) -> tuple[str, float | None]:
    """On which links an all-reduce is predicted to be as soon as a method, in words; and from which rate on."""
    factor = (best.steps_factor or 1.0) / (other.steps_factor or 1.0)
    if not forecast.is_sooner(best.method, other.method, factor):
        why = f"The model does not expect it to be sooner than {other.label} on these links, but it was: measure again."
        return why, None
    break_even_bps = forecast.break_even_bps(best.method, other.method, factor)
    if break_even_bps is None:
        return f"No rate of the links alone: it is predicted to be sooner than {other.label} at every one.", None
    return (
        f"Links of {format_rate(break_even_bps)} or more: {other.label} is as soon there (predicted).",
        break_even_bps,
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
    reasons = [*_why_not(others, best, _bar(base, plain), tolerance), *_about_steps(outcomes, plain)]
    if base.exposed_share is not None:
        reasons.append(
            f"With {base.label}, communication that hides behind nothing is {base.exposed_share:.0%} of a step."
        )
    prediction, break_even_bps = _where_it_is_sooner(best, base, forecast)
    changes = [prediction] if prediction else []
    changes.append("A faster device on the same links: communication becomes a larger part of a step.")
    return Verdict(
        label=base.label,
        method=base.method,
        compress=False,
        sentence=sentence,
        sureness=_sureness_of_leaving(base, others, outcomes),
        reasons=tuple(reasons),
        changes=tuple(changes),
        break_even_bps=break_even_bps,
    )


def _why_not(others: Sequence[Outcome], best: Outcome | None, bar: str, tolerance: float) -> list[str]:
    """Why none of the others, not even the best of them, is worth it."""
    if not others:
        return ["No method that compresses was trained, so none can be recommended."]
    if best is None:
        return [f"None of {', '.join(each.label for each in others)} came to dense's loss in the steps that were made."]
    if best.sooner is None:
        return [f"{best.label} came to dense's loss, but with no seed with which the all-reduces did, too."]
    return [
        f"The soonest of the others at dense's loss, {best.label}, was {best.sooner.value:.2f} times as soon "
        f"as {bar}{_ends(best.sooner.low, best.sooner.high)}; less than {WORTH_IT} is not worth it.",
        _about_loss(best, tolerance),
    ]


def _where_it_is_sooner(best: Outcome | None, base: Outcome, forecast: Forecast) -> tuple[str | None, float | None]:
    """On which links a method is predicted to be worth it that is not here, in words; and below which rate."""
    if best is None or base.steps_factor is None:
        return None, None
    factor = (best.steps_factor or 1.0) / base.steps_factor
    slower_bps, own_bps = forecast.break_even_bps(best.method, base.method, factor), forecast.network.slowest_bps
    if slower_bps is None:
        return None, None
    below = f"Links below {format_rate(slower_bps)}: {best.label} is sooner there (predicted)"
    if own_bps is None or slower_bps <= own_bps:
        return f"{below}.", slower_bps
    if best.sooner is not None and best.sooner.value > 1:
        return f"{below}, and on these it was, by too little to be worth it: slower ones may make it so.", slower_bps
    why = (
        f"The model expects {best.label} to be sooner below {format_rate(slower_bps)}, so on these links too, "
        "where it was not: measure again."
    )
    return why, None


def _sureness(best: Outcome, base: Outcome, outcomes: Sequence[Outcome], plain: tuple[str, str]) -> Sureness:
    """Sure is what holds though it may be the best by luck of all that were tested."""
    assert best.sooner is not None
    own = [each for each in outcomes if each.label in plain]
    if best.sooner.n < NO_SEEDS_SURE or best.sooner.low is None or base.time_to_loss_s is None or _cut_short(own):
        return "unsure"
    found = Estimate(best.sooner.value, best.sooner.low, best.sooner.high, best.sooner.n)
    return "sure" if found.surely_exceeds_one(len(outcomes) - len(own)) else "likely"


def _sureness_of_leaving(base: Outcome, others: Sequence[Outcome], outcomes: Sequence[Outcome]) -> Sureness:
    """Sure is what holds of every rival, not of the soonest alone: one that differs by seeds may yet be worth it."""
    if min(map(_compared, others), default=0) < NO_SEEDS_SURE or base.time_to_loss_s is None or _cut_short(outcomes):
        return "unsure"
    highs = [each.sooner.high for each in others if each.sooner]
    return "sure" if highs and all(high is not None and high < WORTH_IT for high in highs) else "likely"


def _compared(other: Outcome) -> int:
    """Seeds by which it was held against the all-reduces; all of its own, where it did not come to dense's loss."""
    if other.sooner is not None:
        return other.sooner.n
    return other.seeds if other.time_to_loss_s is None else 0


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
    held = "not known" if own.held_bytes is None else format_size(own.held_bytes)
    memory = ("memory that the method holds on each worker", held)
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
