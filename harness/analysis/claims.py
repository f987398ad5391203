"""Claims of papers, each judged apart: what it says, what was found here, and what the bytes alone allow.

``scenarios/paper/claims.toml`` holds them. A field that may differ, such as the model, may hold a list; the claim then
stands for every combination, and each of them is judged for itself. A verdict compares two ranges, the claimed one and
the 95 % interval of what was measured:

* ``reproduced``: the interval lies within the claimed range,
* ``not reproduced``: it lies wholly outside, below or above; or the method missed the target in every training,
* ``inconclusive``: it reaches over an end of the range; or too little was measured; or this machine was slower than the
  device that it replayed, so that the step was its own.

Three quantities are claimed. ``throughput`` and ``bytes`` are ratios of two methods in one run. ``time to accuracy`` is
a product of two figures of different origin: the throughput of the one run, and the steps to the target that a real
training took in another. Every judgement says where each of its figures came from.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field, model_validator
from typing_extensions import Self

from harness.analysis.compare import Shift
from harness.analysis.stats import FAKE, Estimate, paired_ratios
from harness.errors import UsageError
from harness.plain import markdown
from harness.plan.plan import Plan
from harness.plan.status import DONE
from harness.plan.trial import Trial
from harness.record.store import Store
from harness.scenario import load as scenarios
from harness.scenario.schema import Case, MethodSpec, Scenario
from harness.scenario.section import Section, checked_section
from harness.units import RateBps, format_rate, format_size, format_time

FILE = Path(str(files("scenarios"))) / "paper" / "claims.toml"

LISTED = ("model", "rate", "baseline", "method")
"""Fields that may hold a list, in the order in which they stand in a claim's id."""

QUICK_ROUNDS = 3
"""Of ``--quick``: the fewest whose interval says something."""

MOST_OVERRUN = 0.1
"""The share of a replayed step by which this machine may be late before nothing is said of the device."""

Quantity = Literal["throughput", "bytes", "time to accuracy"]
Verdict = Literal["reproduced", "not reproduced", "inconclusive"]

VERDICTS: tuple[Verdict, ...] = ("reproduced", "not reproduced", "inconclusive")

UNLIKE = ("warmup_steps",)
"""Parameters that may differ between a replay and the training that its steps to the target come from: throughput is
that of the steady state, which a replay reaches at once."""


class Claim(Section):
    """What a source says of one method against another, on one model and link."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9./ -]*$")
    source: str
    """Authors, where, and the place in it."""
    wording: str
    """In the source's own words, short."""
    quantity: Quantity
    model: str
    rate_bps: Annotated[RateBps, Field(alias="rate")]
    workers: int = Field(ge=2)
    baseline: str
    """The label of the method that it is measured against, in the scenario."""
    method: str
    """Likewise, of the method itself."""
    claimed: Annotated[tuple[float, float], Field(alias="range", strict=False)]
    """How many times better, from and to."""
    scenario: str
    """Where it is measured; ``{model}`` stands for the model."""
    convergence: str | None = None
    """A scenario of real training, where the steps to the target come from."""
    quick: bool = False
    """Whether ``--quick`` judges it."""
    note: str = ""
    """How the range was read from the wording, and what differs here from the source's set-up."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        low, high = self.claimed
        if not 0 <= low < high:
            raise ValueError(f"range: found [{low}, {high}]; allowed: two ratios from 0 on, the lesser one first")
        if (self.quantity == "time to accuracy") != (self.convergence is not None):
            raise ValueError("convergence: allowed: a scenario for 'time to accuracy', and nothing for the others")
        return self

    @property
    def family(self) -> str:
        """The id under which the file has it, with all its combinations."""
        return self.id.partition("/")[0]

    @property
    def scenario_name(self) -> str:
        """The scenario where it is measured."""
        return self.scenario.format(model=self.model)

    @property
    def needs(self) -> list[str]:
        """All scenarios that it is judged by."""
        return [self.scenario_name, *([self.convergence] if self.convergence else [])]

    def is_about(self, case: Case) -> bool:
        """Whether a case has this claim's link, workers and model."""
        asked = (self.rate_bps, self.workers, self.model)
        return asked == (case.link.rate_bps, case.cluster.workers, case.train.model)


@dataclass(frozen=True)
class Judgement:
    """What became of a claim."""

    claim: Claim
    verdict: Verdict
    found: Estimate | None
    """Of the claimed ratio; None where too little was measured."""
    reason: str
    explanation: str
    """What the bytes alone allow, by the methods' formulas."""
    origins: tuple[str, ...]
    """Where each figure came from."""


