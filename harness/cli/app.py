"""The app: every file in ``verbs/`` is a verb.

A file ``verbs/NAME.py`` holds a function ``verb``, whose parameters are the arguments and whose docstring is the help.
Its ``SETTINGS``, if it has any, are those of its click context. Nothing is registered by hand. Verbs of another package
join in by its folder: ``verbs.__path__.append(FOLDER)``.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import typer
from typer.core import TyperCommand, TyperOption

from harness.cli import verbs
from harness.errors import UsageError

ORDER = (
    *("list", "plan", "run", "worker", "submit", "status", "tune", "report", "open", "compare", "gate", "reference"),
    *("reproduce", "map", "explore", "pilot", "link", "probe", "exec", "calibrate", "profile", "image", "doctor"),
    "clean",
)
"""Verbs as help lists them: in the order in which one needs them. Others follow."""


class Verb(TyperCommand):
    """A verb. An option whose value is empty, as of a variable that is not set, is not one that was not given."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line.

        Raises:
            UsageError: an option's value is empty.
        """
        if not ctx.resilient_parsing:  # as shells have it that complete a word
            given, _, _ = self.make_parser(ctx).parse_args(args=[*args])
            for option in (each for each in self.params if isinstance(each, TyperOption)):
                values = given.get(option.name)
                if "" in (values if isinstance(values, list) else [values]):
                    raise UsageError.at("command line", max(option.opts, key=len), "", "a value that is not empty")
        return super().parse_args(ctx, args)


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
        app.command(name, cls=Verb, context_settings=getattr(module, "SETTINGS", None))(module.verb)
    return app


def names() -> list[str]:
    """The names of all verbs, in the order of help."""
    found = {module.name for module in pkgutil.iter_modules(verbs.__path__)}
    return [name for name in ORDER if name in found] + sorted(found.difference(ORDER))
