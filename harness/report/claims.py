"""What became of claims, in words: a page for readers, a file for programs, rows for a terminal."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.analysis.judgements import VERDICTS, Judgement, families
from harness.files import make_folder, write_whole
from harness.plain import markdown
from harness.report import text
from harness.units import format_rate


def write(judgements: Sequence[Judgement], folder: Path, provenance: Mapping[str, Any]) -> Path:
    """Write ``claims.md`` and ``claims.json``; returns the former.

    Args:
        provenance: what judged, where, at which commit.
    """
    make_folder(folder)
    content = json.dumps(as_json(judgements, provenance), indent=1, ensure_ascii=False)
    write_whole(folder / "claims.json", content + "\n")
    page = folder / "claims.md"
    write_whole(page, as_markdown(judgements, provenance))
    return page


def as_json(judgements: Sequence[Judgement], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """All of it, for programs."""
    return {
        "provenance": dict(provenance),
        "claims": [
            {
                **judgement.claim.model_dump(mode="json", by_alias=True),
                "verdict": judgement.verdict,
                "found": judgement.found and judgement.found._asdict(),
                "reason": judgement.reason,
                "explanation": judgement.explanation,
                "origins": list(judgement.origins),
            }
            for judgement in judgements
        ],
    }


def as_markdown(judgements: Sequence[Judgement], provenance: Mapping[str, Any]) -> str:
    """A page: what became of each family in one line, then family by family its source, table and explanations."""
    by_family = families(judgements)
    head = f"Judged at commit {provenance.get('commit', 'unknown')}, {provenance.get('started', 'when is unknown')}."
    lines = ["# Claims, judged", "", markdown(head), ""]
    lines += [f"* **{markdown(family)}**: {sentence(own)}" for family, own in by_family.items()]
    for family, own in by_family.items():
        lines += ["", f"## {markdown(family)}", *_section(own)]
    return "\n".join(lines) + "\n"


def _section(own: Sequence[Judgement]) -> list[str]:
    """One family: what its source says, its table, where the figures come from."""
    claim, columns = own[0].claim, [*cells(own[0]), "why"]
    rows = [[*cells(each).values(), f"{each.reason}. {each.explanation}"] for each in own]
    origins = dict.fromkeys(origin for each in own for origin in each.origins)
    return [
        *("", f"> {markdown(claim.wording)}", "", markdown(f"{claim.source}. {claim.note}"), ""),
        f"| {' | '.join(columns)} |",
        f"|{'---|' * len(columns)}",
        *(f"| {' | '.join(map(markdown, row))} |" for row in rows),
        "",
        *(f"* {markdown(origin)}" for origin in origins),
    ]


def sentence(own: Sequence[Judgement]) -> str:
    """For example ``of 12, 8 reproduced, 4 inconclusive``."""
    counts = Counter(judgement.verdict for judgement in own)
    return f"of {len(own)}, " + ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if verdict in counts)


def cells(judgement: Judgement) -> dict[str, str]:
    """A row of a table: column -> text."""
    claim = judgement.claim
    low, high = claim.claimed
    return {
        "model": claim.model,
        "link": format_rate(claim.rate_bps),
        "method": claim.method,
        "over": claim.baseline,
        "of": claim.quantity,
        "claimed": f"{low:g} to {high:g}",
        "found": text.times_better(judgement.found),
        "verdict": judgement.verdict,
    }
