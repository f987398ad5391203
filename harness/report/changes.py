"""What changed between two runs, in words: a row a method, notes, and all of it for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from harness.analysis.compare import Change, exit_code, pace
from harness.analysis.methods import MethodResult
from harness.analysis.reference import Measured
from harness.provenance import made_by
from harness.report.text import NOTHING, fixed, points, ratio, time


def cells(change: Change) -> dict[str, str]:
    """A row for a terminal: column -> text."""
    return {
        "method": change.label,
        "speedup before": ratio(change.before.speedup if change.before else None),
        "after": ratio(change.after.speedup if change.after else None),
        "after ÷ before": ratio(change.speedup),
        "": change.problem or ("" if change.speedup is None else change.kind),
        "samples/s, after ÷ before": ratio(change.absolute),
        "time to target before": _to_target(change.before),
        "after ": _to_target(change.after),
        "accuracy": points(change.accuracy),
        "keeps accuracy": change.after.quality.keeps if change.after else NOTHING,
        "bytes, after ÷ before": fixed(change.bytes_ratio, 3),
    }


def _to_target(result: MethodResult | None) -> str:
    """The median; of a method that missed the target in any round, that it did."""
    found = result.time_to_target if result else None
    if not found or not found.of:
        return NOTHING
    return time(found.median_s) if found.surely else f"missed ({found.reached} of {found.of})"


def notes(before: Measured, after: Measured, found: Sequence[Change]) -> list[str]:
    """One sentence on what changed, and what a reader should know beside it."""
    counts = Counter(change.kind for change in found if change.label != after.scenario.baseline)
    lines = [f"{change.label}, {unfinished} (in {after.where})" for change in found for unfinished in change.unfinished]
    lines += [
        f"{case}: the machine computed {factor:.2f} times as long after as before; what that explains is no change"
        for case, factor in dict.fromkeys((change.case, change.computing) for change in found)
        if factor != 1
    ]
    for name, side in (("before", before), ("after", after)):
        noise = f", noise {100 * side.noise.sd:.1f} % a round" if side.noise else ""
        lines.append(f"{name}: {side.where}, {made_by(side.provenance)}, {side.machine}{noise}")
    lines += pace_note(before, after)
    lines.append(f"speedups over {after.scenario.baseline}: " + ", ".join(f"{n} {kind}" for kind, n in counts.items()))
    return lines


def pace_note(before: Measured, after: Measured) -> list[str]:
    """How much faster or slower the machine had become, in words; nothing where it is not known."""
    slower = pace(before, after)
    if slower is None:
        return []
    return [
        f"the processor took {slower:.2f} times as long for a fixed piece of work after as before; "
        "what it did in a step is compared at one pace"
    ]


def as_json(before: Measured, after: Measured, found: Sequence[Change]) -> dict[str, Any]:
    """All of it, for programs."""
    return {
        "exit_code": exit_code(found, after.scenario.baseline),
        "before": str(before.where),
        "after": str(after.where),
        "changes": [
            {
                "case": change.case,
                "label": change.label,
                "kind": change.kind,
                "problem": change.problem,
                "speedup": change.speedup and change.speedup._asdict(),
                "samples_per_s": change.absolute and change.absolute._asdict(),
                "final_accuracy": change.accuracy and change.accuracy._asdict(),
                "bytes_ratio": change.bytes_ratio,
                "computing": change.computing,
                "unfinished": list(change.unfinished),
            }
            for change in found
        ],
    }
