"""Verdicts that are looked for after every round: how often they are wrong, by simulation of studies of known truth."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.special import stdtrit

from harness.analysis.claims.figures import Finding
from harness.analysis.claims.judgements import Verdict, verdict_on
from harness.analysis.claims.schema import Claim
from harness.analysis.claims.sequential import ERROR, FIRST_LOOK, confidence, rounds_to_decide
from harness.analysis.shifts import half_width, paired_shift, variance_of
from harness.analysis.spreads import usual

ROUNDS, STUDIES, BESIDE = 5, 1000, 50
LOW, HIGH = 1.25, 8.72
NOISE = 0.05
"""Standard deviation of the logarithm of a round's ratio."""

CLAIM = Claim.model_validate(
    {
        "id": "a-claim",
        "source": "Somebody",
        "place": "abstract",
        "wording": "faster",
        "quantity": "throughput",
        "model": "resnet50",
        "rate": "1gbit",
        "workers": 8,
        "baseline": "dense",
        "method": "topk",
        "range": (LOW, HIGH),
        "scenario": "a-scenario",
    }
)

BARELY = 1e-9

TRUTHS: dict[float, Verdict] = {
    LOW: "reproduced",
    HIGH: "reproduced",
    LOW * (1 - BARELY): "not reproduced",
    HIGH * (1 + BARELY): "exceeded",
    1.3: "reproduced",
    1.2: "not reproduced",
    3.0: "reproduced",
    0.4: "not reproduced",
    12.0: "exceeded",
}
"""Ratios, two of them the very ends of the range and two just beyond, and what is true of the claim then."""


def study(truth: float, dice: np.random.Generator) -> tuple[Verdict, int]:
    """The verdict of rounds that end as soon as there is one, and how many rounds there were."""
    ratios = truth * np.exp(NOISE * dice.standard_normal(ROUNDS))
    for rounds in range(FIRST_LOOK, ROUNDS + 1):
        found = Finding(paired_shift(ratios[:rounds]), ROUNDS).estimate
        assert found is not None
        verdict, _ = verdict_on(found, CLAIM)
        if verdict != "inconclusive":
            return verdict, rounds
    return "inconclusive", ROUNDS


@pytest.mark.parametrize("truth", TRUTHS)
def test_fewer_verdicts_are_wrong_than_is_said(truth: float) -> None:
    dice = np.random.default_rng(1)
    verdicts = [study(truth, dice)[0] for _ in range(STUDIES)]
    wrong = sum(verdict not in ("inconclusive", TRUTHS[truth]) for verdict in verdicts)
    assert wrong / STUDIES < ERROR


@pytest.mark.parametrize("truth", [3.0, 0.4, 12.0])
def test_what_is_clear_is_decided_before_all_rounds_are_run(truth: float) -> None:
    dice = np.random.default_rng(2)
    studies = [study(truth, dice) for _ in range(STUDIES)]
    assert {verdict for verdict, _ in studies} == {TRUTHS[truth]}
    assert np.mean([rounds for _, rounds in studies]) < ROUNDS - 1.5


def studies_beside_others(truth: float, dice: np.random.Generator) -> list[Verdict]:
    """The verdicts of as many claims as are judged together, of this truth, some far more restless than others."""
    noise = NOISE / 2 * np.where(dice.random(BESIDE) < 0.2, 4, 1)
    ratios = truth * np.exp(noise[:, None] * dice.standard_normal((BESIDE, ROUNDS)))
    verdicts: list[Verdict] = ["inconclusive"] * BESIDE
    for rounds in range(FIRST_LOOK, ROUNDS + 1):
        known = usual([variance_of(np.log(each[:rounds])) for each in ratios])
        for number, each in enumerate(ratios):
            if verdicts[number] == "inconclusive":
                found = Finding(paired_shift(each[:rounds], known), ROUNDS).estimate
                assert found is not None
                verdicts[number], _ = verdict_on(found, CLAIM)
    return verdicts


@pytest.mark.parametrize("truth", TRUTHS)
def test_no_more_are_wrong_where_like_cases_tell_the_spread(truth: float) -> None:
    dice = np.random.default_rng(4)
    verdicts = [each for _ in range(STUDIES // BESIDE) for each in studies_beside_others(truth, dice)]
    assert len(verdicts) == STUDIES
    wrong = sum(verdict not in ("inconclusive", TRUTHS[truth]) for verdict in verdicts)
    assert wrong / STUDIES < ERROR


def test_two_rounds_decide_what_is_clear_where_like_cases_tell_the_spread() -> None:
    ratios = 3.0 * np.exp(NOISE / 2 * np.random.default_rng(5).standard_normal((BESIDE, FIRST_LOOK)))
    known = usual([variance_of(np.log(each)) for each in ratios])
    decided = dict.fromkeys((None, known), 0)
    for each, usually in itertools.product(ratios, decided):
        found = Finding(paired_shift(each, usually), ROUNDS).estimate
        assert found is not None
        decided[usually] += verdict_on(found, CLAIM)[0] == "reproduced"
    assert decided[known] == BESIDE
    assert decided[None] < 0.8 * BESIDE


def ever_outside(level: float) -> float:
    """The share of studies in which some look's interval, wrong in so many cases, does not hold the truth."""
    values = np.random.default_rng(3).standard_normal((100_000, ROUNDS))
    outside = np.zeros(len(values), bool)
    for rounds in range(FIRST_LOOK, ROUNDS + 1):
        seen = values[:, :rounds]
        error = seen.std(axis=1, ddof=1) / math.sqrt(rounds)
        outside |= np.abs(seen.mean(axis=1)) > stdtrit(rounds - 1, 1 - level / 2) * error
    return float(outside.mean())


def test_all_looks_together_hold_the_truth_as_often_as_is_said() -> None:
    assert ever_outside(1 - confidence(ROUNDS)) < ERROR
    assert ever_outside(0.0182) > ERROR, "Pocock's level for four looks, which is for a known variance"
    assert ever_outside(ERROR) > 2 * ERROR, "who looks at a 95 % interval after each round is wrong far more often"


@pytest.mark.parametrize(
    ("rounds", "comparisons", "each"), [(1, 1, 0.05), (2, 1, 0.05), (5, 1, 0.0125), (3, 4, 0.00625)]
)
def test_the_error_is_shared_by_looks_and_comparisons(rounds: int, comparisons: int, each: float) -> None:
    assert 1 - confidence(rounds, comparisons) == pytest.approx(each)


@pytest.mark.parametrize("freedom", [0.0, 2.7, math.inf])
@pytest.mark.parametrize("distance", [0.01, 0.03, 0.1, 1.0])
def test_rounds_to_decide_are_the_fewest_that_do(distance: float, freedom: float) -> None:
    rounds = rounds_to_decide(distance, NOISE, confidence(ROUNDS), freedom)
    assert rounds is not None
    reach = [
        half_width(NOISE / math.sqrt(n), freedom + n - 1, confidence(ROUNDS)) for n in (rounds - 1, rounds) if n > 1
    ]
    assert reach[-1] < distance
    assert all(each >= distance for each in reach[:-1])


def test_what_lies_at_the_very_end_is_decided_by_no_number_of_rounds() -> None:
    assert rounds_to_decide(0.0, NOISE, confidence(ROUNDS)) is None
