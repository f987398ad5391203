"""What verifications found of the links that trials ran on."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pandas as pd

from harness.analysis.cases import CaseResult
from harness.report.text import NOTHING


@dataclass(frozen=True)
class Verification:
    """What one verification of the links found, and how many trials ran on them before the next one."""

    links: list[dict[str, Any]]
    """A row a worker and direction: ``worker``, ``direction``, ``rate_bps_asked``, ``rate_bps_measured``."""
    rtt_s: float
    trials: int
    when: str = "before"
    """Whether it was taken before or after those trials."""
    drift: str | None = None

    @property
    def lost(self) -> list[str]:
        """Where packets are lost on purpose: asked and counted, in words."""
        return [
            f"{link['link']} {link['direction']}: {link['loss_asked']:.3%} asked, "
            f"{counts['lost'] / counts['sent']:.3%} of {counts['sent']} counted"
            for link in self.links
            if (counts := link.get("counts"))
        ]


@dataclass(frozen=True)
class VerifiedLinks:
    """All verifications of a case's links."""

    case: str
    asked_bps: float | None
    verifications: list[Verification]

    @property
    def low_bps(self) -> float:
        """The slowest direction of any link."""
        return min(self._measured_bps)

    @property
    def high_bps(self) -> float:
        """The fastest direction of any link."""
        return max(self._measured_bps)

    @property
    def _measured_bps(self) -> list[float]:
        return [link["rate_bps_measured"] for each in self.verifications for link in each.links]

    @property
    def ratio_range(self) -> str:
        """Measured over asked, least to greatest."""
        ratios = [
            link["rate_bps_measured"] / link["rate_bps_asked"]
            for each in self.verifications
            for link in each.links
            if link["rate_bps_asked"]
        ]
        return f"{min(ratios):.3f}–{max(ratios):.3f}" if ratios else NOTHING

    @property
    def rtt_s(self) -> float:
        """The median over the verifications."""
        return statistics.median(each.rtt_s for each in self.verifications)

    @property
    def trials(self) -> int:
        """How many trials ran on these links."""
        return sum(each.trials for each in self.verifications if each.when == "before")

    @property
    def trials_after(self) -> int:
        """How many of them have links that were measured again afterwards."""
        return sum(each.trials for each in self.verifications if each.when == "after")


def verified_links(case: CaseResult) -> VerifiedLinks:
    """Each verification once: trials that follow one another on the same links share it."""
    seen = Counter(zip(case.trials["links"], case.trials["measured_rtt_s"], strict=True))
    verifications = [
        Verification(json.loads(links), rtt_s, trials) for (links, rtt_s), trials in seen.items() if not pd.isna(links)
    ]
    after = Counter(zip(case.trials["verified_after"], case.trials["drift"], strict=True))
    for (verified, drift), trials in after.items():
        if not pd.isna(verified):
            found = json.loads(verified)
            verifications.append(
                Verification(found["links"], statistics.median(found["rtt_s"]), trials, "after", drift)
            )
    return VerifiedLinks(case.title, case.rate_bps, verifications)
