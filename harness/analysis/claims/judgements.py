"""Claims, judged: what was found here, where each figure came from, and what the bytes alone allow.

A verdict compares two ranges, the claimed one and the interval of what was measured, which holds however often one has
looked at it (``sequential.py``):

* ``reproduced``: the interval lies within the claimed range;
* ``exceeded``: it lies wholly on the better side of it: no failure to reproduce;
* ``not reproduced``: it lies wholly on the other side; or the method missed the target in every training, of at least
  as many as make that no chance (``sequential.FEWEST_FAILURES``);
* ``inconclusive``: it reaches over an end of the range, or too little was measured, or this machine was slower than the
  device that it replayed. What would decide it stands beside it;
* ``source inconsistent``: the source contradicts itself. Nothing is run;
* ``not testable here``: this machine, or pacbench, lacks what it takes. Nothing is run.

Where a source leaves open which part of a device its workers had, several are judged. A verdict holds if it does for
all. Those at both ends come first. As the device gets slower, each part of two steps that is computed gets longer in
proportion: so their ratio moves one way, and where both ends hold or both do not, what lies between them does the same.
It is run where one end holds and the other does not, to tell where the verdict turns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import pandas as pd
from scipy.special import betaincinv  # the Beta distribution's quantile, without the slow import of scipy.stats

from harness.analysis.claims.explanations import case_name, explain, in_seconds
from harness.analysis.claims.figures import Finding, Run, find, is_anything_left, steps_along, trials_of, usual_of
from harness.analysis.claims.one_piece import OnePiece, in_one_piece
from harness.analysis.claims.schema import LIMITED, Cell, Claim
from harness.analysis.claims.sequential import ERROR
from harness.analysis.estimates import Estimate
from harness.analysis.trials import FAKE
from harness.plan.status import DONE

Verdict = Literal[
    "reproduced", "exceeded", "not reproduced", "inconclusive", "source inconsistent", "not testable here"
]

VERDICTS: tuple[Verdict, ...] = (
    "reproduced",
    "exceeded",
    "not reproduced",
    "inconclusive",
    "source inconsistent",
    "not testable here",
)

HOLDING: frozenset[Verdict] = frozenset({"reproduced", "exceeded"})

DEVICES = {1.0: "a whole", 0.5: "a half", 0.25: "a quarter"}


IN_SIGHT = 2
"""A verdict that would need so many times the rounds there are is not worth those: the estimate of how many it needs,
which is made from few, is seldom so wrong."""


@dataclass(frozen=True)
class Part:
    """What became of a claim with one share of the device."""

    device: float
    verdict: Verdict
    found: Estimate | None
    reason: str
    decides: str = ""
    """What would decide it, where it is inconclusive."""
    open_cells: tuple[Cell, ...] = ()
    """The cases of which rounds that are left may decide it."""
    is_trusted: bool = True
    """Whether nothing spoils the figure: a machine that was too slow for the device tells nothing of it."""


@dataclass(frozen=True)
class Judgement:
    """What became of a claim."""

    claim: Claim
    verdict: Verdict
    found: Estimate | None
    """The claimed figure as it was found, with the first share of the device; None where too little was measured."""
    reason: str
    explanation: str
    """What the bytes alone allow, by the methods' formulas."""
    origins: tuple[str, ...]
    """A sentence for each figure that tells where it came from."""
    decides: str = ""
    """What would decide it, where it is inconclusive."""
    parts: tuple[Part, ...] = ()
    """One for each share of the device."""
    in_one_piece: tuple[OnePiece, ...] = ()
    """Of a time to accuracy: what was measured beside the product; no verdict depends on it."""

    @property
    def estimates(self) -> tuple[Estimate, ...]:
        """What was found, with each share of the device of which anything was, and nothing spoilt it."""
        if self.parts:
            return tuple(part.found for part in self.parts if part.found and part.is_trusted)
        return (self.found,) if self.found else ()

    @property
    def devices(self) -> tuple[float, ...]:
        """The shares of the device of which that is."""
        return tuple(part.device for part in self.parts if part.found and part.is_trusted)

    @property
    def undecided_parts(self) -> tuple[Part, ...]:
        """Those that rounds that are left may decide."""
        return tuple(part for part in self.parts if part.open_cells)

    @property
    def open_parts(self) -> tuple[Part, ...]:
        """Those of them that are to be run next: what lies between two ends has to wait for these."""
        ends = (self.parts[0], self.parts[-1]) if self.parts else ()
        return tuple(part for part in self.undecided_parts if part in ends) or self.undecided_parts


