"""Rates, sizes and times as people write them, and back. A number without a unit is refused: it would be a guess.

Rates are decimal bits per second, named as tc(8) names them. Sizes know both kB (1000) and KiB (1024).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import BeforeValidator, Field, PlainSerializer

RATE_UNITS = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9, "tbit": 1e12}
SIZE_UNITS = {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 1024.0, "mib": 1024.0**2, "gib": 1024.0**3}
TIME_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}


def parse_rate_bps(text: object) -> int:
    """Bits per second of, for example, ``"100mbit"`` or ``"1.5 Gbit/s"``.

    Raises:
        ValueError: not a positive number followed by a unit of rate.
    """
    expected = "a rate such as '100mbit' (units: bit, kbit, mbit, gbit, tbit, all per second)"
    rate = _parse(text, RATE_UNITS, expected, behind="(?:/s)?")
    return _positive(round(rate), "a rate above zero, such as '100mbit'")


def parse_size_bytes(text: object) -> int:
    """Bytes of, for example, ``"25MB"`` or ``"64KiB"``.

    Raises:
        ValueError: not a positive number followed by a unit of size.
    """
    size = _parse(text, SIZE_UNITS, "a size such as '25MB' (units: B, kB, MB, GB, KiB, MiB, GiB)")
    return _positive(round(size), "a size above zero, such as '25MB'")


def parse_time_s(text: object) -> float:
    """Seconds of, for example, ``"20ms"`` or ``"3min"``.

    Raises:
        ValueError: not a number >= 0 followed by a unit of time.
    """
    return _parse(text, TIME_UNITS, "a time such as '20ms' (units: us, ms, s, min, h)")


def parse_share(given: object) -> float:
    """A share between 0 and 1 of, for example, ``0.01`` or ``"1%"``.

    Raises:
        ValueError: it is neither.
    """
    expected = "a share from 0 to 1 such as 0.01, or '1%'"
    if isinstance(given, str):
        share = _parse(given, {"%": 1.0}, expected) / 100
    elif isinstance(given, (int, float)) and not isinstance(given, bool):
        share = float(given)
    else:
        raise ValueError(expected)
    if not 0 <= share <= 1:
        raise ValueError(expected)
    return share


def format_rate(rate_bps: float) -> str:
    """``1e8`` -> ``"100 Mbit/s"``."""
    return _scaled(rate_bps, [(1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s"), (1.0, "bit/s")])


def format_size(size_bytes: float) -> str:
    """``2.5e6`` -> ``"2.5 MB"``."""
    return _scaled(size_bytes, [(1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")])


def format_time(time_s: float) -> str:
    """``0.0123`` -> ``"12.3 ms"``; from two minutes on ``"2 min 5 s"``."""
    if 120 <= time_s < math.inf:
        minutes, seconds = divmod(round(time_s), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
    return _scaled(time_s, [(1.0, "s"), (1e-3, "ms"), (1e-6, "µs")])


def _parse(text: object, units: Mapping[str, float], expected: str, behind: str = "") -> float:
    match = re.fullmatch(rf"\s*((?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*([a-z]+?|%){behind}\s*", str(text).lower())
    if not isinstance(text, str) or not match or match[2] not in units:
        raise ValueError(expected)
    value = float(match[1]) * units[match[2]]
    if not math.isfinite(value):
        raise ValueError(expected)
    return value


def _positive(value: int, expected: str) -> int:
    if value <= 0:
        raise ValueError(expected)
    return value


def _scaled(value: float, steps: list[tuple[float, str]]) -> str:
    scale, unit = next(((scale, unit) for scale, unit in steps if abs(value) >= scale), steps[-1])
    return f"{value / scale:.3g} {unit}" if abs(value / scale) < 1000 else f"{value / scale:.0f} {unit}"


RateBps = Annotated[int, BeforeValidator(parse_rate_bps), PlainSerializer(lambda bps: f"{bps}bit"), Field(gt=0)]
"""A field read from text such as ``"100mbit"``, held in bits per second, written back with its unit."""

SizeBytes = Annotated[int, BeforeValidator(parse_size_bytes), PlainSerializer(lambda size: f"{size}B"), Field(gt=0)]
"""A field read from text such as ``"25MB"``, held in bytes, written back with its unit."""

TimeS = Annotated[float, BeforeValidator(parse_time_s), PlainSerializer(lambda time_s: f"{time_s!r}s"), Field(ge=0)]
"""A field read from text such as ``"20ms"``, held in seconds, written back with its unit."""

Share = Annotated[float, BeforeValidator(parse_share)]
"""A field read from a number between 0 and 1, or from text such as ``"1%"``; held as the number."""
