"""The explorer as a page: sliders, and what each method's step is predicted to take there, computed in the page."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from harness import plain, provenance
from harness.report.rendering import TEMPLATES, render_named

SCRIPTS = ("step_model.js", "explorer.js")

RATES, RTTS = (120, 220), (-101, -10)
"""The ends of sliders, in twentieths of a decade of bits a second, and of seconds; the lowest round trip is none."""


class Places(NamedTuple):
    """Where sliders stand at first."""

    rate: int = 180
    rtt: int = -80
    workers: int = 2
    """Which of the numbers of workers that there may be."""


def nearest(told: Mapping[str, Any], rate_bps: float | None, rtt_s: float, workers: int) -> Places:
    """The places that come closest to a network; one that is unshaped has the fastest links."""
    rate = RATES[1] if rate_bps is None else _twentieths(rate_bps, *RATES)
    rtt = _twentieths(rtt_s, RTTS[0] + 1, RTTS[1]) if rtt_s else RTTS[0]
    return Places(rate, rtt, told["workers"].index(workers))


def _twentieths(value: float, least: int, most: int) -> int:
    return min(most, max(least, round(20 * math.log10(value))))


def write(told: Mapping[str, Any], page: Path) -> Path:
    """Write the page, one file that fetches nothing; returns it.

    Args:
        told: what it computes with (``analysis.explorer.exported``).
    """
    return render_named("explorer.html", page, {**parts(told), "made_by": provenance.made_by([provenance.code()])})


def parts(told: Mapping[str, Any], at: Places | None = None) -> dict[str, Any]:
    """What ``explorer_panel.html.j2`` needs in any page, whose policy must allow the script of this ``script_hash``."""
    code = "".join((TEMPLATES / name).read_text(encoding="utf-8") for name in SCRIPTS)
    script = f"(() => {{\n{code}}})();"  # its names are its own, whatever else runs in the page
    data = json.dumps(_visible(told), separators=(",", ":"), allow_nan=False)
    return {
        "rates": RATES,
        "rtts": RTTS,
        "at": at or Places(),
        "last_workers": len(told["workers"]) - 1,
        "data": Markup(data.replace("<", "\\u003c")),  # text of a profile ends no element
        "script": Markup(script),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }


def _visible(value: Any) -> Any:
    """The same with all text as pages show it: nothing in it turns lines round."""
    if isinstance(value, Mapping):
        return {key: _visible(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_visible(each) for each in value]
    return plain.visible(value) if isinstance(value, str) else value
