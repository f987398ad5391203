"""Checkpoints of trials on a scripted cluster: what goes on from them, what is refused, and when they go."""

from __future__ import annotations

import io
import json
import zipfile
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from synthetic import only
from tries import tries

from harness import files
from harness.cluster.fake import FakeCluster, recite
from harness.errors import MeasurementError, UsageError
from harness.files import NoRoomError
from harness.messages import HANDED, KEPT, Events, Failed, Message, Saved, Trained
from harness.network.addresses import worker_name
from harness.plan.plan import Plan, make
from harness.plan.trial import Trial
from harness.record import checkpoint
from harness.record.checkpoint import About
from harness.record.claims import Claims
from harness.record.row import Event
from harness.record.store import Store
from harness.record.tables import DamagedError
from harness.run import execute
from harness.run.dilation import _key
from harness.scenario.load import load
from harness.worker import saving

STEPS, AT = 40, 16
SETTINGS = ["rounds=1", f"train.steps={STEPS}", "train.save_every=8", "train.pace=none", "cluster.workers=2"]
PARTS = {0: b"of rank 0" * 20_000, 1: b"of rank 1"}
"""What each rank saves: the first one's is sent in several messages."""

EVALUATED = ("accuracy", "test_loss")
"""Told of the steps that were made, and so by their number."""

FAR = 1.0
"""Seconds of a step that is unlike all others."""


def planned(*settings: str) -> Plan:
    return make(only(load("quickstart", [*SETTINGS, *settings]), ["topk"]), "fake")


@pytest.fixture
def plan() -> Plan:
    return planned()


@pytest.fixture
def store(tmp_path: Path, plan: Plan) -> Store:
    return Store.create(tmp_path / "run", plan.scenario)


def saved(steps: int, parts: Mapping[int, bytes] = PARTS) -> Iterator[Message]:
    """What ranks say that save."""
    for rank, content in parts.items():
        for start in range(0, len(content), 1 << 16):
            part = b64encode(content[start : start + (1 << 16)]).decode()
            yield Saved(node=worker_name(rank), steps=steps, part=part, is_last=False)
        yield Saved(node=worker_name(rank), steps=steps, part="", is_last=True)


def told(trial: Trial, steps: range, late: Mapping[int, float] = {}) -> Iterator[Message]:
    """The usual script, but for these steps alone; some take longer."""
    for message in recite(trial):
        if isinstance(message, Events):
            some = [row for row in message.rows if row[0] in steps or (row[0] == steps.stop and row[2] in EVALUATED)]
            rows = [(*row[:3], late[row[0]] if row[2] == "step_s" and row[0] in late else row[3]) for row in some]
            yield replace(message, rows=rows)
        elif steps.stop == STEPS:
            yield message


class Scripted(FakeCluster):
    """Trials of top-k are interrupted after 20 steps, and then go on where they were; it hears what they are handed."""

    def __init__(self, ending: Message | BaseException, late: Mapping[int, float] = {}) -> None:
        super().__init__()
        self.ending, self.late = ending, late
        self.handed: dict[str, bytes] = {}
        self.starts: list[int] = []
        self.signals: list[int] = []

    def signal(self, number: int) -> None:
        self.signals.append(number)

    def run(self, task: str, spec: Mapping[str, Any], timeout_s: float) -> Iterator[Message]:
        trial = Trial.model_validate(spec["trial"])
        if trial.method.name != "topk":
            yield from recite(trial)
            return
        self.handed = {node: file.read_bytes() for node, file in spec.get(HANDED, {}).items()}
        self.starts.append(AT if self.handed else 0)
        yield from self.script(trial)

    def script(self, trial: Trial) -> Iterator[Message]:
        if self.handed:
            yield from told(trial, range(AT, STEPS), self.late)
            return
        yield from told(trial, range(AT))
        yield from saved(AT)
        yield from told(trial, range(AT, 20))
        if isinstance(self.ending, BaseException):
            raise self.ending
        yield self.ending


LOST = Failed(node="w1", reason="its host is gone", lost=True)


def run(plan: Plan, store: Store, cluster: FakeCluster) -> list[str]:
    """Run a plan; what it told."""
    lines: list[str] = []
    try:
        with cluster:
            execute.run(plan, store, cluster, lambda _: None, lambda *_: None, tell=lines.append)
    except KeyboardInterrupt:
        lines.append("interrupted")
    return lines


def left(store: Store) -> list[Path]:
    return sorted((store.folder / "checkpoints").glob("*"))


def of_topk(frame: pd.DataFrame) -> pd.Series[Any]:
    """The last attempt's row."""
    return frame[frame["label"] == "topk"].iloc[-1]


