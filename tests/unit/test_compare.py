"""Comparisons of two runs: what changed, and what cannot be told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gate_runs import MakeRun, around
from synthetic import make_store, row_again

from harness.analysis import compare, cross_cluster
from harness.record.store import Store
from harness.report import changes as changes_text
from harness.report import comparison


def test_a_comparison_tells_faster_from_slower_from_neither(make_run: MakeRun) -> None:
    before = make_run(around(500.0))
    kinds = {}
    for now in (400.0, 500.0, 600.0):
        changes = compare.changes(before, make_run(around(now)))
        kinds[now] = next(change.kind for change in changes if change.label == "topk")
        assert compare.exit_code(changes, "dense") == (3 if now < 500 else 0)
    assert kinds == {400.0: "slower", 500.0: "no clear change", 600.0: "faster"}


def test_a_comparison_calls_no_change_what_the_machine_explains(make_run: MakeRun) -> None:
    before, after = make_run(around(500.0)), make_run(around(400.0))
    after.trials["compute_s_per_step"] *= 2
    changes = compare.changes(before, after)
    assert {change.kind for change in changes if change.label == "topk"} == {"no clear change"}
    assert any("the machine computed 2.00 times as long" in line for line in changes_text.notes(before, after, changes))


def test_what_a_profile_keeps_the_time_of_is_the_same_on_a_slower_machine(make_run: MakeRun) -> None:
    trials = make_run(around(500.0)).trials.assign(yardstick_s=2e-3)
    for column in ("replay", "pace"):
        kept = compare.at_pace(trials.assign(**{"replay": None, "pace": None, column: "abacus"}), 1e-3)
        assert kept["compute_s_per_step"].equals(trials["compute_s_per_step"])
    free = compare.at_pace(trials.assign(replay=None, pace=None), 1e-3)
    assert free["compute_s_per_step"].to_numpy() == pytest.approx(trials["compute_s_per_step"].to_numpy() / 2)


def test_a_method_that_never_finished_is_an_error_of_a_comparison(make_run: MakeRun) -> None:
    changes = compare.changes(make_run(around(500.0)), make_run([None] * 5))
    assert compare.exit_code(changes, "dense") == 5


def test_of_one_round_a_comparison_says_that_it_cannot_tell(make_run: MakeRun) -> None:
    changes = compare.changes(make_run([500.0]), make_run([400.0]))
    assert compare.exit_code(changes, "dense") == 4


def test_accuracies_are_paired_by_seed(make_run: MakeRun, tmp_path: Path) -> None:
    before, after = make_run(around(500.0)), make_run(around(500.0))
    topk = after.trials["label"] == "topk"
    after.trials.loc[topk, "final_accuracy"] += 0.01
    (change,) = [change for change in compare.changes(before, after) if change.label == "topk"]
    assert change.accuracy is not None
    assert (change.accuracy.value, change.accuracy.low, change.accuracy.high) == pytest.approx((0.01, 0.01, 0.01))
    assert "+1.0 points [+1.0, +1.0]" in changes_text.cells(change)["accuracy"]


def test_a_comparison_names_what_did_not_finish(make_run: MakeRun) -> None:
    before, after = make_run(around(500.0)), make_run([None, *around(500.0)[1:]])
    changes = compare.changes(before, after)
    assert any("round 0 crashed" in line for line in changes_text.notes(before, after, changes))
    assert json.dumps(changes_text.as_json(before, after, changes), allow_nan=False)


@pytest.fixture
def on_two_kinds(tmp_path: Path) -> Callable[..., tuple[Store, Store]]:
    """A run of one scenario on network namespaces, and one on the scripted cluster."""

    def make(*overrides: str, **how: Any) -> tuple[Store, Store]:
        settings = ["rounds=2", "train.steps=8", *overrides]
        first, second = (
            make_store(tmp_path / kind, settings, cluster=kind, methods=["topk"], **how) for kind in ("netns", "fake")
        )
        return first, second

    return make


def test_clusters_are_compared_case_by_case(on_two_kinds: Callable[..., tuple[Store, Store]]) -> None:
    lines = cross_cluster.compare(*on_two_kinds("train.pace=none", "train.batch_size=[16, 32]"))
    assert [(line.case.split(", ")[-1], line.label, line.rounds) for line in lines] == [
        (batch, label, 2) for batch in ("batch 16", "batch 32") for label in ("dense", "topk")
    ]
    assert all(line.case.startswith("100 Mbit/s, 3 workers, digits-cnn on digits") for line in lines)
    assert {(line.same_curves, line.same_parameters, line.ratio) for line in lines} == {(2, 2, 1.0)}


def test_seeds_for_accuracy_alone_are_no_part_of_a_comparison_of_clusters(
    on_two_kinds: Callable[..., tuple[Store, Store]],
) -> None:
    both = on_two_kinds()
    for store in both:
        seed = row_again(store.trials().iloc[0], trial_id=f"more-{store.folder.name}", round=2, purpose="accuracy")
        store.append(seed, [])
    assert {line.rounds for line in cross_cluster.compare(*both)} == {2}


def without_events(store: Store) -> Store:
    bare = Store.create(store.folder / "bare", store.scenario())
    for _, row in store.trials().iterrows():
        bare.append(row_again(row), [])
    return bare


def test_clusters_that_replayed_have_no_curves_to_compare(on_two_kinds: Callable[..., tuple[Store, Store]]) -> None:
    first, second = on_two_kinds()
    both = without_events(first), without_events(second)
    assert {line.same_curves for line in cross_cluster.compare(*both)} == {None}
    assert comparison.write(*both).read_text().count("| – | 2 of 2 |") == 2
