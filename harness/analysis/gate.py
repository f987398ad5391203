"""A regression gate: a run's speedups against a reference's, a verdict for each method, and an exit code for CI.

A slowdown of 10 % means that a step takes 10 % longer, compared with dense in the same run. With the interval of what
the slowdown may truly be,

* ``pass``: a slowdown as large as the limit is ruled out,
* ``regression``: it is not, and that nothing has become slower is ruled out,
* ``inconclusive``: neither is; more rounds or a quieter machine would tell,
* ``failed``: a trial of the method did not finish.

A machine that computes more slowly than the reference's did, because it is another one or has other work, slows methods
that compute much more than the baseline, which waits for the network. Each trial therefore times a fixed piece of work,
and what the processor did in a step is put to the reference's pace. Where the baseline's own computation still differs,
so much of a slowdown as this can explain is not held against a method, and so much as it can hide is not held to its
credit: where that is more than the limit, the gate is inconclusive, and a reference of this machine is what it needs.

A true slowdown as large as the limit passes in one case of forty. Of runs whose code has not changed, one in a hundred
may be called a regression on a machine of any noise, however many methods there are, and next to none on a quiet one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal
from xml.etree import ElementTree

from harness.analysis import compare
from harness.analysis.compare import Change, Shift
from harness.analysis.reference import Measured
from harness.analysis.stats import MethodResult, on_links
from harness.errors import EXIT_INCONCLUSIVE, EXIT_REGRESSION, MeasurementError
from harness.plain import markdown, visible
from harness.report import text

MAX_SLOWDOWN = 0.10

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

MARKS: dict[Verdict, str] = {"pass": "✅", "regression": "❌", "inconclusive": "❔", "failed": "💥"}


@dataclass(frozen=True)
class Judgement:
    """The verdict on one method in one case, and why."""

    change: Change
    verdict: Verdict
    reason: str

    @property
    def slowdown(self) -> tuple[float, float | None, float | None] | None:
        """By what share a step takes longer than in the reference, and the ends of its interval; negative: faster."""
        found = self.change.speedup
        if found is None:
            return None
        ends = (None, None) if found.low is None or found.high is None else (1 / found.high - 1, 1 / found.low - 1)
        return (1 / found.value - 1, *ends)

    @property
    def slowdown_text(self) -> str:
        """For example ``+1.2 % [-0.6, +3.0]``."""
        if self.slowdown is None:
            return "–"
        value, low, high = self.slowdown
        interval = f" [{100 * low:+.1f}, {100 * high:+.1f}]" if low is not None and high is not None else ""
        return f"{100 * value:+.1f} %{interval}"


@dataclass(frozen=True)
class Gate:
    """All verdicts of a run."""

    run: Measured
    reference: Measured
    max_slowdown: float
    judgements: tuple[Judgement, ...]

    @property
    def verdict(self) -> Verdict:
        """The gravest of all."""
        verdicts = {judgement.verdict for judgement in self.judgements}
        return next(verdict for verdict in EXIT_CODES if verdict in verdicts)

    @property
    def exit_code(self) -> int:
        """Of the command."""
        return EXIT_CODES[self.verdict]

    @property
    def sentence(self) -> str:
        """All in one line."""
        found = Counter(judgement.verdict for judgement in self.judgements)
        counts = ", ".join(f"{found[verdict]} {verdict}" for verdict in EXIT_CODES if verdict in found)
        return f"{self.verdict} at a limit of {100 * self.max_slowdown:g} %: {counts}"

    @property
    def notes(self) -> list[str]:
        """What a reader should know beside the verdicts."""
        notes = []
        for name, side in (("this run", self.run), ("the reference", self.reference)):
            if noise := side.noise:
                notes.append(f"noise of {name}: {100 * noise.sd:.1f} % a round, from {noise.pairs} A/A pairs")
        if self.run.machine != self.reference.machine:
            notes.append(
                f"the reference was measured on another machine ({self.reference.machine}; here {self.run.machine}): "
                "ratios to the baseline still compare, as far as computation and network keep their proportion"
            )
        notes += compare.pace_note(self.reference, self.run)
        notes += self._notes_on_accuracy()
        scenario = self.run.scenario
        planned = scenario.rounds * len(scenario.cases) * len(scenario.methods)
        if (never := planned - len(on_links(self.run.trials))) > 0:
            notes.append(f"{never} of the {planned} trials that the scenario asks for were never started")
        if self.run.trials["cluster"].eq("fake").any():
            notes.append("SCRIPTED, not measured: a fake cluster recited these numbers")
        return notes

    def _notes_on_accuracy(self) -> list[str]:
        """Verdicts are on throughput; what it may have cost is said beside them."""
        learnt = [(case, result) for case in self.run.cases for result in case.methods if result.quality.difference]
        if not learnt:
            return ["verdicts are on throughput alone: nothing was learnt, so that accuracy is unknown"]
        lost = [
            f"{result.label} ({case.title}) {'does not keep' if result.quality.keeps == 'no' else 'may not keep'} "
            f"accuracy: {text.difference(result.quality)} against {self.run.scenario.baseline}"
            for case, result in learnt
            if result.quality.keeps != "yes"
        ]
        return lost or ["verdicts are on throughput; every method keeps accuracy"]


def judge(run: Measured, reference: Measured, max_slowdown: float = MAX_SLOWDOWN) -> Gate:
    """Hold a run against a reference.

    Args:
        max_slowdown: the slowdown that is no longer accepted, as a share.

    Raises:
        UsageError: the two are of different scenarios.
        MeasurementError: there is no method beside the baseline, so that nothing would be judged.
    """
    baseline, changes = run.scenario.baseline, compare.changes(reference, run)
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


def _judge(change: Change, max_slowdown: float, judged: int) -> Judgement:
    if change.unfinished:
        return Judgement(change, "failed", "; ".join(change.unfinished))
    if change.problem or change.shift is None or change.shift.error is None:
        return Judgement(change, "inconclusive", change.problem)
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
    return Judgement(change, verdict, reasons[verdict])


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


def as_json(gate: Gate) -> dict[str, Any]:
    """All that the gate found, for programs."""
    return {
        "verdict": gate.verdict,
        "exit_code": gate.exit_code,
        "scenario": gate.run.scenario.name,
        "max_slowdown": gate.max_slowdown,
        "run": _side(gate.run),
        "reference": _side(gate.reference),
        "notes": gate.notes,
        "methods": [
            {
                "case": judgement.change.case,
                "label": judgement.change.label,
                "verdict": judgement.verdict,
                "reason": judgement.reason,
                "computing": judgement.change.computing,
                "slowdown": judgement.slowdown and dict(zip(("value", "low", "high"), judgement.slowdown, strict=True)),
                "speedup_reference": _speedup(judgement.change.before),
                "speedup": _speedup(judgement.change.after),
                "unfinished": list(judgement.change.unfinished),
            }
            for judgement in gate.judgements
        ],
    }


def as_markdown(gate: Gate) -> str:
    """A summary for a pull request."""
    baselines = gate.run.scenario.baselines
    over = [f"over {each}: {when}" for each in baselines for when in ("reference", "now")]
    lines = [
        f"### {MARKS[gate.verdict]} pacbench gate, {markdown(gate.run.scenario.name)}: {gate.sentence}",
        "",
        f"| method | verdict | step takes longer by | {' | '.join(over)} | why |",
        f"|---|---|--:|{'--:|' * len(over)}---|",
    ]
    for judgement in gate.judgements:
        change = judgement.change
        cells = (
            f"{change.label} ({change.case})",
            f"{MARKS[judgement.verdict]} {judgement.verdict}",
            judgement.slowdown_text,
            *(_over(side, each) for each in baselines for side in (change.before, change.after)),
            judgement.reason,
        )
        lines.append("| " + " | ".join(map(markdown, cells)) + " |")
    lines += ["", *(f"* {markdown(note)}" for note in gate.notes)]
    commits = ", ".join(gate.reference.commits) or "unknown"
    lines.append(f"* reference: {markdown(gate.reference.where.name)}, commit {markdown(commits)}")
    return "\n".join(lines) + "\n"


def _over(result: MethodResult | None, baseline: str) -> str:
    """Throughput over a baseline, which a reference made before need not have."""
    found = result.over[baseline].throughput if result and baseline in result.over else None
    return f"{found.value:.2f}x" if found else "–"


def as_junit(gate: Gate) -> str:
    """JUnit's XML: a case a method; a regression is a failure, what is failed or inconclusive an error."""
    suite = ElementTree.Element(
        "testsuite",
        name=visible(f"pacbench.{gate.run.scenario.name}"),
        tests=str(len(gate.judgements)),
        failures=str(sum(judgement.verdict == "regression" for judgement in gate.judgements)),
        errors=str(sum(judgement.verdict in ("failed", "inconclusive") for judgement in gate.judgements)),
        skipped="0",
    )
    for judgement in gate.judgements:
        own_s = _total_s(judgement.change)
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=visible(judgement.change.case),
            name=visible(judgement.change.label),
            time=own_s,
        )
        if judgement.verdict != "pass":
            kind = "failure" if judgement.verdict == "regression" else "error"
            found = ElementTree.SubElement(case, kind, type=judgement.verdict, message=visible(judgement.reason))
            found.text = f"step takes longer by {judgement.slowdown_text}"
        if judgement.change.unfinished:
            ElementTree.SubElement(case, "system-err").text = "\n".join(map(visible, judgement.change.unfinished))
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def cells(judgement: Judgement) -> dict[str, str]:
    """A row for a terminal: column -> text."""
    return {
        "method": judgement.change.label,
        "verdict": judgement.verdict,
        "step takes longer by": judgement.slowdown_text,
        "why": judgement.reason,
    }


def _side(side: Measured) -> dict[str, Any]:
    noise = side.noise
    return {
        "where": str(side.where),
        "commits": side.commits,
        "machine": side.machine,
        "noise": noise and {"sd": noise.sd, "pairs": noise.pairs},
        "trials": {str(status): int(count) for status, count in side.trials["status"].value_counts().items()},
    }


def _speedup(result: MethodResult | None) -> dict[str, Any] | None:
    return result.speedup._asdict() if result and result.speedup else None


def _total_s(change: Change) -> str:
    """Training time of all its finished trials."""
    return f"{change.after.done['train_time_s'].sum():.3f}" if change.after else "0"
