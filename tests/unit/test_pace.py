"""Paced trainings: they learn for real, and take as long as a profile's device."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from abacus import READY_S, profile, replayed, written
from synthetic import make_store, row_again

from harness.analysis.cases import case_results
from harness.cluster.fake import FakeCluster
from harness.errors import UsageError
from harness.plan.plan import Plan, make
from harness.record.store import Store
from harness.report import facts
from harness.run import execute
from harness.scenario.load import load
from harness.worker.profile_request import ProfileRequest, ThreadClock
from harness.worker.timed import BackwardStopwatch
from harness.workload.pace import Pace, PacedStopwatch
from harness.workload.profile import Codec


def paced(path: Path, *overrides: str) -> Plan:
    return make(load("quickstart", [f"train.pace={written(path)}", *overrides]), "fake")


def test_a_pace_is_known_to_the_plan_and_part_of_a_trials_identity(tmp_path: Path) -> None:
    path = tmp_path / "abacus.json"
    (trial, *_), (unpaced, *_) = paced(path).trials, make(load("quickstart", ["train.pace=none"]), "fake").trials
    assert trial.expected.profile == profile()
    assert trial.expected.predicted_step_s
    assert trial.expected.memory_bytes is None, "it learns: nothing is made up"
    assert unpaced.expected.predicted_step_s is None
    path.write_text(profile(forward_s=0.005).as_json())
    from harness.workload import profile as profiles

    profiles.read.cache_clear()
    assert make(load("quickstart", [f"train.pace={path}"]), "fake").trials[0].id != trial.id


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["train.model=fashion-cnn", "train.dataset=fashion-mnist"], "train.pace: found .*of digits-cnn"),
        (["train.batch_size=32"], "train.batch_size: found 32; allowed: 16"),
        (["train.replay=resnet18-a40"], "train.pace: found .*allowed: none with train.replay"),
        (["cluster.device=cuda"], "cluster.device: found 'cuda'; allowed: cpu with train.pace"),
        (["train.dilation=0.5", "link.delay=1ms"], "train.dilation: found 0.5; allowed: at least 1 where"),
        (["train.dilation=2.0", "link.rate=unshaped"], "train.dilation: found 2; allowed: 1 where links are unshaped"),
    ],
    ids=str,
)
def test_what_cannot_be_paced_is_refused_before_anything_starts(
    overrides: list[str], says: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=says):
        paced(tmp_path / "abacus.json", *overrides)


def test_a_profile_whose_parameters_have_other_names_can_be_replayed_and_is_no_pace(tmp_path: Path) -> None:
    """Workers that are paced look parameters up by their names."""
    gradients = [each.model_dump(mode="json") for each in profile().gradients]
    other = [{**each, "parameter": f"net.{each['parameter']}"} for each in gradients]
    file = written(tmp_path / "other.json", gradients=other)
    says = r"train\.pace: found .*; allowed: .*; it lacks features\.0\.weight of shape \(64, 1, 3, 3\)$"
    with pytest.raises(UsageError, match=says) as refused:
        make(load("quickstart", [f"train.pace={file}"]), "fake")
    assert "\n" not in str(refused.value)
    assert replayed(Path(file)).trials


@pytest.mark.parametrize("name", ["digits-cnn-epic", "self@50%", "nothing.json"])
@pytest.mark.parametrize("field", ["pace", "replay"])
def test_a_profile_that_is_not_there_is_told_where_it_was_named(field: str, name: str) -> None:
    says = rf"train\.{field}: found '{name}'; allowed: a profile's \.json file, or a name"
    with pytest.raises(UsageError, match=says):
        make(load("quickstart", ["train.pace=none", "train.target=none", f"train.{field}={name}"]), "fake")


def test_without_a_profile_there_is_nothing_to_dilate() -> None:
    with pytest.raises(UsageError, match=r"train\.dilation: found 2; allowed: 1 without train\.pace or train\.replay"):
        load("quickstart", ["train.pace=none", "train.dilation=2.0"])


def test_links_are_faster_where_time_is(tmp_path: Path) -> None:
    trial = paced(tmp_path / "abacus.json", "train.dilation=0.25").trials[0]
    assert trial.expected.built_topology.slowest_bps == 400_000_000
    assert trial.expected.topology.slowest_bps == 100_000_000


def test_rows_of_a_paced_training_say_so_and_have_an_accuracy(tmp_path: Path) -> None:
    plan = paced(tmp_path / "abacus.json", "rounds=1", "train.steps=40", "train.dilation=4.0")
    store = Store.create(tmp_path / "run", plan.scenario)
    execute.run(plan, store, FakeCluster(), lambda _: None, lambda *_: None)
    rows = store.trials()
    assert set(rows["pace"]) == {"abacus"}
    assert set(rows["replay_source"]) == {"modelled"}
    assert set(rows["dataset"]) == {"digits"}
    assert rows["final_accuracy"].notna().all()
    assert rows["measured_rate_bps"].eq(100e6).all(), "as asked, not as built"
    (case,) = case_results(rows, plan.scenario)
    assert "paced by abacus" in case.title
    assert "time dilated by 4" in case.title


COSTS_S = {"encode_s": 0.001, "beside_s": 0.0, "decode_s": 0.002, "optimizer_s": 0.001}


class Device(Pace):
    """A pace that only writes down what the device is to do."""

    def __init__(self) -> None:
        super().__init__(1.0)
        self.done: list[float] = []

    def work(self, seconds: float) -> None:
        self.done.append(round(seconds, 9))


def test_a_bucket_is_handed_over_when_the_last_of_its_gradients_is_ready() -> None:
    device, weights = Device(), [torch.zeros(1) for _ in READY_S]
    stopwatch = BackwardStopwatch(device, None, profile())
    stopwatch.ready_s = dict(zip(weights, READY_S, strict=True))
    for _ in range(2):
        stopwatch.backward_begins()
        stopwatch.bucket_ready(1, weights[:2])
        stopwatch.bucket_ready(1, weights[2:5])
        stopwatch.bucket_ready(1, [weights[1]])  # before DDP has regrouped its buckets they are in another order
        stopwatch.bucket_ready(1, weights[5:])
    assert device.done == [0.001, 0.01, 0.0, 0.004] * 2


def test_a_device_has_not_worked_ahead_while_ranks_met_at_the_end_of_a_step() -> None:
    pace = Pace(1.0)
    stopwatch = PacedStopwatch(pace, Codec(method="m", params={}, workers=2, **COSTS_S), 1)
    stopwatch.bucket_ready(1)
    with stopwatch("end_step"):
        with stopwatch("encode"):
            pass
        time.sleep(0.05)  # a collective
        met = time.perf_counter()
        with stopwatch("decode"):
            pass
        assert time.perf_counter() - met >= COSTS_S["decode_s"]
        time.sleep(0.05)  # another one
    ended = time.perf_counter()
    pace.work(0.01)
    assert time.perf_counter() - ended >= 0.01


def test_a_method_that_goes_by_its_times_sees_them_undilated() -> None:
    for dilation in (0.25, 4.0):
        stopwatch = PacedStopwatch(Pace(dilation), None, 1)
        before = time.perf_counter()
        told = dilation * stopwatch.host_s()
        assert before <= told <= time.perf_counter()


def test_the_processors_time_of_a_thread_does_not_pass_while_it_waits() -> None:
    clock = ThreadClock()
    before = clock.seconds(clock.mark())
    time.sleep(0.05)
    assert clock.seconds(clock.mark()) - before < 0.04
    while clock.seconds(clock.mark()) - before < 0.01:
        pass


def test_the_best_step_counts_in_the_processors_time_and_the_median_else() -> None:
    def request(in_processor_time: bool) -> ProfileRequest:
        return ProfileRequest("digits-cnn", 32, "cpu", 1, 3, (), "hand", None, in_processor_time)

    assert request(True).typical([3.0, 1.0, 2.0]) == 1.0
    assert request(False).typical([3.0, 1.0, 2.5]) == 2.5


def test_a_report_says_whether_seeds_or_steps_make_the_intervals_of_times_to_a_target(tmp_path: Path) -> None:
    plan = paced(tmp_path / "abacus.json", "rounds=2", "train.target='accuracy 30%'")
    plan = plan.only(lambda trial: trial.method.name == "dense")
    store = Store.create(tmp_path / "run", plan.scenario)
    execute.run(plan, store, FakeCluster(), lambda _: None, lambda *_: None)

    def note() -> str:
        (found,) = (note for note in facts.collect(store).notes if "a seed of its own" in note)
        return found

    assert "steps to the target differ by 0.0 %" in note()
    assert "What is left" not in note()
    for _, row in store.trials().iterrows():
        steps = 50 * 1.1 ** row["round"]
        store.append(row_again(row, attempt=row["attempt"] + 1, steps_to_target=steps), [])
    assert "steps to the target differ by 6.7 %" in note(), "log 1.1, over the root of two"
    assert note().endswith("What is left in the intervals of times to the target is the seeds' spread.")


def test_a_greater_dilation_is_advised_only_where_links_have_a_rate(tmp_path: Path) -> None:
    """Elsewhere it would be refused."""
    late = {("topk", 0): {"overrun_s_per_step": 1.0}}
    overrides = ['link.rate=["100mbit", "unshaped"]', "rounds=1"]
    store = make_store(tmp_path / "run", overrides, methods=["topk"], ends=late)
    shaped, unshaped = (note for note in facts.collect(store).notes if "than the profile's device" in note)
    assert shaped.endswith("; a greater dilation (train.dilation, or auto) takes that away.")
    assert "unshaped links" in unshaped
    assert "dilation" not in unshaped
