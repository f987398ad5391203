"""The errors a user may meet. Each is one line that names what was found and what is allowed, and has an exit code."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from harness.plain import visible

MOST_SHOWN = 200
"""Signs of what was found that an error shows."""


def short_repr(found: object) -> str:
    """What was found, as Python writes it; of what is very long the beginning."""
    try:
        shown = repr(found)
    except ValueError:  # a whole number of thousands of digits
        return "a number that is too long to be shown"
    return shown if len(shown) <= MOST_SHOWN else f"{shown[:MOST_SHOWN]}..."


def in_one_line(error: BaseException) -> str:
    """What an error of somebody else's says: its first line, or its kind where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


class PacbenchError(Exception):
    """Base of all errors that end a command with one clear line."""

    exit_code: ClassVar[int] = 5

    def __str__(self) -> str:
        """One line, whatever was found."""
        return visible(super().__str__())


class UsageError(PacbenchError):
    """Something the user gave cannot be used as it is. Nothing was started."""

    exit_code = 2

    @classmethod
    def at(cls, where: Path | str, field: str, found: object, allowed: str) -> UsageError:
        """An error in a field of a file or command line: where it stands, what it holds, what it may hold."""
        return cls(f"{where}: {field}: found {short_repr(found)}; allowed: {allowed}")


class MeasurementError(PacbenchError):
    """Nothing could be measured, or what was measured cannot be trusted."""

    exit_code = 5


EXIT_REGRESSION = 3
"""A gate or a comparison found something that is slower than it may be."""

EXIT_INCONCLUSIVE = 4
"""Neither can be said: too few rounds, or too much noise."""