def judge(claim: Claim, runs: Mapping[str, Run]) -> Judgement:
    """Judge a claim by what was run.

    Args:
        runs: by the names of scenarios, at least all that the claim needs; of all of them it is known how much
            rounds usually vary.
    """
    if claim.not_testable:
        return Judgement(claim, "not testable here", None, claim.not_testable, "", ())
    if claim.arithmetic:
        return Judgement(claim, "source inconsistent", None, claim.arithmetic.text, "", ())
    parts = _without_what_follows([_part(claim, device, runs) for device in claim.devices])
    verdict, reason, decides = _together(parts)
    explanation = explain(claim, runs) + in_seconds(claim, runs)
    origins, beside = _origins(claim, runs), in_one_piece(claim, runs)
    return Judgement(claim, verdict, parts[0].found, reason, explanation, origins, decides, parts, beside)


def verdict_on(found: Estimate, claim: Claim) -> tuple[Verdict, str]:
    """The verdict and its reason: where the interval lies, seen from the claimed range."""
    low, high = claim.claimed
    if found.low is None or found.high is None:
        return "inconclusive", "one round gives no interval"
    if low <= found.low and found.high <= high:
        return "reproduced", "it lies within the claimed range"
    if found.high < low:
        return ("exceeded" if claim.quantity == "accuracy" else "not reproduced"), "it is less than is claimed"
    if found.low > high:
        is_limit = claim.quantity == "accuracy" or claim.quantity in LIMITED
        return ("not reproduced" if is_limit else "exceeded"), "it is more than is claimed"
    return "inconclusive", f"its interval reaches over {_reached_over(found, claim):g}"


def _reached_over(found: Estimate, claim: Claim) -> float:
    """The end of the claimed range that an interval holds; of both the nearer one."""
    low, high = claim.claimed
    assert found.low is not None
    assert found.high is not None
    held = [end for end in (low, high) if found.low <= end <= found.high]
    return min(held, key=lambda end: abs(end - found.value))


def _part(claim: Claim, device: float, runs: Mapping[str, Run]) -> Part:
    if claim.quantity == "share":
        part = _part_of_share(claim, device, runs)
    elif claim.quantity == "trend":
        part = _decided(claim, device, weakest(steps_along(claim, device, runs)))
    else:
        part = _decided(claim, device, find(claim, claim.cells[0], device, runs))
    left = tuple(cell for cell in part.open_cells if is_anything_left(claim, cell, device, runs))
    return replace(part, open_cells=left)


def _decided(claim: Claim, device: float, finding: Finding) -> Part:
    found = finding.estimate
    left = tuple(claim.cells) if finding.more_rounds_help else ()
    if finding.missed:
        return Part(device, "not reproduced", found, finding.problem)
    if finding.problem or found is None:
        return Part(device, "inconclusive", found, finding.problem, finding.decides, left, is_trusted=False)
    verdict, reason = verdict_on(found, claim)
    if verdict != "inconclusive":
        return Part(device, verdict, found, reason)
    if found.low is None:
        return Part(device, verdict, found, reason, "a second round", left)
    end = _reached_over(found, claim)
    needed = finding.rounds_to_leave(end)
    return Part(device, verdict, found, reason, _more(finding, needed), left if _is_in_sight(finding, needed) else ())


def _is_in_sight(finding: Finding, needed: int | None) -> bool:
    """Whether so many rounds may turn out to be few enough."""
    return needed is not None and needed <= IN_SIGHT * finding.rounds


def _more(finding: Finding, needed: int | None) -> str:
    """What would decide it."""
    if needed:
        return f"about {needed} rounds as even as these"
    what = "trainings of more seeds" if finding.steps else "no number of rounds"
    return f"{what}: it lies too near to the end"