@pytest.mark.parametrize("ending", [KeyboardInterrupt(), LOST], ids=["Ctrl-C", "a host is lost"])
def test_an_interrupted_trial_goes_on_and_its_row_and_events_are_those_of_a_whole_one(
    plan: Plan, store: Store, tmp_path: Path, ending: Message | BaseException
) -> None:
    cluster = Scripted(ending)
    run(plan, store, cluster)
    assert cluster.signals == [KEPT], "ranks wait until their checkpoint is kept"
    assert len(left(store)) == 1
    assert store.trials()["resumed_from_step"].isna().all()

    assert run(plan, store, cluster) == ["topk, round 0: goes on after step 16 of 40"]
    assert cluster.handed == {worker_name(rank): content for rank, content in PARTS.items()}
    assert left(store) == [], "it goes with the trial's end"
    row = of_topk(store.trials())
    assert (row["status"], row["attempt"], row["resumed_from_step"]) == ("done", 1, AT)

    whole = Store.create(tmp_path / "whole", plan.scenario)
    run(plan, whole, FakeCluster())
    alike = ["time_to_target_s", "steps_to_target", "final_accuracy", "train_time_s", "wire_bytes_per_step", "steps"]
    assert row[alike].equals(of_topk(whole.trials())[alike])
    events = [each.events(of_topk(each.trials()).to_frame().T) for each in (store, whole)]
    events = [each.sort_values(["rank", "step", "kind"], ignore_index=True) for each in events]
    pd.testing.assert_frame_equal(events[0].query("kind != 'resumed'").reset_index(drop=True), events[1])
    assert events[0].query("kind == 'resumed'")["step"].tolist() == [AT]


def test_the_first_steps_after_it_are_part_of_no_figure(plan: Plan, store: Store) -> None:
    cluster = Scripted(KeyboardInterrupt(), late={AT: FAR, AT + 1: FAR})
    run(plan, store, cluster)
    run(plan, store, cluster)
    row = of_topk(store.trials())
    assert row["status"] == "done", "nor do they make the trial look disturbed"
    assert row["steady_s"] < FAR
    assert row["steady_steps"] + row["settling_steps"] == STEPS - row["steady_from_step"]


class Ending(Scripted):
    """Top-k's trials end after a checkpoint."""

    def script(self, trial: Trial) -> Iterator[Message]:
        yield from told(trial, range(AT))
        yield from saved(AT)
        for message in told(trial, range(AT, STEPS)):
            yield replace(message, diverged=True) if isinstance(message, Trained) else message


def test_a_trial_that_diverged_begins_anew(plan: Plan, store: Store) -> None:
    run(plan, store, cluster := Ending(LOST))
    assert of_topk(store.trials())["status"] == "diverged"
    assert left(store) == []
    run(plan, store, cluster)
    assert cluster.starts == [0, 0]


class FallsAtOnce(Scripted):
    """What goes on falls over before its first step."""

    def script(self, trial: Trial) -> Iterator[Message]:
        if not self.handed:
            yield from super().script(trial)
        yield Failed(node="w0", reason="checkpoint: damaged")


def test_what_cannot_go_on_is_not_tried_for_ever(plan: Plan, store: Store) -> None:
    cluster = FallsAtOnce(LOST)
    for _ in range(3):
        run(plan, store, cluster)
    assert cluster.starts == [0, AT, 0]


class Rank1Dies(Scripted):
    """One rank dies while it saves."""

    def script(self, trial: Trial) -> Iterator[Message]:
        yield from told(trial, range(AT))
        yield from list(saved(AT))[:-1]
        yield Failed(node="w1", reason="it died")


def test_what_not_all_ranks_have_saved_is_no_checkpoint(plan: Plan, store: Store) -> None:
    cluster = Rank1Dies(LOST)
    run(plan, store, cluster)
    assert left(store) == []
    assert cluster.signals == []


def begun(plan: Plan, store: Store) -> Path:
    """The file of a trial that was interrupted."""
    run(plan, store, Scripted(KeyboardInterrupt()))
    (file,) = left(store)
    return file


def rewritten(file: Path, changed: Callable[[dict[str, bytes]], None]) -> None:
    """Write a checkpoint with other contents."""
    with zipfile.ZipFile(file) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    changed(contents)
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


def swapped(contents: dict[str, bytes]) -> None:
    contents["0.pt"], contents["1.pt"] = contents["1.pt"], contents["0.pt"]


def without_a_rank(contents: dict[str, bytes]) -> None:
    del contents["1.pt"]


