"""Tables of a scenario as TOML, which Python's own library only reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any


def entries(table: Mapping[str, Any]) -> Iterator[str]:
    """Lines of TOML, one for each key; tables in it are written in one line, and what is None is not there."""
    for key, value in table.items():
        if value is not None:
            yield f"{_key(key)} = {_value(value)}"


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else json.dumps(key)


def _value(value: Any) -> str:
    """A value as TOML, whose basic strings are JSON's."""
    if isinstance(value, dict):
        return "{ " + ", ".join(entries(value)) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value) if isinstance(value, (bool, str)) else repr(value)
