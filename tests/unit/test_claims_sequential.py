"""Verdicts that are looked for after every round: how often they are wrong, by simulation of studies of known truth."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.special import stdtrit

from harness.analysis.claims.figures import Finding, share_of_gain, steps_of, with_fewer_steps
from harness.analysis.claims.judgements import Verdict, as_a_grid, is_better, share_of, verdict_on, weakest
from harness.analysis.claims.schema import Claim
from harness.analysis.claims.sequential import ERROR, FEWEST_FAILURES, FIRST_LOOK, confidence, rounds_to_decide
from harness.analysis.shifts import half_width, mean_difference, paired_shift, variance_of
from harness.analysis.spreads import Usual, usual

ROUNDS, STUDIES, BESIDE = 5, 1000, 50
LOW, HIGH = 1.25, 8.72
NOISE = 0.05
"""Standard deviation of the logarithm of a round's ratio."""

FIELDS: dict[str, Any] = {
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

CLAIM = Claim.model_validate(FIELDS)

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


Look = Callable[[int, Usual | None], Finding | None]
"""Of a study: what is found after so many rounds, by what is known of the spread of like ratios."""


def restless(dice: np.random.Generator, cases: int) -> np.ndarray[Any, Any]:
    """Logarithms of ratios that are 1, by case and round: a fifth of the cases are four times as restless."""
    noise = NOISE / 2 * np.where(dice.random(cases) < 0.2, 4, 1)
    return noise[:, None] * dice.standard_normal((cases, ROUNDS))


def share_of_wrong(asked: Claim, true: Verdict, begin: Callable[[np.random.Generator], Look], is_pooled: bool) -> float:
    """The share of studies whose first verdict is neither open nor true."""
    dice, wrong = np.random.default_rng(6), 0
    for _ in range(STUDIES // BESIDE):
        others = restless(dice, BESIDE)
        known = {n: usual([variance_of(each[:n]) for each in others]) for n in range(FIRST_LOOK, ROUNDS + 1)}
        for _ in range(BESIDE):
            look = begin(dice)
            findings = (look(n, usually if is_pooled else None) for n, usually in known.items())
            estimates = (each.estimate for each in findings if each)
            verdicts = (verdict_on(each, asked)[0] for each in estimates if each)
            wrong += next((each for each in verdicts if each != "inconclusive"), true) != true
    return wrong / STUDIES


def asking(quantity: str, **changes: Any) -> Claim:
    return Claim.model_validate({**FIELDS, "quantity": quantity, **changes})


AT_THE_ENDS = list(TRUTHS.items())[:4]
pooled = pytest.mark.parametrize("is_pooled", [False, True])


@pooled
@pytest.mark.parametrize(("seeds", "noise"), [(3, 0.2), (12, 0.05)])
@pytest.mark.parametrize(("truth", "true"), AT_THE_ENDS)
def test_no_more_are_wrong_of_times_to_accuracy(
    truth: float, true: Verdict, seeds: int, noise: float, is_pooled: bool
) -> None:
    """The replays go on while the steps to the target, by all seeds, stay what they are."""
    factor = math.sqrt(truth)

    def begin(dice: np.random.Generator) -> Look:
        fewer = Finding(paired_shift(factor * np.exp(noise * dice.standard_normal(seeds))), seeds)
        (logs,) = restless(dice, 1)

        def look(rounds: int, known: Usual | None) -> Finding:
            return with_fewer_steps(Finding(paired_shift(factor * np.exp(logs[:rounds]), known), ROUNDS), fewer)

        return look

    asked = asking("time to accuracy", convergence="trainings")
    assert share_of_wrong(asked, true, begin, is_pooled) < ERROR


@pytest.mark.parametrize("seeds", [3, 5, 12])
@pytest.mark.parametrize(
    ("truth", "true"),
    [(2.0, "reproduced"), (2 + BARELY, "not reproduced"), (-1.0, "reproduced"), (-1 - BARELY, "exceeded")],
)
def test_no_more_are_wrong_of_accuracies(truth: float, true: Verdict, seeds: int) -> None:
    """Trainings are looked at once, with all of their seeds."""

    def begin(dice: np.random.Generator) -> Look:
        lost = mean_difference(truth + dice.standard_normal(seeds))
        return lambda *_: Finding(lost, seeds, is_training=True)

    assert share_of_wrong(asking("accuracy", range=(-1.0, 2.0)), true, begin, is_pooled=False) < ERROR


@pooled
@pytest.mark.parametrize(
    ("steps", "true"),
    [
        ((0.0, 1.0), "reproduced"),
        ((-BARELY, 1.0), "not reproduced"),
        ((0.0, 0.0, 0.0, 0.0), "reproduced"),
    ],
)
def test_no_more_are_wrong_of_trends(steps: tuple[float, ...], true: Verdict, is_pooled: bool) -> None:
    """Each case has a noise of its own, so that neighbouring steps have one in common."""

    def begin(dice: np.random.Generator) -> Look:
        logs = np.cumsum([0.0, *steps])[:, None] + restless(dice, len(steps) + 1)
        changes = np.diff(logs, axis=0)
        return lambda rounds, known: weakest(steps_of([each[:rounds] for each in changes], ROUNDS, known))

    asked = asking("trend", axis="method", direction="grows", method=("topk", "dgc"), range=(1.0, math.inf))
    assert share_of_wrong(asked, true, begin, is_pooled) < ERROR


@pooled
@pytest.mark.parametrize("gain", [0.1, 0.3, 2.0])
@pytest.mark.parametrize(
    ("share", "true"),
    [(0.5, "reproduced"), (0.5 - BARELY, "not reproduced"), (1.0, "reproduced"), (1 + BARELY, "not reproduced")],
)
def test_no_more_are_wrong_of_ablations(share: float, true: Verdict, gain: float, is_pooled: bool) -> None:
    """Also where the gain is not much more than its noise, which both ratios have in common."""

    def begin(dice: np.random.Generator) -> Look:
        noise = NOISE / 2 * (4 if dice.random() < 0.2 else 1) / math.sqrt(2)
        whole, without, base = noise * dice.standard_normal((3, ROUNDS))
        of_gain, of_part = gain + whole - base, share * gain + whole - without

        def look(rounds: int, known: Usual | None) -> Finding | None:
            found = share_of_gain(of_gain[:rounds], of_part[:rounds], ROUNDS, known)
            return Finding(found, ROUNDS) if found else None

        return look

    assert share_of_wrong(asking("ablation", without="bf16", range=(0.5, 1.0)), true, begin, is_pooled) < ERROR


CASES, GRIDS = 200, 10


def told_by_looks(ratio: float, is_pooled: bool, dice: np.random.Generator) -> np.ndarray[Any, Any]:
    """Whether cases of such a ratio are told to be better, by looks: 1, -1 where they are not, 0 while that is open."""
    told = np.zeros((CASES * GRIDS, ROUNDS + 1 - FIRST_LOOK))
    for first in range(0, len(told), CASES):
        ratios = ratio * np.exp(restless(dice, CASES))
        for rounds in range(FIRST_LOOK, ROUNDS + 1):
            known = usual([variance_of(np.log(each[:rounds])) for each in ratios]) if is_pooled else None
            grid = as_a_grid([Finding(paired_shift(each[:rounds], known), ROUNDS) for each in ratios])
            signs = [{True: 1, False: -1, None: 0}[is_better(each)] for each in grid]
            before = told[first : first + CASES, rounds - FIRST_LOOK - 1] if rounds > FIRST_LOOK else np.zeros(CASES)
            told[first : first + CASES, rounds - FIRST_LOOK] = np.where(before, before, signs)
    return told


@pooled
@pytest.mark.parametrize(
    ("claimed", "truth", "true", "ratios"),
    [
        ((0.0, 0.03), 0.03, "reproduced", (2.0, 1.0)),
        ((0.0, 0.03), 0.03 + BARELY, "not reproduced", (1 + BARELY, 0.5)),
        ((0.97, 1.0), 0.97, "reproduced", (1 + BARELY, 0.5)),
        ((0.97, 1.0), 0.97 - BARELY, "not reproduced", (2.0, 1.0)),
    ],
)
def test_no_more_are_wrong_of_shares(
    claimed: tuple[float, float], truth: float, true: Verdict, ratios: tuple[float, float], is_pooled: bool
) -> None:
    """Cases that are better, or are not, lie at the very edge: of 200 some are told to be what they are not, by chance.

    What is told wrongly of one case in fifty makes five in a hundred of three.
    """
    dice, wrong = np.random.default_rng(7), 0
    better, others = (told_by_looks(ratio, is_pooled, dice) for ratio in ratios)
    asked = asking("share", grid=["method"], method=("topk", "dgc"), range=claimed)
    for _ in range(STUDIES):
        count = dice.binomial(CASES, truth)
        cases = np.concatenate([dice.choice(better, count), dice.choice(others, CASES - count)])
        looks = zip((cases == 1).sum(axis=0), (cases == 0).sum(axis=0), strict=True)
        verdicts = (verdict_on(share_of(int(wins), int(unknown), CASES), asked)[0] for wins, unknown in looks)
        wrong += next((each for each in verdicts if each != "inconclusive"), true) != true
    assert wrong / STUDIES < ERROR


@pytest.mark.parametrize(("truth", "true"), [(0.03, "reproduced"), (0.03 + BARELY, "not reproduced")])
def test_no_more_are_wrong_of_shares_of_which_each_case_is_clear(truth: float, true: Verdict) -> None:
    dice = np.random.default_rng(8)
    asked = asking("share", grid=["method"], method=("topk", "dgc"), range=(0.0, 0.03))
    wins = dice.binomial(10 * CASES, truth, STUDIES)
    verdicts = [verdict_on(share_of(int(each), 0, 10 * CASES), asked)[0] for each in wins]
    assert sum(each not in ("inconclusive", true) for each in verdicts) / STUDIES < ERROR


def test_all_trainings_fail_by_chance_less_often_than_is_said() -> None:
    """Of who fails half the time."""
    assert 0.5**FEWEST_FAILURES < ERROR <= 0.5 ** (FEWEST_FAILURES - 1)


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
