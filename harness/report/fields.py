"""Every scenario that comes with pacbench, and every field that a scenario may have, read from the schema.

``pacbench list scenarios -v`` prints it, and scenarios/README.md ends with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BeforeValidator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from harness.report.markdown import UNKNOWN, table
from harness.scenario.links import Fabric, Link
from harness.scenario.load import available
from harness.scenario.properties import GilbertElliott
from harness.scenario.schema import ClusterSpec, MethodSpec, Scenario, Train
from harness.scenario.section import Section
from harness.units import format_rate, format_size, parse_share


class Part(NamedTuple):
    """A part of a scenario's file."""

    title: str
    """Its name in files."""
    model: type[Section]
    text: str
    without: frozenset[str] = frozenset()
    """Fields of the model that this part of a file does not have."""
    defaults: Mapping[str, str] = {}
    """What stands for a field that the model requires and a file may leave out."""


PARTS = (
    Part(
        "At the top of the file",
        Scenario,
        "What all trials have in common. These fields hold no lists.",
        without=frozenset({"cases", "methods"}),
        defaults={"name": "the file's name"},
    ),
    Part("`[cluster]`", ClusterSpec, "Who takes part, and what each worker may use of the machine."),
    Part(
        "`[link]`",
        Link,
        "What connects each worker to its switch. `up`, `down` and `workers` say what differs from it, in a direction"
        " or for a worker. They may have all of these fields but `mtu`, `congestion_control` and `trace`.",
    ),
    Part("`[link.loss_bursts]`", GilbertElliott, "Losses in bursts, by the Gilbert-Elliott model of tc-netem(8)."),
    Part(
        "`[fabric]`",
        Fabric,
        "What connects the switches. Without groups there is one switch, and the network is a star. `trunk` and"
        " `trunks` have the fields that `[link.workers.w3]` has.",
    ),
    Part("`[train]`", Train, "What each worker computes, and for how long."),
    Part(
        "`[[methods]]`",
        MethodSpec,
        "One such table for each method. It may also have any parameter of its method; [METHODS.md](../METHODS.md) has"
        " them all.",
        without=frozenset({"params"}),
        defaults={"label": "the method's name, and what tells it from others of that name"},
    ),
)

UNITS = {"bps": "rate", "bytes": "size", "s": "time"}
"""How a field is written in a file, by the unit in its name."""

WRITTEN: Mapping[str, Callable[[Any], str]] = {
    "rate": format_rate,
    "size": format_size,
    "time": lambda time_s: f"{time_s:g} s",
}
"""How a value with a unit is written."""

PLAIN = {bool: "true or false", int: "whole number", float: "number", str: "text"}

BOUNDS = ((Ge, "ge", "at least"), (Gt, "gt", "above"), (Le, "le", "at most"), (Lt, "lt", "below"))

FIELDS = """\
## Every field

* A **rate** is text such as `"100mbit"`. Its units are bit, kbit, mbit, gbit and tbit, all per second. The rate of a
  link may also be `"unshaped"`.
* A **size** is text such as `"25MB"`. Its units are B, kB, MB, GB, KiB, MiB and GiB.
* A **time** is text such as `"20ms"`. Its units are us, ms, s, min and h.
* A **share** is a number from 0 to 1, or text such as `"1%"`.
* Rates, sizes and times without a unit are refused.
* "None" in the last column means that the file does not have the field.
"""


def page() -> str:
    """The scenarios and all fields as Markdown."""
    return "\n".join([scenarios(), FIELDS, *(section(part) for part in PARTS)])


def scenarios() -> str:
    """A table of the scenarios that come with pacbench."""
    rows = [[f"[{name}]({name}.toml)", description] for name, description in available().items()]
    return "## Scenarios that come with pacbench\n\n" + table(["scenario", "what it is"], rows) + "\n"


def section(part: Part) -> str:
    """A part of a file, with a row for each field."""
    fields = {name: field for name, field in part.model.model_fields.items() if name not in part.without}
    rows = [_row(part, name, field) for name, field in fields.items()]
    head = ["field", "type", "default", "allowed", "meaning"]
    return f"### {part.title}\n\n{part.text}\n\n{table(head, rows)}\n"


def _row(part: Part, name: str, field: FieldInfo) -> list[str]:
    default = part.defaults.get(name) or default_in_files(name, field)
    meaning = " ".join((field.description or "").split()).replace("``", "`")
    cells = [f"`{field.alias or name}`", kind(name, field), default, allowed(field), meaning]
    return [cell.replace("|", r"\|") or UNKNOWN for cell in cells]


def kind(name: str, field: FieldInfo) -> str:
    """What a file writes there."""
    types = set(_types(field.annotation))
    reads = [each.func for each in _metadata(field) if isinstance(each, BeforeValidator)]
    unit = UNITS.get(name.rpartition("_")[2])
    if parse_share in reads:
        return "share"
    if unit:
        return unit if reads else name.rpartition("_")[2]
    plain = next((words for type_, words in PLAIN.items() if type_ in types), "")
    if any(issubclass(type_, Section) for type_ in types):
        return "file" if reads else "tables by name" if dict in types else "table"
    return plain or "text"


def allowed(field: FieldInfo) -> str:
    """The limits of what a file may write there."""
    choices = [choice for each in _unions(field.annotation) if get_origin(each) is Literal for choice in get_args(each)]
    found = ", ".join(f"`{json.dumps(choice)}`" for choice in choices)
    limits = {
        words: f"{words} {getattr(each, attribute)}"
        for each in _metadata(field)
        for type_, attribute, words in BOUNDS
        if isinstance(each, type_)
    }
    if {"at least", "above"} <= limits.keys():
        del limits["at least"]
    patterns = [f"`{each.pattern}`" for each in _metadata(field) if getattr(each, "pattern", None)]
    return " ".join(filter(None, [found, ", ".join(limits.values()), *patterns]))


def default_in_files(name: str, field: FieldInfo) -> str:
    """What holds where a file says nothing, as a file would say it."""
    default = field.default
    if default is PydanticUndefined:
        return UNKNOWN if field.default_factory else "required"
    if default is None or isinstance(default, Section):
        return UNKNOWN
    written = WRITTEN.get(kind(name, field))
    return f"`{json.dumps(written(default) if written else default)}`"


def _unions(annotation: Any) -> Iterator[Any]:
    """An annotation, and what it is made of where it is a union or has notes."""
    yield annotation
    if get_origin(annotation) is not Literal:
        for argument in get_args(annotation):
            yield from _unions(argument)


def _types(annotation: Any) -> Iterator[type]:
    for each in _unions(annotation):
        plain = get_origin(each) or each
        if isinstance(plain, type):
            yield plain


def _metadata(field: FieldInfo) -> Iterator[Any]:
    """What is noted of a field, in it or within its annotation."""
    for each in [*field.metadata, *_unions(field.annotation)]:
        yield from each.metadata if isinstance(each, FieldInfo) else [each]
