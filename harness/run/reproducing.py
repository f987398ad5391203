"""What claims need is run in waves: two rounds of all, then one round after the other of what is not decided yet.

A claim that is decided asks for nothing more (``analysis/claims/sequential.py``), nor does a case of it that is, nor
one that the rounds there are will hardly decide. What is opened later, since others have not decided a claim, has its
rounds so far run at once. Trainings run with all their seeds at once: steps to a target differ so much that two tell
little, and meanwhile a replay's further rounds would be run in vain. A trial that several claims need runs once. Within
a wave those scenarios come first that may decide most claims in the shortest time. What measures a time to accuracy in
one piece comes last, since it decides nothing: it stands beside the verdicts, whatever they are. What is kept from
running by something that may pass, such as another command in its folder, is tried once more in a later wave.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace

from harness.analysis.claims.figures import Run
from harness.analysis.claims.judgements import Judgement, Part, judge
from harness.analysis.claims.plans import is_asked_for
from harness.analysis.claims.schema import Claim
from harness.analysis.claims.sequential import FIRST_LOOK
from harness.cluster.protocol import ClusterBrokenError
from harness.errors import PacbenchError
from harness.files import InUseError
from harness.plan.estimate import total_s
from harness.plan.machine import Machine
from harness.plan.plan import Plan
from harness.plan.trial import Trial
from harness.run.execute import NoMemoryError

CarryOut = Callable[[str, Run, Plan], tuple[Run, int]]
"""Runs what is pending of a part of a scenario's plan: what became of it, and how many trials did not finish."""

PASSING: dict[type[PacbenchError], str] = {
    InUseError: "the same command, when the other one that uses its folder has ended",
    NoMemoryError: "the same command, with more memory free",
    ClusterBrokenError: "the same command once more",
}
"""What may keep a scenario from running now and not a little later, and what would help if it does not pass."""


def not_run(run: Run, error: PacbenchError) -> Run:
    """What became of a scenario that an error kept from running, or ended."""
    for kind, remedy in PASSING.items():
        if isinstance(error, kind):
            return replace(run, problem=str(error), remedy=remedy, may_pass=True)
    return replace(run, problem=str(error))


class _Tries:
    """What was tried: no trial a second time, unless what kept its scenario from running may have passed; then once."""

    def __init__(self, carry_out: CarryOut) -> None:
        self._carry_out = carry_out
        self.failed = 0
        """How many trials did not finish."""
        self.ids: set[str] = set()
        """Of the trials that are not to be run again."""
        self._kept_away: dict[str, tuple[set[str], int]] = {}
        """By scenario the trials that were to run, and how many did not finish."""
        self._tried_again: set[str] = set()

    def carry_out(self, name: str, run: Run, part: Plan, left: Iterable[Trial]) -> Run:
        """Run what is left of a scenario's part."""
        ids = {trial.id for trial in left}
        found, failed = self._carry_out(name, run, part)
        self.ids |= ids
        self.failed += failed
        if found.may_pass and name not in self._tried_again:
            self._kept_away[name] = ids, failed
        return found

    def allow_again(self, runs: dict[str, Run], names: Collection[str]) -> bool:
        """Forget, in place, what kept any of these scenarios from running, the first time that it did."""
        found = [name for name in names if name in self._kept_away]
        for name in found:
            ids, failed = self._kept_away.pop(name)
            self.ids -= ids
            self.failed -= failed
            self._tried_again.add(name)
            runs[name] = replace(runs[name], problem="", may_pass=False)
        return bool(found)


def reproduce(
    chosen: Iterable[Claim], runs: Mapping[str, Run], carry_out: CarryOut, machine: Machine
) -> tuple[dict[str, Run], int]:
    """Run what the claims need, until all are decided or all rounds are run.

    Args:
        runs: what there is already of each scenario that they need; a scenario with a ``problem`` is not run.

    Returns:
        The runs as they are then, and how many trials did not finish.
    """
    asking, runs, tries = [claim for claim in chosen if claim.needs], dict(runs), _Tries(carry_out)
    judged = _judged(asking, runs)
    for rounds in waves(runs):
        if tries.allow_again(runs, list(runs)):
            judged = _judged(asking, runs)
        while names := _in_order(judged.values(), runs, rounds, machine, tries.ids):
            for name in names:
                part = needed(name, runs[name], judged.values(), rounds, tries.ids)
                if left := pending(runs[name], part):
                    runs[name] = tries.carry_out(name, runs[name], part, left)
                    judged |= _judged([claim for claim in asking if name in claim.needs], runs)
            # How much cases usually vary is known from all scenarios: so what one brought may decide another's claims.
            judged = _judged(asking, runs)
    beside = [name for name in runs if measures_in_one_piece(name, judged.values())]
    for name in [*beside, *beside]:  # a second time for what was kept from running the first time
        tries.allow_again(runs, [name])
        plan = runs[name].plan
        if left := [trial for trial in pending(runs[name], plan) if trial.id not in tries.ids]:
            runs[name] = tries.carry_out(name, runs[name], plan, left)
    return runs, tries.failed


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
    # The last one has no round of its own: it is there for what was kept from running before.
    yield from (range(number, number + 1) for number in range(FIRST_LOOK, most + 1))


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
