"""Read a scenario: find its file, override fields, expand lists to every combination, check, choose methods."""

from __future__ import annotations

import itertools
import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness import methods, plugins
from harness.errors import UsageError
from harness.files import is_file, read_given
from harness.plain import UTF_8, is_utf_8
from harness.scenario.schema import OWN_SETTINGS, SLOWED_TO, Case, MethodSpec, Scenario
from harness.scenario.section import checked_section, explain

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MOST_COMBINATIONS = 10_000
"""Cases of a scenario, variants of a method, and methods in cases: more is a mistake, and takes all memory before
anybody sees it."""


def load(name_or_path: str, overrides: Iterable[str] = (), only_methods: Sequence[str] = ()) -> Scenario:
    """Read, override, expand and check a scenario.

    Args:
        name_or_path: a file, or the name of a scenario that comes with pacbench (``quickstart``, ``paper/ablation``).
        overrides: ``key=value`` pairs such as ``train.steps=50`` or ``link.rate=500mbit``; values are TOML, and what is
            not TOML is taken as text.
        only_methods: names or labels of the methods to keep; all when empty. Both baselines are always kept. One in a
            file, ``FILE.py:NAME``, joins the scenario with its default parameters if it is not there.

    Paths of plug-ins start at the scenario's folder where its file names them, and at the current one elsewhere.

    Raises:
        UsageError: with one line that says what is wrong, and where.
    """
    source, raw = str(find(name_or_path)), tables(name_or_path, overrides)
    wanted = [plugins.anchored(name, Path()) for name in only_methods]
    _add_methods(raw, wanted)
    raw.setdefault("name", Path(source).stem)
    scenario = _build(raw, source)
    return _only(scenario, wanted) if wanted else scenario


