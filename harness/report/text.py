"""How figures are said, in every output alike: ratios and differences with their intervals, times, sizes, verdicts."""

from __future__ import annotations

import math
import shlex
from typing import TYPE_CHECKING, Any

from harness.scenario.target import Metric
from harness.units import format_size, format_time

if TYPE_CHECKING:
    from harness.analysis.cases import CaseResult
    from harness.analysis.estimates import Estimate, Spread
    from harness.analysis.methods import MethodResult
    from harness.analysis.quality import Quality
    from harness.analysis.targets import TimeToTarget

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


def multiple(estimate: Estimate | None) -> str:
    """``4.10x``, without its interval and always with two decimals."""
    return f"{estimate.value:.2f}x" if estimate else NOTHING


def times_better(estimate: Estimate | None) -> str:
    """``4.10 [3.80, 4.40]``, where a heading says what it is."""
    if estimate is None:
        return NOTHING
    interval = f" [{estimate.low:.2f}, {estimate.high:.2f}]" if estimate.low is not None else ""
    return f"{estimate.value:.2f}{interval}"


def points(difference: Estimate | None) -> str:
    """A difference of shares in percentage points: ``-0.4 points [-1.1, +0.3]``."""
    return _signed_estimate(difference, "points")


def difference(quality: Quality) -> str:
    """The final metric's difference to the baseline's: accuracies in points, losses and perplexities in percent."""
    return _signed_estimate(quality.difference, "points" if quality.metric == "accuracy" else "%")


def slowdown(found: tuple[float, float | None, float | None] | None) -> str:
    """A share by which steps take longer, and the ends of its interval: ``+1.2 % [-0.6, +3.0]``."""
    return NOTHING if found is None else _signed(*found, "%")


def _signed_estimate(found: Estimate | None, unit: str) -> str:
    return NOTHING if found is None else _signed(found.value, found.low, found.high, unit)


def _signed(value: float, low: float | None, high: float | None, unit: str) -> str:
    interval = "" if low is None or high is None else f" [{100 * low:+.1f}, {100 * high:+.1f}]"
    return f"{100 * value:+.1f} {unit}{interval}"


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


def flat(entry: dict[str, Any]) -> dict[str, str]:
    """Nested entries as ``outer.inner``, the command as a shell would take it."""
    found: dict[str, str] = {}
    for key, value in entry.items():
        if isinstance(value, dict):
            found |= {f"{key}.{inner}": text for inner, text in flat(value).items()}
        else:
            found[key] = shlex.join(value) if key == "command" and isinstance(value, list) else str(value)
    return found