def weakest(steps: Sequence[Finding]) -> Finding:
    """Of an axis's steps the one that goes against the claimed direction most, and most surely."""

    def against(finding: Finding) -> tuple[bool, float]:
        found = finding.estimate
        if found is None or found.low is None or found.high is None:
            return True, -math.inf
        return found.high >= 1, found.high if found.high < 1 else found.low

    return min(steps, key=against)


def _part_of_share(claim: Claim, device: float, runs: Mapping[str, Run]) -> Part:
    """In which cases the method is better at all, and an interval for the share of such cases."""
    findings = as_a_grid([find(claim, cell, device, runs) for cell in claim.cells])
    betters = [is_better(finding) for finding in findings]
    wins, unknown, n = betters.count(True), betters.count(None), len(betters)
    won = [case_name(claim, cell) for cell, better in zip(claim.cells, betters, strict=True) if better]
    left = tuple(
        cell
        for cell, finding, better in zip(claim.cells, findings, betters, strict=True)
        if better is None and finding.more_rounds_help and _may_turn_out(finding)
    )
    if unknown == n:
        problem = next((each.problem for each in findings if each.problem), "no case is decided")
        decides = next((each.decides for each in findings if each.decides), "more rounds")
        return Part(device, "inconclusive", None, problem, decides, left)
    draws = _draws(claim, betters, runs)
    surely, perhaps = draws.count(True), draws.count(None)
    found = share_of(surely, perhaps, len(draws))
    verdict, reason = verdict_on(found, claim)
    counted = f"{claim.of} is better in {wins} of {n} cases" + (f" ({'; '.join(won)})" if won else "")
    counted += f", open in {unknown}" if unknown else ""
    if verdict != "inconclusive":
        return Part(device, verdict, found, f"{counted}: {reason}")
    decides = f"the {unknown} open cases" if unknown else _more_cases(len(draws), surely / len(draws), claim)
    return Part(device, verdict, found, f"{counted}: {reason}", decides, left)


def _draws(claim: Claim, betters: Sequence[bool | None], runs: Mapping[str, Run]) -> list[bool | None]:
    """Whether a method is better in a model's case, at all of its strengths or at none; None where that is open.

    Strengths of one method are no draws of their own: where one of them gains, the next one mostly does.
    """
    found: dict[tuple[str, int | None, str], set[bool | None]] = {}
    for cell, better in zip(claim.cells, betters, strict=True):
        methods = {each.label: each.name for each in runs[cell.scenario].plan.scenario.methods}
        found.setdefault((cell.model, cell.rate_bps, methods[cell.method]), set()).add(better)
    return [next(iter(each)) if len(each) == 1 else None for each in found.values()]


def as_a_grid(findings: Sequence[Finding]) -> list[Finding]:
    """Half of the error is for the intervals of all cases together, the other half for that of their share."""
    return [replace(finding, comparisons=2 * len(findings)) for finding in findings]


def is_better(finding: Finding) -> bool | None:
    """Whether a method is better at all; None where that is not sure."""
    found = finding.estimate
    if finding.problem or found is None or found.low is None or found.high is None:
        return None
    return True if found.low > 1 else False if found.high <= 1 else None


def _may_turn_out(finding: Finding) -> bool:
    """Whether the rounds that there are may still tell that a method is better, or is not."""
    found = finding.estimate
    return not found or found.low is None or _is_in_sight(finding, finding.rounds_to_leave(1.0))


def share_of(wins: int, unknown: int, n: int) -> Estimate:
    """A share of draws, with the interval of Clopper and Pearson (Biometrika 26, 1934).

    Those that are open count against the interval on both sides: as lost below, as won above. Half of the error is
    left to what is told of each case (``as_a_grid``).
    """
    most, each_end = wins + unknown, ERROR / 2 / 2
    low = float(betaincinv(wins, n - wins + 1, each_end)) if wins else 0.0
    high = float(betaincinv(most + 1, n - most, 1 - each_end)) if most < n else 1.0
    return Estimate((wins + unknown / 2) / n, low, high, n)


MOST_CASES = 1000


def _more_cases(known: int, share: float, claim: Claim) -> str:
    """How large a grid would do, if as large a share of it were won."""
    for cases in range(known + 1, MOST_CASES):
        if verdict_on(share_of(round(share * cases), 0, cases), claim)[0] != "inconclusive":
            return f"a grid of about {cases} models and methods, of which as large a share is won"
    return f"no grid of fewer than {MOST_CASES} models and methods: the share lies too near to the end"


