"""Pages and Markdown by the templates of ``templates/``: whatever a trial, a log or a command says is escaped.

Nothing of a run is known here, and nothing is imported that only a run needs: torch would take seconds.
"""

from __future__ import annotations

import base64
import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from harness import plain
from harness.files import write_whole
from harness.report import text
from harness.report.text import NOTHING
from harness.units import format_rate

TEMPLATES = Path(__file__).parent / "templates"


def render_html(page: Path, content: Mapping[str, Any]) -> Path:
    """Write a page by the template of its name. Returns the page."""
    return render_named(page.name, page, content)


def render_named(template: str, page: Path, content: Mapping[str, Any]) -> Path:
    """Write a page, whatever its name, by a template. Returns the page."""
    return _render(_environment(plain.visible, autoescape=True), template, page, content)


def render_markdown(page: Path, content: Mapping[str, Any]) -> Path:
    """Likewise."""
    return _render(_environment(plain.markdown, autoescape=False), page.name, page, content)


def _render(environment: jinja2.Environment, template: str, page: Path, content: Mapping[str, Any]) -> Path:
    found = environment.get_template(f"{template}.j2")
    write_whole(page, found.render(content), sync=False)
    return page


@cache  # it keeps templates that it has compiled: that takes as long as a page
def _environment(as_text: Callable[[str], str], autoescape: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_escaped_by(as_text),
        autoescape=autoescape,
    )
    environment.filters |= {
        "base64": lambda text: base64.b64encode(text.encode()).decode(),
        "code_block": lambda text: Markup("\n".join(f"    {line}" for line in plain.visible_lines(text).split("\n"))),
        "difference": text.difference,
        "final_range": text.final_range,
        "fixed": text.fixed,
        "isolated": _isolated,
        "known": lambda value, otherwise: otherwise if pd.isna(value) else value,
        "lines": lambda text: escape(plain.visible_lines(text)),
        "measured_rate": lambda rate_bps: NOTHING if pd.isna(rate_bps) else format_rate(rate_bps),
        "ms": lambda seconds: text.fixed(1e3 * seconds, 2),
        "percent": text.percent,
        "rate": lambda rate_bps: format_rate(rate_bps) if rate_bps else "unshaped",
        "prose": plain.prose,
        "ratio": text.ratio,
        "reached": text.reached,
        "size": text.size,
        "sort_key": _sort_key,
        "time": text.time,
    }
    return environment


def _sort_key(value: float | None) -> str:
    """What the page sorts by; what is not known sorts last."""
    return f"{value:.6g}" if value is not None and math.isfinite(value) else ""


def _escaped_by(escape: Callable[[str], str]) -> Callable[[object], object]:
    """What becomes of every expression in a template; ``Markup`` is left as it is."""
    return lambda value: value if isinstance(value, Markup) else escape(str(value))


def _isolated(sentence: str, names: Sequence[str]) -> Markup:
    """For HTML: a name from right to left turns nothing round but itself."""
    shown = str(escape(plain.visible(sentence)))
    turning = [str(escape(plain.visible(name))) for name in names if any(map(_turns, name))]
    for name in sorted(set(turning), key=len, reverse=True):
        shown = shown.replace(name, f"<bdi>{name}</bdi>")
    return Markup(shown)


def _turns(sign: str) -> bool:
    return unicodedata.bidirectional(sign) in ("R", "AL", "AN")