@dataclass(frozen=True)
class Run:
    """A scenario's plan, and the run of it that is judged, if there is one."""

    plan: Plan
    store: Store | None = None
    problem: str = ""
    """Why it could not be run, where that is so."""

    @cached_property
    def trials(self) -> pd.DataFrame:
        """The last attempt of each, in the columns of ``TRIAL_SCHEMA``; none without a run."""
        return self.store.trials() if self.store else pd.DataFrame(columns=["trial_id", "status"])


def load(path: Path = FILE) -> list[Claim]:
    """All claims of a file, lists expanded.

    Raises:
        UsageError: one line that names file, claim, field, what was found and what is allowed.
    """
    raw = scenarios.read_toml(path)
    entries = raw.get("claims")
    if set(raw) != {"claims"} or not isinstance(entries, list) or not entries:
        raise UsageError.at(path, "claims", ", ".join(raw) or "nothing", "[[claims]] tables and nothing else")
    found = [claim for entry in entries for claim in _combinations(entry, path)]
    repeated = [each for each, count in Counter(claim.id for claim in found).items() if count > 1]
    if repeated:
        raise UsageError.at(path, "id", repeated[0], "each id once")
    return found


def _combinations(entry: Mapping[str, Any], path: Path) -> Iterator[Claim]:
    """One claim for each choice from the entry's lists; what was chosen is added to the id."""
    listed = [key for key in LISTED if isinstance(entry.get(key), list)]
    for chosen in itertools.product(*(entry[key] for key in listed)):
        identity = "/".join([str(entry.get("id", "")), *map(str, chosen)])
        fields = {**entry, **dict(zip(listed, chosen, strict=True)), "id": identity}
        yield checked_section(Claim, fields, f"{path}: {entry.get('id', 'a claim without id')}")


def select(known: Sequence[Claim], wanted: Sequence[str] = (), quick: bool = False) -> list[Claim]:
    """Those whose id, or its beginning up to a slash, is wanted; all when nothing is.

    Raises:
        UsageError: an id is unknown, or nothing is left.
    """
    chosen = [claim for claim in known if not wanted or any(_names(each, claim) for each in wanted)]
    for each in wanted:
        if not any(_names(each, claim) for claim in known):
            families = ", ".join(dict.fromkeys(claim.family for claim in known))
            raise UsageError.at("command line", "--claim", each, f"{families}, or one of their combinations")
    if quick:
        chosen = [claim for claim in chosen if claim.quick]
    if not chosen:
        allowed = "a claim that --quick judges: " + ", ".join(dict.fromkeys(c.family for c in known if c.quick))
        raise UsageError.at("command line", "--claim", ", ".join(wanted), allowed)
    return chosen


def _names(wanted: str, claim: Claim) -> bool:
    return claim.id == wanted or claim.id.startswith(f"{wanted.rstrip('/')}/")


def plans(chosen: Sequence[Claim], make: Callable[[Scenario], Plan], quick: bool = False) -> dict[str, Plan]:
    """What must be run to judge the claims: of each scenario its plan, without what no claim asks for.

    Args:
        make: a plan of a whole scenario.
        quick: only ``QUICK_ROUNDS`` rounds of it.

    Raises:
        UsageError: a claim asks for a case or method that its scenario does not have.
    """
    found = {}
    for name in dict.fromkeys(name for claim in chosen for name in claim.needs):
        plan = make(scenarios.load(name))
        for claim in chosen:
            if name in claim.needs:
                _check(claim, plan.scenario, is_training=name == claim.convergence)
        found[name] = plan.only(partial(_is_wanted, scenario=name, chosen=chosen, quick=quick))
    _check_alike(chosen, found)
    return found


def _is_wanted(trial: Trial, scenario: str, chosen: Sequence[Claim], quick: bool) -> bool:
    if quick and trial.round >= QUICK_ROUNDS:
        return False
    return any(
        trial.method.label in (claim.method, claim.baseline)
        and (scenario == claim.convergence or (scenario == claim.scenario_name and claim.is_about(trial.case)))
        for claim in chosen
    )


def _check(claim: Claim, scenario: Scenario, is_training: bool) -> None:
    labels = [method.label for method in scenario.methods]
    for field in ("method", "baseline"):
        if (label := getattr(claim, field)) not in labels:
            raise UsageError.at(FILE, f"{claim.id}: {field}", label, f"of {scenario.name}: {', '.join(labels)}")
    if is_training:
        if len(scenario.cases) != 1:
            raise UsageError.at(FILE, f"{claim.id}: convergence", scenario.name, "a scenario with a single case")
    elif not any(map(claim.is_about, scenario.cases)):
        cases = "; ".join(
            f"{case.train.model}, {format_rate(case.link.rate_bps) if case.link.rate_bps else 'unshaped'}, "
            f"{case.cluster.workers} workers"
            for case in scenario.cases
        )
        asked = f"{claim.model}, {format_rate(claim.rate_bps)}, {claim.workers} workers"
        raise UsageError.at(FILE, f"{claim.id}: model, rate, workers", asked, f"the cases of {scenario.name}: {cases}")


