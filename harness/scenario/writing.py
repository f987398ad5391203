"""Tables of a scenario as TOML, which Python's own library only reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any


def entries(table: Mapping[str, Any]) -> Iterator[str]:
    """Lines of TOML, one for each key; tables in it are written in one line, and what is None is not there."""
    for key, value in table.items():
        if value is not None:
            yield f"{_key(key)} = {inline(value)}"


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else _quoted(key)


def inline(value: Any) -> str:
    """A value as TOML, in one line."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(entries(value)) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(inline, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return _quoted(value) if isinstance(value, str) else repr(value)


def _quoted(text: str) -> str:
    """A string of TOML. JSON's escapes are TOML's, but for pairs of surrogates; TOML wants one more."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
