"""What became of claims, as a page for readers, the same as Markdown, and a file for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.analysis.claims.judgements import VERDICTS, Judgement, Part, Verdict, families
from harness.analysis.claims.one_piece import OnePiece
from harness.analysis.claims.summary import papers
from harness.files import make_folder, write_whole
from harness.plain import markdown
from harness.provenance import made_by
from harness.report import citing, text
from harness.report.claims import cells, more, sentence, why
from harness.report.figures.registry import Drawing
from harness.report.rendering import render_html

MARKS: dict[Verdict, str] = {
    "reproduced": "●",
    "exceeded": "▲",
    "not reproduced": "✖",
    "inconclusive": "■",
    "source inconsistent": "≠",
    "not testable here": "–",
}
"""A sign for each verdict, as in the figures: so that none needs its colour."""


def write(
    judgements: Sequence[Judgement], folder: Path, provenance: Mapping[str, Any], drawings: Sequence[Drawing] = ()
) -> Path:
    """Write ``claims.html``, ``claims.md`` and ``claims.json``; returns the page.

    Args:
        provenance: what judged, where, at which commit.
        drawings: the figures to show, whose files are in the folder.
    """
    make_folder(folder)
    content = json.dumps(as_json(judgements, provenance), indent=1, ensure_ascii=False)
    write_whole(folder / "claims.json", content + "\n")
    write_whole(folder / "claims.md", as_markdown(judgements, provenance, drawings))
    return render_html(folder / "claims.html", _content(judgements, provenance, drawings))


def _content(
    judgements: Sequence[Judgement], provenance: Mapping[str, Any], drawings: Sequence[Drawing]
) -> dict[str, Any]:
    """What the page's template shows."""
    of_papers = papers(judgements)
    return {
        "citable": citing.citable(next(iter(of_papers.values()))),
        "first_source": next(iter(of_papers)),
        "gaps": citing.gaps(judgements),
        "differing": differing(provenance),
        "scripted": text.SCRIPTED if citing.is_scripted(judgements) else "",
        "all_in_all": {name: count for name, count in citing.tally(judgements).items() if count and name in VERDICTS},
        "verdicts": VERDICTS,
        "marks": MARKS,
        "tallies": {source: citing.tally(own) for source, own in of_papers.items()},
        "papers": {source: [_family(each) for each in families(own).values()] for source, own in of_papers.items()},
        "sentences": {source: citing.citable(own) for source, own in list(of_papers.items())[1:]},
        "drawings": drawings,
        "drawing_folder": "",
        "made_by": made_by([provenance]),
        "provenance": text.flat(dict(provenance)),
        "meanings": {},
    }


def differing(provenance: Mapping[str, Any]) -> list[str]:
    """A sentence for each run that is not of the scenario as it comes with pacbench, if any was judged."""
    differs: Mapping[str, str] = provenance.get("differs", {})
    return [f"{run} was run with other settings than the scenario comes with: {told}." for run, told in differs.items()]


def _family(own: Sequence[Judgement]) -> dict[str, Any]:
    rows = [cells(each) for each in own]
    shown = [name for name in WHERE if name in ("model", "link") or len({row[name] for row in rows}) > 1]
    return {
        "claim": own[0].claim,
        "same": [rows[0][name] for name in WHERE if name not in shown],
        "sentence": sentence(own),
        "columns": shown,
        "rows": [{"cells": row, "judgement": each, "more": more(each)} for row, each in zip(rows, own, strict=True)],
        "origins": list(dict.fromkeys(origin for each in own for origin in each.origins)),
    }


WHERE = ("model", "link", "method", "over", "of")
"""The columns that tell one claim of a family from another."""


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
                "in_one_piece": [_one_piece_as_json(each) for each in judgement.in_one_piece],
                "origins": list(judgement.origins),
            }
            for judgement in judgements
        ],
    }


def _part_as_json(part: Part) -> dict[str, Any]:
    """What became of a claim with one share of the device."""
    told = {"device": part.device, "verdict": part.verdict, "found": part.found and part.found._asdict()}
    return {**told, "reason": part.reason, "decides": part.decides}


def _one_piece_as_json(beside: OnePiece) -> dict[str, Any]:
    """What was measured beside a product."""
    told = {
        "device": beside.device,
        "model": beside.model,
        "communication_over_computation": beside.ratio,
        "claimed_communication_over_computation": beside.claimed_ratio,
        "warm_up_steps": dict(beside.warm_up),
        "found": beside.found and beside.found._asdict(),
        "problem": beside.problem,
        "over_product": beside.over_product and beside.over_product._asdict(),
        "steady_over_replay": beside.steady_over_replay,
        "beyond_steady": beside.beyond_steady,
    }
    return {**told, "answer": beside.answer}


def as_markdown(
    judgements: Sequence[Judgement], provenance: Mapping[str, Any], drawings: Sequence[Drawing] = ()
) -> str:
    """A page: what can be cited, what is missing, figures, a line a family; then each with its table and reasons."""
    by_family = families(judgements)
    head = f"Judged by {made_by([provenance])}, {provenance.get('started', 'when is unknown')}."
    lines = ["# Claims, judged", "", markdown(head), ""]
    if runs := provenance.get("runs"):
        lines += ["Runs:", "", *(f"* {markdown(name)}: {markdown(told)}" for name, told in runs.items()), ""]
    lines += [f"> {markdown(each)}\n" for own in papers(judgements).values() for each in citing.citable(own)]
    lines += [f"**{markdown(each)}**\n" for each in differing(provenance)]
    lines += [f"**{markdown(gap)}**\n" for gap in [citing.gaps(judgements)] if gap]
    lines += [f"![{markdown(drawing.title)}]({drawing.name}.png)\n" for drawing in drawings]
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
