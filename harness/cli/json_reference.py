"""What verbs print with ``--json``, described from its types. JSON.md is this page."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter
from typing_extensions import get_type_hints, is_typeddict

from harness.cli import json_output
from harness.report.markdown import table

HEAD = """# What verbs print with --json

`pacbench list json -v` prints this page. Words, if there are any, then go to stderr. `gate --json FILE` writes a file.
Fields may be added; none changes its meaning or goes without a line in [CHANGELOG.md](CHANGELOG.md). A number that is
not known is null.
"""


def summaries() -> dict[str, str]:
    """Each verb with ``--json``, and what it prints in one word."""
    return {verb: _type(shape) for verb, shape in json_output.SHAPES.items()}


def page() -> str:
    """All verbs, then all shapes."""
    verbs = [[f"`{verb}`", _linked(shape)] for verb, shape in json_output.SHAPES.items()]
    lines = [HEAD, table(["verb", "prints"], verbs)]
    for shape in _shapes():
        lines += ["", f"## {shape.__name__}", "", (inspect.getdoc(shape) or "").replace("``", "`"), ""]
        lines.append(table(["field", "type", "meaning"], list(_rows(shape))))
    return "\n".join(lines) + "\n"


def adapter(verb: str) -> TypeAdapter[Any]:
    """Validates what a verb prints: a field more, or one less, is an error."""
    return _adapter(json_output.SHAPES[verb])


def _adapter(kind: Any) -> TypeAdapter[Any]:
    for shape in _shapes():  # which import no pydantic, so that a command line starts soon
        shape.__pydantic_config__ = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    return TypeAdapter(kind)


def _shapes() -> list[Any]:
    """All shapes, each before those that are parts of it."""
    found: dict[str, Any] = {}

    def visit(kind: Any) -> None:
        if is_typeddict(kind) and kind.__name__ not in found:
            found[kind.__name__] = kind
            for part in _fields(kind).values():
                visit(part)
        for part in get_args(kind):
            visit(part)

    for shape in json_output.SHAPES.values():
        visit(shape)
    return list(found.values())


def _fields(shape: Any) -> dict[str, Any]:
    return get_type_hints(shape)


def _rows(shape: Any) -> Iterator[list[str]]:
    described = _adapter(shape).json_schema()["properties"]
    for name, kind in _fields(shape).items():
        yield [f"`{name}`", _linked(kind), described[name].get("description", "").replace("``", "`")]


def _type(kind: Any) -> str:
    """A type in words: ``list of PlannedTrial``, ``number or null``."""
    words = {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "null", Any: "any"}
    if kind in words:
        return words[kind]
    if is_typeddict(kind):
        return str(kind.__name__)
    origin, parts = get_origin(kind), get_args(kind)
    if origin is list:
        return f"list of {_type(parts[0])}"
    if origin is dict:
        return f"table of {_type(parts[1])}"
    if origin is not None and all(isinstance(part, str) for part in parts):
        return " or ".join(f'"{part}"' for part in parts)
    return " or ".join(map(_type, parts))


def _linked(kind: Any) -> str:
    """The same, with a link to each shape."""
    words = _type(kind).split()
    names = {shape.__name__ for shape in _shapes()}
    return " ".join(f"[{word}](#{word.lower()})" if word in names else word for word in words)
