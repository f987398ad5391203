"""What became of one claim, in words: what was claimed, what was found, why it has its verdict."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from harness.analysis.claims.judgements import VERDICTS, Judgement, Part, named
from harness.analysis.claims.one_piece import OnePiece
from harness.analysis.claims.schema import Claim, Quantity
from harness.report import text
from harness.units import format_rate


def sentence(own: Sequence[Judgement]) -> str:
    """For example ``of 12, 8 reproduced, 4 inconclusive``."""
    counts = Counter(judgement.verdict for judgement in own)
    return f"of {len(own)}, " + ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if verdict in counts)


def why(judgement: Judgement) -> str:
    """What was found, in plain words; what follows from it; what would decide it; and what the bytes alone allow."""
    reason = judgement.reason[:1].upper() + judgement.reason[1:]
    return f"{_told(judgement)}{reason}. {more(judgement)}".strip()


def more(judgement: Judgement) -> str:
    """What would decide it, and what the bytes alone allow."""
    decides = f"What would decide it: {judgement.decides}. " if judgement.decides else ""
    beside = " ".join(_in_one_piece(judgement.claim, each) for each in judgement.in_one_piece)
    return f"{decides}{judgement.explanation} {beside}".strip()


def _in_one_piece(claim: Claim, beside: OnePiece) -> str:
    """What was measured beside the product, where, and whether both say the same."""
    device = f" ({named(beside.device)})" if len(claim.devices) > 1 else ""
    if beside.problem:
        return f"In one piece{device}: {beside.problem}."
    if beside.found is None:
        return ""
    told = (
        f"In one piece{device}: {beside.model}, really trained, was {text.times_better(beside.found)} times as soon at "
        f"the target (seeds: {beside.found.n}). There a dense step communicates {beside.ratio:.3g} times as long as it "
        f"computes; in this claim's case {beside.claimed_ratio:.3g} times."
    )
    over = text.times_better(beside.over_product)
    if beside.answer == "the same":
        return f"{told} The product of the same seeds says the same ({over} times as much)."
    if beside.answer == "differs":
        return f"{told} That is {over} times what the product of the same seeds says: {_factors(beside)}."
    return f"{told} Whether the product of the same seeds says the same cannot be told ({over} times as much)."


def _factors(beside: OnePiece) -> str:
    """Why it is not what the product says."""
    steps = ", ".join(f"{count} of {label}" for label, count in beside.warm_up.items())
    before = f" ({steps})" if steps else ""
    return (
        f"{beside.steady_over_replay:.2f} times by the steady state, which is a smaller model's; "
        f"{beside.beyond_steady:.2f} times by steps before it{before}"
    )


TOLD: dict[Quantity, str] = {
    "throughput": "{method} was {found} times as fast as {baseline}",
    "time to accuracy": "{method} was {found} times as soon at the target as {baseline}",
    "bytes": "{method} sent {found} times fewer bytes than {baseline}",
    "communication time": "{method} waited {found} times less for its links than {baseline}",
    "accuracy": "{method} lost {found} points to {baseline}",
    "share": "Of models and methods, all strengths of one together, a share of {found} was better than {baseline}, "
    "open ones counted by halves",
    "trend": "The weakest step along the axis changed the gain over {baseline} by a factor of {found}",
    "ablation": "A share of {found} of the gain over {baseline} goes with that part",
}

TOLD_OF_GRADIENTS = "One worker's gradient by {method} takes {found} times fewer bytes than by {baseline}"


def _told(judgement: Judgement) -> str:
    """What was found, in words."""
    if not judgement.estimates:
        return ""
    claim, parts = judgement.claim, judgement.parts
    trusted = [part for part in parts if part.found and part.is_trusted]
    of_devices = [f"{text.times_better(part.found)} ({named(part.device)})" for part in trusted]
    figures = ", ".join(of_devices) if len(parts) > 1 else text.times_better(judgement.found)
    told = (TOLD_OF_GRADIENTS if claim.counted == "gradient" else TOLD[claim.quantity]).format(
        method=", ".join(claim.method), found=figures, baseline=claim.baseline
    )
    return f"{told}. "


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
    parts = judgement.parts
    if not any(part.found for part in parts):
        return text.times_better(judgement.found)
    if len(parts) == 1:
        return _figure(parts[0])
    return "; ".join(f"{named(part.device)}: {_figure(part)}" for part in parts)


def _figure(part: Part) -> str:
    spoilt = ", not to be trusted" if part.found and not part.is_trusted else ""
    return text.times_better(part.found) + spoilt
