"""How soon is the model as good? Who wins, who does not, and what is said where nobody knows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import make_store

from harness.analysis import answer
from harness.analysis.cases import case_results
from harness.analysis.estimates import geometric_mean, mean
from harness.analysis.quality import confidence_of_a_look, kept, quality
from harness.record.store import Store
from harness.report import facts, page, paper, text
from harness.report.figures.learning_curves import accuracy
from harness.report.figures.time_to_target import time_to_target

PLACE = "at 100 Mbit/s (3 workers, digits-cnn on digits; 3 paired rounds, 95 % t interval)"

Figures = Mapping[str, Sequence[Any]]


def store_of(folder: Path, methods: Mapping[str, Figures], overrides: Sequence[str] = (), **how: Any) -> Store:
    """A run of quickstart whose trials have these figures: label -> column -> a value a round."""
    rounds = max(len(values) for figures in methods.values() for values in figures.values())
    ends: dict[tuple[str, int], dict[str, Any]] = {}
    for label, figures in methods.items():
        for column, values in figures.items():
            for number, value in enumerate(values):
                ends.setdefault((label, number), {})[column] = value
    return make_store(folder / "run", [f"rounds={rounds}", *overrides], methods=list(methods), ends=ends, **how)


def figures(
    time_s: Sequence[float | None], rate: float, accuracy: Sequence[float] = (0.98, 0.981, 0.979), **more: Any
) -> dict[str, Any]:
    return {"time_to_target_s": time_s, "samples_per_s": [rate] * len(time_s), "final_accuracy": accuracy, **more}


DENSE = figures([8.0, 8.2, 7.9], 800.0)
BF16 = figures([4.0, 4.1, 3.9], 1600.0)
TOPK = figures([2.0, 2.1, 2.0], 8800.0)
LEARNS_NOTHING = figures([None, None, None], 72000.0, [0.197, 0.19, 0.2])


def headline_of(store: Store) -> str:
    (sentence,) = facts.summary(store).sentences
    return sentence


def test_the_winner_is_told_over_16_bits_first_in_time_and_in_throughput(tmp_path: Path) -> None:
    sentence = headline_of(store_of(tmp_path, {"dense": DENSE, "bf16": BF16, "topk": TOPK}))
    over_bf16 = text.ratio(geometric_mean([4.0 / 2.0, 4.1 / 2.1, 3.9 / 2.0]))
    over_dense = text.ratio(geometric_mean([8.0 / 2.0, 8.2 / 2.1, 7.9 / 2.0]))
    assert sentence == (
        f"topk reaches 85 % accuracy {over_bf16} sooner than bf16 and {over_dense} sooner than dense {PLACE}, and "
        "keeps accuracy (+0.0 points [+0.0, +0.0] against dense). In samples/s it is 5.50x bf16 and 11.0x dense."
    )


def test_a_method_that_learns_nothing_wins_in_no_output_however_fast_it_is(tmp_path: Path) -> None:
    """45 times dense's throughput, and 19.7 % where dense has 98 %."""
    store = store_of(tmp_path, {"dense": DENSE, "bf16": BF16, "topk": TOPK, "dgc": LEARNS_NOTHING})
    scenario = store.scenario()
    (case,) = case_results(store.trials(), scenario)
    found = answer.Answer(case, scenario)
    assert found.winner is case.method("topk")
    assert found.fastest_other is case.method("dgc")
    page.write(store, figures=[])
    html, markdown = ((store.folder / name).read_text() for name in ("report.html", "report.md"))
    table = paper.results_table([case], scenario)
    sentence = headline_of(store)
    assert sentence.startswith("topk reaches 85 % accuracy")
    assert sentence.endswith(
        "dgc trains 45.0x [45.0, 45.0] as many samples/s as bf16, but does not keep accuracy: -78.4 points [-80.0, "
        "-76.9] against dense, and reached 85 % accuracy in 0 of 3 rounds."
    )
    assert '<p class="headline">topk reaches' in html
    assert "- **topk reaches" in markdown
    (row,) = [each for each in facts.summary(store).rows if each["method"] == "dgc"]
    assert row["to 85 % accuracy"] == "> 60 steps (0 of 3)"
    assert (row["sooner than bf16"], row["sooner than dense"], row["keeps accuracy"]) == ("–", "–", "no")
    assert r"dgc & \textgreater{} 60 steps (0 of 3) & -- & -- & 72000" in table


def test_without_others_who_are_as_good_the_one_that_learns_nothing_is_still_no_winner(tmp_path: Path) -> None:
    sentence = headline_of(store_of(tmp_path, {"dense": DENSE, "bf16": BF16, "dgc": LEARNS_NOTHING}))
    assert sentence.startswith(
        "No winner can be named at 100 Mbit/s (3 workers, digits-cnn on digits): no method other than bf16 surely "
        "keeps accuracy and reached 85 % accuracy in every round. dgc trains 45.0x"
    )


