"""Replays whose tensors, buckets and links are so many times smaller than is told: times stay, bytes are whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from abacus import profile, replayed, written

from harness.cluster.emulated import preload_request
from harness.errors import UsageError
from harness.network.readings import Readings
from harness.network.topology import Topology
from harness.plan.expected import MOST_BENT, SHRINKS, gloo_bytes
from harness.plan.plan import Plan, make
from harness.plan.trial import Trial
from harness.run.row import case_of
from harness.scenario.load import load
from harness.scenario.optimisation import Optimizer
from harness.scenario.schema import Train

VGG = ("link.rate=500mbit", "train.replay=vgg19-a40", "rounds=1")


def planned(scenario: str, *overrides: str) -> Plan:
    return make(load(scenario, overrides), "netns")


@pytest.mark.parametrize("times", [2, 7, 64])
def test_a_shrunk_profile_has_the_same_times_and_tensors_of_as_many_dimensions(times: int) -> None:
    whole, shrunk = profile(), profile().shrunk(times)
    assert shrunk.numel * times == pytest.approx(whole.numel, rel=0.01)
    assert [len(shape) for shape in shrunk.shapes] == [len(shape) for shape in whole.shapes]
    assert shrunk.model_copy(update={"gradients": whole.gradients}) == whole
    assert [each.ready_s for each in shrunk.gradients] == [each.ready_s for each in whole.gradients]
    assert profile().shrunk(1) == whole


def test_everything_on_thinner_links_takes_as_long_for_as_many_times_fewer_bytes() -> None:
    link = {"rate": "100mbit", "delay": "2ms", "queue": "1MB", "burst": "80kB", "up": {"rate": "20mbit"}}
    whole = Topology.model_validate({"workers": 4, "link": link, "fabric": {"groups": "a b", "oversubscription": 2}})
    thin = whole.slowed(2.0, 8)
    for one, other in zip(
        (queue.pipe for queue in whole.queues()), (queue.pipe for queue in thin.queues()), strict=True
    ):
        assert one.rate_bps == 2 * 8 * other.rate_bps
        assert other.delay_s == pytest.approx(2 * one.delay_s)
        assert (one.queue_bytes, one.burst_bytes) == (
            other.queue_bytes and 8 * other.queue_bytes,
            other.burst_bytes and 8 * other.burst_bytes,
        )
    assert thin.bound_s(1e6 / 8, 1e6 / 8) == pytest.approx(2 * whole.bound_s(1e6, 1e6))
    assert (thin.dilation, thin.shrink) == (2.0, 8)


def test_what_is_measured_of_thinner_links_is_told_of_the_whole_ones() -> None:
    readings = Readings(links=(), rtt_s=(0.1,), rtt_s_asked=(0.08,), rtt_s_allowed=(0.004,), took_s=1.0)
    (says,) = readings.undilated(4, 8).complaints()
    assert "asked 20 ms, measured 25 ms" in says
    assert readings.undilated(1, 8).rtt_s == (0.1,)


def test_a_plan_says_the_same_bytes_and_times_and_needs_less_memory_and_time() -> None:
    whole, shrunk = (planned("paper/pactrain-vgg19", *VGG, f"train.shrink={times}") for times in (1, 8))
    for one, other in zip(whole.trials, shrunk.trials, strict=True):
        assert other.expected.wire_bytes_per_step == one.expected.wire_bytes_per_step
        assert other.expected.lower_bound_s_per_step == one.expected.lower_bound_s_per_step
        assert other.expected.predicted_step_s == pytest.approx(one.expected.predicted_step_s, rel=0.03)
        assert one.expected.memory_bytes
        assert other.expected.memory_bytes
        assert 3 * other.expected.memory_bytes < one.expected.memory_bytes
        assert other.id != one.id


def test_methods_whose_bytes_do_not_shrink_and_what_learns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"train\.shrink: found 8; allowed: 1 with powersgd-rank=4: what it sends"):
        planned("paper/datacenter-resnet50", "train.shrink=8")
    with pytest.raises(UsageError, match=r"train\.shrink: found 2; allowed: 1 without train\.replay"):
        planned("quickstart", "train.shrink=2")
    with pytest.raises(UsageError, match=r"train\.shrink: found 0; allowed: "):
        replayed(Path(written(tmp_path / "p.json")), "train.shrink=0")
    with pytest.raises(
        UsageError, match=r"train\.shrink: found 8; allowed: less, since links would have link\.burst: "
    ):
        replayed(Path(written(tmp_path / "p.json")), "train.shrink=8", "link.burst=10kB")
    with pytest.raises(UsageError, match=r"train\.shrink: found 2; allowed: 1 where links are unshaped"):
        replayed(Path(written(tmp_path / "p.json")), "train.shrink=2", "link.rate=unshaped")


def shrinks(scenario: str, *overrides: str) -> dict[str, int]:
    return {trial.method.label: trial.shrink for trial in planned(scenario, "rounds=1", *overrides).trials}


def test_auto_shrinks_each_method_as_far_as_its_step_stays_what_it_is() -> None:
    asked = ("link.rate=100mbit", "train.replay=resnet152-a40")
    found = shrinks("paper/pactrain-resnet152", *asked)
    assert found["dense"] == SHRINKS[-1] > found["topk"] > found["pactrain-ternary"] > 1
    whole = {
        trial.method.label: trial for trial in planned("paper/pactrain-resnet152", *asked, "train.shrink=1").trials
    }
    for trial in planned("paper/pactrain-resnet152", *asked).trials:
        told, real = trial.expected, whole[trial.method.label].expected
        assert told.predicted_step_s == pytest.approx(real.predicted_step_s, rel=MOST_BENT)
        assert told.wire_bytes_per_step == real.wire_bytes_per_step
        assert trial.train.times_smaller == trial.shrink


def test_auto_leaves_whole_what_does_not_shrink() -> None:
    found = shrinks("paper/datacenter-resnet50")
    assert {label for label, times in found.items() if times == 1} == {
        *(f"powersgd-rank={rank}" for rank in (4, 8, 16)),
        "dgc",  # it sends so little that Gloo's own messages count
    }
    assert set(shrinks("quickstart", "train.shrink=auto").values()) == {1}
    assert set(shrinks("paper/pactrain-vgg19", *VGG, "link.rate=unshaped").values()) == {1}


def test_auto_keeps_links_that_let_a_frame_pass(tmp_path: Path) -> None:
    whole = ("train.shrink=auto", "link.rate=2gbit")
    small_buckets = replayed(Path(written(tmp_path / "p.json")), *whole, "link.burst=10kB")
    assert all(1 <= trial.shrink < 8 for trial in small_buckets.trials), "where 8 is refused"


def test_methods_of_a_case_are_compared_however_much_each_is_shrunk() -> None:
    trials = planned("paper/pactrain-resnet152", "rounds=1", "link.rate=100mbit", "train.replay=resnet152-a40").trials
    assert len({trial.shrink for trial in trials}) > 1
    assert len({case_of(trial) for trial in trials}) == 1


def test_a_shrink_that_is_neither_a_number_nor_auto_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"train\.shrink: found 'most'; allowed: a whole number from 1 to 64, or 'auto'"
    ):
        planned("paper/pactrain-vgg19", *VGG, "train.shrink=most")


def test_workers_are_told_their_shrink_as_a_number_and_the_rest_as_the_case_has_it() -> None:
    """A method's own optimizer goes with its trial: beside the case's momentum it could not be read."""
    own = ("rounds=1", "link.rate=100mbit", "train.replay=resnet152-a40")
    for trial in planned("paper/pactrain-resnet152", *own).trials:
        sent = Trial.model_validate(trial.for_workers.model_dump(mode="json", by_alias=True))
        assert (sent.id, sent.case.train.shrink, sent.shrink) == (trial.id, trial.shrink, trial.shrink)
        assert Train.model_validate(preload_request(sent.case.train).train) == sent.case.train
    scenario = load("quickstart", ["rounds=1"], ["dense"])
    adamw = scenario.methods[0].model_copy(update={"optimizer": Optimizer.model_validate({"name": "adamw"})})
    (trial,) = make(scenario.model_copy(update={"methods": (adamw,)}), "netns").trials
    assert trial.train.optimizer.name == "adamw"
    Train.model_validate(preload_request(trial.for_workers.case.train).train)


@pytest.mark.parametrize(
    ("scenario", "label", "counted_bytes"),
    [
        ("paper/pactrain-resnet152", "dense", 40_745),
        ("paper/pactrain-resnet152", "topk", 20_394),
        ("paper/pactrain-resnet152", "pactrain-ternary", 77_193),
        ("paper/datacenter-resnet50", "dgc", 24_546),
        ("paper/byteps-resnet18-cifar", "randomk", 3_700),
    ],
)
def test_gloo_sends_of_its_own_what_kernels_counted_beside_formulas(
    scenario: str, label: str, counted_bytes: float
) -> None:
    """In real bytes a step and worker, by ``results/reference/claims/runs``, with tensors up to 64 times smaller."""
    trial = next(each for each in planned(scenario, "rounds=1").trials if each.method.label == label)
    assert trial.expected.profile is not None
    assert gloo_bytes(trial.case, trial.method, trial.expected.profile) == pytest.approx(counted_bytes, rel=0.08)