def saying(**changes: Any) -> Callable[[dict[str, bytes]], None]:
    def change(contents: dict[str, bytes]) -> None:
        sealed = json.loads(contents["checkpoint.json"])
        sealed["about"] |= changes
        contents["checkpoint.json"] = json.dumps(sealed).encode()

    return change


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (swapped, "damaged (0.pt is not what was written)"),
        (without_a_rank, "damaged (\"There is no item named '1.pt' in the archive\")"),
        (saying(trial_id="0" * 16), "it has events of trial"),
        (saying(code="another"), "code: found another; allowed: "),
        (saying(workers=1), "workers: found 1; allowed: 2"),
        (saying(steps=STEPS), "steps: found 40; allowed: fewer than all"),
        (saying(version=2), "damaged (checkpoint.json: about.version: Input should be 1)"),
        (saying(more=1), "damaged (checkpoint.json: about.more: "),
    ],
)
def test_a_foreign_or_damaged_one_is_told_and_the_trial_starts_anew(
    plan: Plan, store: Store, change: Callable[[dict[str, bytes]], None], why: str
) -> None:
    file = begun(plan, store)
    rewritten(file, change)
    before = len(store.attempts())
    cluster = FakeCluster()
    (line,) = run(plan, store, cluster)
    assert line.startswith(f"{file}: ")
    assert why in line
    assert line.endswith("; topk, round 0 starts anew")
    row = of_topk(store.trials())
    assert row["status"] == "done"
    assert pd.isna(row["resumed_from_step"])
    assert len(store.attempts()) == before + 1, "what was stored before stays"
    assert left(store) == []


def test_that_of_another_trial_under_its_name_is_foreign(plan: Plan, store: Store, tmp_path: Path) -> None:
    other = planned("train.lr=0.01")
    foreign = begun(other, Store.create(tmp_path / "other", other.scenario))
    file = begun(plan, store)
    foreign.rename(file)
    (line,) = run(plan, store, FakeCluster())
    assert f"trial: found {foreign.stem}; allowed: {file.stem}; topk, round 0 starts anew" in line


ABOUT = About(trial_id="t", code="c", machine="m", workers=2, steps=8, found=None)
EVENTS = [Event(0, 1, 0.1, "loss", 2.0), Event(1, 1, 0.1, "step_s", float("nan"))]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("whole") / "t.zip"
    checkpoint.write(file, ABOUT, [io.BytesIO(PARTS[0][:500]), io.BytesIO(PARTS[1])], EVENTS)
    return file.read_bytes()


def test_it_is_read_as_it_was_written(whole: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.zip").write_bytes(whole)
    found = checkpoint.read(tmp_path / "t.zip")
    assert found.about == ABOUT
    assert repr(found.events) == repr(EVENTS)
    assert [part.read_bytes() for part in found.parts] == [PARTS[0][:500], PARTS[1]]


def is_a_line(text: str) -> None:
    assert "\n" not in text


@tries(200)
@example(share=0.0, flip=0, cuts=True)
@given(share=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), cuts=st.booleans())
def test_torn_or_damaged_anywhere_it_is_no_checkpoint(
    whole: bytes, tmp_path_factory: pytest.TempPathFactory, share: float, flip: int, cuts: bool
) -> None:
    """Or the same one: some bytes of a zip file say nothing."""
    place = int(share * len(whole))
    damaged = whole[:place] if cuts else whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :]
    file = tmp_path_factory.mktemp("torn") / "t.zip"
    file.write_bytes(damaged)
    try:
        found = checkpoint.read(file)
    except DamagedError as error:
        is_a_line(str(error))
    else:
        assert not cuts
        assert (found.about, repr(found.events)) == (ABOUT, repr(EVENTS))
        assert [part.read_bytes() for part in found.parts] == [PARTS[0][:500], PARTS[1]]


