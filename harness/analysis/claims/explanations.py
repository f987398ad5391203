"""Why a claim holds where it does: what bytes alone allow, by the methods' formulas, and what a profile predicts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from harness.analysis.claims.figures import Run, gradient_share, steps_to_target, trials_of
from harness.analysis.claims.schema import Cell, Claim
from harness.plan.plan import Plan
from harness.plan.status import DONE
from harness.plan.trial import Trial
from harness.units import format_rate, format_size, format_time


def explain(claim: Claim, runs: Mapping[str, Run]) -> str:
    """What the bytes alone allow, and what a profile predicts, in each case of a claim."""
    if claim.quantity == "accuracy":
        return "Accuracy does not depend on the links."
    cells = claim.cells
    if len(cells) == 1:
        return _of_cell(claim, cells[0], runs[cells[0].scenario].plan)
    pairs = {cell: _pair(claim, cell, runs[cell.scenario].plan) for cell in cells}
    told = "; ".join(f"{case_name(claim, cell)} {_shortly(*pair)}" for cell, pair in pairs.items())
    unknown = _codecs_of_this_machine(trial for pair in pairs.values() for trial in pair)
    return f"Where nothing but the links takes time, and as predicted with computation and codec: {told}.{unknown}"


def in_seconds(claim: Claim, runs: Mapping[str, Run]) -> str:
    """What both take to the target: the median steps of the one run times the median step of the other.

    Nothing is told of a method that missed the target with a seed: the others are the lucky ones.
    """
    if not claim.convergence:
        return ""
    (cell,), training = claim.cells, runs[claim.convergence]
    trials = trials_of(cell, claim.devices[0], runs[cell.scenario])
    sentences = []
    for label in (cell.method, claim.baseline):
        steps = steps_to_target(training, label).median(skipna=False)
        step_s = (
            trials.loc[(trials["label"] == label) & (trials["status"] == DONE), "step_time_median_s"].median()
            if len(trials)
            else math.nan
        )
        if math.isfinite(steps) and math.isfinite(step_s):
            sentences.append(
                f" To the target {label} takes {steps:g} steps of the training; at {format_time(step_s)} a step of the "
                f"other run that is {format_time(steps * step_s)}."
            )
    return "".join(sentences)


def _pair(claim: Claim, cell: Cell, plan: Plan) -> tuple[Trial, Trial]:
    """A trial of the method and one of its baseline, with the first share of the device."""
    about = [trial for trial in plan.trials if cell.is_about(trial.case, claim.devices[0])]
    trials = {trial.method.label: trial for trial in about}
    return trials[cell.method], trials[claim.baseline]


def _of_cell(claim: Claim, cell: Cell, plan: Plan) -> str:
    own, base = _pair(claim, cell, plan)
    own_bytes, base_bytes = (trial.expected.wire_bytes_per_step for trial in (own, base))
    if claim.counted == "gradient":
        own_bytes *= gradient_share(cell.method, cell, plan)
        base_bytes *= gradient_share(claim.baseline, cell, plan)
        return (
            f"One worker's gradient takes {format_size(base_bytes)} by {claim.baseline} and {format_size(own_bytes)} "
            f"by {cell.method}: {_plain(base_bytes / own_bytes)} times as much."
        )
    text = (
        f"In a step a worker sends {format_size(base_bytes)} by {claim.baseline} and {format_size(own_bytes)} by "
        f"{cell.method}"
    )
    if claim.ratio == "bytes":
        return f"{text}: {_plain(base_bytes / own_bytes)} times as much."
    if not own.expected.lower_bound_s_per_step:
        return f"{text}; its links have no rate."
    most = base.expected.lower_bound_s_per_step / own.expected.lower_bound_s_per_step
    text += f": where nothing but the link takes time, that is {_plain(most)}x in throughput"
    low, high = claim.claimed
    if claim.convergence:
        text += "; the steps to the target do the rest."
    elif claim.quantity == "ablation":
        text += "."
    elif most < low:
        text += ", less than is claimed."
    elif most < high:
        text += f"; {high:g}x is out of the reach of bytes." if math.isfinite(high) else "."
    else:
        text += "; computation, which no method shortens, leaves less of it."
    own_s, base_s = own.expected.predicted_step_s, base.expected.predicted_step_s
    if own_s and base_s:
        text += f" With computation and codec as profiled, {_plain(base_s / own_s)}x is predicted."
    return text + _codecs_of_this_machine((base, own))


def _codecs_of_this_machine(trials: Iterable[Trial]) -> str:
    """Whose encoding and decoding no profile knows: it takes what it takes here, whatever the device is."""
    unknown = dict.fromkeys(
        trial.method.label
        for trial in trials
        if (profile := trial.expected.profile) and profile.codec(trial.method, trial.case.cluster.workers) is None
    )
    if not unknown:
        return ""
    named = " and ".join(unknown) if len(unknown) <= 2 else f"{len(unknown)} methods"
    return f" The profile does not know the codec of {named}: it took this machine's processor, and none is predicted."


def case_name(claim: Claim, cell: Cell) -> str:
    """What tells a case from a claim's others."""
    varied = {cell.model: claim.model, cell.method: claim.method}
    names = [name for name, values in varied.items() if len(values) > 1]
    names += [format_rate(cell.rate_bps)] if len(claim.rate_bps) > 1 and cell.rate_bps else []
    return ", ".join(names)


def _shortly(own: Trial, base: Trial) -> str:
    bounds_s = [trial.expected.lower_bound_s_per_step for trial in (base, own)]
    steps_s = [trial.expected.predicted_step_s for trial in (base, own)]
    bound = f"{_plain(bounds_s[0] / bounds_s[1])}x" if bounds_s[1] else "no bound"
    predicted = f", {_plain(steps_s[0] / steps_s[1])}x" if steps_s[0] and steps_s[1] else ""
    return bound + predicted


def _plain(ratio: float) -> str:
    """Three digits, and never an exponent."""
    return f"{ratio:.0f}" if ratio >= 100 else f"{ratio:.3g}"
