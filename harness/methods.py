"""Methods by name: those of ``baselines/``, and plug-ins.

A plug-in ``file.py:name`` defines what a file of ``baselines/`` does (see there), with ``name_hook`` as its hook. An
entry point of the group ``pacbench.methods`` names such a module, and maybe the method in it: ``package.module:name``.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import TYPE_CHECKING

from harness import plugins
from harness.errors import short_repr
from harness.plugins import Plugin

if TYPE_CHECKING:
    from baselines import Method

KIND = "method"

MARKERS = ".,ov^<>12348spP*hH+xXDd|_"
"""Those of matplotlib that are one character."""

TRIED_SHAPES, TRIED_WORKERS = ((1000, 1000), (1000,)), 4
"""What a plug-in's byte formula is tried on."""


def names() -> list[str]:
    """The names of pacbench's own methods, sorted. Imports none of them."""
    import baselines  # brings torch, which much that asks for names does not need

    return baselines.names()


def is_known(name: object) -> bool:
    """Whether a method is called so; a file that is named may yet turn out missing."""
    return name in names() or plugins.is_plugin(KIND, name)


def allowed() -> str:
    """What may be named, in words."""
    return plugins.allowed(KIND, names())


@contextmanager
def blamed(name: str) -> Iterator[None]:
    """What a plug-in's ``State`` raises becomes a ``UsageError`` that names the line.

    Raises:
        ValidationError: of a parameter, as pydantic found it, for messages that name the user's file.
    """
    from baselines import ParameterError

    plugin = None if name in names() else plugins.load(KIND, name)
    try:
        with plugin.blamed("State", passing=ParameterError) if plugin else nullcontext():
            yield
    except ParameterError as error:
        raise error.validation from None


@cache
def method_named(name: str) -> Method:
    """The method of that name.

    Raises:
        UsageError: there is none, or the plug-in is broken.
    """
    import baselines

    return baselines.get(name) if name in names() else _of_plugin(plugins.load(KIND, name))


def declared(name: str) -> Method | None:
    """What a method says of itself, for whoever reads a stored run, which may be a stranger's.

    None of a plug-in in a file, unless this process has run its code already because a user named it: a name that a
    run has stored makes no code run. None of what nobody knows any more, too.
    """
    if plugins.file_of(name):
        return method_named(name) if plugins.has_run(name) else None
    return _installed(name)


def digest(name: str) -> str | None:
    """Hash of a plug-in's code; None of what is pacbench's own.

    Raises:
        UsageError: there is no such plug-in, or its code cannot be imported.
    """
    return None if name in names() else plugins.load(KIND, name).digest


@cache
def _installed(name: str) -> Method | None:
    return method_named(name) if is_known(name) else None


def _of_plugin(plugin: Plugin) -> Method:
    from baselines import MethodState, describe

    hook, state = f"{plugin.attribute}_hook", plugin.get("State")
    plugin.check_call(plugin.get(hook), "state", "bucket", attribute=hook)
    if not isinstance(state, type) or not issubclass(state, MethodState):
        raise plugin.error("State is no class that derives from baselines.MethodState", "State")
    if state.wire_bytes is MethodState.wire_bytes:
        raise plugin.error("State has no wire_bytes, the method's byte formula", "State")
    if not dataclasses.is_dataclass(state) or "__pydantic_validator__" not in vars(state):
        raise plugin.error("State has no @parameters (of baselines) above it, which checks its parameters", "State")
    _check_look(plugin)
    with plugin.blamed("State"):
        sent = state().wire_bytes(TRIED_SHAPES, TRIED_WORKERS)
    if isinstance(sent, bool) or not isinstance(sent, (int, float)) or not 0 <= sent < math.inf:
        raise plugin.error(f"State.wire_bytes gives {sent!r}; allowed: a number of bytes", "State")
    return describe(plugin.module, plugin.attribute)


def _check_look(plugin: Plugin) -> None:
    """How figures show it must be something that they can show."""
    checks = {
        "LABEL": (lambda given: bool(given.strip()), "a text"),
        "COLOR": (lambda given: re.fullmatch("#[0-9a-fA-F]{6}", given) is not None, "a colour such as '#0072B2'"),
        "MARKER": (lambda given: len(given) == 1 and given in MARKERS, f"one of matplotlib's markers: {MARKERS}"),
    }
    for name, (is_good, allowed) in checks.items():
        given = plugin.get(name)
        if not isinstance(given, str) or not is_good(given):
            raise plugin.error(f"{name}: found {short_repr(given)}; allowed: {allowed}", name)
