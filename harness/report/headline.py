"""What a case answers, in words: a sentence, and a row a method."""

from __future__ import annotations

from harness.analysis.answer import Answer
from harness.analysis.cases import CaseResult
from harness.analysis.estimates import Estimate
from harness.analysis.methods import MethodResult
from harness.report import text
from harness.scenario.schema import Scenario


def headline(case: CaseResult, scenario: Scenario) -> str:
    """What a case answers, in one to three sentences; honest where nothing pays, or nothing is known."""
    answer = Answer(case, scenario)
    if not answer.rivals:
        return f"No method stands beside {' and '.join(scenario.baselines)} {_place(answer, None)}."
    said = _won(answer, answer.winner) if answer.winner else _nothing_pays(answer)
    other = answer.fastest_other if answer.learnt else None
    return f"{said} {_cost(answer, other)}" if other else said


def table_row(result: MethodResult, case: CaseResult, scenario: Scenario) -> dict[str, str]:
    """A row of a table: column -> text."""
    target, metric = case.target, result.quality.metric
    learnt = Answer(case, scenario).learnt
    cells = {"method": result.label}
    if target:
        cells[f"to {target.words}"] = text.reached(result, case)
        cells |= {f"sooner than {each}": _over(result, each, "time_to_target") for each in scenario.baselines}
    cells["samples/s"] = text.fixed(result.samples_per_s.value if result.samples_per_s else None, 1)
    cells |= {f"faster than {each}": _over(result, each, "throughput") for each in scenario.baselines}
    if learnt:
        cells[f"final {metric}"] = text.final(result.final.mean if result.final else None, metric)
        is_baseline = result.label == scenario.baseline
        cells[f"against {scenario.baseline}"] = "baseline" if is_baseline else text.difference(result.quality)
        cells["keeps accuracy"] = "baseline" if is_baseline else result.quality.keeps
    cells["bytes/step"] = text.size(result.mean("wire_bytes_per_step"))
    return cells


def _over(result: MethodResult, baseline: str, what: str) -> str:
    return "1" if result.label == baseline else text.ratio(getattr(result.over[baseline], what))


def _won(answer: Answer, winner: MethodResult) -> str:
    """What the winner gains over each baseline, in time first and in throughput beside it."""
    case, gained = answer.case, answer.gain(winner)
    if not case.target:
        why = "no target was set" if answer.learnt else "nothing was learnt, so that accuracy is unknown"
        said = (
            f"{winner.label} trains {_over_all(answer, winner, 'throughput', 'faster than')} {_place(answer, gained)}"
        )
        return f"{said}{_kept(answer, winner)}. This is throughput alone: {why}."
    in_samples = _over_all(answer, winner, "throughput", "", with_intervals=False)
    samples = f" In samples/s it is {in_samples}." if in_samples else ""
    return (
        f"{winner.label} reaches {case.target.words} {_over_all(answer, winner, 'time_to_target', 'sooner than')} "
        f"{_place(answer, gained)}{_kept(answer, winner)}.{samples}"
    )


def _kept(answer: Answer, result: MethodResult) -> str:
    if not answer.learnt:
        return ""
    return f", and keeps accuracy ({text.difference(result.quality)} against {answer.scenario.baseline})"


def _over_all(answer: Answer, result: MethodResult, what: str, than: str, with_intervals: bool = True) -> str:
    """``3.1x [2.9, 3.3] sooner than bf16 and 5.6x [5.2, 6.1] sooner than dense``."""
    known = [(each, found) for each in answer.scenario.baselines if (found := getattr(result.over[each], what))]
    parts = [
        " ".join(filter(None, [text.ratio(found if with_intervals else found._replace(low=None)), than, each]))
        for each, found in known
    ]
    return " and ".join(parts)


