"""What a report shows of a run: who wins, what to know before believing it, what did not finish, and its links.

Pages and terminals show it; nothing is written or printed here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from harness.analysis.byte_model import Payoff, mean_model, payoff
from harness.analysis.cases import CaseResult, case_results, label_to_beat
from harness.analysis.methods import MethodResult
from harness.analysis.noise import noise_of_cases
from harness.analysis.quality import confidence_of_a_look
from harness.analysis.savings import saving_bound
from harness.analysis.trials import FAKE, rounds_asked_for
from harness.plan.status import ACCURACY, DONE, LEARNT
from harness.provenance import made_by
from harness.record.steady import FEWEST_REPLAYED, FEWEST_S, FEWEST_STEPS
from harness.record.store import Store, require_done
from harness.report import text
from harness.report.disturbances import notes_on_disturbances
from harness.report.headline import headline, table_row
from harness.report.text import SCRIPTED
from harness.report.verified import VerifiedLinks, verified_links
from harness.scenario.schema import Scenario

OVERRUN = 0.03
"""The share of a replayed step by which this machine was late, from which on a report warns."""

NOISY = 0.05
"""Deviation of a ratio from itself from which on a report warns."""

SPARK_WIDTH, SPARK_HEIGHT = 120, 24
"""The size of the small picture of a trial's steps, in pixels. Of more steps, it shows the slowest of each group."""


@dataclass(frozen=True)
class Summary:
    """What a terminal shows of a run."""

    rows: list[dict[str, str]]
    """A row a method and case: column -> text. ``case`` is the same in every row of a case."""
    sentences: list[str]
    """One for each case."""

    @property
    def tables(self) -> dict[str, list[dict[str, str]]]:
        """The rows of each case by its title, which is then told once."""
        tables: dict[str, list[dict[str, str]]] = {}
        for row in self.rows:
            tables.setdefault(row["case"], []).append({name: cell for name, cell in row.items() if name != "case"})
        return tables


@dataclass(frozen=True)
class Payback:
    """When a method pays, by the byte model: where it is faster than the baseline, and over which rates that varies."""

    label: str
    payoff: Payoff
    over_rounds: str
    """The least and the greatest crossover of single rounds."""
    extra_s: float
    """What a step takes beyond the baseline's, bytes apart; negative: less."""
    saved_bytes: float
    """What a step sends less than the baseline's on the busiest link, headers included."""


@dataclass(frozen=True)
class Facts:
    """All that a page shows but for its figures, under the names that its templates use."""

    scenario: Scenario
    names: list[str]
    """The names that may stand within sentences and read from right to left."""
    cases: list[CaseResult]
    summary: Summary
    """What a terminal shows of it."""
    events: pd.DataFrame
    """What was noted while the last attempts ran. Figures are drawn from it."""
    sentences: list[str]
    """The answer of each case."""
    notes: list[str]
    reference: str
    """The label of the method that others must beat."""
    fewest: str
    """The steady state that a throughput needs at least, in words."""
    sooner: list[tuple[str, str]]
    """The headings of the speedups in time to the target, each with the key of its meaning."""
    faster: list[tuple[str, str]]
    """Likewise in throughput."""
    scripted: str
    """A warning, if a fake cluster recited the numbers."""
    paybacks: dict[str, list[Payback]]
    """When methods pay, by the title of the case."""
    attempts: list[dict[Any, Any]]
    not_run: list[str]
    verified: list[VerifiedLinks]
    made_by: str
    """Which code, in words."""
    ended: str
    """How many trials ended in which way, in words."""
    unfinished: list[dict[Any, Any]]
    provenance: list[dict[str, str]]
    settings: str
    """The scenario as JSON."""