def test_one_missed_round_is_a_miss_and_no_ratio_is_made_of_the_others(tmp_path: Path) -> None:
    missed = {**TOPK, "time_to_target_s": [2.0, None, 2.0]}
    store = store_of(tmp_path, {"dense": DENSE, "bf16": BF16, "topk": missed})
    (case,) = case_results(store.trials(), store.scenario())
    found = case.method("topk")
    assert found.time_to_target == (2, 3, 2.0), "the miss counts as slowest"
    assert found.over["bf16"].time_to_target is None
    assert found.over["bf16"].throughput is not None
    assert text.reached(found, case) == "> 60 steps (2 of 3)"
    assert "topk trains" in headline_of(store)
    assert "but reached 85 % accuracy in 2 of 3 rounds" in headline_of(store)


def test_a_round_that_diverged_is_a_miss_and_costs_accuracy(tmp_path: Path) -> None:
    diverged = {**TOPK, "status": ["done", "diverged", "done"]}
    store = store_of(tmp_path, {"dense": DENSE, "bf16": BF16, "topk": diverged})
    (case,) = case_results(store.trials(), store.scenario())
    found = case.method("topk")
    assert (found.time_to_target.reached, found.time_to_target.of) == (2, 3)
    assert found.quality.keeps == "no"
    assert answer.Answer(case, store.scenario()).winner is None


def test_where_the_16_bit_baseline_misses_nothing_is_said_over_it(tmp_path: Path) -> None:
    missed = {**BF16, "time_to_target_s": [4.0, None, None]}
    sentence = headline_of(store_of(tmp_path, {"dense": DENSE, "bf16": missed, "topk": TOPK}))
    assert "bf16 reached 85 % accuracy in 1 of 3 rounds, so no ratio to it is made" in sentence


def test_where_nothing_is_sooner_it_says_that_nothing_pays(tmp_path: Path) -> None:
    slow = figures([5.0, 5.1, 5.0], 1500.0)
    sentence = headline_of(store_of(tmp_path, {"dense": DENSE, "bf16": BF16, "topk": slow}))
    assert sentence.startswith(
        f"Nothing pays {PLACE}: no method that is known to keep accuracy reached 85 % accuracy sooner than bf16"
    )
    assert "topk came closest with 0.79x" in sentence
    unsure = figures([2.0, 5.1, 3.0], 1500.0)
    sentence = headline_of(store_of(tmp_path / "unsure", {"dense": DENSE, "bf16": BF16, "topk": unsure}))
    assert sentence.startswith("Nothing surely pays")
    assert sentence.endswith("reaches from below 1 to above it.")


def test_one_round_names_no_winner_and_has_no_interval(tmp_path: Path) -> None:
    one = {
        label: {key: values[:1] for key, values in each.items()} for label, each in (("dense", DENSE), ("topk", TOPK))
    }
    sentence = headline_of(store_of(tmp_path, one))
    assert "with 1 seed it is not known whether any method keeps accuracy" in sentence
    assert "topk trains 11.0x as many samples/s as dense, but is not known to keep accuracy: +0.0 points" in sentence


def test_without_a_16_bit_all_reduce_all_is_over_the_baseline_and_a_note_says_so(tmp_path: Path) -> None:
    store = store_of(tmp_path, {"dense": DENSE, "topk": TOPK})
    assert " sooner than dense at 100 Mbit/s" in headline_of(store)
    page.write(store, figures=[])
    assert "No 16-bit all-reduce was run" in (store.folder / "report.html").read_text()


def test_without_a_target_throughput_is_compared_among_those_that_keep_accuracy(tmp_path: Path) -> None:
    methods = {"dense": DENSE, "bf16": BF16, "topk": TOPK, "dgc": LEARNS_NOTHING}
    untimed = {label: {**each, "target": [None] * 3, "time_to_target_s": [None] * 3} for label, each in methods.items()}
    store = store_of(tmp_path, untimed)
    sentence = headline_of(store)
    assert sentence.startswith(
        "topk trains 5.50x [5.50, 5.50] faster than bf16 and 11.0x [11.0, 11.0] faster than dense"
    )
    assert f"{PLACE}, and keeps accuracy" in sentence
    assert "This is throughput alone: no target was set." in sentence
    assert "to 85 % accuracy" not in facts.summary(store).rows[0]
    page.write(store, figures=[time_to_target, accuracy])


