"""The app: every file in ``verbs/`` is a verb.

A file ``verbs/NAME.py`` holds a function ``verb``, whose parameters are the arguments and whose docstring is the help.
Its ``SETTINGS``, if it has any, are those of its click context. Nothing is registered by hand. Verbs of another package
join in by its folder: ``verbs.__path__.append(FOLDER)``.
"""

from __future__ import annotations

import importlib
import pkgutil

import typer

from harness.cli import verbs

ORDER = (
    *("list", "plan", "run", "worker", "submit", "status", "tune", "report", "open", "compare", "gate", "reference"),
    *("reproduce", "map", "explore", "pilot", "link", "probe", "exec", "calibrate", "profile", "image", "doctor"),
    "clean",
)
"""Verbs as help lists them: in the order in which one needs them. Others follow."""


def make_app() -> typer.Typer:
    """The app with all verbs that are found."""
    app = typer.Typer(
        name="pacbench",
        help="Would gradient compression make my training faster on my network, and does it keep the accuracy?",
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    for name in names():
        module = importlib.import_module(f"{verbs.__name__}.{name}")
        app.command(name, context_settings=getattr(module, "SETTINGS", None))(module.verb)
    return app


def names() -> list[str]:
    """The names of all verbs, in the order of help."""
    found = {module.name for module in pkgutil.iter_modules(verbs.__path__)}
    return [name for name in ORDER if name in found] + sorted(found.difference(ORDER))
