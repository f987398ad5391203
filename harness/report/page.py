"""The report of a run: one self-contained HTML page, the same as Markdown, and the figures beside them.

Nothing is fetched, the page forbids it to itself; it can be read without its one script, which sorts tables. Whatever
a trial or a log says is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import math
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from harness import plain
from harness.record.row import TrialRow, meanings
from harness.record.store import Store
from harness.report import facts, text
from harness.report.facts import SPARK_HEIGHT, SPARK_WIDTH
from harness.report.figures import registry, render
from harness.report.figures.registry import Draws, Results
from harness.report.text import NOTHING
from harness.units import format_rate

TEMPLATES = Path(__file__).parent / "templates"


def write(store: Store, figures: Sequence[Draws] | None = None) -> Path:
    """Write ``report.html``, ``report.md`` and ``plots/`` into the run's folder; returns the page.

    Args:
        figures: those to draw and show, in order; default: all that there are.

    Raises:
        MeasurementError: no trial finished.
        UsageError: a file of the run is damaged.
    """
    found = facts.collect(store)
    results = Results.of(found.cases, found.events, found.scenario)
    chosen = registry.figures() if figures is None else figures
    content = {**vars(found), "drawings": render.write_all(store.folder / "plots", results, chosen)}
    _render(store.folder / "report.md", content, finalize=_escaped_by(plain.markdown))
    return render_html(store.folder / "report.html", content)


def render_html(page: Path, content: dict[str, Any]) -> Path:
    """Write a page by the template of its name; whatever the content says is escaped. Returns the page."""
    return _render(page, content, finalize=_escaped_by(plain.visible), autoescape=True)


def _render(page: Path, content: dict[str, Any], **how_to_escape: Any) -> Path:
    template = _environment(**how_to_escape).get_template(f"{page.name}.j2")
    page.write_text(template.render(content), encoding="utf-8")
    return page


def _environment(**how_to_escape: Any) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **how_to_escape,
    )
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    environment.globals |= {
        "meanings": meanings(TrialRow),
        "script": Markup(script),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "spark_width": SPARK_WIDTH,
        "spark_height": SPARK_HEIGHT,
    }
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
