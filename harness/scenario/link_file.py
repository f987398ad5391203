"""Files that hold a link, as ``pacbench link`` writes them: a ``[link]`` table as in scenarios, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.files import is_file
from harness.plain import visible
from harness.scenario import limits
from harness.scenario.links import Fabric, Link
from harness.scenario.load import read_toml
from harness.scenario.section import Section, checked_section
from harness.scenario.writing import entries, inline


class LinkFile(Section):
    """All that such a file may hold."""

    link: Link


def read_tables(path: Path) -> dict[str, Any]:
    """The tables of a file that has a link. Its trace is the one beside it, if there is one: the current folder may
    hold another of that name.

    Raises:
        UsageError: it cannot be read, or is not TOML.
    """
    tables = read_toml(path)
    link = tables.get("link")
    if isinstance(link, dict) and isinstance(link.get("trace"), str):
        beside = path.parent / link["trace"]
        if is_file(beside):
            return {**tables, "link": {**link, "trace": str(beside.absolute())}}
    return tables


def read_link(path: Path) -> Link:
    """The link of a file.

    Raises:
        UsageError: it is no such file; one line says what is wrong, and where.
    """
    link = checked_section(LinkFile, read_tables(path), str(path)).link
    if complaint := limits.complaint(link, Fabric.model_validate({}), workers=0):
        raise UsageError(f"{path}: {complaint}")
    return link


def as_setting(path: Path) -> str:
    """The same file as an override of a scenario: ``link={...}`` takes the place of its table.

    Raises:
        UsageError: see ``read_link``.
    """
    read_link(path)
    return f"link={inline(read_tables(path)['link'])}"


def link_text(table: Mapping[str, Any], comments: Iterable[str] = ()) -> str:
    """A link as a file; comments come first, a line each."""
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    lines = [f"# {visible(comment)}" for comment in comments]
    lines += ["[link]", *entries(plain)]
    for name, part in table.items():
        if isinstance(part, Mapping):
            lines += ["", f"[link.{name}]", *entries(part)]
    return "\n".join([*lines, ""])