def test_the_best_of_many_does_not_win_by_luck(tmp_path: Path) -> None:
    """Alone it surely beats bf16; of three that are as good, one may do so by luck."""
    lucky = figures([2.9, 3.3, 2.6], 1700.0)
    others = {label: figures([4.0, 4.1, 3.9], 1600.0) for label in ("dgc", "pactrain-fp32")}
    alone = headline_of(store_of(tmp_path / "alone", {"dense": DENSE, "bf16": BF16, "topk": lucky}))
    assert alone.startswith("topk reaches 85 % accuracy 1.37x [1.08, 1.73] sooner than bf16")
    chosen = headline_of(store_of(tmp_path / "many", {"dense": DENSE, "bf16": BF16, "topk": lucky, **others}))
    assert chosen.startswith("Nothing surely pays")
    assert "the interval of the best, topk, 1.37x [1.08, 1.73], lies above 1, which the best of 3 may do by" in chosen


def test_what_surely_beats_the_reference_wins_though_another_may_be_better(tmp_path: Path) -> None:
    wide = figures([0.5, 4.2, 2.0], 1700.0)
    sentence = headline_of(store_of(tmp_path, {"dense": DENSE, "bf16": BF16, "topk": TOPK, "dgc": wide}))
    assert sentence.startswith("topk reaches 85 % accuracy")


def test_one_round_of_a_replay_names_no_winner(tmp_path: Path) -> None:
    blank = {"final_accuracy": [None], "target": [None], "time_to_target_s": [None]}
    rates = {
        label: {"samples_per_s": [rate], **blank} for label, rate in (("dense", 1.0), ("bf16", 2.0), ("topk", 6.0))
    }
    sentence = headline_of(store_of(tmp_path, rates))
    assert sentence.startswith("Nothing surely pays")
    assert sentence.endswith("the best, topk, had 3.00x, and one round does not tell how sure that is.")


def test_of_replays_nothing_but_throughput_is_said(tmp_path: Path) -> None:
    rates = {label: {"samples_per_s": [rate] * 3} for label, rate in (("dense", 1.0), ("bf16", 2.0), ("topk", 6.0))}
    blank = {"final_accuracy": [None] * 3, "target": [None] * 3, "time_to_target_s": [None] * 3}
    sentence = headline_of(store_of(tmp_path, {label: {**each, **blank} for label, each in rates.items()}))
    assert sentence == (
        f"topk trains 3.00x [3.00, 3.00] faster than bf16 and 6.00x [6.00, 6.00] faster than dense {PLACE}. "
        "This is throughput alone: nothing was learnt, so that accuracy is unknown."
    )


def test_a_timeout_is_a_miss_and_what_did_not_finish_every_round_does_not_win(tmp_path: Path) -> None:
    for status, reached_of in (("timeout", (2, 3)), ("crashed", (2, 2))):
        ended = {**TOPK, "status": ["done", status, "done"]}
        store = store_of(tmp_path / status, {"dense": DENSE, "bf16": BF16, "topk": ended})
        (case,) = case_results(store.trials(), store.scenario())
        assert case.method("topk").time_to_target[:2] == reached_of
        assert answer.Answer(case, store.scenario()).winner is None
        assert f"but did not finish 1 of 3 rounds ({status})" in headline_of(store)


def test_what_cannot_be_known_is_said_with_its_own_reason(tmp_path: Path) -> None:
    at_once = {label: {**each, "time_to_target_s": [0.0] * 3} for label, each in (("dense", DENSE), ("topk", TOPK))}
    assert "85 % accuracy was there before the first step" in headline_of(store_of(tmp_path, at_once))
    lost = {"dense": {**DENSE, "status": ["crashed"] * 3}, "bf16": BF16, "topk": TOPK}
    assert "dense finished in no round, so that nothing tells" in headline_of(store_of(tmp_path / "lost", lost))


def test_an_interval_that_leaves_it_open_is_not_called_a_loss(tmp_path: Path) -> None:
    """0.83x [0.32, 2.12], as once measured."""
    open_ = figures([2.4, 6.4, 7.0], 1500.0)
    sentence = headline_of(store_of(tmp_path, {"dense": DENSE, "bf16": BF16, "topk": open_}))
    assert sentence.startswith("Nothing surely pays")


def test_a_crash_is_no_miss(tmp_path: Path) -> None:
    store = store_of(tmp_path, {"dense": DENSE, "topk": {**TOPK, "status": ["done", "crashed", "done"]}})
    (case,) = case_results(store.trials(), store.scenario())
    assert case.method("topk").time_to_target[:2] == (2, 2)
    assert case.method("topk").trials == 3


# Keeping accuracy