def collect(store: Store) -> Facts:
    """What a page shows of a run.

    Raises:
        MeasurementError: no trial finished.
        UsageError: a file of the run is damaged.
    """
    attempts, scenario = store.attempts(), store.scenario()
    trials = attempts.drop_duplicates("trial_id", keep="last")  # as store.trials(), without reading it all again
    require_done(trials, store.folder)
    cases, events = case_results(trials, scenario), store.events(trials)
    reference = label_to_beat(cases, scenario)
    return Facts(
        scenario=scenario,
        names=[scenario.name, *(method.label for method in scenario.methods)],
        cases=cases,
        summary=(told := _summary_of(cases, trials, scenario)),
        events=events,
        sentences=told.sentences,
        notes=[*_notes(cases, scenario), *notes_on_disturbances(cases, attempts, store.provenance())],
        reference=reference,
        fewest=f"{FEWEST_STEPS} steps and {FEWEST_S:g} s, or {FEWEST_REPLAYED} steps of a replay",
        sooner=[(f"sooner than {each}", "sooner") for each in scenario.baselines],
        faster=[(f"faster than {each}", "faster") for each in scenario.baselines],
        scripted=SCRIPTED if (trials["cluster"] == FAKE).any() else "",
        paybacks={case.title: _paybacks(case, reference) for case in cases},
        attempts=_attempts(cases, attempts, events),
        not_run=_not_run(cases, scenario, rounds_asked_for(trials, scenario, store.provenance())),
        verified=[links for case in cases if (links := verified_links(case)).verifications],
        made_by=measured_by(trials, store.provenance()),
        ended=_ended(trials),
        unfinished=_unfinished(cases, attempts, trials),
        provenance=[text.flat(entry) for entry in store.provenance()],
        settings=scenario.model_dump_json(by_alias=True, indent=1),
    )


def summary(store: Store) -> Summary:
    """The figures that matter most, as text.

    Raises:
        MeasurementError: no trial finished.
        UsageError: a file of the run is damaged.
    """
    trials, scenario = store.trials(), store.scenario()
    require_done(trials, store.folder)
    return _summary_of(case_results(trials, scenario), trials, scenario)


def _summary_of(cases: Sequence[CaseResult], trials: pd.DataFrame, scenario: Scenario) -> Summary:
    all_done = (trials["status"] == DONE).all()
    rows = [
        {"case": case.title, **table_row(result, case, scenario)}
        | ({} if all_done else {"finished": f"{len(result.done)} of {result.trials}"})
        for case in cases
        for result in case.methods
    ]
    return Summary(rows, sentences_of(cases, scenario))


def sentences_of(cases: Sequence[CaseResult], scenario: Scenario) -> list[str]:
    """The answer of each case."""
    return [(f"{SCRIPTED}: " if case.key["cluster"] == FAKE else "") + headline(case, scenario) for case in cases]


def _notes(cases: Sequence[CaseResult], scenario: Scenario) -> list[str]:
    """What a reader should know before believing a ratio."""
    notes = [*_notes_on_savings(cases, scenario), *_notes_on_accuracy(cases, scenario), *_notes_on_rates(scenario)]
    if found := noise_of_cases(cases, scenario.baseline):
        notes.append(
            f"Noise: a method's ratio to {scenario.baseline} differs from itself a round later by a standard deviation "
            f"of {100 * found.sd:.1f} % ({found.pairs} A/A pairs)."
            + (" That is much: differences of this size say nothing." if found.sd > NOISY else "")
        )
    notes += [note for case in cases for note in _notes_on_times(case)]
    if any(speedup.n == 1 for case in cases for result in case.methods if (speedup := result.speedup)):
        notes.append("Where there is one round only, no interval can be given: a second run may say otherwise.")
    return notes


def _notes_on_savings(cases: Sequence[CaseResult], scenario: Scenario) -> list[str]:
    """What a method can save in bytes at most."""
    notes = []
    for method in scenario.methods:
        measured = [saving for case in cases if (saving := case.method(method.label).saving)]
        if (bound := saving_bound(method)) and measured:
            notes.append(
                f"{method.label} {bound.why}: that cannot save more than {bound.most:.3g}x in bytes against "
                f"{scenario.baseline}; measured: {max(measured):.3g}x. A higher speedup would have another cause."
            )
    return notes


def _notes_on_times(case: CaseResult) -> list[str]:
    """Where this machine was too slow, and where too little was timed."""
    notes = []
    taken_off = {result.label for result in _dilated(case)}
    remedy = "; a greater dilation (train.dilation, or auto) takes that away" if case.rate_bps else ""
    for result in case.methods:
        if result.label in taken_off:
            continue
        if (overrun := result.mean("overrun_s_per_step") / result.mean("step_time_median_s")) > OVERRUN:
            notes.append(
                f"{result.label} ({case.title}): for up to {100 * overrun:.0f} % of a step this machine was slower "
                f"than the profile's device{remedy}."
            )
    notes += _notes_on_dilations(case) + _notes_on_seeds(case)
    if short := [result.label for result in case.methods if len(result.done) and not result.samples_per_s]:
        notes.append(
            f"{', '.join(short)} ({case.title}): no throughput is told, since fewer than {FEWEST_STEPS} steps or "
            f"{FEWEST_S:g} s of the steady state were timed."
        )
    return notes


