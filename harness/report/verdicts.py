"""What a gate found, in words: for a terminal, a pull request, JUnit, and for programs."""

from __future__ import annotations

from collections import Counter
from typing import Any
from xml.etree import ElementTree

from harness.analysis.compare import Change
from harness.analysis.gate import EXIT_CODES, Gate, MethodVerdict, Verdict
from harness.analysis.methods import MethodResult
from harness.analysis.reference import Measured
from harness.analysis.trials import FAKE, on_links, rounds_asked_for
from harness.plain import markdown, visible
from harness.provenance import made_by
from harness.report import text
from harness.report.changes import pace_note

MARKS: dict[Verdict, str] = {"pass": "✅", "regression": "❌", "inconclusive": "❔", "failed": "💥"}


def sentence(gate: Gate) -> str:
    """All in one line."""
    found = Counter(method.verdict for method in gate.methods)
    counts = ", ".join(f"{found[verdict]} {verdict}" for verdict in EXIT_CODES if verdict in found)
    return f"{gate.verdict} at a limit of {100 * gate.max_slowdown:g} %: {counts}"


def notes(gate: Gate) -> list[str]:
    """What a reader should know beside the verdicts."""
    return [
        *_notes_on_noise(gate),
        *_notes_on_machines(gate),
        *pace_note(gate.reference, gate.run),
        *_notes_on_accuracy(gate.run),
        *_notes_on_methods(gate),
        *_notes_on_trials(gate.run),
    ]


def _notes_on_noise(gate: Gate) -> list[str]:
    return [
        f"noise of {name}: {100 * noise.sd:.1f} % a round, from {noise.pairs} A/A pairs"
        for name, side in (("this run", gate.run), ("the reference", gate.reference))
        if (noise := side.noise)
    ]


def _notes_on_machines(gate: Gate) -> list[str]:
    if gate.run.machine == gate.reference.machine:
        return []
    return [
        f"the reference was measured on another machine ({gate.reference.machine}; here {gate.run.machine}): "
        "ratios to the baseline still compare, as far as computation and network keep their proportion"
    ]


def _notes_on_accuracy(run: Measured) -> list[str]:
    """Verdicts are on throughput; what it may have cost is said beside them."""
    learnt = [(case, result) for case in run.cases for result in case.methods if result.quality.difference]
    if not learnt:
        return ["verdicts are on throughput alone: nothing was learnt, so that accuracy is unknown"]
    lost = [
        f"{result.label} ({case.title}) {'does not keep' if result.quality.keeps == 'no' else 'may not keep'} "
        f"accuracy: {text.difference(result.quality)} against {run.scenario.baseline}"
        for case, result in learnt
        if result.quality.keeps != "yes"
    ]
    return lost or ["verdicts are on throughput; every method keeps accuracy"]


def _notes_on_methods(gate: Gate) -> list[str]:
    """What the reference has and the run was not asked for."""
    if not gate.not_asked_for:
        return []
    return [f"not judged, since this run was not asked for them: {', '.join(gate.not_asked_for)}"]


def _notes_on_trials(run: Measured) -> list[str]:
    """What was never started, and that numbers are scripted."""
    scenario, found = run.scenario, []
    rounds = rounds_asked_for(run.trials, scenario, run.provenance)
    planned = rounds * len(scenario.cases) * len(scenario.methods)
    if (never := planned - len(on_links(run.trials))) > 0:
        found.append(f"{never} of the {planned} trials that the scenario asks for were never started")
    if run.trials["cluster"].eq(FAKE).any():
        found.append(f"{text.SCRIPTED}: a fake cluster recited these numbers")
    return found