@pytest.mark.parametrize(
    ("own", "tolerance", "keeps"),
    [
        ([0.98, 0.981, 0.979], 0.02, "yes"),
        ([0.975, 0.976, 0.974], 0.02, "yes"),
        ([0.975, 0.976, 0.974], 0.001, "no"),
        ([0.90, 0.99, 0.98], 0.02, "unknown"),
        ([0.9], 0.02, "unknown"),
        ([0.90, 0.901, 0.902], 0.02, "no"),
        ([0.90, 0.901, 0.902], 0.2, "yes"),
    ],
)
def test_accuracy_is_kept_where_the_whole_interval_is_tolerated(
    tmp_path: Path, own: list[float], tolerance: float, keeps: str
) -> None:
    count = len(own)
    methods = {label: {"final_accuracy": values} for label, values in (("dense", [0.98] * count), ("topk", own))}
    store = store_of(tmp_path, methods, [f"tolerance={tolerance}"])
    (case,) = case_results(store.trials(), store.scenario())
    assert case.method("topk").quality.keeps == keeps


def test_where_more_seeds_may_follow_each_look_must_be_surer(tmp_path: Path) -> None:
    """The same three seeds: after them there is one look, or there may be five more."""
    methods = {"dense": {"final_accuracy": [0.98] * 3}, "topk": {"final_accuracy": [0.968, 0.97, 0.969]}}
    kept = {}
    for seeds in (0, 3, 8):
        store = store_of(tmp_path / str(seeds), methods, [f"accuracy_seeds={seeds}", "tolerance=0.0135"])
        (case,) = case_results(store.trials(), store.scenario())
        kept[seeds] = case.method("topk").quality.keeps
    assert kept == {0: "yes", 3: "yes", 8: "unknown"}
    assert "the 97.5 % t interval" in " ".join(facts.collect(store).notes)


@pytest.mark.parametrize(("rounds", "most_seeds"), [(3, 8), (5, 12), (2, 3)])
def test_who_looks_twice_errs_as_seldom_as_who_looks_once(rounds: int, most_seeds: int) -> None:
    """Studies of methods whose truth is the tolerance itself: whatever is said of one is wrong."""
    dice, studies, tolerance = np.random.default_rng(0), 2000, 0.02
    confidence = confidence_of_a_look(rounds, most_seeds)
    said = Counter(
        next(
            (
                keeps
                for seeds in (rounds, most_seeds)
                if (keeps := kept(mean(lost[:seeds], confidence), "loss", tolerance)) != "unknown"
            ),
            "unknown",
        )
        for lost in tolerance + 0.01 * dice.standard_normal((studies, most_seeds))
    )
    most = 0.025 + 3 * math.sqrt(0.025 * 0.975 / studies)
    assert said["yes"] / studies <= most
    assert said["no"] / studies <= most


def test_losses_are_compared_relative_and_lower_is_better(tmp_path: Path) -> None:
    workload = ["train.model=byte-lm", "train.dataset=python-source", "train.pace=none"]
    overrides = ["train.target=perplexity 12", *workload]
    final = {
        "dense": [10.0, 10.0, 10.1],
        "topk": [10.1, 10.1, 10.2],
        "dgc": [11.0, 11.1, 11.2],
        "bf16": [9.0, 9.0, 9.1],
    }
    methods = {label: {"final_perplexity": values} for label, values in final.items()}
    store = store_of(tmp_path, methods, overrides)
    (case,) = case_results(store.trials(), store.scenario())
    kept = {label: case.method(label).quality.keeps for label in final}
    assert kept == {"dense": "yes", "topk": "yes", "dgc": "no", "bf16": "yes"}
    found = case.method("topk").quality.difference
    assert found is not None
    assert found.value == pytest.approx(0.01, rel=0.01)
    assert text.difference(case.method("topk").quality).startswith("+1.0 %")
    page.write(store, figures=[time_to_target, accuracy])
    assert "time to perplexity 12" in (store.folder / "report.html").read_text().lower().replace("training ", "")


@given(st.lists(st.tuples(st.floats(0.1, 0.99), st.floats(0.1, 0.99)), min_size=2, max_size=8), st.floats(0, 0.5))
def test_more_tolerance_never_costs_a_yes(pairs: list[tuple[float, float]], tolerance: float) -> None:
    rows = [
        {"label": label, "round": seed, "status": "done", "final_accuracy": value}
        for seed, pair in enumerate(pairs)
        for label, value in zip(("a", "b"), pair, strict=True)
    ]
    strict, mild = (
        quality(pd.DataFrame(rows), "a", "b", "accuracy", each).keeps for each in (tolerance, tolerance + 0.1)
    )
    order = ["no", "unknown", "yes"]
    assert order.index(mild) >= order.index(strict)
