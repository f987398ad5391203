"""How figures are said, in every output alike: ratios and differences with their intervals, times, sizes, verdicts."""

from __future__ import annotations

import math

from harness.analysis.stats import CaseResult, Estimate, MethodResult, Quality, Spread, TimeToTarget
from harness.scenario.target import Metric
from harness.units import format_size, format_time

NOTHING = "–"
SCRIPTED = "SCRIPTED, not measured"


def fixed(value: float | None, decimals: int) -> str:
    """So many decimals."""
    return f"{value:.{decimals}f}" if value is not None and math.isfinite(value) else NOTHING


def percent(share: float | None) -> str:
    """``98.4 %``."""
    return f"{100 * share:.1f} %" if share is not None and math.isfinite(share) else NOTHING


def ratio(estimate: Estimate | None) -> str:
    """``4.10x [3.80, 4.40]``, from ten on with one decimal; one round has no interval."""
    if estimate is None:
        return NOTHING
    decimals = 1 if estimate.value >= 10 else 2
    interval = f" [{estimate.low:.{decimals}f}, {estimate.high:.{decimals}f}]" if estimate.low is not None else ""
    return f"{estimate.value:.{decimals}f}x{interval}"


def points(difference: Estimate | None) -> str:
    """A difference of shares in percentage points: ``-0.4 points [-1.1, +0.3]``."""
    return _signed(difference, "points")


def difference(quality: Quality) -> str:
    """Of the final metric to the baseline's: accuracies in points, a loss or a perplexity in percent of it."""
    return _signed(quality.difference, "points" if quality.metric == "accuracy" else "%")


def _signed(found: Estimate | None, unit: str) -> str:
    if found is None:
        return NOTHING
    interval = ""
    if found.low is not None and found.high is not None:
        interval = f" [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    return f"{100 * found.value:+.1f} {unit}{interval}"


def final(value: float | None, metric: Metric) -> str:
    """The last value of a metric: ``98.4 %``, ``0.351``, ``12.3``."""
    return percent(value) if metric == "accuracy" else NOTHING if value is None else f"{value:.3g}"


def final_range(found: Spread | None, metric: Metric) -> str:
    """Mean, least and greatest over the rounds: the least and the greatest in brackets."""
    if not found:
        return NOTHING
    low, high = (final(each, metric).removesuffix(" %") for each in (found.low, found.high))
    return f"{final(found.mean, metric)} ({low}–{high})"


def reached(result: MethodResult, case: CaseResult) -> str:
    """When a method reached the target, and in how many rounds: ``5.4 s (3 of 3)``, ``> 320 steps (1 of 3)``."""
    found = result.time_to_target
    if not found.of:
        return NOTHING
    return f"{when(found, case.steps)} ({found.reached} of {found.of})"


def when(found: TimeToTarget, cap: int) -> str:
    """The median time, or that the cap came first in some round."""
    return format_time(found.median_s) if found.surely and found.median_s is not None else f"> {cap} steps"


def tolerated(tolerance: float, metric: Metric) -> str:
    """``2 points``, or of a loss ``2 %``."""
    return f"{100 * tolerance:g} {'points' if metric == 'accuracy' else '%'}"


def rounds(estimate: Estimate) -> str:
    """How many rounds an estimate is of, and what its interval is."""
    return f"{estimate.n} paired rounds, 95 % t interval" if estimate.n > 1 else "one round, so no interval"


def size(size_bytes: float) -> str:
    """``75.1 kB``."""
    return format_size(size_bytes) if math.isfinite(size_bytes) else NOTHING


def time(time_s: float | None) -> str:
    """``5.4 s``."""
    return format_time(time_s) if time_s is not None and math.isfinite(time_s) else NOTHING
