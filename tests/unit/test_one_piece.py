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
    assert not found.differs, "a step of the one is a step of the other"
    assert "the product of the same seeds says the same" in why(judgement).lower()


def test_a_warm_up_that_a_product_leaves_out_is_told(apart: Run, tmp_path: Path) -> None:
    """Each training takes half again as long before it compresses, and the steps to the target are the same."""
    late = {
        ("dgc", number): {"time_to_target_s": 1.5 * time_s}
        for number, time_s in zip(ROUNDS, of(apart, "time_to_target_s", "dgc"), strict=True)
    }
    judgement = beside(apart, run_of(tmp_path / "quickstart-1", late), method="dgc")
    (found,) = judgement.in_one_piece
    assert found.over_product is not None
    assert found.over_product.value == pytest.approx(1 / 1.5)
    assert found.differs
    assert judgement.verdict == beside(apart, apart, method="dgc").verdict, "no verdict depends on it"
    warm_up = found.warm_up["dgc"]
    assert f"it leaves out the {warm_up} steps before dgc compresses" in why(judgement)
    (told,) = as_json([judgement], {})["claims"][0]["in_one_piece"]
    assert told["differs"] is True
    assert told["over_product"]["value"] == found.over_product.value
    low, high = found.found.low, found.found.high
    assert (
        f"In one piece, warm-up included: {low:.3g} to {high:.3g} times as soon as dense."
        in citing.citable([judgement])[0]
    )


def test_it_counts_only_where_communication_is_as_many_times_computation(apart: Run, tmp_path: Path) -> None:
    elsewhere = run_of(tmp_path / "quickstart-1", {}, "link.rate=120mbit")
    assert beside(apart, elsewhere).in_one_piece == ()
    near = run_of(tmp_path / "quickstart-2", {}, "link.rate=105mbit")
    (found,) = beside(apart, near).in_one_piece
    assert found.claimed_ratio / found.ratio == pytest.approx(1.05)


def test_what_was_not_run_or_never_reached_it_gives_no_figure(apart: Run, tmp_path: Path) -> None:
    missed = {("topk", number): {"time_to_target_s": None, "steps_to_target": None} for number in ROUNDS}
    judgement = beside(apart, run_of(tmp_path / "quickstart-1", missed))
    assert judgement.in_one_piece[0].found is None
    assert "In one piece" not in why(judgement)
    nothing = Run(apart.plan)
    assert beside(apart, nothing).in_one_piece[0].found is None


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
    before = sum(each.numel for each in other.gradients if each.ready_s / 20 < (1 - 1e-9) * halfway.ready_s)
    part = sum(each.numel for each in made.gradients[: made.gradients.index(halfway) + 1]) / made.numel
    assert before / other.numel < part, "as large a part of the other's entries is ready by then, and none sooner"
    shipped = profiles.read("fashion-cnn-like-resnet152-a40")
    assert shipped.model_copy(update={"made_by": "a test"}) == made


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.lr=0.02", "differs in lr"),
        ("cluster.workers=4", "differs in workers"),
        ("seed=7", "differs in seed"),
        ("train.pace=none", "has no pace, or links without a rate"),
        ("link.rate=unshaped", "has no pace, or links without a rate"),
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
