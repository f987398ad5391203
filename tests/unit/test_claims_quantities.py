"""What claims may be about: each quantity against what it is by its definition, over invented runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, t
from synthetic import invent, make_store

from harness.analysis.claims import judgements
from harness.analysis.claims.figures import Run, gradient_share
from harness.analysis.claims.judgements import Judgement
from harness.analysis.claims.plans import plans
from harness.analysis.claims.schema import Claim
from harness.analysis.claims.sequential import confidence
from harness.errors import UsageError
from harness.plan import plan
from harness.plan.expected import shapes_of
from harness.record.row import TrialRow
from harness.record.store import Store
from harness.report.claims import why
from harness.scenario.load import load
from harness.workload import profile as profiles

RATES = ("10mbit", "100mbit", "1gbit")
SWEEP = ['link.rate=["10mbit", "100mbit", "1gbit"]']
ROUNDS = 3


def claim(**changes: Any) -> Claim:
    fields: dict[str, Any] = {"id": "a-claim", "source": "Somebody", "place": "abstract", "wording": "better"}
    fields |= {"quantity": "throughput", "model": "digits-cnn", "rate": "100mbit", "workers": 3, "baseline": "dense"}
    fields |= {"method": "topk", "range": (1.0, 12.0), "scenario": "quickstart"}
    return Claim.model_validate({**fields, **changes})


def a_run(folder: Path, overrides: list[str], ends: Mapping[tuple[str, int], Mapping[str, Any]] | None = None) -> Run:
    store = make_store(folder, overrides, ends=ends or {})
    return Run(plan.make(load("quickstart", overrides), "netns"), store)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three rounds of quickstart at each of three rates."""
    return a_run(tmp_path_factory.mktemp("quantities") / "quickstart-1", SWEEP)


def judged(run: Run, **changes: Any) -> Judgement:
    return judgements.judge(claim(**changes), {"quickstart": run})


def column(run: Run, name: str, label: str, rate: str = "100mbit") -> np.ndarray[Any, Any]:
    """A column of a method at a rate, by rounds."""
    bps = {"10mbit": 1e7, "100mbit": 1e8, "1gbit": 1e9}[rate]
    own = run.trials[(run.trials["label"] == label) & (run.trials["rate_bps"] == bps)]
    return own.sort_values("round")[name].to_numpy(dtype=float)


def textbook(values: np.ndarray[Any, Any], level: float) -> tuple[float, float, float]:
    """Mean and t interval."""
    half = t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return values.mean(), values.mean() - half, values.mean() + half


def test_accuracy_is_the_points_lost_to_the_baseline_by_seeds(sweep: Run) -> None:
    lost = 100 * (column(sweep, "final_accuracy", "dense") - column(sweep, "final_accuracy", "topk"))
    judgement = judged(sweep, quantity="accuracy", range=(-math.inf, 50.0))
    assert judgement.found is not None
    assert judgement.found[:3] == pytest.approx(textbook(lost, 0.95)), "it is looked at once"
    assert judgement.verdict == "reproduced"
    worse = judged(sweep, quantity="accuracy", range=(-math.inf, lost.mean() - 10))
    assert worse.verdict == "not reproduced"
    assert judged(sweep, quantity="accuracy", range=(lost.mean() + 10, 50.0)).verdict == "exceeded"


@pytest.mark.parametrize(
    ("label", "status", "count", "rounds", "verdict"),
    [
        ("topk", "diverged", 5, 5, "not reproduced"),
        ("topk", "diverged", 3, 3, "inconclusive"),
        ("topk", "diverged", 1, 3, "inconclusive"),
        ("topk", "timeout", 3, 3, "inconclusive"),
        ("topk", "timeout", 5, 5, "inconclusive"),
        ("dense", "diverged", 5, 5, "inconclusive"),
        ("dense", "timeout", 1, 3, "inconclusive"),
    ],
)
def test_who_diverges_keeps_no_accuracy(
    label: str, status: str, count: int, rounds: int, verdict: str, tmp_path: Path
) -> None:
    ends = {(label, number): {"status": status, "final_accuracy": None} for number in range(count)}
    run = a_run(tmp_path / "quickstart-1", [f"rounds={rounds}"], ends)
    judgement = judged(run, quantity="accuracy", range=(-math.inf, 50.0))
    assert (judgement.verdict, judgement.found) == (verdict, None)
    assert f"{label} diverged or ran out of time in {count} of {rounds} trainings" in judgement.reason
    assert bool(judgement.decides) == (verdict == "inconclusive")