def _without_what_follows(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Without what lies between two ends that both hold or both do not, unless that has a verdict of its own."""
    first, last = parts[0], parts[-1]
    is_open = first.open_cells or last.open_cells
    if is_open or (first.verdict in HOLDING) != (last.verdict in HOLDING):
        return tuple(parts)
    return tuple(part for part in parts if part in (first, last) or part.verdict != "inconclusive")


def _together(judged: Sequence[Part]) -> tuple[Verdict, str, str]:
    """The verdict over all shares of a device, its reason, and what would decide it."""
    ends = (judged[0], judged[-1])
    parts = [part for part in judged if part in ends or part.found or not part.open_cells]
    verdicts = {part.verdict for part in parts}
    if len(parts) == 1:
        return parts[0].verdict, parts[0].reason, parts[0].decides
    each = "; ".join(f"{named(part.device)}: {part.verdict}, {part.reason}" for part in parts)
    if len(verdicts) == 1:
        if len({part.reason for part in parts}) == 1:
            each = parts[0].reason
        decides = "; ".join(dict.fromkeys(part.decides for part in parts if part.decides))
        shares = f"from {named(parts[0].device)} to {named(parts[-1].device)}"
        return parts[0].verdict, f"{shares}: {each}", decides
    if verdicts <= HOLDING:
        return "reproduced", f"how far it is exceeded depends on the share of the device ({each})", ""
    left = [f"{named(part.device)}: {part.decides}" for part in parts if part.decides]
    decides = "; ".join([*left, "a profile of the device that the source had"])
    return "inconclusive", f"it depends on the share of the device ({each})", decides


def named(device: float) -> str:
    """A share of a device in words."""
    return DEVICES.get(device, f"{100 * device:g} %") + " device"


def families(judgements: Sequence[Judgement]) -> dict[str, list[Judgement]]:
    """The judgements of each claim in the file, in their order."""
    found: dict[str, list[Judgement]] = {}
    for judgement in judgements:
        found.setdefault(judgement.claim.family, []).append(judgement)
    return found


def _origins(claim: Claim, runs: Mapping[str, Run]) -> tuple[str, ...]:
    """A sentence for each figure that tells where it came from."""
    figure = "throughput" if claim.convergence else claim.ratio if claim.quantity in LIMITED else claim.quantity
    origins = []
    for name in dict.fromkeys(cell.scenario for cell in claim.cells):
        own = [cell for cell in claim.cells if cell.scenario == name]
        frames = [trials_of(cell, device, runs[name]) for cell in own for device in claim.devices]
        trials = pd.concat(frames).drop_duplicates("trial_id")
        ratio = "throughput" if claim.convergence else claim.ratio
        usually = None if trials.empty else usual_of(ratio, trials, runs)
        spread = f"pooled over {usually.cases} cases" if usually else "that of its own rounds"
        origins.append(_origin(figure, runs[name], _of_methods(claim, trials), spread))
    trainings = {"steps to the target": claim.convergence, "in one piece": claim.in_one_piece}
    for what, training in trainings.items():
        if training:
            trials = _of_methods(claim, runs[training].trials)
            origins.append(_origin(what, runs[training], trials, "that of its own seeds"))
    return tuple(filter(None, origins))


def _of_methods(claim: Claim, trials: pd.DataFrame) -> pd.DataFrame:
    return trials if trials.empty else trials[trials["label"].isin(claim.labels)]


def _origin(figure: str, run: Run, trials: pd.DataFrame, spread: str) -> str:
    """Where a figure comes from: training or replay of which profile, on which cluster, in which run; its spread."""
    done = trials[trials["status"] == DONE]
    if run.store is None or done.empty:
        return ""
    what = " and ".join(dict.fromkeys(f"{row.model}, {row.dataset}" for row in done[["model", "dataset"]].itertuples()))
    clusters = set(done["cluster"])
    where = "a fake cluster, SCRIPTED, not measured" if FAKE in clusters else ", ".join(sorted(clusters))
    return f"{figure}: {what}, {len(done)} trials on {where}, {run.store.folder.name}; spread: {spread}"
