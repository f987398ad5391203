"""What became of many claims, in words: sentences to cite, made from the verdicts, and what nothing is known of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from harness.analysis.claims import summary
from harness.analysis.claims.judgements import VERDICTS, Judgement, families, named
from harness.analysis.claims.schema import Quantity
from harness.analysis.claims.summary import Gain
from harness.report import text
from harness.report.claims import links


def citable(own: Sequence[Judgement]) -> list[str]:
    """What can be cited of one paper, for each method and quantity: how much, over whom, where, at what price.

    The 16-bit all-reduce comes first. What was not run is said as plainly.
    """
    of_pairs: dict[tuple[str, str], list[Gain]] = {}
    for gain in summary.gains(own):
        of_pairs.setdefault((gain.quantity, gain.method), []).append(gain)
    return [_said_of(of_method, own) for of_method in of_pairs.values()]


COMPARED: dict[Quantity, tuple[str, str]] = {
    "throughput": ("had", "the throughput of"),
    "time to accuracy": ("was at the target accuracy", "as soon as"),
    "bytes": ("sent", "fewer bytes than"),
    "communication time": ("waited", "less for its links than"),
}
"""What stands before a ratio, and behind it."""


def _said_of(of_method: Sequence[Gain], own: Sequence[Judgement]) -> str:
    """One method, one quantity, all baselines."""
    first, known = of_method[0], [gain for gain in of_method if gain.measured]
    failed = [each for gain in of_method for each in gain.failed]
    missing = _models([each for gain in of_method for each in gain.open])
    if not known and not failed:
        over = " or ".join(gain.baseline for gain in of_method)
        return f"{first.method}, {first.quantity}: nothing was run. What it gives over {over} is not known here."
    sentences = [
        *(_measured(known) if known else [f"{first.method}, {first.quantity}: no figure can be given."]),
        *(f"With {', '.join(models)} {reason}." for reason, models in _models_by_reason(failed).items()),
        _price(of_method, own),
        *([f"Nothing is known of {', '.join(missing)}."] if missing else []),
    ]
    return " ".join(sentences)


def _models_by_reason(failed: Sequence[Judgement]) -> dict[str, list[str]]:
    reasons = dict.fromkeys(each.reason for each in failed)
    return {reason: _models([each for each in failed if each.reason == reason]) for reason in reasons}


def _measured(known: Sequence[Gain]) -> list[str]:
    """Over each baseline how much. Where it was measured is said once, if it was so over all of them."""
    first, where = known[0], _where(known[0].measured)
    ratios = [_ratio(gain) + (f" ({place})" if (place := _where(gain.measured)) != where else "") for gain in known]
    trainings = dict.fromkeys(case.claim.convergence for gain in known for case in gain.measured)
    named = " and of ".join(filter(None, trainings))
    steps = [f"Steps to the target are those of {named}."] if named else []
    said = f"{first.method} {COMPARED[first.quantity][0]} {'; '.join(ratios)}."
    return [said, f"That is with {where}.", *steps, *_in_one_piece(known)]


def _in_one_piece(known: Sequence[Gain]) -> list[str]:
    """What was measured beside products, over each baseline."""
    measured = [each for gain in known for case in gain.measured for each in case.in_one_piece if each.found]
    if not measured:
        return []
    models = ", ".join(dict.fromkeys(each.model for each in measured))
    ratios = [
        f"{_range(min(ends), max(ends))} times {COMPARED[gain.quantity][1]} {gain.baseline} "
        f"(in {_pieces(gain)} of {len(gain.measured)} cases)"
        for gain in known
        if (ends := gain.in_one_piece)
    ]
    return [f"Measured in one piece, with what comes before the steady state ({models}): {'; '.join(ratios)}."]


def _pieces(gain: Gain) -> int:
    """In how many cases a figure was measured in one piece."""
    return sum(any(each.found for each in case.in_one_piece) for case in gain.measured)


def _range(low: float, high: float) -> str:
    ends = f"{low:.3g}", f"{high:.3g}"
    return " to ".join(dict.fromkeys(ends))


def _ratio(gain: Gain) -> str:
    """How much, over whom, and in how many cases surely any."""
    kind = ", a 16-bit all-reduce" if summary.is_sixteen_bit(gain.baseline) else ""
    ahead = f"surely ahead in {len(gain.ahead)} of {len(gain.measured)} cases"
    return f"{_range(gain.low, gain.high)} times {COMPARED[gain.quantity][1]} {gain.baseline}{kind} ({ahead})"


def _where(cases: Sequence[Judgement]) -> str:
    """Models with their links, workers, and shares of the device."""
    by_links: dict[str, list[str]] = {}
    for model in _models(cases):
        at = ", ".join(dict.fromkeys(links(each.claim) for each in cases if model in each.claim.model))
        by_links.setdefault(at, []).append(model)
    places = "; ".join(f"{', '.join(models)} at {at}" for at, models in by_links.items())
    workers = " or ".join(dict.fromkeys(str(each.claim.workers) for each in cases))
    shares = sorted({share for each in cases for share in each.devices}, reverse=True)
    *others, last = [named(share).removesuffix(" device") for share in shares] or [""]
    device = f", {', '.join(others)} or {last} device each"
    return f"{workers} workers{device if len(shares) > 1 else ''}: {places}"


def _price(of_method: Sequence[Gain], own: Sequence[Judgement]) -> str:
    """What it costs in accuracy, over the first of the same baselines."""
    costs = summary.accuracies(own, of_method[0].method, [gain.baseline for gain in of_method])
    if not costs:
        return "What it costs in accuracy is not known here."
    return f"Final accuracy against {costs[0].claim.baseline}'s: {', '.join(map(_cost, costs))}."


def _cost(judgement: Judgement) -> str:
    assert judgement.found
    value, low, high, _ = judgement.found
    interval = f" [{-high:+.1f}, {-low:+.1f}]" if low is not None and high is not None else ""
    return f"{-value:+.1f} points{interval} ({', '.join(judgement.claim.model)}, trained for real)"


def tally(own: Sequence[Judgement]) -> dict[str, int]:
    """How many claims have each verdict; of how many nothing was found yet."""
    counts = Counter(judgement.verdict for judgement in own)
    return {**{verdict: counts[verdict] for verdict in VERDICTS}, "no figure yet": len(_without_figure(own))}


def _without_figure(own: Sequence[Judgement]) -> list[Judgement]:
    return [each for each in own if each.verdict == "inconclusive" and not each.estimates]


def gaps(judgements: Sequence[Judgement]) -> str:
    """Of how many claims nothing is known yet, and which; nothing if there are none."""
    missing = _without_figure(judgements)
    if not missing:
        return ""
    told = "; ".join(f"{family} ({', '.join(_models(own))})" for family, own in families(missing).items())
    return f"Of {len(missing)} of {len(judgements)} claims nothing is known here yet: {told}."


def _models(own: Sequence[Judgement]) -> list[str]:
    return list(dict.fromkeys(model for each in own for model in each.claim.model))


def is_scripted(judgements: Sequence[Judgement]) -> bool:
    """Whether any figure was recited by a fake cluster."""
    return any(text.SCRIPTED in origin for each in judgements for origin in each.origins)