def test_communication_time_is_what_nothing_hides(sweep: Run) -> None:
    ratios = column(sweep, "comm_s_per_step", "dense") / column(sweep, "comm_s_per_step", "topk")
    found = judged(sweep, quantity="communication time").found
    assert found is not None
    assert found.value == pytest.approx(np.exp(np.log(ratios).mean()))


@pytest.mark.parametrize(
    "asked",
    [
        {"quantity": "communication time"},
        {"quantity": "ablation", "of": "communication time", "without": "bf16"},
        {"quantity": "trend", "of": "communication time", "axis": "method", "direction": "grows"}
        | {"method": ("bf16", "topk")},
    ],
    ids=lambda each: each["quantity"],
)
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("label", ["topk", "dense"])
def test_of_who_waits_for_nothing_there_is_no_ratio_and_no_round_is_left_out(
    label: str, count: int, asked: dict[str, Any], tmp_path: Path
) -> None:
    nothing = {(label, number): {"comm_s_per_step": 0.0} for number in range(count)}
    judgement = judged(a_run(tmp_path / "quickstart-1", [], nothing), **asked)
    assert (judgement.verdict, judgement.found) == ("inconclusive", None)
    assert judgement.reason == f"{label} waited for nothing in {count} of 3 rounds: there is no ratio to that"
    assert judgement.decides == "a slower link, on which there is something to wait for"
    assert not judgement.open_parts


def test_a_gradient_is_counted_once_whatever_a_collective_makes_of_it(sweep: Run) -> None:
    wire, own = (judged(sweep, quantity="bytes", counted=counted).found for counted in ("wire", "gradient"))
    assert wire is not None
    assert own is not None
    workers, cell = 3, claim().cells[0]
    ring, gather = 2 * (workers - 1) / workers, workers - 1
    assert gradient_share("dense", cell, sweep.plan) == pytest.approx(1 / ring)
    assert own.value / wire.value == pytest.approx(gather / ring)
    entries = sum(map(math.prod, shapes_of("digits-cnn")))
    assert own.value == pytest.approx(4 * entries / (8 * 0.01 * entries), rel=0.05), "1 % of the entries, with indices"


def test_of_a_gradient_no_bytes_are_told_as_sent(sweep: Run) -> None:
    sent, taken = (why(judged(sweep, quantity="bytes", counted=counted)) for counted in ("wire", "gradient"))
    assert "topk sent" in sent
    assert "sent" not in taken
    own = judged(sweep, quantity="bytes", counted="gradient").found
    assert own is not None
    assert f"One worker's gradient by topk takes {own.value:.2f}" in taken
    assert f"by topk: {round(own.value)} times as much" in taken, "what the formulas say is counted alike"


def gains(run: Run, label: str, rate: str, baseline: str = "dense") -> np.ndarray[Any, Any]:
    return np.log(column(run, "samples_per_s", label, rate) / column(run, "samples_per_s", baseline, rate))


def test_a_share_counts_the_cases_that_are_surely_better(sweep: Run) -> None:
    methods = ("bf16", "topk")
    asked = {"quantity": "share", "grid": ["rate", "method"], "rate": RATES, "method": methods}
    judgement = judged(sweep, **asked, range=(0.0, 0.03))
    level = confidence(ROUNDS, comparisons=2 * 6)
    lows, highs = zip(
        *(textbook(gains(sweep, label, rate), level)[1:] for rate in RATES for label in methods),
        strict=True,
    )
    wins, lost = sum(low > 0 for low in lows), sum(high <= 0 for high in highs)
    unknown = len(lows) - wins - lost
    assert wins > 1
    assert judgement.found is not None
    assert judgement.found.low == pytest.approx(binomtest(wins, 6).proportion_ci(0.975, "exact").low)
    assert judgement.found.high == pytest.approx(binomtest(wins + unknown, 6).proportion_ci(0.975, "exact").high)
    assert f"throughput is better in {wins} of 6 cases (" in judgement.reason
    assert "topk, 10 Mbit/s" in judgement.reason
    assert judgement.verdict == "not reproduced"


