"""Times to accuracy that are measured in one piece stand beside products of two runs, of the same seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import make_store
from test_claims_quantities import claim, textbook

from harness.analysis.claims import schema
from harness.analysis.claims.figures import Run
from harness.analysis.claims.judgements import Judgement, judge
from harness.analysis.claims.plans import plans
from harness.errors import UsageError
from harness.plan import plan
from harness.plan.expected import communication_over_computation, shapes_of
from harness.report import citing
from harness.report.claims import why
from harness.report.claims_page import as_json
from harness.scenario.load import load
from harness.scenario.schema import Scenario
from harness.worker.derived import liken
from harness.worker.profile_request import ProfileRequest
from harness.workload import profile as profiles

IN_ONE_PIECE = {"quantity": "time to accuracy", "convergence": "quickstart", "in_one_piece": "paced"}
ROUNDS = range(3)


def run_of(folder: Path, ends: Mapping[tuple[str, int], Mapping[str, Any]] = {}, *overrides: str) -> Run:
    return Run(plan.make(load("quickstart", overrides), "netns"), make_store(folder, overrides, ends=ends))


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What stands for both the replays and the trainings of a product."""
    return run_of(tmp_path_factory.mktemp("apart") / "quickstart-1")


def beside(apart: Run, paced: Run, **changes: Any) -> Judgement:
    return judge(claim(**{**IN_ONE_PIECE, **changes}), {"quickstart": apart, "paced": paced})


def of(run: Run, column: str, label: str) -> np.ndarray[Any, Any]:
    own = run.trials[run.trials["label"] == label].sort_values("seed")
    return own[column].to_numpy(dtype=float)


def test_it_is_the_time_itself_by_seeds(apart: Run) -> None:
    ratios = of(apart, "time_to_target_s", "dense") / of(apart, "time_to_target_s", "topk")
    judgement = beside(apart, apart)
    (found,) = judgement.in_one_piece
    assert found.found is not None
    assert found.found[:3] == pytest.approx(np.exp(textbook(np.log(ratios), 0.95)))
    assert found.ratio == found.claimed_ratio
    assert found.answer == "the same", "a step of the one is a step of the other"
    assert "The product of the same seeds says the same" in why(judgement)
    assert "(seeds: 3)" in why(judgement)


def test_what_a_product_leaves_out_is_told_apart_from_another_steady_state(apart: Run, tmp_path: Path) -> None:
    """Each training takes half again as long to the target, of which a step of the steady state takes a fifth more."""
    times_s, speeds = (of(apart, column, "dgc") for column in ("time_to_target_s", "samples_per_s"))
    late = {
        ("dgc", number): {"time_to_target_s": 1.5 * times_s[number], "samples_per_s": speeds[number] / 1.2}
        for number in ROUNDS
    }
    judgement = beside(apart, run_of(tmp_path / "quickstart-1", late), method="dgc")
    (found,) = judgement.in_one_piece
    assert found.found is not None
    assert found.over_product is not None
    assert found.over_product.value == pytest.approx(1 / 1.5)
    assert found.steady_over_replay == pytest.approx(1 / 1.2)
    assert found.beyond_steady == pytest.approx(1.2 / 1.5)
    assert found.answer == "differs"
    assert judgement.verdict == beside(apart, apart, method="dgc").verdict, "no verdict depends on it"
    assert "0.83 times by the steady state" in why(judgement)
    assert f"0.80 times by steps before it ({found.warm_up['dgc']} of dgc)" in why(judgement)
    (told,) = as_json([judgement], {})["claims"][0]["in_one_piece"]
    assert told["answer"] == "differs"
    assert told["over_product"]["value"] == found.over_product.value
    said = f"{found.found.low:.3g} to {found.found.high:.3g} times as soon as dense (in 1 of 1 cases)"
    assert f"Measured in one piece, with what comes before the steady state (digits-cnn): {said}." in " ".join(
        citing.citable([judgement])
    )


