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
from harness.report.facts import SPARK_HEIGHT, SPARK_WIDTH, Facts
from harness.report.figures import registry, render
from harness.report.figures.registry import Draws, Results
from harness.report.rendering import TEMPLATES, render_html, render_markdown

DERIVED = {
    "case": "Links, workers and workload",
    "finished": "Trials that finished, of those that were run",
    "reached": "Median training time to the target over the rounds; one that missed it counts as slowest",
    "sooner": "Geometric mean of this baseline's time to the target over the method's, paired by round, with its 95 % "
    "interval",
    "faster": "Geometric mean of the method's samples/s over this baseline's, paired by round, with its 95 % interval",
    "final": "The metric after the last step: mean over the rounds, and the extremes",
    "difference": "The final metric less the baseline's, mean over pairs of one seed, with its interval at all looks",
    "seeds": "Seeds that both trained",
    "keeps": "Whether the whole interval of the difference is within the tolerance",
    "pays": "The rates of the links at which its step is shorter, by the byte model",
    "pays_in_rounds": "The least and the greatest of these limits by single rounds",
    "extra": "What a step takes longer than the baseline's beside its bytes",
    "saved": "What a step sends less than the baseline's on the busiest link, headers included",
    "headers": "What packet headers of a step take on the link",
    "over_bound": "The step over the longer of its computation and its payload on the link: 1 is the best there can be",
    "over_serial": "The step over its parts one after another: below 1, some of them overlap",
    "over_predicted": "The measured step over the predicted one",
    "over_formula": "Payload that the kernel counted, over what the method's formula says",
    "saving": "The baseline's payload over the method's",
    "codec_share": "What the codec takes, as a share of the step",
    "over_asked": "The least and the greatest rate that was measured, over what was asked",
    "verifications": "How often the links were measured",
    "trials_on_links": "Trials that ran on these links",
    "measured_after": "Of them, those after which the links were measured again",
}
"""What columns mean that no column of trials has by itself."""


def write(store: Store, figures: Sequence[Draws] | None = None) -> Path:
    """Write ``report.html``, ``report.md`` and ``plots/`` into the run's folder; returns the page.

    Args:
        figures: those to draw and show, in order; default: all that there are.

    Raises:
        MeasurementError: no trial finished.
        UsageError: a file of the run is damaged.
    """
    return show(facts.collect(store), store.folder, figures)


def show(found: Facts, folder: Path, figures: Sequence[Draws] | None = None) -> Path:
    """The same, of facts that have been collected."""
    results = Results.of(found.cases, found.events, found.scenario)
    chosen = registry.figures() if figures is None else figures
    drawings = render.write_all(folder / "plots", results, chosen)
    content = {**vars(found), **_parts_of_every_report(), "drawings": drawings}
    render_markdown(folder / "report.md", content)
    return render_html(folder / "report.html", content)


def _parts_of_every_report() -> dict[str, Any]:
    """What its templates use beside facts and figures."""
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    return {
        "meanings": {**meanings(TrialRow), **DERIVED},
        "script": Markup(script),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "spark_width": SPARK_WIDTH,
        "spark_height": SPARK_HEIGHT,
    }
