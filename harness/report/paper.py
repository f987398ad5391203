"""What a paper needs of a run: figures at the widths of one and two columns, tables for LaTeX, and all numbers.

    RUN/paper/one-column/   pdf (fonts embedded), png and csv of every figure, 3.5 in wide at most
    RUN/paper/two-columns/  likewise, 7.16 in
    RUN/paper/results.tex   a tabular (booktabs) of every method in every case: speedups, accuracies, times, bytes
    RUN/paper/trials.csv    every trial with its status and reason, whether it entered a mean or not

The look is that of ``figures.mplstyle``; ``COLUMNS`` says what differs at each width.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import plain
from harness.analysis.cases import CaseResult, case_results
from harness.analysis.estimates import Estimate
from harness.analysis.methods import MethodResult
from harness.analysis.trials import CASE_COLUMNS, FAKE
from harness.files import write_whole
from harness.record.store import Store, require_done
from harness.report import text
from harness.report.facts import measured_by
from harness.report.figures import registry, render
from harness.report.figures.registry import Draws, Results
from harness.report.text import NOTHING, SCRIPTED
from harness.scenario.schema import Scenario

COLUMNS: dict[str, dict[str, Any]] = {
    "one-column": {"figure.figsize": (3.5, 2.6), "savefig.dpi": 300, "font.size": 7.5, "figure.titlesize": 8},
    "two-columns": {"figure.figsize": (7.16, 4.0), "savefig.dpi": 300},
}
"""Widths of the IEEE's and most other two-column pages, in inches; what else differs from the style file there."""

SMALLER = ("axes.labelsize", "axes.titlesize", "legend.fontsize", "xtick.labelsize", "ytick.labelsize")
"""The texts that take the font's size in one column."""

TRIAL_COLUMNS = (
    *("trial_id", "label", "round", "seed", "purpose", *CASE_COLUMNS, "status", "reason", "steps"),
    *("settling_steps", "samples_per_s", "step_time_median_s", "final_accuracy", "final_loss", "final_perplexity"),
    *("steps_to_target", "time_to_target_s", "train_time_s"),
    *("wire_bytes_per_step", "header_bytes_per_step", "peak_memory_bytes"),
)

TEX_NOTHING = "--"

TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "µ": r"\textmu{}",
    "`": r"\textasciigrave{}",
    "'": r"\textquotesingle{}",
    '"': r"\symbol{34}",  # \textquotedbl is not there in every encoding of fonts
    "[": r"\lbrack{}",  # behind the \\ of a row it would begin an argument
    "]": r"\rbrack{}",
    "*": r"\symbol{42}",  # there it would be a part of the command
}


def write(store: Store, figures: Sequence[Draws] | None = None) -> Path:
    """Write ``paper/`` into the run's folder; returns it.

    Args:
        figures: those to draw, in order; default: all that there are.

    Raises:
        MeasurementError: no trial finished.
        UsageError: a file of the run is damaged.
    """
    trials, scenario = store.trials(), store.scenario()
    require_done(trials, store.folder)
    cases, events = case_results(trials, scenario), store.events(trials)
    results = Results.of(cases, events, scenario)
    chosen = registry.figures(for_paper=True) if figures is None else figures
    folder = store.folder / "paper"
    for name, changes in COLUMNS.items():
        small = dict.fromkeys(SMALLER, changes["font.size"]) if "font.size" in changes else {}
        style = {**changes, **small}
        render.write_all(folder / name, results, chosen, style, for_page=False)
    origin = f"% Measured by {tex(measured_by(trials, store.provenance()))}.\n"
    write_whole(folder / "results.tex", origin + results_table(cases, scenario), sync=False)
    write_whole(folder / "trials.csv", trials[list(TRIAL_COLUMNS)].to_csv(index=False), sync=False)
    return folder


def results_table(cases: Sequence[CaseResult], scenario: Scenario) -> str:
    """A LaTeX tabular in the manner of booktabs; the user's own table environment gives it place and caption."""
    unfinished = any(len(result.done) < result.trials for case in cases for result in case.methods)
    learnt = any(result.final for case in cases for result in case.methods)
    aimed = any(case.target for case in cases)
    over = [tex(each) for each in scenario.baselines]
    head = ["Method"]
    head += ["Time to target", *(f"Sooner than {each}" for each in over)] if aimed else []
    head += ["Samples/s", *(f"Faster than {each}" for each in over)]
    head += ["Final", f"Against {tex(scenario.baseline)}", "Keeps accuracy"] if learnt else []
    head += ["Bytes/step"]
    head += ["Finished"] if unfinished else []
    scripted = any(case.key["cluster"] == FAKE for case in cases)
    lines = [
        "% Made by `pacbench report --paper`; needs \\usepackage{booktabs}. Brackets hold 95 % t intervals. Times to",
        "% the target are medians, given where every round reached it. Final figures are means (least--greatest). A",
        f"% method keeps accuracy if that interval is within {text.tolerated(scenario.tolerance, 'accuracy')}"
        " (of a loss: percent).",
        *([f"% {SCRIPTED.upper()}"] if scripted else []),
        rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        r"\toprule",
        " & ".join(head) + r" \\",
    ]
    for case in cases:
        title = f"{case.title} ({SCRIPTED})" if case.key["cluster"] == FAKE else case.title
        lines += [r"\midrule", rf"\multicolumn{{{len(head)}}}{{l}}{{\emph{{{tex(title)}}}}} \\"]
        lines += [_row(_cells(result, case, scenario, aimed, learnt), result, unfinished) for result in case.methods]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def tex(text: str) -> str:
    """Text as LaTeX shows it, whatever signs it has."""
    escaped = "".join(TEX.get(sign, sign) for sign in plain.visible(text))
    return re.sub(r"([-,])(?=\1)", r"\1{}", escaped)  # two of them would become another sign


def _cells(result: MethodResult, case: CaseResult, scenario: Scenario, aimed: bool, learnt: bool) -> list[str]:
    """What ``head`` names, but for what did not finish."""

    def over(what: str) -> list[str]:
        return [
            r"$1\times$" if result.label == each and len(result.done) else _times(getattr(result.over[each], what))
            for each in scenario.baselines
        ]

    metric, is_baseline = result.quality.metric, result.label == scenario.baseline
    cells = [tex(result.label)]
    if aimed:
        cells += [_said(text.reached(result, case)), *over("time_to_target")]
    cells += [f"{result.samples_per_s.value:.0f}" if result.samples_per_s else TEX_NOTHING, *over("throughput")]
    if learnt:
        cells += [
            _said(text.final_range(result.final, metric)).replace("–", "--"),
            "baseline" if is_baseline else _said(text.difference(result.quality)),
            "baseline" if is_baseline else result.quality.keeps,
        ]
    return [*cells, _said(text.size(result.mean("wire_bytes_per_step")))]


def _row(cells: list[str], result: MethodResult, unfinished: bool) -> str:
    if unfinished:
        lost = ", ".join(result.ways_lost)
        cells = [*cells, f"{len(result.done)} of {result.trials}" + (f" ({tex(lost)})" if lost else "")]
    return " & ".join(cells) + r" \\"


def _said(text: str) -> str:
    return TEX_NOTHING if text == NOTHING else tex(text)


def _times(estimate: Estimate | None) -> str:
    if estimate is None:
        return TEX_NOTHING
    interval = f"\\;[{estimate.low:.2f}, {estimate.high:.2f}]" if estimate.low is not None else ""
    return rf"${estimate.value:.2f}\times{interval}$"
