"""Options that put something into a command's scripts, and what they mean together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.errors import UsageError
from harness.plain import UTF_8, is_utf_8

if TYPE_CHECKING:
    from harness.attach import Attachment

Method = Annotated[str | None, typer.Option(help="Put a method, maybe FILE.py:NAME, between DDP and its optimizer.")]
Params = Annotated[
    list[str] | None, typer.Option("--param", metavar="KEY=VALUE", help="A parameter of the method: density=0.2.")
]
Observe = Annotated[
    bool, typer.Option("--observe", help="Record each step's phases, loss and bytes; --method does so, too.")
]
Seed = Annotated[int | None, typer.Option(help="Seed torch, numpy and random before the first line.")]
Steps = Annotated[int | None, typer.Option(help="End it in good order after so many steps of its optimizer.")]
Metric = Annotated[
    str | None, typer.Option(metavar="PATTERN", help="Find a metric in what rank 0 prints: 'acc: ([0-9.]+)'.")
]


def attachment(
    method: str | None,
    params: Sequence[str] | None,
    observe: bool,
    seed: int | None,
    steps: int | None,
    metric: str | None,
    folder: Path,
) -> Attachment:
    """What these options ask for.

    Args:
        folder: where the path of a plug-in starts.

    Raises:
        UsageError: parameters have no method, a number is out of range, or a pattern has no group.
    """
    from pydantic import ValidationError

    from harness.attach import Attachment
    from harness.plugins import anchored
    from harness.scenario.section import allowed

    if params and method is None:
        raise UsageError.at("command line", "--param", params[0], "with --method alone")
    try:
        return Attachment(
            method=anchored(method, folder),
            params=dict(map(_parameter, params or ())),
            observe=observe or method is not None,
            seed=seed,
            steps=steps,
            metric=metric,
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError.at("command line", f"--{first['loc'][0]}", first["input"], allowed(first)) from None


def _parameter(given: str) -> tuple[str, object]:
    from harness.scenario.load import value_of

    if not is_utf_8(given):
        raise UsageError.at("command line", "--param", given, UTF_8)
    key, equals, text = given.partition("=")
    if not equals or not key.strip():
        raise UsageError.at("command line", "--param", given, "KEY=VALUE, such as density=0.2")
    return key.strip(), value_of(text)
