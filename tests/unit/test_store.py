"""The run's folder: appended atomically, read back whole, and honest about damage."""

from __future__ import annotations

import errno
import fcntl
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from synthetic import a_row

from harness.analysis.cases import case_results
from harness.errors import MeasurementError, UsageError
from harness.provenance import ROOT
from harness.record.row import EVENT_SCHEMA, TRIAL_SCHEMA, Event, TrialRow
from harness.record.store import Store, new_folder, require_done, runs
from harness.record.tables import read_row
from harness.report.headline import headline
from harness.scenario.load import load
from harness.scenario.schema import Scenario
from harness.scenario.target import Target


@pytest.fixture
def scenario() -> Scenario:
    return load("quickstart")


@pytest.fixture
def store(tmp_path: Path, scenario: Scenario) -> Store:
    return Store.create(tmp_path / "run", scenario)


def row(trial_id: str, status: str = "done", attempt: int = 0, **fields: Any) -> TrialRow:
    return a_row(trial_id, status=status, attempt=attempt, **fields)


def test_what_is_appended_is_read_back_also_by_pandas_alone(store: Store) -> None:
    events = [Event(0, 1, 0.5, "loss", 2.25), Event(3, 1, 0.5, "step_s", 0.125)]
    store.append(row("a", samples_per_s=100.5), events)
    store.append(row("b", samples_per_s=7.0), [])
    alone = pd.read_parquet(store.folder / "trials.parquet")
    assert list(alone.columns) == TRIAL_SCHEMA.names
    assert dict(zip(alone["trial_id"], alone["samples_per_s"], strict=True)) == {"a": 100.5, "b": 7.0}
    assert [tuple(event) for event in store.events()[EVENT_SCHEMA.names[1:]].itertuples(index=False)] == events
    assert len(pd.read_parquet(store.folder / "events.parquet")) == 2


def test_the_last_attempt_counts_and_all_are_kept(store: Store) -> None:
    store.append(row("a", "crashed", 0, reason="boom"), [Event(0, 0, 0.0, "loss", 1.0)])
    store.append(row("a", "done", 1), [Event(0, 0, 0.0, "loss", 2.0)])
    assert store.attempts()["status"].tolist() == ["crashed", "done"]
    assert store.trials()["status"].tolist() == ["done"]
    assert store.events()["value"].tolist() == [2.0]


def test_a_trial_is_written_once(store: Store) -> None:
    store.append(row("a", samples_per_s=1.0), [])
    with pytest.raises(MeasurementError, match="a trial is written once"):
        store.append(row("a", samples_per_s=2.0), [])
    assert store.trials()["samples_per_s"].tolist() == [1.0]


def test_a_run_that_died_between_a_trials_events_and_its_row_can_write_it_again(store: Store) -> None:
    store.append(row("a", samples_per_s=1.0), [Event(0, 0, 0.0, "loss", 1.0)])
    (store.folder / "trials.parquet" / "a-0.parquet").unlink()
    assert store.attempts_of("a") == 1
    store.append(row("a", samples_per_s=2.0, attempt=1), [Event(0, 0, 0.0, "loss", 2.0)])
    assert store.trials()["samples_per_s"].tolist() == [2.0]
    assert store.events()["value"].tolist() == [2.0]


def test_a_file_that_was_being_written_when_its_process_died_is_not_read(store: Store) -> None:
    store.append(row("a"), [])
    (store.folder / "trials.parquet" / ".b-0.parquet.4711").write_bytes(b"PAR1 half")
    assert store.trials()["trial_id"].tolist() == ["a"]
    assert len(pd.read_parquet(store.folder / "trials.parquet")) == 1


def test_a_damaged_file_is_named_and_nothing_is_lost(store: Store) -> None:
    store.append(row("a"), [])
    store.append(row("b"), [])
    damaged = store.folder / "trials.parquet" / "b-0.parquet"
    whole = damaged.read_bytes()
    for content in (b"", b"garbage", whole[: len(whole) // 2]):
        damaged.write_bytes(content)
        with pytest.raises(UsageError, match=r"b-0\.parquet: damaged"):
            store.trials()
    damaged.rename(store.folder / "kept-aside")
    assert store.trials()["trial_id"].tolist() == ["a"]


def test_a_folder_belongs_to_one_scenario(store: Store) -> None:
    assert Store.create(store.folder, load("quickstart")).folder == store.folder
    with pytest.raises(UsageError, match="--out"):
        Store.create(store.folder, load("quickstart", ["rounds=9"]))
    with pytest.raises(UsageError, match=r"scenario\.json"):
        Store.open(store.folder.parent)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, scenario: Scenario) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match="--out: found .*allowed: a folder that can be written"):
        Store.create(tmp_path / "file" / "run", scenario)


def test_a_scenario_of_another_version_is_one_clear_line(store: Store) -> None:
    (store.folder / "store.json").unlink()
    (store.folder / "scenario.json").write_text('{"name": "old", "beer": 1}')
    with pytest.raises(UsageError, match="not a scenario this version can read"):
        store.scenario()


def test_two_runs_cannot_share_a_folder(store: Store) -> None:
    with store.locked(), pytest.raises(UsageError, match="another pacbench run"), Store(store.folder).locked():
        pass
    with store.locked():
        pass


