"""A run from Python: what the command line does, without a line of output."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import harness
from harness.cluster.fake import FakeCluster, recite
from harness.errors import UsageError
from harness.plan.trial import Trial
from harness.record.store import Store
from harness.run import planning, session
from harness.run.session import Ending, Outlook, Watcher

FAST = {"on": "fake", "overrides": ["train.pace=none", "train.steps=40", "baseline_16bit=dense"], "methods": ["topk"]}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Notes(Watcher):
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.outlooks: list[Outlook] = []
        self.ends: list[str] = []

    def about_to_run(self, outlook: Outlook) -> None:
        self.outlooks.append(outlook)

    def ended(self, trial: Trial, status: str, reason: str | None) -> None:
        self.ends.append(status)


def test_a_scenario_is_run_and_resumed_as_by_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    result = harness.run_scenario("quickstart", rounds=2, **FAST)
    assert result.failed == 0
    assert result.ending is Ending.DONE
    assert result.scenario.rounds == 2
    assert result.folder.parent == Path("results")
    assert result.trials.groupby("label")["samples_per_s"].count().to_dict() == {"dense": 2, "topk": 2}
    assert capsys.readouterr() == ("", "")

    (command,) = [entry["command"] for entry in result.store.provenance()]
    assert command[:2] == ["python", "-c"]
    assert "harness.run_scenario('quickstart', on='fake', overrides=['train.pace=none', 'train.steps=40'" in command[2]
    again = harness.run_scenario("quickstart", rounds=2, out=result.folder, **FAST)
    assert again.ending is Ending.DONE
    assert len(again.store.attempts()) == 4
    assert len(again.store.provenance()) == 1, "nothing was run"


def test_rounds_end_when_intervals_are_narrow_or_rounds_are_out() -> None:
    wide = harness.run_scenario("quickstart", rounds=2, until=1e-6, out="wide", **FAST)
    assert wide.ending is Ending.OUT_OF_ROUNDS
    assert wide.trials["round"].max() == 1
    narrow = harness.run_scenario("quickstart", until=0.2, out="narrow", **FAST)
    assert narrow.ending is Ending.NARROW_ENOUGH
    assert narrow.failed == 0
    assert narrow.trials["round"].max() < planning.MOST_ROUNDS - 1


def test_what_fails_is_counted_heard_of_and_run_again() -> None:
    plan = planning.plan_run("quickstart", FakeCluster(), FAST["overrides"], FAST["methods"], rounds=1)
    store = session.open_store(plan, Path("run"))
    silent = FakeCluster(lambda trial: iter(()) if trial.method.name == "topk" else recite(trial))
    notes = Notes()
    result = session.run(plan, store, silent, ["test"], notes)
    assert (result.failed, result.ending) == (1, Ending.UNFINISHED)
    assert sorted(notes.ends) == ["crashed", "done"]
    assert session.run(plan, store, FakeCluster(), ["test"], notes).ending is Ending.DONE
    first, second = notes.outlooks
    assert (first.done, first.tried, len(first.pending)) == (0, 0, 2)
    assert (second.done, second.tried, len(second.pending)) == (1, 2, 1)


def test_a_folder_is_locked_while_it_is_used() -> None:
    plan = planning.plan_run("quickstart", FakeCluster(), FAST["overrides"], FAST["methods"], rounds=1)
    store = session.open_store(plan, Path("run"))
    with Store.open(Path("run")).locked(), pytest.raises(UsageError, match="another pacbench run is using this folder"):
        session.run(plan, store, FakeCluster(), ["test"])
    assert store.attempts().empty


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("train.lr=[0.05, 0.1]", "quickstart: train.lr: found [0.05, 0.1]; allowed: one value a run"),
        ("train.steps=[40, 80]", "train.steps: found [40, 80]"),
        ("train.momentum=[0.5, 0.9]", "train.momentum: found [0.5, 0.9]"),
        ("train.bucket=['1MB', '25MB']", "train.bucket: found ['1000000B', '25000000B']"),
        ("train.pretrain=[{steps=1, lr=0.1}, {steps=1, lr=0.2}]", "train.pretrain: found"),
        ("link.trace=['one.csv', 'other.csv']", "link.trace: found"),
        ("link.rate=['100mbit', '0.1gbit']", "lists: found ['the same case twice']"),
    ],
)
def test_a_list_whose_cases_no_result_tells_apart_starts_nothing(here: Path, setting: str, says: str) -> None:
    for name, change_s in (("one.csv", 5), ("other.csv", 7)):
        (here / name).write_text(f"t_s,rate_bps\n0,10000000\n{change_s},20000000\n")
    how = {**FAST, "overrides": [*FAST["overrides"], setting]}
    with pytest.raises(UsageError) as refused:
        harness.run_scenario("quickstart", **how)  # type: ignore[arg-type]
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (here / "results").exists()


@pytest.mark.parametrize(
    "setting",
    [
        "train.batch_size=[16, 32]",
        "train.target=['none', 'accuracy 90%']",
        "train.optimizer=['sgd', 'nesterov']",
        "link.delay=['0ms', '1ms']",
        "link.queue=['500kB', '1MB']",
        "cluster.workers=[2, 3]",
    ],
)
def test_a_list_of_what_results_tell_apart_is_planned(setting: str) -> None:
    plan = planning.plan_run("quickstart", FakeCluster(), [*FAST["overrides"], setting], FAST["methods"], rounds=1)
    assert len(plan.trials) == 4


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"until": 0.0}, "until: found 0.0; allowed: a share above zero"),
        ({"on": "mars"}, "--on: found 'mars'"),
        ({"rounds": 0}, "rounds: found 0"),
        ({"rounds": 0, "until": 0.02}, "rounds: found 0"),
        ({"seeds": 8, "rounds": 1}, "--seeds: found 8"),
    ],
)
def test_bad_input_is_one_line_and_starts_nothing(here: Path, how: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says) as refused:
        harness.run_scenario("quickstart", **{**FAST, **how})  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)
    assert list(here.iterdir()) == []


def test_importing_harness_is_cheap() -> None:
    program = "import sys; before = set(sys.modules); import harness; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "['harness']\n"
    with pytest.raises(AttributeError, match="no attribute 'nosuch'"):
        harness.nosuch  # noqa: B018