def test_strengths_of_one_method_are_one_draw(tmp_path: Path) -> None:
    """Three ranks of PowerSGD that all gain a little refute "seldom" no more than one does."""
    asked = claim(
        quantity="share", grid=["method"], method=("powersgd-rank=4", "powersgd-rank=8", "powersgd-rank=16", "thc"),
        model="resnet50", rate="10gbit", workers=8, scenario="paper/datacenter-resnet50", range=(0.0, 0.03),
    )  # fmt: skip
    gain = {(label, number): {"samples_per_s": 900.0 + number} for label in asked.method[:3] for number in range(5)}
    other = {("dense", number): {"samples_per_s": 300.0 + number} for number in range(5)}
    other |= {("thc", number): {"samples_per_s": 200.0 + number} for number in range(5)}
    store = make_store(tmp_path / "datacenter-1", scenario="paper/datacenter-resnet50", ends=gain | other)
    run = Run(plan.make(load("paper/datacenter-resnet50"), "netns"), store)
    judgement = judgements.judge(asked, {"paper/datacenter-resnet50": run})
    assert "better in 3 of 4 cases" in judgement.reason
    assert judgement.found is not None
    assert judgement.found[:3] == judgements.share_of(1, 0, 2)[:3]
    assert judgement.verdict == "inconclusive"


@pytest.mark.parametrize(("wins", "n"), [(0, 14), (3, 14), (14, 14), (6, 200)])
def test_a_shares_interval_is_that_of_clopper_and_pearson(wins: int, n: int) -> None:
    found, exact = judgements.share_of(wins, 0, n), binomtest(wins, n).proportion_ci(0.975, "exact")
    assert found[:3] == pytest.approx((wins / n, exact.low, exact.high))


def test_one_cell_refutes_no_share_and_a_small_grid_says_how_large_it_would_have_to_be() -> None:
    asked = claim(quantity="share", grid=["method"], method=("a", "b", "c"), range=(0.0, 0.03))
    one_of_three = judgements.share_of(1, 0, 3)
    assert judgements.verdict_on(one_of_three, asked)[0] == "inconclusive"
    enough = judgements._more_cases(3, 0.0, asked)
    assert "144" in enough, "without a single win in so many cases, the upper end falls below 0.03"
    assert judgements.share_of(0, 0, 144).high == pytest.approx(0.0300, abs=1e-4)
    assert judgements.share_of(0, 0, 143).high == pytest.approx(0.03, abs=1e-3)


@pytest.mark.parametrize(("direction", "verdict"), [("falls", "reproduced"), ("grows", "not reproduced")])
def test_a_trend_holds_if_each_step_along_the_axis_does(direction: str, verdict: str, sweep: Run) -> None:
    asked = {"quantity": "trend", "axis": "rate", "direction": direction, "rate": RATES, "range": (1.0, math.inf)}
    judgement = judged(sweep, **asked)
    assert judgement.verdict == verdict
    sign = 1 if direction == "grows" else -1
    by_rate = [gains(sweep, "topk", rate) for rate in RATES]
    steps = [sign * (after - before) for before, after in itertools.pairwise(by_rate)]
    level = confidence(ROUNDS, comparisons=2)
    expected = [tuple(math.exp(end) for end in textbook(step, level)) for step in steps]
    assert judgement.found is not None
    assert any(judgement.found[:3] == pytest.approx(each) for each in expected)
    weakest = min(expected, key=lambda each: each[1] if verdict == "reproduced" else each[2])
    assert judgement.found[:3] == pytest.approx(weakest)


def test_a_trend_of_which_a_case_is_spoilt_has_no_figure(tmp_path: Path) -> None:
    late = {("topk", number): {"overrun_s_per_step": 1.0} for number in range(ROUNDS)}
    run = a_run(tmp_path / "quickstart-1", SWEEP, late)
    asked = {"quantity": "trend", "axis": "rate", "direction": "falls", "rate": RATES, "range": (1.0, math.inf)}
    judgement = judged(run, **asked)
    assert judgement.verdict == "inconclusive"
    assert judgement.found is None, "one case's speedup is no change along the axis"


def test_an_ablation_is_the_parts_share_of_the_gain(sweep: Run) -> None:
    whole = gains(sweep, "pactrain-ternary", "100mbit")
    part = gains(sweep, "pactrain-ternary", "100mbit", "pactrain-fp32")
    judgement = judged(sweep, quantity="ablation", method="pactrain-ternary", without="pactrain-fp32", range=(0.0, 1.0))
    assert judgement.found is not None
    assert judgement.found[:3] == pytest.approx(textbook(part / whole, confidence(ROUNDS)))


def test_no_part_has_a_share_of_no_gain(tmp_path: Path) -> None:
    same = {("bf16", number): {"samples_per_s": 100.0 + number} for number in range(3)}
    same |= {("dense", number): {"samples_per_s": 101.0 - number} for number in range(3)}
    run = a_run(tmp_path / "quickstart-1", [], same)
    judgement = judged(run, quantity="ablation", method="bf16", without="topk", range=(0.5, math.inf))
    assert judgement.verdict == "inconclusive"
    assert "bf16 is not surely better than dense: there is no gain to be shared out" in judgement.reason
    assert judgement.decides


