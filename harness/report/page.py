"""The report of a run: one self-contained HTML page, the same as Markdown, and the figures beside them.

Nothing is fetched, the page forbids it to itself; it can be read without its one script, which sorts tables. Whatever
a trial or a log says is escaped.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from harness.record.row import TrialRow, meanings
from harness.record.store import Store
from harness.report import facts
from harness.report.facts import SPARK_HEIGHT, SPARK_WIDTH
from harness.report.figures import registry, render
from harness.report.figures.registry import Draws, Results
from harness.report.rendering import TEMPLATES, render_html, render_markdown


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
    drawings = render.write_all(store.folder / "plots", results, chosen)
    content = {**vars(found), **_parts_of_every_report(), "drawings": drawings}
    render_markdown(store.folder / "report.md", content)
    return render_html(store.folder / "report.html", content)


def _parts_of_every_report() -> dict[str, Any]:
    """What its templates use beside facts and figures."""
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    return {
        "meanings": meanings(TrialRow),
        "script": Markup(script),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "spark_width": SPARK_WIDTH,
        "spark_height": SPARK_HEIGHT,
    }