def test_a_disk_without_locks_is_told_where_nothing_else_keeps_two_runs_apart(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    allowed = r"--out: found '.*run'; allowed: a folder whose disk has locks \(No locks available\), or --join"
    with pytest.raises(UsageError, match=allowed), store.locked():
        pass
    with store.locked(shared=True):
        pass


def test_of_profiles_that_are_made_at_the_same_time_all_use_the_first(store: Store) -> None:
    def slowly() -> str:
        assert store.profile("self", lambda: "another's").read_text() == "another's"
        return "its own"

    assert store.profile("self", slowly).read_text() == "another's"


def test_runs_of_a_scenario_are_found_newest_first(tmp_path: Path, scenario: Scenario) -> None:
    for name in ("quickstart-20260101-000000", "quickstart-20260102-000000"):
        Store.create(tmp_path / name, scenario)
    Store.create(tmp_path / "quickstart-20260103-000000", load("quickstart", ["rounds=9"]))
    (tmp_path / "quickstart-20260104-000000").mkdir()
    assert [store.folder.name for store in runs(tmp_path, scenario)] == [
        "quickstart-20260102-000000",
        "quickstart-20260101-000000",
    ]
    assert new_folder(tmp_path, scenario).name.startswith("quickstart-20")


def test_of_these_one_of_another_version_is_passed_over_and_a_damaged_one_is_told(
    tmp_path: Path, scenario: Scenario
) -> None:
    stores = [Store.create(tmp_path / f"quickstart-2026010{day}-000000", scenario) for day in (1, 2)]
    file = stores[1].folder / "scenario.json"
    written = json.loads(file.read_text())
    file.write_text(json.dumps({**written, "brew": 1}))
    (stores[1].folder / "store.json").unlink()
    assert [store.folder for store in runs(tmp_path, scenario)] == [stores[0].folder]
    (stores[0].folder / "scenario.json").write_text("{")
    with pytest.raises(UsageError, match="scenario.json: damaged: .*; move it away to go on"):
        next(runs(tmp_path, scenario))


def test_provenance_grows_by_one_entry_a_start(store: Store) -> None:
    store.add_provenance({"command": ["one"]})
    store.add_provenance({"command": ["two"]})
    assert [entry["command"] for entry in store.provenance()] == [["one"], ["two"]]


def test_nothing_measured_is_its_own_error(store: Store) -> None:
    with pytest.raises(MeasurementError, match="the run is empty"):
        require_done(store.trials(), store.folder)
    store.append(row("a", "crashed", reason="w1 ended with SIGKILL"), [])
    with pytest.raises(MeasurementError, match="w1 ended with SIGKILL"):
        require_done(store.trials(), store.folder)


OLDER = sorted(
    path.parent
    for folder in ("results/reference", "tests/data/older")
    for path in (ROOT / folder).glob("*/scenario.json")
)


@pytest.mark.parametrize("folder", OLDER, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_stores_written_before_are_read_and_say_unknown_where_they_do_not_know(folder: Path) -> None:
    """The oldest have a bare number as target, no losses, and time to it at the evaluation that reached it."""
    store = Store.open(folder)
    trials, scenario = store.trials(), store.scenario()
    assert set(trials.columns) == {*TRIAL_SCHEMA.names, "verified_after", "drift"}
    trained = trials[trials["replay"].isna()]
    assert set(trained["target"].map(Target.parse)) == {case.train.target for case in scenario.cases}
    assert str(scenario.cases[0].train.target) in set(trained["target"])
    for case in case_results(trials, scenario):
        for result in case.methods:
            own = case.trials[case.trials["label"] == result.label]
            assert result.time_to_target.of == own["status"].isin(["done", "diverged", "timeout"]).sum()
            assert result.quality.keeps in ("yes", "no", "unknown")
            if not len(result.done):
                assert (result.quality.keeps, result.quality.difference) == ("unknown", None)
        assert headline(case, scenario)


@pytest.mark.parametrize("taken_s", [None, 0.0])
def test_a_yardstick_that_a_coarse_clock_could_not_take_is_unknown(store: Store, taken_s: float | None) -> None:
    """Runs of earlier versions hold 0."""
    store.append(row("a", yardstick_s=taken_s), [])
    assert store.trials()["yardstick_s"].isna().all()
    store.append(row("b", yardstick_s=1e-3), [])
    assert store.trials().set_index("trial_id")["yardstick_s"].dropna().to_dict() == {"b": 1e-3}


def test_a_file_is_read_once_and_again_where_it_is_another(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def noted(file: Path, *rest: Any) -> pa.Table:
        read.append(file.stem)
        return read_row(file, *rest)

    monkeypatch.setattr("harness.record.tables.read_row", noted)
    store.append(row("a", samples_per_s=1.0), [])
    store.append(row("b", samples_per_s=2.0), [])
    assert store.trials()["samples_per_s"].tolist() == [1.0, 2.0]
    store.append(row("c", samples_per_s=3.0), [])
    assert store.trials()["samples_per_s"].tolist() == [1.0, 2.0, 3.0]
    assert read == ["a-0", "b-0", "c-0"]

    (store.folder / "trials.parquet" / "b-0.parquet").rename(store.folder / "moved.parquet")
    assert store.trials()["samples_per_s"].tolist() == [1.0, 3.0]
    file = store.folder / "trials.parquet" / "a-0.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    for _ in range(2):
        with pytest.raises(UsageError, match=r"a-0\.parquet: damaged"):
            store.trials()
