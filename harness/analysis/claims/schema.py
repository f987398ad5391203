"""What papers claim, as a file says it.

``scenarios/paper/claims.toml`` holds the claims. A field that may differ, such as the model, may hold a list. The
claim then stands for every combination, and each of them is judged for itself. Lists that make up the cases of one
claim, the ``grid`` of a share or the ``axis`` of a trend, stay together.

What may be claimed (``quantity``):

* ``throughput``, ``bytes``, ``communication time``, ``time to accuracy``: how many times better one method is than
  another. Time to accuracy is a product of two figures of different origin: the throughput of one run, and the steps to
  the target of a real training in another.
* ``accuracy``: how many points a method loses to its baseline.
* ``share``: in how many cases of a grid a method is better at all.
* ``trend``: such a ratio grows or falls along an axis.
* ``ablation``: how much of a method's gain one part of it gives, as a share of the gain's logarithm.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field, PlainSerializer, StringConstraints, model_validator
from typing_extensions import Self

from harness.errors import UsageError, short_repr
from harness.scenario import load as scenarios
from harness.scenario.properties import UNSHAPED, rate_or_unshaped
from harness.scenario.schema import Case
from harness.scenario.section import Section, checked_section
from harness.units import RateBps, SizeBytes, TimeS, format_rate, format_size, format_time
from harness.workload import profile as profiles

FILE = Path(str(files("scenarios"))) / "paper" / "claims.toml"

LISTED = ("model", "rate", "baseline", "method", "counted")
"""Fields that may hold a list, in the order in which they stand in a claim's id."""

Ratio = Literal["throughput", "bytes", "communication time"]
"""Ratios of two methods in one run."""

Quantity = Literal[
    "throughput", "bytes", "communication time", "time to accuracy", "accuracy", "share", "trend", "ablation"
]

LIMITED: frozenset[Quantity] = frozenset({"share", "trend", "ablation"})
"""Quantities of which more is not better: both ends of their range are limits."""


def _as_tuple(given: object) -> object:
    return tuple(given) if isinstance(given, (list, tuple)) else (given,)


def _read_rates(given: object) -> tuple[int | None, ...]:
    return tuple(map(rate_or_unshaped, given if isinstance(given, (list, tuple)) else (given,)))


def _one_or_all(held: tuple[object, ...]) -> object:
    return held[0] if len(held) == 1 else list(held)


def _finite(ends: tuple[float, float]) -> list[float | None]:
    return [end if math.isfinite(end) else None for end in ends]


def _rate_as_text(rates: tuple[int | None, ...]) -> object:
    return _one_or_all(tuple(UNSHAPED if bps is None else f"{bps}bit" for bps in rates))


Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple), PlainSerializer(_one_or_all)]
Rates = Annotated[tuple[int | None, ...], BeforeValidator(_read_rates), PlainSerializer(_rate_as_text)]
Range = Annotated[tuple[float, float], Field(strict=False), PlainSerializer(_finite)]


class Arithmetic(Section):
    """Numbers of a source that contradict one another: a time that is too short for the bytes of its steps."""

    told_s: Annotated[TimeS, Field(alias="told")]
    """Time that the source tells."""
    step_bytes: Annotated[SizeBytes, Field(alias="step")]
    """Bytes that a worker sends in a step."""
    rate_bps: Annotated[RateBps, Field(alias="rate")]
    """Rate of its link."""
    least_steps: int = Field(ge=1)
    """Fewest steps that there can have been."""
    why: str
    """Why there cannot have been fewer."""

    @model_validator(mode="after")
    def _contradicts(self) -> Self:
        if self.least_s <= self.told_s:
            told, least = format_time(self.told_s), format_time(self.least_s)
            raise ValueError(f"told: found {told}; allowed: a time that contradicts the least, {least}")
        return self

    @property
    def step_s(self) -> float:
        """Least time that a step's bytes need."""
        return 8 * self.step_bytes / self.rate_bps

    @property
    def least_s(self) -> float:
        """Least time of all steps."""
        return self.least_steps * self.step_s

    @property
    def text(self) -> str:
        """The contradiction, in words."""
        return (
            f"{format_size(self.step_bytes)} a step take {format_time(self.step_s)} at least at "
            f"{format_rate(self.rate_bps)}; the {format_time(self.told_s)} that are told hold "
            f"{math.floor(self.told_s / self.step_s)} such steps, and there were {self.least_steps} or more, {self.why}"
        )


