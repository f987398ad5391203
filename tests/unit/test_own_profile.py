"""``train.pace = "self"``: planned without a profile, made once a run; and profiles that reach workers as files."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import traps
from abacus import profile, written

from harness.cluster.docker.compose import ComposeCluster
from harness.cluster.fake import FakeCluster
from harness.errors import MeasurementError, UsageError
from harness.messages import Message
from harness.plan.estimate import time_s
from harness.plan.machine import Machine
from harness.plan.plan import Plan, make
from harness.record.store import Store
from harness.run import execute, own_profile
from harness.run.own_profile import REQUEST, with_profile_files
from harness.scenario.load import load
from harness.scenario.schema import Train
from harness.worker.profile_request import ProfileRequest
from harness.workload import profile as profiles

QUICK = ("train.pace=none", "rounds=1", "train.steps=40")


def planned(*overrides: str, methods: tuple[str, ...] = ("dense", "topk")) -> Plan:
    return make(load("quickstart", [*QUICK, *overrides], methods), "fake")


@pytest.fixture(autouse=True)
def _forget_profiles() -> Iterator[None]:
    """Other tests have other profiles of the same names."""
    yield
    profiles.read.cache_clear()


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[ProfileRequest]:
    """What profiles were asked for; all that is given is the abacus's."""
    asked: list[ProfileRequest] = []

    def made(request: ProfileRequest) -> str:
        asked.append(request)
        return profile(batch_size=request.batch_size).as_json()

    monkeypatch.setattr(own_profile, "_made", made)
    return asked


class Workers(FakeCluster):
    """Remembers what it was given for its workers."""

    def __init__(self) -> None:
        super().__init__()
        self.shared: set[str] = set()
        self.preloaded: list[Train | None] = []
        self.trained: list[dict[str, Any]] = []

    def share_file(self, file: Path) -> None:
        self.shared.add(str(file))

    def preload(self, train: Train | None = None) -> None:
        self.preloaded.append(train)

    def run(self, task: str, spec: Mapping[str, Any], timeout_s: float) -> Iterator[Message]:
        self.trained.append(spec["trial"])
        return super().run(task, spec, timeout_s)


def run(plan: Plan, store: Store) -> Workers:
    cluster = Workers()
    execute.run(plan, store, cluster, lambda _: None, lambda *_: None)
    return cluster


def test_a_plan_copes_without_the_profile_that_its_run_will_make() -> None:
    (trial, *_), (unpaced, *_) = planned("train.pace=self").trials, planned().trials
    assert trial.expected.profile is None
    assert trial.expected.predicted_step_s is None
    assert trial.id != unpaced.id
    assert trial.id == planned("train.pace=self").trials[0].id
    (slow, *_), (plain, *_) = (planned("train.pace=self", f"train.dilation={k}").trials for k in ("4.0", "1.0"))
    assert time_s(slow, Machine(2)) > 2 * time_s(plain, Machine(2)), "a paced trial is dilated"


def test_a_run_makes_it_once_a_workload_and_goes_on_by_it(tmp_path: Path, requests: list[ProfileRequest]) -> None:
    plan = planned("train.pace=self", "train.batch_size=[16, 32]", 'link.rate=["50mbit", "100mbit"]')
    store = Store.create(tmp_path / "run", plan.scenario)
    cluster = run(plan.only(lambda trial: trial.method.name == "dense"), store)
    assert [request.batch_size for request in requests] == [16, 32]
    for request in requests:
        assert request.in_processor_time
        assert (request.model, request.dataset, request.workers) == ("digits-cnn", "digits", 3)
        assert request.methods == plan.scenario.methods, "also those that are not to run now"
    files = sorted((store.folder / "profiles").rglob("*.json"))
    assert [str(file.relative_to(store.folder / "profiles")) for file in files] == [
        "digits-cnn-16-digits-3/self.json",
        "digits-cnn-32-digits-3/self.json",
    ]
    assert cluster.shared == {str(file) for file in files}
    assert {trial["case"]["train"]["pace"] for trial in cluster.trained} == cluster.shared

    resumed = run(plan, Store.open(store.folder))
    assert len(requests) == 2, "what is stored is used again"
    assert {trial["case"]["train"]["pace"] for trial in resumed.trained} == cluster.shared
    rows = store.trials()
    assert set(rows["trial_id"]) == {trial.id for trial in plan.trials}
    assert (rows["status"] == "done").all()
    assert set(rows["pace"]) == {"self"}
    assert set(rows["replay_source"]) == {"modelled"}, "as the file says"
    assert rows["predicted_step_s"].notna().all()


