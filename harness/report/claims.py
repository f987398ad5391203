"""What became of claims, in words: a page for readers, a file for programs, rows for a terminal."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.analysis.claims.judgements import VERDICTS, Judgement, Part, families, named
from harness.analysis.claims.schema import Claim
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
                "by_device": [_part_as_json(part) for part in judgement.parts],
                "reason": judgement.reason,
                "decides": judgement.decides,
                "explanation": judgement.explanation,
                "origins": list(judgement.origins),
            }
            for judgement in judgements
        ],
    }


def _part_as_json(part: Part) -> dict[str, Any]:
    """What became of a claim with one share of the device."""
    told = {"device": part.device, "verdict": part.verdict, "found": part.found and part.found._asdict()}
    return {**told, "reason": part.reason, "decides": part.decides}


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
    rows = [[*cells(each).values(), why(each)] for each in own]
    origins = dict.fromkeys(origin for each in own for origin in each.origins)
    return [
        *("", f"> {markdown(claim.wording)}", "", markdown(f"{claim.source}, {claim.place}. {claim.note}"), ""),
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


def why(judgement: Judgement) -> str:
    """The reason, what would decide it, and what the bytes alone allow."""
    decides = f"What would decide it: {judgement.decides}. " if judgement.decides else ""
    return f"{judgement.reason}. {decides}{judgement.explanation}".strip()


def cells(judgement: Judgement) -> dict[str, str]:
    """A row of a table: column -> text."""
    claim = judgement.claim
    return {
        "model": ", ".join(claim.model),
        "link": links(claim),
        "method": ", ".join(claim.method),
        "over": claim.baseline,
        "of": quantity(claim),
        "claimed": claimed(claim),
        "found": found(judgement),
        "verdict": judgement.verdict,
    }


def links(claim: Claim) -> str:
    """The rates of its links."""
    return ", ".join("unshaped" if bps is None else format_rate(bps) for bps in claim.rate_bps)


def quantity(claim: Claim) -> str:
    """What is claimed, in words."""
    if claim.quantity == "trend":
        return f"trend: {claim.of} {claim.direction} along {claim.axis}"
    if claim.quantity == "share":
        return f"share of cases with a gain in {claim.of}"
    if claim.quantity == "ablation":
        return f"share of the gain in {claim.of} that goes with what {claim.without} lacks"
    if claim.quantity == "accuracy":
        return "accuracy, points lost"
    return f"{claim.quantity} of a gradient" if claim.counted == "gradient" else claim.quantity


def claimed(claim: Claim) -> str:
    """The claimed range: ``1.25 to 8.72``, ``from 1 on``, ``at most 2``."""
    low, high = claim.claimed
    if math.isinf(high):
        return f"from {low:g} on"
    return f"at most {high:g}" if math.isinf(low) else f"{low:g} to {high:g}"


def found(judgement: Judgement) -> str:
    """The figure with its interval, for each share of the device where there are several."""
    if len(judgement.parts) < 2:
        return text.times_better(judgement.found)
    return "; ".join(f"{named(part.device)}: {text.times_better(part.found)}" for part in judgement.parts)
