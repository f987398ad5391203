"""Units: what is written is read back, and a number without a unit is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.units import (
    format_rate,
    format_size,
    format_time,
    parse_rate_bps,
    parse_share,
    parse_size_bytes,
    parse_time_s,
)


@pytest.mark.parametrize(
    ("text", "rate_bps"),
    [("100mbit", 10**8), ("1.5 Gbit/s", 1_500_000_000), ("64kbit", 64_000), ("5 MBIT", 5_000_000), ("12bit", 12)],
)
def test_rates_are_decimal_bits_per_second(text: str, rate_bps: int) -> None:
    assert parse_rate_bps(text) == rate_bps


@pytest.mark.parametrize(("text", "size"), [("25MB", 25_000_000), ("64KiB", 65_536), ("1.5kB", 1500), ("7B", 7)])
def test_sizes_know_both_kb_and_kib(text: str, size: int) -> None:
    assert parse_size_bytes(text) == size


@pytest.mark.parametrize(("text", "time_s"), [("20ms", 0.02), ("3min", 180), ("2h", 7200), ("50us", 5e-5), ("0s", 0)])
def test_times(text: str, time_s: float) -> None:
    assert parse_time_s(text) == pytest.approx(time_s)


@pytest.mark.parametrize("text", ["100", "", "mbit", "-5mbit", "100 mbps", "100mbit extra", 100, None, True, "nanmbit"])
def test_what_is_no_rate_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="mbit"):
        parse_rate_bps(text)


@pytest.mark.parametrize("parse", [parse_size_bytes, parse_time_s, parse_share])
@pytest.mark.parametrize("text", ["5ms/s", "25MB/s", "10min/s", "5%/s"])
def test_only_rates_are_per_second(parse: Callable[[object], object], text: str) -> None:
    with pytest.raises(ValueError, match="such as"):
        parse(text)


def test_zero_is_no_rate_and_no_size() -> None:
    with pytest.raises(ValueError, match="above zero"):
        parse_rate_bps("0mbit")
    with pytest.raises(ValueError, match="above zero"):
        parse_size_bytes("0B")


@given(st.integers(1, 10**13))
def test_every_rate_survives_being_written_with_its_unit(rate_bps: int) -> None:
    assert parse_rate_bps(f"{rate_bps}bit") == rate_bps


@given(st.floats(0, 1e9, allow_nan=False))
def test_every_time_survives_being_written_with_its_unit(time_s: float) -> None:
    assert parse_time_s(f"{time_s!r}s") == time_s


def test_people_read_three_digits_and_a_unit() -> None:
    assert format_rate(1e8) == "100 Mbit/s"
    assert format_rate(2.5e9) == "2.5 Gbit/s"
    assert format_size(2_455_356) == "2.46 MB"
    assert format_time(0.0123) == "12.3 ms"
    assert format_time(125) == "2 min 5 s"
    assert format_time(7260) == "2 h 1 min"
    assert format_time(0) == "0 µs"