def test_one_seed_or_a_wide_interval_tells_no_difference(apart: Run, tmp_path: Path) -> None:
    one_seed = run_of(tmp_path / "quickstart-1", {}, "rounds=1")
    (found,) = beside(apart, one_seed).in_one_piece
    assert found.found is not None
    assert (found.found.low, found.answer) == (None, "unknown")
    times_s = of(apart, "time_to_target_s", "topk")
    uneven = {("topk", number): {"time_to_target_s": (1 + number) * times_s[number] / 2} for number in ROUNDS}
    judgement = beside(apart, run_of(tmp_path / "quickstart-2", uneven))
    assert judgement.in_one_piece[0].answer == "unknown"
    assert "Whether the product of the same seeds says the same cannot be told" in why(judgement)


def test_disturbed_trainings_are_left_out(tmp_path: Path) -> None:
    whole = run_of(tmp_path / "quickstart-1")
    late = {"time_to_target_s": 10 * of(whole, "time_to_target_s", "topk")[1], "disturbed_share": 0.9, "reason": "late"}
    (found,) = beside(whole, run_of(tmp_path / "quickstart-2", {("topk", 1): late})).in_one_piece
    ratios = of(whole, "time_to_target_s", "dense") / of(whole, "time_to_target_s", "topk")
    assert found.found is not None
    assert found.found.value == pytest.approx(np.exp(np.log(ratios[[0, 2]]).mean()))


def test_a_device_that_was_replayed_too_late_is_compared_with_nothing(apart: Run, tmp_path: Path) -> None:
    late = {("topk", number): {"overrun_s_per_step": 1.0} for number in ROUNDS}
    judgement = beside(run_of(tmp_path / "quickstart-1", late), apart)
    assert judgement.in_one_piece[0].found is not None
    assert judgement.in_one_piece[0].over_product is None


def test_it_counts_only_where_communication_is_as_many_times_computation(apart: Run, tmp_path: Path) -> None:
    elsewhere = run_of(tmp_path / "quickstart-1", {}, "link.rate=120mbit")
    assert beside(apart, elsewhere).in_one_piece == ()
    near = run_of(tmp_path / "quickstart-2", {}, "link.rate=105mbit")
    (found,) = beside(apart, near).in_one_piece
    assert found.claimed_ratio / found.ratio == pytest.approx(1.05)


@pytest.mark.parametrize("missing", [range(1), ROUNDS])
def test_who_missed_the_target_once_has_no_figure_of_the_other_seeds(
    missing: range, apart: Run, tmp_path: Path
) -> None:
    missed = {("topk", number): {"time_to_target_s": None, "steps_to_target": None} for number in missing}
    judgement = beside(apart, run_of(tmp_path / "quickstart-1", missed))
    assert judgement.in_one_piece[0].found is None
    assert f"In one piece: topk missed the target in {len(missing)} of 3 trainings." in why(judgement)


@pytest.mark.parametrize(
    ("end", "says"),
    [
        ({"status": "timeout"}, "topk ran out of time in 2 of 3 trainings"),
        ({"time_to_target_s": 0.0, "steps_to_target": 0.0}, "topk was at the target before its first step in 2 of 3"),
    ],
)
def test_who_has_no_time_to_the_target_has_no_figure_of_the_other_seeds(
    end: dict[str, Any], says: str, apart: Run, tmp_path: Path
) -> None:
    judgement = beside(apart, run_of(tmp_path / "quickstart-1", {("topk", number): end for number in range(2)}))
    assert judgement.in_one_piece[0].found is None
    assert f"In one piece: {says}" in why(judgement)


def test_what_was_not_run_gives_no_figure(apart: Run) -> None:
    judgement = beside(apart, Run(apart.plan))
    assert judgement.in_one_piece[0].found is None
    assert "In one piece" not in why(judgement)


