"""What machines did to trials: which were disturbed and what became of them, stolen time, few or unlike processors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from harness.analysis.cases import CaseResult
from harness.analysis.trials import FEWEST_UNDISTURBED
from harness.plan.status import DISTURBED, DONE, LEARNT
from harness.record.far_out import MOST_DISTURBED
from harness.units import format_time

ALIKE = 1.1
"""Up to this ratio of what a fixed piece of work takes, machines count as alike."""


def notes_on_disturbances(
    cases: Sequence[CaseResult], attempts: pd.DataFrame, provenance: Sequence[Mapping[str, Any]]
) -> list[str]:
    """A sentence for each trial that was disturbed or too fast, for each case whose links would hide that, and for each
    way in which the whole run was."""
    disturbed = attempts[attempts["disturbed_share"] > MOST_DISTURBED]
    by_trial = {str(trial_id): own for trial_id, own in disturbed.groupby("trial_id")}
    return [
        *(note for case in cases for note in _notes_on_case(case, by_trial)),
        *(note for case in cases for note in _notes_on_trials_too_fast(case)),
        *(note for case in cases for note in _notes_on_steps_not_judged(case)),
        *_notes_on_time_lost(attempts),
        *_notes_on_cpus(attempts, provenance),
        *_notes_on_machines(cases, attempts),
    ]


def _notes_on_case(case: CaseResult, disturbed: Mapping[str, pd.DataFrame]) -> Iterator[str]:
    for trial in case.trials[case.trials["trial_id"].isin(list(disturbed))].itertuples():
        what = "; ".join(_told(attempt) for attempt in disturbed[str(trial.trial_id)].to_dict("records"))
        yield f"Disturbed: {trial.label}, round {trial.round} ({case.title}): {what}. {_fate(trial)}"


def _notes_on_trials_too_fast(case: CaseResult) -> Iterator[str]:
    """Of trials whose machine added too much to a step, or nobody knows how much, whenever they were run."""
    calm = ~(case.trials["disturbed_share"] > MOST_DISTURBED)
    for trial in case.trials[calm & case.trials["status"].isin(LEARNT) & case.trials["reason"].notna()].itertuples():
        yield f"Unsure: {trial.label}, round {trial.round} ({case.title}): {trial.reason}. {_fate(trial)}"


def _notes_on_steps_not_judged(case: CaseResult) -> Iterator[str]:
    """Of a case in which no step can be found to be far out."""
    learnt = case.trials[case.trials["status"].isin(LEARNT)]
    looked = learnt["usable_cpus"].notna().any()  # not at trials of runs from before steps were judged
    if looked and learnt["disturbed_share"].isna().all():
        yield (
            f"Not judged: {case.title}: links that change, lose or disturb packets, or jitter make single steps long "
            "by themselves. A worker that stood still is not told from that: what it took stays in all times."
        )


def _told(attempt: Mapping[Any, Any]) -> str:
    """For example ``1 far-out step took 38 % of the training time (stolen 1.2 s, throttled 0 s)``."""
    count = int(attempt["far_out_steps"])
    steps = "1 far-out step" if count == 1 else f"{count} far-out steps"
    lost = [
        f"{how} {format_time(attempt[column])}"
        for how, column in (("stolen", "stolen_s"), ("throttled", "throttled_s"))
        if attempt[column] > 0
    ]
    return f"{steps} took {100 * attempt['disturbed_share']:.0f} % of the training time" + (
        f" ({', '.join(lost)})" if lost else ""
    )


def _fate(trial: Any) -> str:
    """What became of a trial that was ever disturbed."""
    if trial.status not in LEARNT:
        return "It did not finish when it was run again."
    if trial.status == DISTURBED:
        return "It is left out of all times."
    if trial.disturbed_share > MOST_DISTURBED or pd.notna(trial.reason):
        return f"It is used all the same: fewer than {FEWEST_UNDISTURBED} undisturbed rounds remain."
    return "It was run again, and all figures are those of its last attempt."


def _notes_on_time_lost(attempts: pd.DataFrame) -> Iterator[str]:
    ways = {
        "Stolen time: other machines on the same host took": "stolen_s",
        "Throttling: the harness's cgroup had to wait for": "throttled_s",
    }
    for what, column in ways.items():
        if (lost := attempts[attempts[column] > 0].sort_values(column)).empty:
            continue
        worst = lost.iloc[-1]
        yield (
            f"{what} {format_time(lost[column].sum())} of CPU time in {len(lost)} of {len(attempts)} attempts, at most "
            f"{format_time(worst[column])} ({worst['label']}, round {worst['round']})."
        )


def _notes_on_cpus(attempts: pd.DataFrame, provenance: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Of a run on one machine: whose CPUs those of several are, no entry tells."""
    counts = {entry["cpu_count"] for entry in provenance if entry.get("cpu_count")}
    usable = attempts["usable_cpus"].min()
    if len(counts) == 1 and attempts["machine"].nunique() <= 1 and usable < (machine := counts.pop()):
        yield f"Only {usable:g} of this machine's {machine} CPUs could be used, by affinity or by a cgroup's quota."


def _notes_on_machines(cases: Sequence[CaseResult], attempts: pd.DataFrame) -> Iterator[str]:
    """Of a run that several machines share: who they are, and whether they are alike."""
    by_machine = attempts.dropna(subset=["machine"]).groupby("machine")
    if by_machine.ngroups < 2:
        return
    shares = ", ".join(f"{machine} ({count} attempts)" for machine, count in by_machine.size().items())
    yield f"{by_machine.ngroups} machines ran this: {shares}. {_pairing(cases)}"
    yardstick_s = by_machine["yardstick_s"].median().dropna().sort_values()
    if len(yardstick_s) > 1 and (ratio := yardstick_s.iloc[-1] / yardstick_s.iloc[0]) > ALIKE:
        slow, fast = yardstick_s.index[-1], yardstick_s.index[0]
        yield (
            f"They are not alike: for a fixed piece of work {slow} takes {ratio:.2f} times as long as {fast}. "
            "Times that are a processor's own, and not a profile's, differ by it."
        )


def _pairing(cases: Sequence[CaseResult]) -> str:
    """Whether ratios, which are paired within a round, compare methods alone or machines as well."""
    mixed = [told for case in cases if (told := _rounds_on_several_machines(case))]
    if not mixed:
        return "Ratios are paired within one of them."
    return f"Ratios are paired within one of them but for {'; '.join(mixed)}: there they compare machines as well."


def _rounds_on_several_machines(case: CaseResult) -> str:
    """For example ``round 3 (100 Mbit/s, 4 workers)``; nothing where there is none."""
    machines = case.trials[case.trials["status"] == DONE].groupby("round")["machine"].nunique()
    rounds = [str(number) for number in machines[machines > 1].index]
    if not rounds:
        return ""
    return f"{'round' if len(rounds) == 1 else 'rounds'} {', '.join(rounds)} ({case.title})"