def _dilated(case: CaseResult) -> list[MethodResult]:
    """The methods whose dilation the run chose."""
    return [result for result in case.methods if not np.isnan(result.mean("added_s_per_step"))]


def _notes_on_dilations(case: CaseResult) -> list[str]:
    """How many times slower each method ran where the run chose, and what was taken off."""
    chosen = _dilated(case)
    if not chosen:
        return []
    told = [
        f"{result.label} {result.mean('trial_dilation'):.3g} times slower "
        f"({100 * result.mean('added_s_per_step') / result.mean('step_time_median_s'):.1f} %)"
        for result in chosen
    ]
    return [
        f"{case.title}: time was dilated as far as this machine needs: {', '.join(told)}. In brackets: what this "
        "machine would add to a step; it was found by running slower still, and is taken off all times."
    ]


def _notes_on_seeds(case: CaseResult) -> list[str]:
    """Where time runs as a profile says: whether rounds differ because their seeds do, or because their steps do."""
    done = [result.done for result in _dilated(case)]
    steps, step_s = (_deviation_between_rounds(done, name) for name in ("steps_to_target", "step_time_median_s"))
    if steps is None or step_s is None:
        return []
    return [
        f"{case.title}: from round to round the steps to the target differ by {100 * steps:.1f} %, since each round "
        f"has a seed of its own, and what a step takes by {100 * step_s:.2g} % (standard deviations)."
        + (" What is left in the intervals of times to the target is the seeds' spread." if step_s < steps / 5 else "")
    ]


def _deviation_between_rounds(of_methods: Sequence[pd.DataFrame], name: str) -> float | None:
    """The relative standard deviation of a column within a method, over all methods; None where none has two rounds."""
    logs = [np.log(done[name][done[name] > 0].astype(float)) for done in of_methods]
    variances = [float(each.var()) for each in logs if len(each) > 1]
    return math.sqrt(float(np.mean(variances))) if variances else None


def _notes_on_accuracy(cases: Sequence[CaseResult], scenario: Scenario) -> list[str]:
    """By which rule accuracy is kept, by how many seeds, and which 16-bit all-reduce there is."""
    notes = []
    if scenario.sixteen_bit is None:
        notes.append(
            'No 16-bit all-reduce was run, which anyone has for one line of code: add [[methods]] with name = "bf16".'
        )
    known = [result.quality for case in cases for result in case.methods]
    at_a_look = f"{100 * confidence_of_a_look(scenario.rounds, scenario.accuracy_seeds):.3g} %"
    looks = f", which is 95 % over all looks at up to {scenario.accuracy_seeds} seeds" if at_a_look != "95 %" else ""
    for metric in dict.fromkeys(quality.metric for quality in known):
        if seeds := [each.difference.n for each in known if each.metric == metric and each.difference]:
            counted = " to ".join(map(str, dict.fromkeys((min(seeds), max(seeds)))))
            notes.append(
                f"Keeps accuracy: the {at_a_look} t interval of the final {metric}'s difference to "
                f"{scenario.baseline}'s, paired by seed ({counted} of them){looks}, is no worse than "
                f"{text.tolerated(scenario.tolerance, metric)} (tolerance), and no seed diverged. Unknown: the "
                "interval reaches over that, or there is one seed."
            )
    return notes


def _notes_on_rates(scenario: Scenario) -> list[str]:
    """Whether learning rates suit each method, or one of all."""
    if all(case.train.replay for case in scenario.cases):
        return []
    if scenario.tuned:
        return [f"Learning rates were tuned for each method, at the same cost for all: {scenario.tuned}."]
    return ["Learning rates were not tuned for each method; pacbench tune does so, at the same cost for all."]


def measured_by(trials: pd.DataFrame, provenance: Sequence[Mapping[str, Any]]) -> str:
    """The code of all trials, whose rows do not tell the version."""
    versions = [{"version": entry.get("version")} for entry in provenance]
    known = trials[["code_digest", "commit"]].dropna().drop_duplicates().sort_values("commit")
    code = [{"code_digest": digest, "commit": commit} for digest, commit in known.itertuples(index=False)]
    return made_by([*versions, *code])


def _ended(trials: pd.DataFrame) -> str:
    """For example ``16 done, 1 crashed, 1 timeout``."""
    return ", ".join(f"{count} {status}" for status, count in Counter(trials["status"]).most_common())


