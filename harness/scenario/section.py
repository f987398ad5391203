"""A part of a file of ours: strict and immutable, and complaints that name file, field, found and allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.errors import UsageError, short_repr
from harness.plain import UTF_8


class Section(BaseModel):
    """A part of a scenario: strict and immutable. Keys in files are the fields' names without their unit."""

    # With any rule for text, pydantic refuses halves of surrogate pairs, which no file of JSON can hold.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, str_min_length=0)

    @classmethod
    def keys_in_files(cls) -> list[str]:
        """What a file may say of it."""
        return [field.alias or name for name, field in cls.model_fields.items()]


SectionT = TypeVar("SectionT", bound=Section)


def checked_section(model: type[SectionT], values: Mapping[str, Any], source: str) -> SectionT:
    """A section from values as a file or command line gives them.

    Raises:
        UsageError: one line that names ``source``, the field, what was found and what is allowed.
    """
    try:
        return model.model_validate(values, context={"folder": Path(source).parent})
    except ValidationError as error:
        raise UsageError(explain(error, source, model=model)) from None


def explain(
    error: ValidationError, source: str, prefix: str = "", keys: str = "", model: type[Section] | None = None
) -> str:
    """Pydantic's first finding as one line: file, field, found, allowed."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    field = ".".join(([prefix] if prefix else []) + path)
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{source}: {field}: unknown key; allowed: {keys or _keys_beside(model, path)}"
    if first["type"] == "value_error" and isinstance(first["input"], (Mapping, Section)):  # of a section as a whole
        return f"{source}: {field}{'.' if field else ''}{first['msg'].removeprefix('Value error, ')}"
    if first["type"] == "missing":
        return f"{source}: {field}: missing"
    return f"{source}: {field}: found {short_repr(first['input'])}; allowed: {allowed(first)}"


def allowed(finding: Mapping[str, Any]) -> str:
    """What may stand there, in the words of a finding of pydantic's, or in better ones."""
    if finding["type"] == "string_unicode":
        return UTF_8
    return str(finding["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")


def in_words(error: ValidationError) -> str:
    """Pydantic's first finding in a file that no user has written: where it is, and what is wrong."""
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else first["msg"]


def _section_at(model: type[Section] | None, key: str) -> type[Section] | None:
    """The section that a field of ``model`` holds: itself, or None in its place, or as a table of such sections."""
    if model is None or key not in {name for field, info in model.model_fields.items() for name in (field, info.alias)}:
        return model  # a name within a table of sections
    field = next(info for name, info in model.model_fields.items() if key in (name, info.alias))
    held = [field.annotation, *get_args(field.annotation)]
    return next((part for part in held if isinstance(part, type) and issubclass(part, Section)), None)


def _keys_beside(model: type[Section] | None, path: Sequence[str]) -> str:
    """The keys that are known where ``path`` ends."""
    for part in path[:-1]:
        model = _section_at(model, part)
    if model is None:
        return "see the documentation"
    return ", ".join(model.keys_in_files())
