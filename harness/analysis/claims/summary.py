"""What many verdicts say together: of each paper, how much a method gave over a baseline, where, at what accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.analysis.claims.judgements import Judgement, Part
from harness.analysis.claims.schema import Quantity
from harness.analysis.estimates import Estimate
from harness.methods import is_known, method_named

GAINS: tuple[Quantity, ...] = ("throughput", "time to accuracy", "bytes", "communication time")
"""What is told as times better of one case."""


@dataclass(frozen=True)
class Gain:
    """What a method gave over one baseline, in all cases that one paper makes claims about."""

    method: str
    baseline: str
    quantity: Quantity
    measured: tuple[Judgement, ...]
    """Cases with a figure, each once."""
    failed: tuple[Judgement, ...]
    """Cases in which it failed for good, so that no figure would be bad enough."""
    open: tuple[Judgement, ...]
    """Cases of which nothing is known yet."""

    @property
    def in_one_piece(self) -> list[float]:
        """Both ends of each interval that was measured in one piece."""
        return _ends(beside.found for case in self.measured for beside in case.in_one_piece if beside.found)

    @property
    def low(self) -> float:
        """The least that it may have been anywhere: of all intervals the lowest end, devices of all shares included."""
        return min(_ends(each for case in self.measured for each in case.estimates))

    @property
    def high(self) -> float:
        """Likewise, the most."""
        return max(_ends(each for case in self.measured for each in case.estimates))

    @property
    def ahead(self) -> tuple[Judgement, ...]:
        """The cases in which it was surely better at all, with the largest share of the device and with the least.

        From the one to the other a ratio moves one way (``judgements.py``): so it was with all between them.
        """
        ends = [(case, case.parts[0], case.parts[-1]) for case in self.measured if case.parts]
        return tuple(case for case, *parts in ends if all(map(_is_surely_better, parts)))


def _is_surely_better(part: Part) -> bool:
    return part.is_trusted and part.found is not None and part.found.low is not None and part.found.low > 1


def papers(judgements: Sequence[Judgement]) -> dict[str, list[Judgement]]:
    """The judgements of each source, in their order."""
    found: dict[str, list[Judgement]] = {}
    for judgement in judgements:
        found.setdefault(judgement.claim.source, []).append(judgement)
    return found


def gains(own: Sequence[Judgement]) -> list[Gain]:
    """What each method of one paper gave: by quantity and method, over the 16-bit all-reduce first.

    A case that several claims are about, which differ in the range alone, is in it once.
    """
    grouped: dict[tuple[int, str, bool, str], list[Judgement]] = {}
    for judgement in own:
        claim = judgement.claim
        if claim.quantity in GAINS and claim.counted == "wire" and claim.needs:
            (method,) = claim.method
            key = GAINS.index(claim.quantity), method, not is_sixteen_bit(claim.baseline), claim.baseline
            grouped.setdefault(key, []).append(judgement)
    order = {method: place for place, method in enumerate(dict.fromkeys(method for _, method, *_ in grouped))}
    found = []
    for key in sorted(grouped, key=lambda key: (key[0], order[key[1]], key[2])):
        cases = list({_case(each): each for each in grouped[key]}.values())
        measured = tuple(each for each in cases if each.estimates)
        failed = tuple(each for each in cases if not each.estimates and each.verdict == "not reproduced")
        left = tuple(each for each in cases if not each.estimates and each.verdict != "not reproduced")
        found.append(Gain(key[1], key[3], GAINS[key[0]], measured, failed, left))
    return found


def accuracies(own: Sequence[Judgement], method: str, baselines: Sequence[str]) -> list[Judgement]:
    """What a method cost in accuracy, in each training, over the first of these baselines for which any tells that."""
    known: dict[str, list[Judgement]] = {}
    for each in own:
        if each.claim.quantity == "accuracy" and each.claim.method == (method,) and each.found:
            known.setdefault(each.claim.baseline, []).append(each)
    return next((known[baseline] for baseline in baselines if baseline in known), [])


def is_sixteen_bit(baseline: str) -> bool:
    """Whether claims over it are claims over a 16-bit all-reduce: they call baselines by the methods' own names."""
    return is_known(baseline) and method_named(baseline).State.is_sixteen_bit


def _case(judgement: Judgement) -> tuple[object, ...]:
    claim = judgement.claim
    return claim.model, claim.rate_bps, claim.workers, claim.convergence


def _ends(estimates: Iterable[Estimate]) -> list[float]:
    """Both ends of each interval; of one round, which has none, its value."""
    return [end for each in estimates for end in (each.low, each.high, each.value) if end is not None]