def _unfinished(cases: Sequence[CaseResult], attempts: pd.DataFrame, trials: pd.DataFrame) -> list[dict[Any, Any]]:
    """Every attempt that did not finish, as its row and its ``case``; ``outcome`` tells whether it was run again."""
    titles = _titles(cases, trials)
    last = trials.set_index("trial_id")[["attempt", "status"]].add_suffix("_of_last")
    ended = attempts[~attempts["status"].isin(LEARNT)].join(last, on="trial_id")
    later = ended["attempt_of_last"] > ended["attempt"]
    return (
        ended.assign(
            case=ended["trial_id"].map(titles),
            outcome=("run again: " + ended["status_of_last"]).where(later, "not run again"),
        )
        .fillna({"reason": "no reason was recorded", "log_tail": ""})
        .to_dict("records")
    )


def _titles(cases: Sequence[CaseResult], trials: pd.DataFrame) -> dict[str, str]:
    """Trial -> the title of its case, or what it was for."""
    more_seeds = trials.loc[trials["purpose"] == ACCURACY, "trial_id"]
    of_cases = {trial_id: case.title for case in cases for trial_id in case.trials["trial_id"]}
    return {**dict.fromkeys(more_seeds, "one more seed for accuracy, on unshaped links"), **of_cases}


def _paybacks(case: CaseResult, baseline: str) -> list[Payback]:
    """For each method that was timed in a round in which the baseline was too."""
    base = case.method(baseline).step_models
    found = []
    for result in case.methods:
        own = result.step_models
        rounds = sorted(own.keys() & base.keys())
        method, dense = (mean_model([models[number] for number in rounds]) for models in (own, base))
        if result.label == baseline or method is None or dense is None:
            continue
        found.append(
            Payback(
                result.label,
                payoff(method, dense),
                _range_of([payoff(own[number], base[number]) for number in rounds]),
                method.fixed_s - dense.fixed_s,
                dense.link_bytes - method.link_bytes,
            )
        )
    return found


def _range_of(payoffs: Sequence[Payoff]) -> str:
    """The least and the greatest of several crossovers, "at every rate" being beyond all."""
    ordered = sorted(payoffs, key=lambda each: each.rate_bps or (math.inf if each.where == "at every rate" else 0.0))
    ends = dict.fromkeys([str(ordered[0]), str(ordered[-1])]) if ordered else {}
    return " to ".join(ends)


def _not_run(cases: Sequence[CaseResult], scenario: Scenario, rounds_asked: int) -> list[str]:
    """What the run was asked for and no trial was started of, in words."""
    lost = []
    for case in cases:
        for method in scenario.methods:
            ran = set(case.trials.loc[case.trials["label"] == method.label, "round"])
            if rounds := [str(number) for number in range(rounds_asked) if number not in ran]:
                which = f"{'round' if len(rounds) == 1 else 'rounds'} {', '.join(rounds)}"
                lost.append(f"{method.label}, {which} ({case.title})")
    if len(cases) < len(scenario.cases):
        lost.append(f"{len(scenario.cases) - len(cases)} of {len(scenario.cases)} cases, of which no trial was started")
    return lost


def _attempts(cases: Sequence[CaseResult], attempts: pd.DataFrame, events: pd.DataFrame) -> list[dict[Any, Any]]:
    """Every attempt as its row, its ``case`` and the picture of its ``steps``."""
    titles = _titles(cases, attempts)
    last = attempts.groupby("trial_id")["attempt"].transform("max") == attempts["attempt"]
    step_s = events[(events["kind"] == "step_s") & (events["rank"] == 0)].sort_values("step")
    sparks = {trial_id: _spark(own["value"].to_numpy()) for trial_id, own in step_s.groupby("trial_id")}
    own_case, drawn = attempts["trial_id"].map(titles), attempts["trial_id"].map(sparks).where(last, "")
    shown = attempts.assign(case=own_case, steps_drawn=drawn)
    return shown.astype(object).fillna({"steps_drawn": "", "reason": "", "log_tail": ""}).to_dict("records")


def _spark(step_s: np.ndarray[Any, Any]) -> str:
    """Steps from left to right, longer ones higher: the points of an SVG polyline."""
    slowest = [group.max() for group in np.array_split(step_s, min(len(step_s), SPARK_WIDTH))]
    heights = SPARK_HEIGHT - 1 - (SPARK_HEIGHT - 2) * (np.array(slowest) / max(slowest))
    across = np.linspace(1, SPARK_WIDTH - 1, len(slowest))
    return " ".join(f"{x:.0f},{y:.0f}" for x, y in zip(across, heights, strict=True))
