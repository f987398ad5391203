"""What claims need is run in waves: two rounds of all, then one round after the other of what is not decided yet.

A claim that is decided asks for nothing more (``analysis/claims/sequential.py``), nor does a case of it that is, nor
one that the rounds there are will hardly decide. What is opened later, since others have not decided a claim, has its
rounds so far run at once. Trainings run with all their seeds at once: steps to a target differ so much that two tell
little, and meanwhile a replay's further rounds would be run in vain. A trial that several claims need runs once. Within
a wave those scenarios come first that may decide most claims in the shortest time. What measures a time to accuracy in
one piece comes last, since it decides nothing: it stands beside the verdicts, whatever they are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace

from harness.analysis.claims.figures import Run
from harness.analysis.claims.judgements import Judgement, Part, judge
from harness.analysis.claims.plans import is_asked_for
from harness.analysis.claims.schema import Claim
from harness.analysis.claims.sequential import FIRST_LOOK
from harness.plan.estimate import total_s
from harness.plan.machine import Machine
from harness.plan.plan import Plan
from harness.plan.trial import Trial

CarryOut = Callable[[str, Run, Plan], tuple[Run, int]]
"""Runs what is pending of a part of a scenario's plan: what became of it, and how many trials did not finish."""


def reproduce(
    chosen: Iterable[Claim], runs: Mapping[str, Run], carry_out: CarryOut, machine: Machine
) -> tuple[dict[str, Run], int]:
    """Run what the claims need, until all are decided or all rounds are run.

    Args:
        runs: what there is already of each scenario that they need; a scenario with a ``problem`` is not run.

    Returns:
        The runs as they are then, and how many trials did not finish.
    """
    asking, runs, failed, tried = [claim for claim in chosen if claim.needs], dict(runs), 0, set[str]()
    judged = _judged(asking, runs)
    for rounds in waves(runs):
        while names := _in_order(judged.values(), runs, rounds, machine, tried):
            for name in names:
                part = needed(name, runs[name], judged.values(), rounds, tried)
                if left := pending(runs[name], part):
                    tried |= {trial.id for trial in left}
                    runs[name], lost = carry_out(name, runs[name], part)
                    failed += lost
                    judged |= _judged([claim for claim in asking if name in claim.needs], runs)
            # How much cases usually vary is known from all scenarios: so what one brought may decide another's claims.
            judged = _judged(asking, runs)
    for name, run in runs.items():
        if measures_in_one_piece(name, judged.values()) and pending(run, run.plan):
            runs[name], lost = carry_out(name, run, run.plan)
            failed += lost
    return runs, failed


def _judged(claims: Iterable[Claim], runs: Mapping[str, Run]) -> dict[str, Judgement]:
    return {claim.id: judge(claim, runs) for claim in claims}


def measures_in_one_piece(name: str, judged: Iterable[Judgement]) -> bool:
    """Whether a scenario is run for what stands beside verdicts: all of it, and it decides none."""
    return any(each.claim.in_one_piece == name for each in judged)


def _in_order(
    judged: Collection[Judgement], runs: Mapping[str, Run], rounds: range, machine: Machine, tried: Collection[str]
) -> list[str]:
    """The scenarios that are still needed in these rounds: those first that may decide most claims in a second."""
    claims_per_s = {}
    for name, run in runs.items():
        if left := pending(run, needed(name, run, judged, rounds, tried)):
            deciding = sum(name in each.claim.needs for each in judged if each.open_parts)
            claims_per_s[name] = deciding / total_s(left, machine)
    return sorted(claims_per_s, key=lambda name: claims_per_s[name], reverse=True)


def waves(runs: Mapping[str, Run]) -> Iterator[range]:
    """Rounds that are run together: the first look needs several, and each later one is followed by a look."""
    most = max((run.plan.scenario.rounds for run in runs.values()), default=0)
    yield range(FIRST_LOOK)
    yield from (range(number, number + 1) for number in range(FIRST_LOOK, most))


def needed(
    name: str,
    run: Run,
    judged: Iterable[Judgement],
    rounds: range,
    tried: Collection[str] = (),
    at_most: bool = False,
) -> Plan:
    """The part of a scenario's plan that claims which are open still need up to these rounds.

    Args:
        tried: ids of trials that are not to be run again: of these some may have failed.
        at_most: also what they need if nothing that is to be run next decides them.
    """
    open_parts = [
        (each.claim, part) for each in judged for part in (each.undecided_parts if at_most else each.open_parts)
    ]
    is_training = any(_is_training(name, claim) for claim, _ in open_parts)

    def is_needed(trial: Trial) -> bool:
        if trial.id in tried or (trial.round >= rounds.stop and not is_training):
            return False
        return any(_asks_for(trial, name, claim, part) for claim, part in open_parts)

    return replace(run.plan.only(is_needed), more_seeds=())


def _is_training(name: str, claim: Claim) -> bool:
    """Whether a claim looks at a scenario's trainings: once, with all of their seeds."""
    return name == claim.convergence or (claim.quantity == "accuracy" and name in claim.needs)


def _asks_for(trial: Trial, name: str, claim: Claim, part: Part) -> bool:
    return is_asked_for(trial, name, claim, part.device, part.open_cells)


def pending(run: Run, part: Plan) -> list[Trial]:
    """The trials of a part that are not done; none where the scenario cannot be run."""
    if run.problem:
        return []
    return part.pending(run.store.attempts()) if run.store else list(part.trials)