class Cell(NamedTuple):
    """One case of a claim, and the method in it."""

    model: str
    rate_bps: int | None
    workers: int
    method: str
    scenario: str

    def is_about(self, case: Case, device: float) -> bool:
        """Whether a case has this link, these workers and this model, with such a share of the profile's device."""
        return known_by(case) == (self.rate_bps, self.workers, self.model, round(100 * device))


def known_by(case: Case) -> tuple[int | None, int, str, int]:
    """By what claims know a case: its link's rate, workers, model, and how many percent of the profile's device."""
    _, percent = profiles.split(case.train.profile or "")
    return case.link.rate_bps, case.cluster.workers, case.train.model, percent


class Claim(Section):
    """What a source says of one method against another."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9. %=-]*(/.*)?$")
    """What it is called in the file; after a slash, what was chosen from lists, such as any method's label."""
    source: str = Field(min_length=1)
    """Authors, title, where it was published."""
    place: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
    """The place in it: abstract, table 3, a file."""
    wording: str = Field(min_length=1)
    """The claim in the source's own words, short."""
    quantity: Quantity
    of: Ratio = "throughput"
    """Of a share, a trend or an ablation: the ratio that it is about."""
    counted: Literal["wire", "gradient"] = "wire"
    """Bytes that a worker sends; or those that one worker's gradient takes, whatever the collective makes of them."""
    model: Names
    rate_bps: Annotated[Rates, Field(alias="rate")]
    workers: int = Field(ge=2)
    devices: Annotated[tuple[float, ...], Field(strict=False, min_length=1)] = (1.0,)
    """Shares of the profile's device that a worker may have had: the verdict is to hold for each."""
    baseline: str
    """The label of the method that it is measured against, in the scenario."""
    method: Names
    """Likewise, of the method itself."""
    without: str | None = None
    """Of an ablation: the label of the method without the part in question."""
    grid: Annotated[tuple[Literal["model", "rate", "method"], ...], Field(strict=False)] = ()
    """Of a share: the fields whose lists make up its cases."""
    axis: Literal["rate", "method"] | None = None
    """Of a trend: the field whose list it goes along."""
    direction: Literal["grows", "falls"] | None = None
    """Of a trend: what the ratio does along that list."""
    claimed: Annotated[Range, Field(alias="range")]
    """From and to: times better; points lost; a share."""
    scenario: str | None = None
    """The scenario in which it is measured; ``{model}`` stands for the model. None where it cannot be."""
    convergence: str | None = None
    """A scenario of real training, where the steps to the target come from."""
    in_one_piece: str | None = None
    """A scenario of the same trainings, paced, on links where the small model has the larger one's ratio of
    communication to computation: there a time to accuracy is measured as it is, beside the product. None where nobody
    did."""
    quick: bool = False
    """Whether ``--quick`` judges it."""
    not_testable: str = ""
    """Why it cannot be put to a test here, where that is so."""
    arithmetic: Arithmetic | None = None
    """What contradicts it in its own source."""
    note: str = ""
    """How the range was read from the wording, and what differs here from the source's set-up."""

    @model_validator(mode="before")
    @classmethod
    def _a_trend_has_a_range(cls, given: Any) -> Any:
        is_trend = isinstance(given, Mapping) and given.get("quantity") == "trend"
        return {"range": (1.0, math.inf), **given} if is_trend else given

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_parts()
        self._check_range()
        if (self.scenario is None) != bool(self.not_testable):
            allowed = "one for what can be tested here, none with not_testable"
            raise ValueError(f"scenario: found {self.scenario or 'none'}; allowed: {allowed}")
        if re.search("[{}]", (self.scenario or "").replace("{model}", "")):
            raise ValueError(
                f"scenario: found {short_repr(self.scenario)}; allowed: a name, in which {{model}} is the model"
            )
        if (self.quantity == "time to accuracy") != (self.convergence is not None) and not self.not_testable:
            allowed = "a scenario for 'time to accuracy', and nothing for the others"
            raise ValueError(f"convergence: found {self.convergence or 'none'}; allowed: {allowed}")
        if self.in_one_piece and self.convergence in (None, self.in_one_piece):
            allowed = "beside convergence, and another scenario than that"
            raise ValueError(f"in_one_piece: found {self.in_one_piece}; allowed: {allowed}")
        whole = all(0 < share <= 1 and math.isclose(100 * share, round(100 * share)) for share in self.devices)
        if not whole or any(one <= other for one, other in itertools.pairwise(self.devices)):
            allowed = "shares up to 1, in whole percent, the largest first"
            raise ValueError(f"devices: found {list(self.devices)}; allowed: {allowed}")
        if self.counted != "wire" and self.quantity != "bytes":
            raise ValueError(f"counted: found {short_repr(self.counted)}; allowed: 'wire', but for 'bytes'")
        return self

    def _check_range(self) -> None:
        low, high = self.claimed
        least, most = {"accuracy": (-math.inf, math.inf), "share": (0.0, 1.0)}.get(self.quantity, (0.0, math.inf))
        if not least <= low < high <= most:
            told = f"from {least:g} on" if most == math.inf else f"from {least:g} to {most:g}"
            allowed = f"two {self._unit} {told}, the lesser one first"
            raise ValueError(f"range: found [{low}, {high}]; allowed: {allowed}")

    @property
    def _unit(self) -> str:
        return {"accuracy": "differences in points", "share": "shares", "ablation": "shares"}.get(
            self.quantity, "ratios"
        )

    def _check_parts(self) -> None:
        """Each kind of claim has what it needs, and nothing that only others have."""
        for field, owner, what in (
            ("grid", "share", "some of model, rate and method, whose lists make up the cases"),
            ("axis", "trend", "rate or method, whose list it goes along"),
            ("direction", "trend", "grows or falls"),
            ("without", "ablation", "the label of the method without the part"),
        ):
            if bool(getattr(self, field)) != (self.quantity == owner):
                found = getattr(self, field) or "none"
                raise ValueError(f"{field}: found {found}; allowed: {what}, for '{owner}'; nothing for the others")
        if self.quantity not in LIMITED and self.of != "throughput":
            raise ValueError(f"of: found {short_repr(self.of)}; allowed: nothing, but for {', '.join(sorted(LIMITED))}")
        together = {*self.grid, *([self.axis] if self.axis else [])}
        held = {"model": self.model, "rate": self.rate_bps, "method": self.method}
        for field, values in held.items():
            if repeated := [value for value, count in Counter(values).items() if count > 1]:
                raise ValueError(f"{field}: found {repeated[0]} more than once; allowed: each once")
            if (len(values) > 1) != (field in together):
                allowed = "a list of several" if field in together else "one value"
                raise ValueError(f"{field}: found {len(values)}; allowed: {allowed}")

    @property
    def family(self) -> str:
        """The id under which the file has it, with all its combinations."""
        return self.id.partition("/")[0]

    @property
    def ratio(self) -> Quantity:
        """What is measured in each of its cells."""
        return self.of if self.quantity in LIMITED else self.quantity

    @property
    def cells(self) -> list[Cell]:
        """Its cases: one, or those of a grid or an axis, in order."""
        return [
            Cell(model, rate_bps, self.workers, method, (self.scenario or "").replace("{model}", model))
            for model, rate_bps, method in itertools.product(self.model, self.rate_bps, self.method)
        ]

    @property
    def needs(self) -> list[str]:
        """All scenarios that it is judged by; none where nothing would help."""
        if self.not_testable or self.arithmetic:
            return []
        trainings = [name for name in (self.convergence, self.in_one_piece) if name]
        return [*dict.fromkeys(cell.scenario for cell in self.cells), *trainings]

    @property
    def compared(self) -> tuple[str, ...]:
        """Labels of what its methods are measured against."""
        return (self.baseline, *([self.without] if self.without else []))

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of all methods that take part."""
        return (*self.method, *self.compared)


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
    if not isinstance(entry, Mapping):
        raise UsageError.at(path, "claims", entry, "[[claims]] tables and nothing else")
    together = [*_as_list(entry.get("grid")), entry.get("axis")]
    listed = [key for key in LISTED if isinstance(entry.get(key), list) and key not in together]
    for key in listed:
        if not entry[key]:
            raise UsageError.at(f"{path}: {entry.get('id', 'a claim without id')}", key, "an empty list", "one or more")
    for chosen in itertools.product(*(entry[key] for key in listed)):
        identity = "/".join([str(entry.get("id", "")), *map(str, chosen)])
        fields = {**entry, **dict(zip(listed, chosen, strict=True)), "id": identity}
        yield checked_section(Claim, fields, f"{path}: {entry.get('id', 'a claim without id')}")


def _as_list(given: object) -> list[Any]:
    return given if isinstance(given, list) else []


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
