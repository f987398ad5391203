"""Claims of papers: what they say, and what must be run to judge them.

``scenarios/paper/claims.toml`` holds them. A field that may differ, such as the model, may hold a list; the claim then
stands for every combination, and each of them is judged for itself.

Three quantities are claimed. ``throughput`` and ``bytes`` are ratios of two methods in one run. ``time to accuracy`` is
a product of two figures of different origin: the throughput of the one run, and the steps to the target that a real
training took in another. Every judgement says where each of its figures came from.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from harness.errors import UsageError
from harness.methods import method_named
from harness.plan.plan import Plan
from harness.plan.trial import Trial
from harness.scenario import load as scenarios
from harness.scenario.schema import Case, MethodSpec, Scenario
from harness.scenario.section import Section, checked_section
from harness.units import RateBps, format_rate

FILE = Path(str(files("scenarios"))) / "paper" / "claims.toml"

LISTED = ("model", "rate", "baseline", "method")
"""Fields that may hold a list, in the order in which they stand in a claim's id."""

QUICK_ROUNDS = 3
"""How many ``--quick`` runs: the fewest whose interval says something."""

Quantity = Literal["throughput", "bytes", "time to accuracy"]


class Claim(Section):
    """What a source says of one method against another, on one model and link."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9./ -]*$")
    source: str
    """Authors, where, and the place in it."""
    wording: str
    """The claim in the source's own words, short."""
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
    """The scenario in which it is measured; ``{model}`` stands for the model."""
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
    """The first thing in which they differ; nothing if in none that matters.

    What belongs to the warm-up alone may differ. Throughput is that of the steady state, which a replay reaches at
    once.
    """
    if replayed.name != trained.name:
        return f"{trained.name} against {replayed.name}"
    warmup = method_named(replayed.name).State.warmup_parameters
    differing = [
        f"{key} = {trained.params.get(key)!r} against {value!r}"
        for key, value in replayed.params.items()
        if key not in warmup and trained.params.get(key) != value
    ]
    return differing[0] if differing else ""


def _method(scenario: Scenario, label: str) -> MethodSpec:
    return next(method for method in scenario.methods if method.label == label)