def test_a_kill_while_it_is_written_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, parts = tmp_path / "t.zip", [io.BytesIO(b"one"), io.BytesIO(b"two")]
    checkpoint.write(file, ABOUT, parts, EVENTS)

    def killed(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.write(file, ABOUT.model_copy(update={"steps": 16}), parts, EVENTS)
    assert checkpoint.read(file).about.steps == 8
    assert [*tmp_path.iterdir()] == [file]


def test_what_earlier_starts_have_left_is_seen_to(plan: Plan, store: Store) -> None:
    file = begun(plan, store)
    half = file.with_name(f".{file.name}.1.2")
    for name in (half, foreign := file.with_name("0123456789abcdef.zip")):
        name.write_bytes(b"half")
    lines = run(plan, store, FakeCluster())
    assert [line for line in lines if str(foreign) in line and "of no trial of this run" in line]
    assert left(store) == [foreign]
    file.write_bytes(b"of a trial that was done, before its checkpoint had gone")
    run(plan, store, FakeCluster())
    assert left(store) == [foreign]


def test_a_full_disk_costs_checkpoints_and_no_trial(plan: Plan, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise NoRoomError("the disk is full")

    monkeypatch.setattr(checkpoint, "write", full)
    cluster = Scripted(LOST)
    lines = run(plan, store, cluster)
    assert lines == ["the disk is full; topk, round 0 goes on without checkpoints"]
    assert cluster.signals == [KEPT], "ranks are not left waiting"


def test_of_a_shared_run_another_machine_s_are_not_used(plan: Plan, store: Store) -> None:
    file = begun(plan, store)
    rewritten(file, saying(machine="elsewhere"))
    claims, lines = Claims.joined(store.folder), list[str]()
    with FakeCluster() as cluster:
        execute.run_shared(plan, store, cluster, lambda _: None, lambda *_: None, claims, tell=lines.append)
    assert [line for line in lines if "machine: found elsewhere; allowed: " in line]
    assert of_topk(store.trials())["status"] == "done"


def test_a_shared_run_goes_on_from_its_own(plan: Plan, store: Store) -> None:
    begun(plan, store)
    cluster = Scripted(LOST)
    with cluster:
        execute.run_shared(plan, store, cluster, lambda _: None, lambda *_: None, Claims.joined(store.folder))
    assert of_topk(store.trials())["resumed_from_step"] == AT
    assert left(store) == []


def test_a_trial_goes_on_at_the_dilation_that_it_began_with(tmp_path: Path) -> None:
    """Whatever has been found for its kind since then."""
    plan = planned("train.pace=digits-cnn-epyc")
    store = Store.create(tmp_path / "run", plan.scenario)
    cluster = Slowed(KeyboardInterrupt())
    run(plan, store, cluster)
    (topk,) = (trial for trial in plan.trials if trial.method.name == "topk")
    known = store.folder / "dilations.json"
    case = next(iter(json.loads(known.read_text()))).partition("-")[0]
    found = {"label": "topk", "dilation": 4 * cluster.dilations[0], "step_s": 0.1, "added_s": 0.01}
    known.write_text(json.dumps({f"{case}-{_key(topk).partition('-')[2]}": found}))
    run(plan, store, cluster)
    assert cluster.starts == [0, AT]
    assert len(set(cluster.dilations)) == 1


class Slowed(Scripted):
    """It notes how many times slower trials of top-k ran."""

    def __init__(self, ending: Message | BaseException) -> None:
        super().__init__(ending)
        self.dilations: list[float] = []

    def script(self, trial: Trial) -> Iterator[Message]:
        self.dilations.append(trial.dilation)
        yield from super().script(trial)


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        (["train.replay=digits-cnn-epyc", "train.target=none"], "none with train.replay: nothing is learnt"),
        (["link.trace='{folder}/trace.csv'"], "none with link.trace: it begins anew with every start"),
    ],
)
def test_what_cannot_go_on_where_it_was_has_none(tmp_path: Path, settings: list[str], allowed: str) -> None:
    (tmp_path / "trace.csv").write_text("t_s,rate_bps\n0,50000000\n1,100000000\n")
    with pytest.raises(UsageError, match=f"train.save_every: found 8; allowed: {allowed}") as error:
        planned(*(each.format(folder=tmp_path) for each in settings))
    assert error.value.exit_code == 2


WHOSE = {"version": 1, "trial": "t", "rank": 0, "workers": 2}


def sent(content: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> io.BytesIO:
    """What a rank that saves has said, as the file that it is handed later."""
    said: list[Saved] = []
    monkeypatch.setattr(saving.signal, "sigwait", lambda _: None)
    saving.save(said.append, 8, content)
    assert [each.is_last for each in said] == [False] * (len(said) - 1) + [True]
    return io.BytesIO(b"".join(b64decode(each.part) for each in said))


def test_a_rank_takes_what_it_has_saved_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    content = {**WHOSE, "steps": 8}
    file = sent(content, monkeypatch)
    assert saving.load(file, WHOSE) == content
    for other in ({"rank": 1}, {"trial": "u"}, {"workers": 4}, {"version": 2}):
        with pytest.raises(MeasurementError, match="checkpoint: found one of") as error:
            saving.load(file, {**WHOSE, **other})
        assert "\n" not in str(error.value)


class Strange:
    """What nobody saves: to read it would run code."""


@pytest.mark.parametrize("content", [{**WHOSE, "method": Strange()}, {"steps": 8}], ids=["code", "of nobody"])
def test_what_is_no_checkpoint_is_not_taken(content: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    file = sent(content, monkeypatch)
    with pytest.raises(MeasurementError, match="checkpoint: damaged"):
        saving.load(file, WHOSE)
    with pytest.raises(MeasurementError, match="checkpoint: damaged"):
        saving.load(io.BytesIO(file.getvalue()[:-100]), WHOSE)