AT_THE_END = 1.25 / 1.0001
"""In the mean of three rounds 1.25: no number of rounds tells on which side of it the truth lies. But where a greater
and a smaller share of the device hold, so does one between them."""

SHARES = ("resnet18-a40", "resnet18-a40@50%", "resnet18-a40@25%")
REPLAYED = ["rounds=3", f"train.replay={list(SHARES)}".replace("'", '"')]


def replayed(folder: Path, speedups: Mapping[str, float]) -> Run:
    """Replays with each share of a device, in which bf16 is so many times as fast as dense."""
    scenario = load("replay", REPLAYED)
    made = plan.make(scenario, "netns")
    store = Store.create(folder, scenario)
    for trial in made.trials:
        row, events = invent(trial)
        dense = 100.0 + 0.1 * trial.round
        even = 1 + 1e-4 * trial.round
        speed = speedups[str(trial.case.train.replay)] * even if trial.method.label == "bf16" else 1.0
        store.append(TrialRow(**{**row, "samples_per_s": dense * speed, "replay": trial.case.train.replay}), events)
    return Run(made, store)


@pytest.mark.parametrize(
    ("speedups", "verdict", "says"),
    [
        ((1.5, 1.4, 1.3), "reproduced", "from a whole device to a quarter device"),
        ((3.0, 1.4, 1.3), "reproduced", "how far it is exceeded depends on the share of the device"),
        ((1.5, 1.4, 1.1), "inconclusive", "a quarter device: not reproduced"),
        ((1.1, 1.1, 1.1), "not reproduced", "from a whole device to a quarter device"),
        ((1.5, AT_THE_END, 1.3), "reproduced", "from a whole device to a quarter device"),
    ],
)
def test_a_verdict_holds_for_all_shares_of_a_device_or_says_how_it_depends_on_them(
    speedups: tuple[float, float, float], verdict: str, says: str, tmp_path: Path
) -> None:
    run = replayed(tmp_path / "replay-1", dict(zip(SHARES, speedups, strict=True)))
    asked = claim(
        model="resnet18", rate="1gbit", workers=32, method="bf16", devices=(1.0, 0.5, 0.25), range=(1.25, 2.0),
        scenario="replay",
    )  # fmt: skip
    judgement = judgements.judge(asked, {"replay": run})
    assert judgement.verdict == verdict
    assert says in judgement.reason
    told = [speedup for speedup in speedups if speedup != AT_THE_END]
    assert [part.found.value for part in judgement.parts if part.found] == pytest.approx(told, rel=1e-3)
    assert bool(judgement.decides) == (verdict == "inconclusive")


def test_a_share_of_a_device_takes_as_many_times_longer() -> None:
    whole, half = profiles.read("resnet18-a40"), profiles.read("resnet18-a40@50%")
    assert half.device == "50 % of NVIDIA A40"
    for name in ("forward_s", "backward_s", "optimizer_s"):
        assert getattr(half, name) == pytest.approx(2 * getattr(whole, name))
    assert [each.ready_s for each in half.gradients] == pytest.approx([2 * each.ready_s for each in whole.gradients])
    assert half.shapes == whole.shapes
    assert profiles.read("resnet18-a40@100%") == whole
    for name in ("resnet18-a40@0%", "resnet18-a40@150%", "resnet18-a40@half"):
        with pytest.raises(UsageError, match=r"train\.replay: found"):
            profiles.read(name)


def test_a_claim_about_shares_that_its_scenario_does_not_have_is_refused() -> None:
    asked = claim(model="resnet18", rate="1gbit", workers=32, method="bf16", devices=(1.0, 0.5), scenario="replay")
    with pytest.raises(UsageError, match=r"found 'resnet18, 1 Gbit/s, 32 workers, 50 % of the device'"):
        plans([asked], lambda scenario: plan.make(scenario, "netns"))


def test_every_inconclusive_verdict_says_what_would_decide_it(sweep: Run) -> None:
    (found,) = {judged(sweep).found}
    assert found is not None
    ends = [(found.value, 12.0), (0.1, found.value * 1.0001), (found.value * 0.9999, found.value * 1.0001)]
    for low, high in ends:
        judgement = judged(sweep, range=(low, high))
        assert judgement.verdict == "inconclusive"
        assert "rounds" in judgement.decides
    frame = pd.DataFrame([vars(part) for part in judged(sweep, range=(found.value, 12.0)).parts])
    assert list(frame["verdict"]) == ["inconclusive"]
