"""Runs that other code made are judged as they are, and their folders are only read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from synthetic import invent, make_store

from harness.analysis.claims.figures import Run
from harness.analysis.claims.judgements import judge
from harness.analysis.claims.schema import Claim
from harness.analysis.trials import CASE_COLUMNS
from harness.errors import UsageError
from harness.plan import plan
from harness.plan.trial import Trial
from harness.record.row import TrialRow
from harness.record.store import Store
from harness.run.row import case_of, told_replay
from harness.run.stored import differences, plan_of, stored_runs
from harness.scenario.load import find, load
from harness.workload import profile as profiles

SWEEP = ['link.rate=["10mbit", "100mbit"]']


def claim(**changes: Any) -> Claim:
    fields: dict[str, Any] = {"id": "a-claim", "source": "Somebody", "place": "abstract", "wording": "faster"}
    fields |= {"quantity": "throughput", "model": "digits-cnn", "rate": "100mbit", "workers": 3, "baseline": "dense"}
    fields |= {"method": "topk", "range": (1.0, 12.0), "scenario": "quickstart"}
    return Claim.model_validate({**fields, **changes})


def stored(trial: Trial, **changes: Any) -> TrialRow:
    """The row of a trial as a run tells its case."""
    told = dict(zip(CASE_COLUMNS, case_of(trial), strict=True))
    return TrialRow(**{**invent(trial)[0], **told, "replay": told_replay(trial), **changes})


@pytest.fixture
def by_other_code(tmp_path: Path) -> Store:
    """A run each of whose trials has an id that code of now would not give it."""
    scenario = load("quickstart", SWEEP)
    store = Store.create(tmp_path / "runs" / "quickstart-20250101-000000", scenario)
    for trial in plan.make(scenario, "netns").trials:
        store.append(stored(trial, trial_id=trial.id[::-1]), [])
    return store


def test_trials_are_known_by_what_they_are_whatever_code_made_them(by_other_code: Store, tmp_path: Path) -> None:
    now = Run(plan.make(load("quickstart", SWEEP), "netns"), make_store(tmp_path / "now", SWEEP))
    assert not {trial.id for trial in now.plan.trials} & set(by_other_code.trials()["trial_id"])
    _, found = stored_runs([claim()], by_other_code.folder.parent)
    assert judge(claim(), found).found == judge(claim(), {"quickstart": now}).found
    whole = plan_of(by_other_code)
    assert {trial.id for trial in whole.trials} == set(by_other_code.trials()["trial_id"])


def test_a_replay_is_known_whatever_words_tell_what_it_is_fed(tmp_path: Path) -> None:
    scenario = load("paper/datacenter-resnet50")
    store = Store.create(tmp_path / "datacenter-resnet50-1", scenario)
    first = plan.make(scenario, "netns").trials[0]
    store.append(stored(first, trial_id="older", dataset="gradients in words of long ago"), [])
    assert plan_of(store).trials[0].id == "older"


def test_a_case_that_is_not_stored_is_refused(by_other_code: Store) -> None:
    with pytest.raises(UsageError, match=r"found 'digits-cnn, 1 Gbit/s, 3 workers'; allowed: the cases of quickstart"):
        stored_runs([claim(rate="1gbit")], by_other_code.folder.parent)


def test_claims_that_nothing_was_run_for_are_judged_all_the_same(tmp_path: Path) -> None:
    untestable = Claim.model_validate(
        {**claim().model_dump(by_alias=True, exclude_none=True, exclude={"scenario"}), "not_testable": "no such device"}
    )
    assert judge(untestable, stored_runs([untestable], tmp_path)[1]).verdict == "not testable here"


def test_a_newer_run_that_is_empty_or_lacks_a_method_hides_none(by_other_code: Store) -> None:
    folder = by_other_code.folder.parent
    Store.create(folder / "quickstart-20260101-000000", load("quickstart", SWEEP))
    make_store(folder / "quickstart-20260102-000000", SWEEP, methods=("bf16",))
    assert stored_runs([claim()], folder)[1]["quickstart"].store.folder == by_other_code.folder
    with pytest.raises(UsageError, match=r"found '.*quickstart-20260102-000000'; allowed: a run with nosuch in it"):
        stored_runs([claim(method="nosuch")], folder)


def test_no_cluster_is_needed_of_the_kind_that_ran(by_other_code: Store) -> None:
    """Trials are of the kind of cluster that their rows say, whatever this machine can have."""
    (plan_kind,) = {trial.cluster for trial in plan_of(by_other_code).trials}
    assert plan_kind == "netns"
    scenario = load("quickstart")
    store = Store.create(by_other_code.folder.parent / "quickstart-20260103-000000", scenario)
    for trial in plan.make(scenario, "docker").trials:
        store.append(stored(trial, trial_id=trial.id[::-1]), [])
    assert {trial.id for trial in plan_of(store).trials} == set(store.trials()["trial_id"])


def test_what_is_not_stored_stands_beside_no_verdict(tmp_path: Path) -> None:
    """Trainings of other seeds than now are judged, though what would run beside them now is other trainings."""
    changes = {"model": "resnet152", "rate": "1gbit", "workers": 8, "method": "topk", "baseline": "fp16"}
    trainings = {"convergence": "paper/convergence-vision", "in_one_piece": "paper/convergence-vision-paced"}
    asked = claim(**changes, quantity="time to accuracy", scenario="paper/pactrain-resnet152", **trainings)
    older = ["rounds=2", "seed=0"]
    make_store(tmp_path / "convergence-vision-20250101-000000", older, "paper/convergence-vision")
    (judged,), runs = stored_runs([asked], tmp_path)
    assert judged.in_one_piece is None
    assert runs["paper/convergence-vision"].plan.scenario.seed == 0
    assert judge(judged, runs).in_one_piece == ()


OLDER, NEWER = "quickstart-20250101-000000", "quickstart-20260101-000000"


def judged_by(folder: Path) -> tuple[str, dict[str, str]]:
    """The run of quickstart that is taken, and what is told of it."""
    _, found = stored_runs([claim()], folder)
    store = found["quickstart"].store
    assert store
    return store.folder.name, differences([claim()], found)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.steps=16", "train.steps is 16, not 60"),
        ("link.delay=50ms", "link.delay is 0.05s, not 0.0s"),
        ("train.lr=0.2", "train.lr is 0.2, not 0.1"),
        ("train.gradient_density=0.5", "train.gradient_density is 0.5, not 1.0"),
        ("link.up.rate=10mbit", "link.up.rate is 10000000bit, not none"),
    ],
)
def test_a_run_with_other_settings_is_taken_only_if_there_is_no_other_and_told(
    override: str, told: str, tmp_path: Path
) -> None:
    make_store(tmp_path / "both" / OLDER)
    for folder in ("both", "alone"):
        make_store(tmp_path / folder / NEWER, [override])
    assert judged_by(tmp_path / "both") == (OLDER, {})
    name, differs = judged_by(tmp_path / "alone")
    assert name == NEWER
    assert told in differs[NEWER].split("; ")


def test_methods_with_other_parameters_are_told_if_a_claim_is_about_them(tmp_path: Path) -> None:
    other = tmp_path / "quickstart.toml"
    other.write_text(find("quickstart").read_text().replace("ratio = 0.01", "ratio = 0.02"))
    make_store(tmp_path / "runs" / NEWER, scenario=str(other))
    assert judged_by(tmp_path / "runs") == (NEWER, {NEWER: "topk: ratio is 0.02, not 0.01"}), "and nothing of dgc"


@pytest.mark.parametrize(
    "overrides",
    [
        ["rounds=2", "seed=7", "accuracy_seeds=4"],
        ["train.dilation=2", "train.most_added=0.2", "train.timeout=1h"],
        SWEEP,
    ],
)
def test_what_says_how_often_and_by_which_means_a_case_was_run_may_differ(
    overrides: Sequence[str], tmp_path: Path
) -> None:
    make_store(tmp_path / NEWER, overrides)
    assert judged_by(tmp_path) == (NEWER, {})


def test_tensors_that_were_not_shrunk_are_the_same_replay(tmp_path: Path) -> None:
    asked = claim(model="resnet50", rate="10gbit", workers=8, method="bf16", scenario="paper/datacenter-resnet50")
    make_store(tmp_path / "datacenter-resnet50-1", ["rounds=2", "train.shrink=1"], "paper/datacenter-resnet50")
    assert differences([asked], stored_runs([asked], tmp_path)[1]) == {}


@pytest.mark.parametrize("is_other", [False, True])
def test_a_profile_is_known_by_what_it_holds_whatever_its_name_is(is_other: bool, tmp_path: Path) -> None:
    content = profiles.find("digits-cnn-epyc").read_text()
    file = tmp_path / "mine.json"
    file.write_text(content.replace('"device": "', '"device": "another ') if is_other else content)
    make_store(tmp_path / "runs" / NEWER, [f"train.pace={file}"])
    differs = {NEWER: f"train.pace is {file}, not digits-cnn-epyc"} if is_other else {}
    assert judged_by(tmp_path / "runs") == (NEWER, differs)


def test_a_newer_run_that_was_hardly_begun_hides_none_that_is_complete(tmp_path: Path) -> None:
    make_store(tmp_path / OLDER)
    scenario = load("quickstart")
    begun = Store.create(tmp_path / NEWER, scenario)
    begun.append(stored(plan.make(scenario, "netns").trials[0]), [])
    assert judged_by(tmp_path)[0] == OLDER
    make_store(tmp_path / "quickstart-20260102-000000")
    assert judged_by(tmp_path)[0] == "quickstart-20260102-000000", "of two that are as complete the newer one"


def test_of_cases_that_claims_do_not_tell_apart_the_scenarios_own_is_judged(tmp_path: Path) -> None:
    make_store(tmp_path / NEWER, ['link.delay=["50ms", "0ms"]'])
    _, found = stored_runs([claim()], tmp_path)
    assert {trial.case.link.delay_s for trial in found["quickstart"].plan.trials} == {0.0}
    assert differences([claim()], found) == {}
