"""The one schema: what a scenario file may say, and what it means.

A scenario holds sections ``[cluster]``, ``[link]``, ``[train]`` and a list ``[[methods]]``. Any field of them may hold
a list instead of one value; the scenario then stands for every combination. Everything is checked when it is read:
an unknown key, a wrong unit or a value out of range is a ``UsageError`` that names file, field, what was found and
what is allowed.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from harness.errors import UsageError
from harness.units import SizeBytes, TimeS, parse_rate_bps

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

UNSHAPED = "unshaped"


def _rate_or_unshaped(given: object) -> int | None:
    if given in (UNSHAPED, None):
        return None
    try:
        return parse_rate_bps(given)
    except ValueError as error:
        raise ValueError(f"{error}, or '{UNSHAPED}'") from None


RateOrUnshaped = Annotated[
    int | None,
    BeforeValidator(_rate_or_unshaped),
    PlainSerializer(lambda bps: UNSHAPED if bps is None else f"{bps}bit"),
]


class Section(BaseModel):
    """A part of a scenario: strict and immutable. Keys in files are the fields' names without their unit."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


SectionT = TypeVar("SectionT", bound=Section)


class Resources(Section):
    """What each worker may use of the machine; None and the defaults leave it as it is."""

    cpuset: str | None = Field(None, pattern=r"^[0-9]+([-,][0-9]+)*(;[0-9]+([-,][0-9]+)*)*$")
    """CPUs, as taskset(1) takes them: one set for all workers, or several, parted by ``;``, that they take in turn."""
    memory_bytes: Annotated[SizeBytes | None, Field(alias="memory")] = None
    """A worker that needs more is ended by the kernel."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where workers compute. On GPUs NCCL synchronises them, or Gloo, where there are fewer GPUs than workers."""

    def cpuset_of(self, worker: int) -> str | None:
        """The CPUs of one worker."""
        sets = self.cpuset.split(";") if self.cpuset else [None]
        return sets[worker % len(sets)]


GLOO = "gloo"
BACKEND_VARIABLE = "PACBENCH_BACKEND"
"""Which collectives training uses: whoever gives out GPUs knows whether each worker has its own, as NCCL asks."""

NO_LIMITS = Resources.model_validate({})


class Cluster(Resources):
    """Who takes part, and what each may use."""

    workers: int = Field(4, ge=2, le=128)

    @property
    def resources(self) -> Resources:
        """The part that is not the network's."""
        return Resources.model_validate(self.model_dump(by_alias=True, include=set(Resources.model_fields)))


class Link(Section):
    """What connects each worker to the switch, the same in both directions."""

    rate_bps: Annotated[RateOrUnshaped, Field(alias="rate")] = 100_000_000
    """Bits per second of each direction on the wire, headers included; None leaves the link unshaped."""
    burst_bytes: Annotated[SizeBytes | None, Field(alias="burst")] = None
    """The token bucket's size; None chooses one that neither stalls the rate nor hides it."""
    mtu_bytes: int = Field(1500, alias="mtu", ge=576, le=9000)
    congestion_control: str = Field("cubic", pattern=r"^[a-z0-9_]{1,15}$")
    """TCP's, on every worker, whatever the host's own is. BBR pauses for 0.2 s every 10 s to look at the path's RTT,
    which shows in single steps."""


