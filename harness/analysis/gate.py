"""A regression gate: a run's speedups against a reference's, a verdict for each method, and an exit code for CI.

A slowdown of 10 % means that a step takes 10 % longer, compared with dense in the same run. With the interval of what
the slowdown may truly be,

* ``pass``: a slowdown as large as the limit is ruled out,
* ``regression``: it is not, and that nothing has become slower is ruled out,
* ``inconclusive``: neither is; more rounds or a quieter machine would tell,
* ``failed``: a trial of the method did not finish.

What is judged are the methods that the run was asked for: a reference may have more, which are named and not judged.

A machine that computes more slowly than the reference's did, because it is another one or has other work, slows methods
that compute much more than the baseline, which waits for the network. Each trial therefore times a fixed piece of work,
and what the processor did in a step is put to the reference's pace. Where the baseline's own computation still differs,
so much of a slowdown as this can explain is not held against a method, and so much as it can hide is not held to its
credit: where that is more than the limit, the gate is inconclusive, and a reference of this machine is what it needs.

A true slowdown as large as the limit passes in one case of forty. Of runs whose code has not changed, one in a hundred
may be called a regression on a machine of any noise, however many methods there are, and next to none on a quiet one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from harness.analysis import MAX_SLOWDOWN, compare
from harness.analysis.compare import Change
from harness.analysis.reference import Measured
from harness.analysis.shifts import Shift
from harness.errors import EXIT_INCONCLUSIVE, EXIT_REGRESSION, MeasurementError

FALSE_ALARMS = 0.01
"""The share of gates over unchanged code that may find a regression in any of their methods (Bonferroni)."""

Verdict = Literal["pass", "regression", "inconclusive", "failed"]

EXIT_CODES: dict[Verdict, int] = {
    "regression": EXIT_REGRESSION,
    "failed": MeasurementError.exit_code,
    "inconclusive": EXIT_INCONCLUSIVE,
    "pass": 0,
}
"""The gate's own verdict is the first of these that any method has."""


@dataclass(frozen=True)
class MethodVerdict:
    """The verdict on one method in one case, and why."""

    change: Change
    verdict: Verdict
    reason: str

    @property
    def slowdown(self) -> tuple[float, float | None, float | None] | None:
        """The share by which a step takes longer than in the reference, and its interval's ends; negative: faster."""
        found = self.change.speedup
        if found is None:
            return None
        ends = (None, None) if found.low is None or found.high is None else (1 / found.high - 1, 1 / found.low - 1)
        return (1 / found.value - 1, *ends)


@dataclass(frozen=True)
class Gate:
    """All verdicts of a run."""

    run: Measured
    reference: Measured
    max_slowdown: float
    methods: tuple[MethodVerdict, ...]

    @property
    def verdict(self) -> Verdict:
        """The gravest of all."""
        verdicts = {method.verdict for method in self.methods}
        return next(verdict for verdict in EXIT_CODES if verdict in verdicts)

    @property
    def not_asked_for(self) -> list[str]:
        """The reference's methods that the run was not asked for, which are not judged."""
        asked_for = {method.label for method in self.run.scenario.methods}
        return [method.label for method in self.reference.scenario.methods if method.label not in asked_for]

    @property
    def exit_code(self) -> int:
        """The exit code of the command."""
        return EXIT_CODES[self.verdict]


def judge(run: Measured, reference: Measured, max_slowdown: float = MAX_SLOWDOWN) -> Gate:
    """Hold a run against a reference.

    Args:
        max_slowdown: the slowdown that is no longer accepted, as a share.

    Raises:
        UsageError: the two are of different scenarios.
        MeasurementError: there is no method beside the baseline, so that nothing would be judged.
    """
    baseline, asked_for = run.scenario.baseline, {method.label for method in run.scenario.methods}
    changes = [change for change in compare.changes(reference, run) if change.label in asked_for]
    judged = sum(change.label != baseline for change in changes)
    if not judged:
        raise MeasurementError(f"{run.where}: it has no method beside {baseline}; nothing can be judged")
    return Gate(
        run,
        reference,
        max_slowdown,
        tuple(
            _judge(change, max_slowdown, judged) for change in changes if change.label != baseline or change.unfinished
        ),
    )


def _judge(change: Change, max_slowdown: float, judged: int) -> MethodVerdict:
    if change.unfinished:
        return MethodVerdict(change, "failed", "; ".join(change.unfinished))
    if change.problem or change.shift is None or change.shift.error is None:
        return MethodVerdict(change, "inconclusive", change.problem)
    limit = f"{100 * max_slowdown:g} %"
    reasons: dict[Verdict, str] = {
        "pass": f"a slowdown of {limit} is ruled out",
        "regression": f"it is surely slower, and a slowdown of {limit} is not ruled out",
        "inconclusive": f"no slowdown and one of {limit} are both possible: more rounds or less noise would tell",
    }
    if abs(change.computing - 1) > max_slowdown:
        reasons["inconclusive"] = (
            f"this machine surely took {change.computing:.2f} times as long to compute a step of the baseline as the "
            "reference's, which may explain it, or hide it: make a reference here, with nothing else running"
        )
    verdict = verdict_on(change.shift, max_slowdown, judged, change.computing)
    return MethodVerdict(change, verdict, reasons[verdict])


def verdict_on(shift: Shift, max_slowdown: float, judged: int, computing: float = 1.0) -> Verdict:
    """What a speedup's shift says of a slowdown as large as the limit.

    Args:
        judged: how many methods and cases the gate judges, among which its false alarms are shared.
        computing: how long the machine computes, as a multiple of the reference's.
    """
    likely, surely = shift.estimate(), shift.estimate(1 - 2 * FALSE_ALARMS / judged)
    assert likely.low is not None
    assert surely.high is not None
    if likely.low * min(computing, 1.0) > 1 / (1 + max_slowdown):
        return "pass"
    return "regression" if surely.high * max(computing, 1.0) < 1 else "inconclusive"