def _nothing_pays(answer: Answer) -> str:
    """Why there is no winner."""
    best, gained = answer.best, answer.gain(answer.best)
    place = _place(answer, gained)
    did = f"reached {answer.case.target.words} sooner than" if answer.case.target else "was faster than"
    alone = "" if answer.learnt else " in throughput; nothing was learnt, so that accuracy is unknown"
    if best is None or gained is None:
        return f"No winner can be named {place}: {_why_unknown(answer)}."
    that = "No method that is known to keep accuracy" if answer.learnt else "No method"
    if (gained.value if gained.high is None else gained.high) <= 1:
        return (
            f"Nothing pays {place}: {_lowered(that)} {did} {answer.reference}{alone}; {best.label} came closest with "
            f"{text.ratio(gained)}."
        )
    return (
        f"Nothing surely pays {place}: {_lowered(that)} surely {did} {answer.reference}{alone}; {_why_unsure(answer)}."
    )


def _why_unsure(answer: Answer) -> str:
    """Why the best is not surely better, though it was: one round, its interval, or that it is the best of many."""
    best, gained = answer.best, answer.gain(answer.best)
    assert best is not None
    assert gained is not None
    if gained.low is None:
        return f"the best, {best.label}, had {text.ratio(gained)}, and one round does not tell how sure that is"
    interval = f"the interval of the best, {best.label}, {text.ratio(gained)},"
    if gained.low > 1:
        return f"{interval} lies above 1, which the best of {len(answer.candidates)} may do by luck"
    return f"{interval} reaches from below 1 to above it"


def _lowered(words: str) -> str:
    return words[0].lower() + words[1:]


def _why_unknown(answer: Answer) -> str:
    """What hinders: the reference, the one round, or that no method is as good."""
    case, base = answer.case, answer.case.method(answer.reference)
    if answer.learnt and case.method(answer.scenario.baseline).done.empty:
        return f"{answer.scenario.baseline} finished in no round, so that nothing tells whether accuracy is kept"
    if case.target and base.time_to_target.surely and base.time_to_target.median_s == 0:
        return f"{case.target.words} was there before the first step"
    if case.target and answer.learnt and not base.time_to_target.surely:
        found = base.time_to_target
        counted = f"{found.reached} of {found.of} rounds" if found.of else "no round"
        return f"{base.label} reached {case.target.words} in {counted}, so no ratio to it is made"
    if not answer.learnt or not any(answer.is_as_good(result) for result in answer.rivals):
        if not answer.learnt:
            return f"in no round both {base.label} and another method finished with a throughput"
        if all(result.quality.keeps == "unknown" for result in answer.rivals):
            seeds = max((each.n for result in answer.rivals if (each := result.quality.difference)), default=0)
            return f"with {seeds} {'seed' if seeds == 1 else 'seeds'} it is not known whether any method keeps accuracy"
        goal = f" and reached {case.target.words} in every round" if case.target else ""
        return f"no method other than {base.label} surely keeps accuracy{goal}"
    return f"in no round both {base.label} and a method that keeps accuracy finished"


def _cost(answer: Answer, other: MethodResult) -> str:
    """What the fastest method that is not as good costs."""
    case, found = answer.case, other.quality
    rate = text.ratio(other.over[answer.reference].throughput)
    costs = []
    if lost := other.trials - len(other.done):
        costs.append(f"did not finish {lost} of {other.trials} rounds ({' or '.join(other.ways_lost)})")
    if found.keeps != "yes":
        known = f": {text.difference(found)} against {answer.scenario.baseline}" if found.difference else ""
        does = "does not keep accuracy" if found.keeps == "no" else "is not known to keep accuracy"
        costs.append(f"{does}{known}")
    if case.target and not other.time_to_target.surely:
        costs.append(
            f"reached {case.target.words} in {other.time_to_target.reached} of {other.time_to_target.of} rounds"
        )
    return f"{other.label} trains {rate} as many samples/s as {answer.reference}, but {', and '.join(costs)}."


def _place(answer: Answer, gained: Estimate | None) -> str:
    link, *rest = answer.case.parts
    counted = f"; {text.rounds(gained)}" if gained else ""
    return f"{'at' if answer.case.rate_bps else 'over'} {link} ({', '.join(rest)}{counted})"