def _check_alike(chosen: Sequence[Claim], found: Mapping[str, Plan]) -> None:
    """Steps and throughput must be of the same method: figures of two variants are not to be multiplied."""
    for claim in chosen:
        for label in (claim.method, claim.baseline):
            there, *elsewhere = (_method(found[name].scenario, label) for name in claim.needs)
            if elsewhere and (difference := _difference(there, elsewhere[0])):
                allowed = f"the same {label} as in {claim.scenario_name} ({difference})"
                raise UsageError.at(FILE, f"{claim.id}: convergence", claim.convergence, allowed)


def _difference(replayed: MethodSpec, trained: MethodSpec) -> str:
    """The first thing in which they differ; nothing if in none that matters."""
    if replayed.name != trained.name:
        return f"{trained.name} against {replayed.name}"
    differing = [
        f"{key} = {trained.params.get(key)!r} against {value!r}"
        for key, value in replayed.params.items()
        if key not in UNLIKE and trained.params.get(key) != value
    ]
    return differing[0] if differing else ""


def _method(scenario: Scenario, label: str) -> MethodSpec:
    return next(method for method in scenario.methods if method.label == label)


def judge(claim: Claim, runs: Mapping[str, Run]) -> Judgement:
    """Judge a claim by what was run.

    Args:
        runs: by the names of scenarios, at least all that the claim needs.
    """
    run = runs[claim.scenario_name]
    trials = _of_case(claim, run)
    found = _ratio(claim, run, trials)
    explanation = explain(claim, run.plan)
    origins = [_origin(claim.quantity if claim.convergence is None else "throughput", run, trials)]
    if claim.convergence and found.shift:
        training = runs[claim.convergence]
        found = _times(found.shift, _fewer_steps(claim, training))
        explanation += _in_seconds(claim, trials, training) if found.shift else ""
        origins.append(_origin("steps to the target", training, training.trials))
    ratio = found.shift.estimate() if found.shift else None
    unknown: Verdict = "not reproduced" if found.missed else "inconclusive"
    verdict, reason = verdict_on(ratio, claim.claimed) if ratio else (unknown, found.problem)
    if ratio and claim.quantity != "bytes" and (late := _late(trials, claim)):
        verdict, reason = "inconclusive", late
    return Judgement(claim, verdict, ratio, reason, explanation, tuple(filter(None, origins)))


class Finding(NamedTuple):
    """How many times better a method was found to be, or why that is not known."""

    shift: Shift | None
    problem: str = ""
    missed: bool = False
    """The method reached the target in no training, however long: no number would be great enough."""


def verdict_on(ratio: Estimate, claimed: tuple[float, float]) -> tuple[Verdict, str]:
    """The verdict and its reason: where the interval lies, seen from the claimed range."""
    low, high = claimed
    if ratio.low is None or ratio.high is None:
        return "inconclusive", "one round gives no interval"
    if low <= ratio.low and ratio.high <= high:
        return "reproduced", "it lies within the claimed range"
    if ratio.high < low:
        return "not reproduced", "it is less than is claimed"
    if ratio.low > high:
        return "not reproduced", "it is more than is claimed"
    return "inconclusive", f"its interval reaches over {low if ratio.low < low else high:g}"


def explain(claim: Claim, plan: Plan) -> str:
    """What the bytes alone allow, by the methods' formulas and the graph of the links; and what a profile predicts."""
    trials = {trial.method.label: trial for trial in plan.trials if claim.is_about(trial.case)}
    own, base = trials[claim.method], trials[claim.baseline]
    own_bytes, base_bytes = (trial.expected.wire_bytes_per_step for trial in (own, base))
    text = (
        f"In a step a worker sends {format_size(base_bytes)} by {claim.baseline} and {format_size(own_bytes)} by "
        f"{claim.method}"
    )
    if claim.quantity == "bytes":
        return f"{text}: {_plain(base_bytes / own_bytes)} times as much."
    most = base.expected.lower_bound_s_per_step / own.expected.lower_bound_s_per_step
    text += f": where nothing but the link takes time, that is {_plain(most)}x in throughput"
    low, high = claim.claimed
    if claim.convergence:
        text += "; the steps to the target do the rest."
    elif most < low:
        text += ", less than is claimed."
    elif most < high:
        text += f"; {high:g}x is out of the reach of bytes."
    else:
        text += "; computation, which no method shortens, leaves less of it."
    own_s, base_s = own.expected.predicted_step_s, base.expected.predicted_step_s
    if own_s and base_s:
        text += f" With computation and codec as profiled, {_plain(base_s / own_s)}x is predicted."
    return text