def tables(name_or_path: str, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """A scenario's tables with these fields set, and plug-ins by the names by which they are known everywhere.

    Raises:
        UsageError: see ``load``; fields are not checked yet.
    """
    path = find(name_or_path)
    raw = read_toml(path)
    _anchor_plugins(raw, path.parent)
    for override in overrides:
        apply_override(raw, override)
    _anchor_plugins(raw, Path())
    return raw


def available() -> dict[str, str]:
    """The scenarios that come with pacbench: name -> description."""
    root = Path(str(files("scenarios")))
    found = {str(path.relative_to(root).with_suffix("")): read_toml(path) for path in sorted(root.rglob("*.toml"))}
    return {name: str(raw.get("description", "")) for name, raw in found.items() if "methods" in raw}


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a file.

    Raises:
        UsageError: it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(read_given(path).decode())
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from None
    except RecursionError:
        raise UsageError(f"{path}: cannot be read: its tables and lists lie too deep in one another") from None


def find(name_or_path: str) -> Path:
    """The file of a scenario, by its name or path.

    Raises:
        UsageError: there is none of that name.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        is_inside = not path.is_absolute() and ".." not in path.parts
        path = Path(str(files("scenarios"))) / f"{name_or_path}.toml"
        if not (is_inside and is_file(path)):
            raise UsageError.at(
                "command line", "SCENARIO", name_or_path, f"a .toml file, or one of {', '.join(available())}"
            )
    return path


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set a field of a scenario's tables, in place, as ``--set`` does.

    Raises:
        UsageError: it is not ``key=value``, is no text, or the key leads nowhere.
    """
    if not is_utf_8(override):
        raise UsageError.at("--set", "key=value", override, UTF_8)
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UsageError.at("--set", "key=value", override, "for example train.steps=50")
    *sections, field = key.strip().split(".")
    table: Any = raw
    for section in sections:
        table = table.setdefault(section, {}) if isinstance(table, dict) else None
    if not isinstance(table, dict):
        raise UsageError.at("--set", key, override, "a field of [cluster], [link], [fabric], [train] or the top level")
    table[field] = value_of(text)


def value_of(text: str) -> Any:
    """What a command line gives as a value: TOML, and what is not TOML is text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # a number that is too long is a ValueError
        return text


def _anchor_plugins(raw: Mapping[str, Any], folder: Path) -> None:
    """Give plug-ins that are named by a file, in place, the names by which they are known everywhere."""
    for table, field in _places_of_plugins(raw):
        given = table.get(field)
        table[field] = (
            [plugins.anchored(each, folder) for each in given]
            if isinstance(given, list)
            else plugins.anchored(given, folder)
        )


def _places_of_plugins(raw: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    train, entries = raw.get("train"), raw.get("methods")
    places = [(train, "model"), (train, "dataset"), *((entry, "name") for entry in _list(entries))]
    yield from ((table, field) for table, field in places if isinstance(table, dict) and field in table)


def _add_methods(raw: Mapping[str, Any], wanted: Iterable[str]) -> None:
    """Have methods that are named by their files, on the command line, in the scenario."""
    entries = _list(raw.get("methods"))
    there = [entry.get("name") for entry in entries if isinstance(entry, dict)]
    entries += [{"name": name} for name in wanted if plugins.file_of(name) and name not in there]


def _list(given: object) -> list[Any]:
    return given if isinstance(given, list) else []


def _build(raw: Mapping[str, Any], source: str) -> Scenario:
    top = {key: value for key, value in raw.items() if key not in Case.model_fields and key != "methods"}
    sections = {name: raw.get(name, {}) for name in Case.model_fields}
    for name, section in sections.items():
        if not isinstance(section, Mapping):
            raise UsageError.at(source, name, section, f"a table [{name}]")
    cases = tuple(checked_section(Case, combination, source) for combination in _combinations(sections, source))
    chosen = _methods(raw.get("methods"), source)
    if (count := len(cases) * len(chosen)) > MOST_COMBINATIONS:
        found = f"{len(cases)} cases of {len(chosen)} methods, {count} combinations"
        raise UsageError.at(source, "lists", found, f"at most {MOST_COMBINATIONS}")
    scenario = checked_section(Scenario, {**top, "cases": cases, "methods": chosen}, source)
    _check_told_apart(scenario, source)
    _check_baselines(scenario, source)
    return scenario


def _check_baselines(scenario: Scenario, source: str) -> None:
    labels = [method.label for method in scenario.methods]
    for field in ("baseline", "baseline_16bit"):
        if (label := getattr(scenario, field)) is not None and label not in labels:
            raise UsageError.at(source, field, label, f"the label of a method: {', '.join(labels)}")


def check_stored(scenario: Scenario, file: Path) -> None:
    """Refuse a scenario that a run has stored, and that names what this version does not have.

    Raises:
        UsageError: it names the file.
    """
    for method in scenario.methods:
        if not methods.is_known(method.name):
            raise UsageError.at(file, f"methods ({method.label}).name", method.name, methods.allowed())
    _check_baselines(scenario, str(file))


def _combinations(sections: Mapping[str, Mapping[str, Any]], source: str) -> list[dict[str, dict[str, Any]]]:
    """Every choice of one element from each list that stands where one value is expected."""
    fields = [(name, key, value) for name, section in sections.items() for key, value in section.items()]
    if empty := next((f"{name}.{key}" for name, key, value in fields if value == []), None):
        raise UsageError.at(source, empty, [], "one value, or a list of some")
    choices = [value if isinstance(value, list) else [value] for _, _, value in fields]
    if (count := math.prod(map(len, choices))) > MOST_COMBINATIONS:
        raise UsageError.at(source, "lists", f"{count} combinations", f"at most {MOST_COMBINATIONS}")
    combinations = []
    for chosen in itertools.product(*choices):
        combination: dict[str, dict[str, Any]] = {name: {} for name in sections}
        for (name, key, _), value in zip(fields, chosen, strict=True):
            combination[name][key] = value
        combinations.append(combination)
    return combinations


def _methods(entries: object, source: str) -> tuple[MethodSpec, ...]:
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise UsageError.at(source, "methods", entries, "at least one [[methods]] table")
    specs = []
    for number, entry in enumerate(entries, start=1):
        where = f"methods[{number}]"
        name = entry.get("name")
        if not methods.is_known(name):
            raise UsageError.at(source, f"{where}.name", name, methods.allowed())
        shown = f"{where} ({plugins.short(name)})"
        if SLOWED_TO in entry:
            allowed = "no such key any more; train.dilation slows links and time, for all methods alike"
            raise UsageError.at(source, f"{shown}.{SLOWED_TO}", entry[SLOWED_TO], allowed)
        given = {key: value for key, value in entry.items() if key not in ("name", "label")}
        for combination in _combinations({shown: given}, source):
            params = combination[shown]
            own = {key: params.pop(key, None) for key in OWN_SETTINGS}
            specs.append((entry, {**_checked_parameters(name, params, source, shown), **own}))
    return _labelled(specs, source)


def _checked_parameters(name: str, given: Mapping[str, Any], source: str, prefix: str) -> dict[str, Any]:
    """All parameters of a method, as given or by default."""
    state_class = methods.method_named(name).State
    try:
        with methods.blamed(name):
            return state_class(**given).parameters
    except ValidationError as error:
        allowed = ", ".join(state_class().parameters) or "no parameters"
        raise UsageError(explain(error, source, prefix=prefix, keys=allowed)) from None


def _labelled(specs: Sequence[tuple[Mapping[str, Any], dict[str, Any]]], source: str) -> tuple[MethodSpec, ...]:
    """Give each method the label it was given, or its name and what tells it from others of that name.

    Args:
        specs: of each method its table, and its parameters with its own settings of training, which may be None.
    """
    found = []
    for entry, params in specs:
        siblings = [other for other_entry, other in specs if other_entry["name"] == entry["name"]]
        differing = [key for key in params if any(other[key] != params[key] for other in siblings)]
        parts = [str(params[key]) if isinstance(params[key], str) else f"{key}={params[key]}" for key in differing]
        label = entry.get("label") or "-".join([plugins.plain(entry["name"]), *parts])
        own = {key: params[key] for key in OWN_SETTINGS}
        others = {key: value for key, value in params.items() if key not in own}
        fields = {"name": entry["name"], "label": label, "params": others, **own}
        found.append(checked_section(MethodSpec, fields, f"{source}: methods ({label})"))
    repeated = [label for label, count in Counter(method.label for method in found).items() if count > 1]
    if repeated:
        raise UsageError.at(source, "methods", repeated[0], "each method once, or a label of its own for each")
    return tuple(found)


def _check_told_apart(scenario: Scenario, source: str) -> None:
    """Results name plug-ins without their folders, so that they mean the same on another machine."""
    named = {name for case in scenario.cases for name in (case.train.model, case.train.dataset)}
    shown: dict[str, str] = {}
    for name in sorted(named | {method.name for method in scenario.methods}):
        if (other := shown.setdefault(plugins.short(name), name)) != name:
            raise UsageError.at(source, plugins.short(name), f"{other} and {name}", "one, or files of different names")


def _only(scenario: Scenario, wanted: Sequence[str]) -> Scenario:
    known = {key for method in scenario.methods for key in (method.name, method.label)}
    for name in wanted:
        if name not in known:
            shown = sorted({plugins.short(key) for key in known})
            raise UsageError.at("command line", "--method", name, f"{', '.join(shown)}, or {plugins.FORM}")
    keep = {*wanted, *scenario.baselines}
    chosen = tuple(method for method in scenario.methods if method.name in keep or method.label in keep)
    return scenario.model_copy(update={"methods": chosen})