def test_a_folder_of_the_same_name_may_hold_another_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, forward_s = planned("train.pace=self"), []
    for seconds in (0.004, 0.005):
        printed = profile(forward_s=seconds).as_json().encode()
        monkeypatch.setattr(
            "harness.programs.run", lambda *_, told=printed, **__: subprocess.CompletedProcess([], 0, told, b"")
        )
        store = Store.create(tmp_path / "run", plan.scenario)
        (trial, *_) = with_profile_files(plan.trials, store)
        assert trial.expected.profile
        forward_s.append(trial.expected.profile.forward_s)
        (tmp_path / "run").rename(tmp_path / f"moved-{seconds}")
    assert forward_s == [0.004, 0.005]


def test_what_measures_gets_the_whole_request() -> None:
    methods = planned(methods=()).scenario.methods
    request = ProfileRequest("digits-cnn", 32, "cpu", 4, 10, methods, "hand", "digits", True, "data")
    assert REQUEST.validate_json(REQUEST.dump_json(request)) == request


def test_it_is_made_by_our_code_and_nothing_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = traps.lay(tmp_path / "here")
    monkeypatch.chdir(here)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    printed = own_profile._made(ProfileRequest("digits-cnn", 8, "cpu", 1, 1, (), "a test", "digits", True))
    made = profiles.Profile.model_validate_json(printed)
    assert (made.model, made.batch_size, made.source, made.made_by) == ("digits-cnn", 8, "measured", "a test")
    assert traps.sprung(here) == []


def test_where_none_can_be_made_its_last_word_is_told_and_nothing_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = subprocess.CompletedProcess([], 1, b"", b"a warning\nthe profile cannot be made: no room\n")
    monkeypatch.setattr("harness.programs.run", lambda *_, **__: failed)
    plan = planned("train.pace=self")
    store = Store.create(tmp_path / "run", plan.scenario)
    with pytest.raises(MeasurementError, match="profile of this machine cannot be made: the profile .*: no room$"):
        run(plan, store)
    assert not (store.folder / "profiles").exists()
    assert store.attempts().empty


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["train.replay=resnet18-a40"], "train.pace: found 'self'; allowed: none with train.replay"),
        (["cluster.device=cuda"], "cluster.device: found 'cuda'; allowed: cpu with train.pace"),
        (["train.dilation=0.5", "link.delay=1ms"], "train.dilation: found 0.5; allowed: at least 1 where"),
        (["train.dataset=fashion-mnist"], "train.model: found 'digits-cnn'"),
    ],
    ids=str,
)
def test_what_cannot_be_paced_is_refused_before_anything_starts(overrides: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        planned("train.pace=self", *overrides)


def test_nothing_is_replayed_by_a_profile_that_a_run_would_make() -> None:
    with pytest.raises(UsageError, match=r"train\.replay: found 'self'; allowed: a profile.* for train\.pace alone"):
        planned("train.replay=self", "train.target=none")


def test_workers_get_a_named_profile_as_a_file_and_rows_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Path(written(tmp_path / "abacus.json"))
    shipped = profiles.available()
    monkeypatch.setattr(profiles, "available", lambda: {**shipped, "abacus": file})
    for number, (field, more) in enumerate({"pace": (), "replay": ("train.target=none",)}.items()):
        plan = planned(f"train.{field}=abacus", *more)
        store = Store.create(tmp_path / f"run{number}", plan.scenario)
        cluster = run(plan, store)
        assert cluster.shared == {str(file)}
        assert {trial["case"]["train"][field] for trial in cluster.trained} == {str(file)}
        assert {getattr(train, field) for train in cluster.preloaded if train} == {str(file)}
        rows = store.trials()
        assert set(rows["trial_id"]) == {trial.id for trial in plan.trials}
        assert set(rows[field]) == {"abacus"}


def test_containers_have_it_where_the_trial_names_it(tmp_path: Path) -> None:
    overrides = [
        "train.pace=none",
        "train.replay=resnet18-a40",
        "train.model=resnet18",
        "train.target=none",
        "train.batch_size=32",
    ]
    plan = make(load("quickstart", overrides), "docker")
    cluster = ComposeCluster()
    for trial in with_profile_files(plan.trials, Store.create(tmp_path / "run", plan.scenario)):
        named = Path(str(trial.case.train.profile))
        cluster.share_file(named)
        assert cluster._mounts == {profiles.find("resnet18-a40").resolve(): str(named)}
        assert named.is_absolute()