def write(judgements: Sequence[Judgement], folder: Path, provenance: Mapping[str, Any]) -> Path:
    """Write ``claims.md`` and ``claims.json``; returns the former.

    Args:
        provenance: what judged, where, at which commit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(as_json(judgements, provenance), indent=1, ensure_ascii=False)
    (folder / "claims.json").write_text(content + "\n", encoding="utf-8")
    page = folder / "claims.md"
    page.write_text(as_markdown(judgements, provenance), encoding="utf-8")
    return page


def as_json(judgements: Sequence[Judgement], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """All of it, for programs."""
    return {
        "provenance": dict(provenance),
        "claims": [
            {
                **judgement.claim.model_dump(mode="json", by_alias=True),
                "verdict": judgement.verdict,
                "found": judgement.found and judgement.found._asdict(),
                "reason": judgement.reason,
                "explanation": judgement.explanation,
                "origins": list(judgement.origins),
            }
            for judgement in judgements
        ],
    }


def as_markdown(judgements: Sequence[Judgement], provenance: Mapping[str, Any]) -> str:
    """A page: what became of each family in one line, then family by family its source, table and explanations."""
    by_family = families(judgements)
    head = f"Judged at commit {provenance.get('commit', 'unknown')}, {provenance.get('started', 'when is unknown')}."
    lines = ["# Claims, judged", "", markdown(head), ""]
    lines += [f"* **{markdown(family)}**: {sentence(own)}" for family, own in by_family.items()]
    for family, own in by_family.items():
        lines += ["", f"## {markdown(family)}", *_section(own)]
    return "\n".join(lines) + "\n"


def _section(own: Sequence[Judgement]) -> list[str]:
    """One family: what its source says, its table, where the figures come from."""
    claim, columns = own[0].claim, [*cells(own[0]), "why"]
    rows = [[*cells(each).values(), f"{each.reason}. {each.explanation}"] for each in own]
    origins = dict.fromkeys(origin for each in own for origin in each.origins)
    return [
        *("", f"> {markdown(claim.wording)}", "", markdown(f"{claim.source}. {claim.note}"), ""),
        f"| {' | '.join(columns)} |",
        f"|{'---|' * len(columns)}",
        *(f"| {' | '.join(map(markdown, row))} |" for row in rows),
        "",
        *(f"* {markdown(origin)}" for origin in origins),
    ]


def families(judgements: Sequence[Judgement]) -> dict[str, list[Judgement]]:
    """The judgements of each claim in the file, in their order."""
    found: dict[str, list[Judgement]] = {}
    for judgement in judgements:
        found.setdefault(judgement.claim.family, []).append(judgement)
    return found


def sentence(own: Sequence[Judgement]) -> str:
    """For example ``of 12, 8 reproduced, 4 inconclusive``."""
    counts = Counter(judgement.verdict for judgement in own)
    return f"of {len(own)}, " + ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if verdict in counts)


def cells(judgement: Judgement) -> dict[str, str]:
    """A row of a table: column -> text."""
    claim, found = judgement.claim, judgement.found
    low, high = claim.claimed
    interval = f" [{found.low:.2f}, {found.high:.2f}]" if found and found.low is not None else ""
    return {
        "model": claim.model,
        "link": format_rate(claim.rate_bps),
        "method": claim.method,
        "over": claim.baseline,
        "of": claim.quantity,
        "claimed": f"{low:g} to {high:g}",
        "found": f"{found.value:.2f}{interval}" if found else "–",
        "verdict": judgement.verdict,
    }


def _of_case(claim: Claim, run: Run) -> pd.DataFrame:
    """The run's trials on the claim's link, workers and model."""
    own = {trial.id for trial in run.plan.trials if claim.is_about(trial.case)}
    trials = run.trials
    return trials[trials["trial_id"].isin(own)]


def _ratio(claim: Claim, run: Run, trials: pd.DataFrame) -> Finding:
    """How many times better the method is in these trials, paired by rounds: faster, or with fewer bytes."""
    if trials.empty:
        return Finding(None, run.problem or "nothing of it was run")
    if claim.quantity == "bytes":
        ratios = paired_ratios(trials, claim.baseline, claim.method, "wire_bytes_per_step")
    else:
        ratios = paired_ratios(trials, claim.method, claim.baseline)
    if ratios.empty:
        return Finding(None, f"in no round both {claim.method} and {claim.baseline} finished")
    return Finding(_mean(ratios.to_numpy()))


def _late(trials: pd.DataFrame, claim: Claim) -> str:
    """Which of the two methods this machine was too slow to replay, and by how much; nothing if neither."""
    for label in (claim.method, claim.baseline):
        done = trials[(trials["label"] == label) & (trials["status"] == DONE)]
        overrun = done["overrun_s_per_step"].mean() / done["step_time_median_s"].mean()
        if overrun > MOST_OVERRUN:
            return (
                f"for up to {100 * overrun:.0f} % of {label}'s step this machine was slower than the device that it "
                "replays; a greater dilation takes that away"
            )
    return ""


def _fewer_steps(claim: Claim, training: Run) -> Finding:
    """How many times fewer steps to the target the method takes, paired by seeds."""
    by_label = {label: steps_to_target(training, label) for label in (claim.method, claim.baseline)}
    if any(steps.empty for steps in by_label.values()):
        return Finding(None, training.problem or "its training was not run")
    for label in (claim.baseline, claim.method):
        steps = by_label[label]
        if missed := int(steps.isna().sum()):
            problem = f"{label} missed the target in {missed} of {len(steps)} trainings"
            return Finding(None, problem, missed=label == claim.method and missed == len(steps))
    ratios = (by_label[claim.baseline] / by_label[claim.method]).dropna()
    return Finding(_mean(ratios.to_numpy())) if len(ratios) else Finding(None, "no seed was trained by both methods")


def steps_to_target(run: Run, label: str) -> pd.Series[float]:
    """By round, the steps after which a finished training first reached the target; NaN where it never did."""
    if run.store is None:
        return pd.Series(dtype=float)
    trials = run.trials
    own = trials[(trials["label"] == label) & (trials["status"] == DONE)]
    return own.set_index("round")["steps_to_target"].astype(float).sort_index()


def _mean(ratios: np.ndarray[Any, Any]) -> Shift:
    """The mean logarithm of ratios, and its error."""
    logs, n = np.log(ratios), len(ratios)
    error = float(logs.std(ddof=1)) / math.sqrt(n) if n > 1 else None
    return Shift(float(logs.mean()), error, n - 1, n)


def _in_seconds(claim: Claim, trials: pd.DataFrame, training: Run) -> str:
    """What both take to the target: the median steps of the one run times the median step of the other."""
    sentences = []
    for label in (claim.method, claim.baseline):
        steps = steps_to_target(training, label).median()
        step_s = trials.loc[(trials["label"] == label) & (trials["status"] == DONE), "step_time_median_s"].median()
        if math.isfinite(steps) and math.isfinite(step_s):
            sentences.append(
                f" To the target {label} takes {steps:g} steps of the training; at {format_time(step_s)} a step of the "
                f"other run that is {format_time(steps * step_s)}."
            )
    return "".join(sentences)


def _times(one: Shift, other: Finding) -> Finding:
    """The product of two independent ratios, with the error and freedom of their sum of logarithms (Welch, 1947)."""
    if other.shift is None:
        return other
    two = other.shift
    log, n = one.log + two.log, min(one.n, two.n)
    if one.error is None or two.error is None:
        return Finding(Shift(log, None, 0.0, n))
    variances = one.error**2, two.error**2
    weights = sum(variance**2 / each.freedom for variance, each in zip(variances, (one, two), strict=True))
    return Finding(Shift(log, math.sqrt(sum(variances)), sum(variances) ** 2 / weights if weights else math.inf, n))


def _origin(figure: str, run: Run, trials: pd.DataFrame) -> str:
    """Where a figure comes from: real training or replay of which profile, on which cluster, in which run."""
    done = trials[trials["status"] == DONE]
    if run.store is None or done.empty:
        return ""
    what = " and ".join(dict.fromkeys(f"{row.model}, {row.dataset}" for row in done.itertuples()))
    clusters = set(done["cluster"])
    where = "a fake cluster, SCRIPTED, not measured" if FAKE in clusters else ", ".join(sorted(clusters))
    return f"{figure}: {what}, {len(done)} trials on {where}, {run.store.folder.name}"


def _plain(ratio: float) -> str:
    """Three digits, and never an exponent."""
    return f"{ratio:.0f}" if ratio >= 100 else f"{ratio:.3g}"