class Train(Section):
    """What each worker computes, and for how long."""

    model: str = "digits-cnn"
    dataset: str = "digits"
    data_dir: str | None = None
    """A folder that holds the data set; None looks in the usual places, then downloads."""
    checkpoint: str | None = None
    """A file with the model's ``state_dict()``, by ``torch.save``, to start from; None draws weights by the seed."""
    steps: int = Field(100, ge=4)
    batch_size: int = Field(32, ge=1)
    """Samples per worker and step."""
    lr: float = Field(0.05, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    eval_every: int = Field(10, ge=1)
    """Steps between evaluations on the test set, which pause the training clock."""
    target_accuracy: float = Field(0.9, gt=0, le=1)
    bucket_bytes: Annotated[SizeBytes, Field(alias="bucket")] = 25_000_000
    """DDP's bucket size."""
    timeout_s: Annotated[TimeS, Field(alias="timeout", gt=0)] = 300.0
    """A trial that takes longer is ended and recorded as ``timeout``."""


class MethodSpec(Section):
    """A method of ``baselines/`` with its parameters, and the label that tells it from its siblings."""

    name: str
    label: str
    params: dict[str, Any] = Field(default_factory=dict)


class Case(Section):
    """One concrete combination of the sections."""

    cluster: Cluster
    link: Link
    train: Train


class Scenario(Section):
    """A scenario as the rest of pacbench sees it: concrete cases, concrete methods, no lists left to expand."""

    name: str
    description: str = ""
    rounds: int = Field(5, ge=1)
    seed: int = Field(0, ge=0)
    baseline: str = "dense"
    """The label of the method that speedups are ratios to."""
    cases: tuple[Case, ...]
    methods: tuple[MethodSpec, ...]


def load(name_or_path: str, overrides: Iterable[str] = (), only_methods: Sequence[str] = ()) -> Scenario:
    """Read, override, expand and check a scenario.

    Args:
        name_or_path: a file, or the name of a scenario that comes with pacbench (``quickstart``, ``paper/ablation``).
        overrides: ``key=value`` pairs such as ``train.steps=50`` or ``link.rate=500mbit``; values are TOML, and what is
            not TOML is taken as text.
        only_methods: names or labels of the methods to keep; all when empty. The baseline is always kept.

    Raises:
        UsageError: with one line that says what is wrong, and where.
    """
    source, text = _read(name_or_path)
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{source}: not valid TOML: {error}") from None
    for override in overrides:
        _apply_override(raw, override)
    raw.setdefault("name", Path(source).stem)
    scenario = _build(raw, source)
    return _only(scenario, only_methods) if only_methods else scenario


def checked_section(model: type[SectionT], values: Mapping[str, Any], source: str) -> SectionT:
    """A section from values as a file or command line gives them.

    Raises:
        UsageError: one line that names ``source``, the field, what was found and what is allowed.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UsageError(_explain(error, source, model=model)) from None


def available() -> dict[str, str]:
    """The scenarios that come with pacbench: name -> description."""
    root = Path(str(files("scenarios")))
    found = {str(path.relative_to(root).with_suffix("")): path for path in sorted(root.rglob("*.toml"))}
    return {name: str(tomllib.loads(path.read_text()).get("description", "")) for name, path in found.items()}


def _read(name_or_path: str) -> tuple[str, str]:
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = Path(str(files("scenarios"))) / f"{name_or_path}.toml"
        if not path.is_file():
            raise UsageError.at(
                "command line", "SCENARIO", name_or_path, f"a .toml file, or one of {', '.join(available())}"
            )
    try:
        return str(path), path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from None


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UsageError.at("--set", "key=value", override, "for example train.steps=50")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, field = key.strip().split(".")
    table: Any = raw
    for section in sections:
        table = table.setdefault(section, {}) if isinstance(table, dict) else None
    if not isinstance(table, dict):
        raise UsageError.at("--set", key, override, "a field of [cluster], [link], [train] or the top level")
    table[field] = value


def _build(raw: Mapping[str, Any], source: str) -> Scenario:
    top = {key: value for key, value in raw.items() if key not in Case.model_fields and key != "methods"}
    sections = {name: raw.get(name, {}) for name in Case.model_fields}
    for name, section in sections.items():
        if not isinstance(section, Mapping):
            raise UsageError.at(source, name, section, f"a table [{name}]")
    cases = tuple(checked_section(Case, combination, source) for combination in _combinations(sections))
    methods = _methods(raw.get("methods"), source)
    scenario = checked_section(Scenario, {**top, "cases": cases, "methods": methods}, source)
    labels = [method.label for method in scenario.methods]
    if scenario.baseline not in labels:
        raise UsageError.at(source, "baseline", scenario.baseline, f"the label of a method: {', '.join(labels)}")
    return scenario


def _combinations(sections: Mapping[str, Mapping[str, Any]]) -> list[dict[str, dict[str, Any]]]:
    """Every choice of one element from each list that stands where one value is expected."""
    fields = [(name, key, value) for name, section in sections.items() for key, value in section.items()]
    choices = [value if isinstance(value, list) else [value] for _, _, value in fields]
    combinations = []
    for chosen in itertools.product(*choices):
        combination: dict[str, dict[str, Any]] = {name: {} for name in sections}
        for (name, key, _), value in zip(fields, chosen, strict=True):
            combination[name][key] = value
        combinations.append(combination)
    return combinations


def _methods(entries: object, source: str) -> tuple[MethodSpec, ...]:
    import baselines  # brings torch, which nothing else here needs

    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise UsageError.at(source, "methods", entries, "at least one [[methods]] table")
    specs = []
    for number, entry in enumerate(entries, start=1):
        where = f"methods[{number}]"
        name = entry.get("name")
        if name not in baselines.names():
            raise UsageError.at(source, f"{where}.name", name, ", ".join(baselines.names()))
        given = {key: value for key, value in entry.items() if key not in ("name", "label")}
        for combination in _combinations({"params": given}):
            try:
                state = baselines.get(name).State(**combination["params"])
            except ValidationError as error:
                allowed = ", ".join(baselines.get(name).State().parameters) or "no parameters"
                raise UsageError(_explain(error, source, prefix=f"{where} ({name})", keys=allowed)) from None
            specs.append((name, entry.get("label"), state.parameters))
    return _labelled(specs, source)


def _labelled(specs: Sequence[tuple[str, str | None, dict[str, Any]]], source: str) -> tuple[MethodSpec, ...]:
    """Give each method the label it was given, or its name and what tells it from others of that name."""
    methods = []
    for name, label, params in specs:
        siblings = [other for other_name, _, other in specs if other_name == name]
        differing = [key for key in params if any(other[key] != params[key] for other in siblings)]
        parts = [str(params[key]) if isinstance(params[key], str) else f"{key}={params[key]}" for key in differing]
        methods.append(MethodSpec(name=name, label=label or "-".join([name, *parts]), params=params))
    repeated = [label for label, count in Counter(method.label for method in methods).items() if count > 1]
    if repeated:
        raise UsageError.at(source, "methods", repeated[0], "each method once, or a label of its own for each")
    return tuple(methods)


def _only(scenario: Scenario, wanted: Sequence[str]) -> Scenario:
    known = {key for method in scenario.methods for key in (method.name, method.label)}
    for name in wanted:
        if name not in known:
            raise UsageError.at("command line", "--method", name, ", ".join(sorted(known)))
    keep = {*wanted, scenario.baseline}
    chosen = tuple(method for method in scenario.methods if method.name in keep or method.label in keep)
    return scenario.model_copy(update={"methods": chosen})


def _explain(
    error: ValidationError, source: str, prefix: str = "", keys: str = "", model: type[BaseModel] | None = None
) -> str:
    """Pydantic's first finding as one line: file, field, found, allowed."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    field = ".".join(([prefix] if prefix else []) + path)
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{source}: {field}: unknown key; allowed: {keys or _keys_beside(model, path)}"
    if first["type"] == "missing":
        return f"{source}: {field}: missing"
    allowed = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return f"{source}: {field}: found {first['input']!r}; allowed: {allowed}"


def _keys_beside(model: type[BaseModel] | None, path: Sequence[str]) -> str:
    """The keys that are known where ``path`` ends."""
    for part in path[:-1]:
        annotation = model.model_fields[part].annotation if model else None
        model = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
    if model is None:
        return "see the documentation"
    keys = [field.alias or name for name, field in model.model_fields.items()]
    if model is Scenario:
        keys = [key for key in keys if key != "cases"] + list(Case.model_fields)
    return ", ".join(keys)