def as_markdown(gate: Gate) -> str:
    """A summary for a pull request."""
    baselines = gate.run.scenario.baselines
    over = [f"over {each}: {when}" for each in baselines for when in ("reference", "now")]
    lines = [
        f"### {MARKS[gate.verdict]} pacbench gate, {markdown(gate.run.scenario.name)}: {sentence(gate)}",
        "",
        f"| method | verdict | step takes longer by | {' | '.join(over)} | why |",
        f"|---|---|--:|{'--:|' * len(over)}---|",
    ]
    for method in gate.methods:
        change = method.change
        cells = (
            f"{change.label} ({change.case})",
            f"{MARKS[method.verdict]} {method.verdict}",
            text.slowdown(method.slowdown),
            *(_over(side, each) for each in baselines for side in (change.before, change.after)),
            method.reason,
        )
        lines.append("| " + " | ".join(map(markdown, cells)) + " |")
    lines += ["", *(f"* {markdown(note)}" for note in notes(gate))]
    for what, side in (("run", gate.run), ("reference", gate.reference)):
        lines.append(f"* {what}: {markdown(side.where.name)}, {markdown(made_by(side.provenance))}")
    return "\n".join(lines) + "\n"


def _over(result: MethodResult | None, baseline: str) -> str:
    """Throughput over a baseline, which a reference made before need not have."""
    found = result.over[baseline].throughput if result and baseline in result.over else None
    return text.multiple(found)


def as_junit(gate: Gate) -> str:
    """JUnit's XML: a case a method; a regression is a failure, what is failed or inconclusive an error."""
    suite = ElementTree.Element(
        "testsuite",
        name=visible(f"pacbench.{gate.run.scenario.name}"),
        tests=str(len(gate.methods)),
        failures=str(sum(method.verdict == "regression" for method in gate.methods)),
        errors=str(sum(method.verdict in ("failed", "inconclusive") for method in gate.methods)),
        skipped="0",
    )
    for method in gate.methods:
        own_s = _total_s(method.change)
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=visible(method.change.case),
            name=visible(method.change.label),
            time=own_s,
        )
        if method.verdict != "pass":
            kind = "failure" if method.verdict == "regression" else "error"
            found = ElementTree.SubElement(case, kind, type=method.verdict, message=visible(method.reason))
            found.text = f"step takes longer by {text.slowdown(method.slowdown)}"
        if method.change.unfinished:
            ElementTree.SubElement(case, "system-err").text = "\n".join(map(visible, method.change.unfinished))
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def as_json(gate: Gate) -> dict[str, Any]:
    """All that the gate found, for programs."""
    return {
        "verdict": gate.verdict,
        "exit_code": gate.exit_code,
        "scenario": gate.run.scenario.name,
        "max_slowdown": gate.max_slowdown,
        "run": _side(gate.run),
        "reference": _side(gate.reference),
        "notes": notes(gate),
        "methods": [
            {
                "case": method.change.case,
                "label": method.change.label,
                "verdict": method.verdict,
                "reason": method.reason,
                "computing": method.change.computing,
                "slowdown": method.slowdown and dict(zip(("value", "low", "high"), method.slowdown, strict=True)),
                "speedup_reference": _speedup(method.change.before),
                "speedup": _speedup(method.change.after),
                "unfinished": list(method.change.unfinished),
            }
            for method in gate.methods
        ],
    }


def cells(method: MethodVerdict) -> dict[str, str]:
    """A row for a terminal: column -> text."""
    return {
        "method": method.change.label,
        "verdict": method.verdict,
        "step takes longer by": text.slowdown(method.slowdown),
        "why": method.reason,
    }


def _side(side: Measured) -> dict[str, Any]:
    noise = side.noise
    return {
        "where": str(side.where),
        "commits": side.commits,
        "made_by": made_by(side.provenance),
        "machine": side.machine,
        "noise": noise and {"sd": noise.sd, "pairs": noise.pairs},
        "trials": {str(status): int(count) for status, count in side.trials["status"].value_counts().items()},
    }


def _speedup(result: MethodResult | None) -> dict[str, Any] | None:
    return result.speedup._asdict() if result and result.speedup else None


def _total_s(change: Change) -> str:
    """Training time of all its finished trials."""
    return f"{change.after.done['train_time_s'].sum():.3f}" if change.after else "0"
