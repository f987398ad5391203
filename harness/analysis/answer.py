"""What a case answers to who asks: how soon is the model as good, over a 16-bit all-reduce?

A method wins if it keeps the baseline's accuracy, reached the target in every round, and did so surely sooner than the
16-bit all-reduce; without such a one in the scenario, than the baseline. Sure is what holds though it may be
the best by luck of all that are as good; one round makes nothing sure. Where nothing was to be reached, throughput is
compared instead, and where nothing was learnt, throughput is all there is. Both are said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from harness.analysis.cases import CaseResult, label_to_beat
from harness.analysis.estimates import Estimate
from harness.analysis.methods import MethodResult
from harness.scenario.schema import Scenario


@dataclass(frozen=True)
class Answer:
    """Who wins a case, over whom, and who is faster without being as good."""

    case: CaseResult
    scenario: Scenario

    @property
    def reference(self) -> str:
        """The label that a method must beat."""
        return label_to_beat([self.case], self.scenario)

    @property
    def learnt(self) -> bool:
        """Whether anything was: a replay only sends."""
        return any(result.final for result in self.case.methods)

    @property
    def rivals(self) -> list[MethodResult]:
        """All methods but the baselines."""
        return [result for result in self.case.methods if result.label not in self.scenario.baselines]

    @property
    def winner(self) -> MethodResult | None:
        """The best of those that are as good and surely beat the reference."""
        return _best([each for each in self.candidates if each[1].surely_exceeds_one(len(self.candidates))])

    @property
    def best(self) -> MethodResult | None:
        """The method that gains most among those that are as good as the baseline, be it little."""
        return _best(self.candidates)

    @cached_property
    def candidates(self) -> list[tuple[MethodResult, Estimate]]:
        """Those that are as good as the baseline, and what each gains."""
        return [(result, gained) for result in self.rivals if self.is_as_good(result) and (gained := self.gain(result))]

    @property
    def fastest_other(self) -> MethodResult | None:
        """The fastest in throughput of those that are not as good, where that is more than the best of the others."""
        rates = {
            result.label: rate.value for result in self.case.methods if (rate := result.over[self.reference].throughput)
        }
        others = [result for result in self.rivals if not self.is_as_good(result) and result.label in rates]
        if not others:
            return None
        fastest = max(others, key=lambda result: rates[result.label])
        slower = max(1.0, rates.get(self.best.label, 1.0) if self.best else 1.0)
        return fastest if rates[fastest.label] > slower else None

    def is_as_good(self, result: MethodResult) -> bool:
        """Whether it keeps accuracy, and finished and reached the target in every round, if there is any to reach."""
        if not self.learnt:
            return True
        there = not self.case.target or result.time_to_target.surely
        return result.quality.keeps == "yes" and there and len(result.done) == result.trials

    def gain(self, result: MethodResult | None) -> Estimate | None:
        """What it gains over the reference: in time to the target, or in throughput where there is none."""
        if result is None:
            return None
        gained = result.over[self.reference]
        return gained.time_to_target if self.case.target else gained.throughput


def _best(candidates: Sequence[tuple[MethodResult, Estimate]]) -> MethodResult | None:
    return max(candidates, key=lambda pair: pair[1].value)[0] if candidates else None