def test_only_trainings_that_stand_beside_a_claim_are_run() -> None:
    def labels_by_rate(wanted: str) -> set[tuple[int | None, str]]:
        chosen = schema.select(schema.load(), [wanted])
        paced = plans(chosen, lambda scenario: plan.make(scenario, "netns"))["paper/convergence-vision-paced"]
        return {(trial.case.link.rate_bps, trial.method.label) for trial in paced.trials}

    assert labels_by_rate("pactrain-tta-allreduce/vgg19") == set(), "its ratios are others"
    (rate_bps,) = {rate for rate, _ in labels_by_rate("pactrain-tta-compressed/resnet152/1gbit")}
    assert rate_bps == 140_100_000
    assert labels_by_rate("pactrain-tta-compressed/vit-b-16/100mbit/topk/pactrain-fp32") == {
        (14_010_000, "topk"),
        (14_010_000, "pactrain-fp32"),
    }


def test_the_ratio_is_that_of_a_dense_step_s_bytes_and_the_profile_s_times() -> None:
    (case,) = load("quickstart").cases
    profile = profiles.read(str(case.train.pace))
    sent_bytes = 2 * (3 - 1) / 3 * 4 * sum(map(math.prod, shapes_of("digits-cnn")))
    computed_s = profile.forward_s + profile.backward_s + profile.optimizer_s
    assert communication_over_computation(case) == pytest.approx(8 * sent_bytes / 1e8 / computed_s)


def test_the_paced_trainings_have_the_ratios_of_the_model_that_they_stand_for() -> None:
    paced = load("paper/convergence-vision-paced")
    replayed = load("paper/pactrain-resnet152")
    whole = {
        case.link.rate_bps: communication_over_computation(case)
        for case in replayed.cases
        if case.train.replay == "resnet152-a40"
    }
    found = [communication_over_computation(case) for case in paced.cases]
    assert found == pytest.approx([whole[100_000_000], whole[1_000_000_000]], rel=1e-3)


def test_a_likened_profile_has_another_ones_times_and_its_own_model_s_gradients() -> None:
    other = profiles.read("resnet152-a40")
    request = ProfileRequest("fashion-cnn", 16, "cpu", 1, 1, methods=(), made_by="a test")
    made = liken(request, other, 20.0)
    assert [made.forward_s, made.backward_s, made.optimizer_s] == pytest.approx(
        [other.forward_s / 20, other.backward_s / 20, other.optimizer_s / 20]
    )
    assert [each.took_s for each in made.codecs] == pytest.approx([each.took_s / 20 for each in other.codecs])
    assert sorted(made.shapes) == sorted(shapes_of("fashion-cnn"))
    assert made.gradients[-1].ready_s == pytest.approx(other.gradients[-1].ready_s / 20)
    halfway = next(each for each in made.gradients if each.parameter == "classifier.1.weight")
    before, by_then = (
        sum(each.numel for each in other.gradients if each.ready_s / 20 < close * halfway.ready_s) / other.numel
        for close in (1 - 1e-9, 1 + 1e-9)
    )
    part = sum(each.numel for each in made.gradients[: made.gradients.index(halfway) + 1]) / made.numel
    assert before < part <= by_then, "as large a part of the other's entries is ready by then, and not before"
    shipped = profiles.read("fashion-cnn-like-resnet152-a40")
    assert shipped.model_copy(update={"made_by": "a test"}) == made


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.lr=0.02", "differs in lr"),
        ("cluster.workers=4", "differs in workers"),
        ("seed=7", "differs in seed"),
        ("train.pace=none", "none, unless all cases of paced have a rate, and a profile"),
        ("train.pace=self", "none, unless all cases of paced have a rate, and a profile"),
        ("link.rate=unshaped", "none, unless all cases of paced have a rate, and a profile"),
    ],
)
def test_only_the_same_trainings_are_put_beside_a_product(
    override: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(name: str) -> Scenario:
        return load("quickstart", [override] if name == "paced" else []).model_copy(update={"name": name})

    monkeypatch.setattr(schema.scenarios, "load", loaded)
    with pytest.raises(UsageError, match=f"in_one_piece: found 'paced'; allowed: .*{says}"):
        plans([claim(**IN_ONE_PIECE)], lambda scenario: plan.make(scenario, "netns"))
