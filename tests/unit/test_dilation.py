"""Time that is dilated: networks that are slower, and figures that are told as if they were not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from abacus import replayed, written

from harness.analysis.cases import case_results
from harness.cluster.fake import FakeCluster
from harness.errors import UsageError
from harness.messages import Events
from harness.network.qdisc import MIN_BURST_BYTES
from harness.network.readings import Readings
from harness.network.topology import Topology
from harness.plan.collectives import MESSAGE_S
from harness.plan.estimate import BUSIER, least_dilation, steady_s, time_s
from harness.plan.machine import Machine
from harness.plan.plan import make
from harness.record.store import Store
from harness.report.headline import headline
from harness.run import execute
from harness.scenario.links import Link
from harness.scenario.load import load
from harness.workload import speed


def slowed(link: dict[str, Any], dilation: float, **more: Any) -> Topology:
    return Topology.model_validate({"workers": 4, "link": link, **more}).slowed(dilation)


def test_a_slowed_network_takes_so_many_times_longer_for_everything() -> None:
    link = {"rate": "100mbit", "delay": "2ms", "jitter": "1ms", "up": {"rate": "20mbit"}}
    link |= {"workers": {"w1": {"delay": "5ms", "down": {"rate": "8mbit"}}}}
    fabric = {"groups": "a b", "trunk": {"rate": "50mbit"}, "trunks": {"b": {"up": {"delay": "7ms"}}}}
    plain, slow = (slowed(link, dilation, fabric=fabric) for dilation in (1, 4))
    pairs = [(one.pipe, other.pipe) for one, other in zip(plain.queues(), slow.queues(), strict=True)]
    assert all(one.rate_bps == 4 * other.rate_bps for one, other in pairs)
    assert all(other.delay_s == pytest.approx(4 * one.delay_s) for one, other in pairs)
    assert all(other.jitter_s == pytest.approx(4 * one.jitter_s) for one, other in pairs)
    assert slow.bound_s(1e6, 1e6) == pytest.approx(4 * plain.bound_s(1e6, 1e6))


def test_a_slowed_trace_changes_as_many_times_later() -> None:
    rows = [{"t_s": 0.0, "rate_bps": 80}, {"t_s": 1.5, "rate_bps": 40}]
    slow = slowed({"trace": {"rows": rows, "period_s": 3.0}}, 2).link.trace
    assert slow is not None
    assert [(row.t_s, row.rate_bps) for row in slow.rows] == [(0.0, 40), (3.0, 20)]
    assert slow.period_s == 6.0


@pytest.mark.parametrize(("rate", "most_late"), [("1mbit", 0.01), ("50mbit", 0.05), ("1gbit", 0.05)])
def test_computation_keeps_up_where_it_shares_cpus_and_better_where_time_runs_faster(
    rate: str, most_late: float
) -> None:
    trials = make(load("bandwidth_sweep", [f"link.rate={rate}", "cluster.workers=4"], ["dense"]), "fake").trials
    for trial in trials:
        profile = trial.expected.profile
        assert profile
        device_s = profile.forward_s + profile.backward_s + profile.optimizer_s
        least, step_s = least_dilation(trial, Machine(cpu_count=2)), steady_s(trial)
        assert least * (device_s + most_late * step_s) == pytest.approx(BUSIER * device_s * 4 / 2, rel=0.05)
        assert (least <= 1) == (most_late == 0.01)


@pytest.mark.parametrize("times", [1.0, 3.0])
def test_where_a_model_takes_longer_than_on_the_profiles_device_time_is_slowed_as_much_more(
    times: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = make(load("bandwidth_sweep", ["link.rate=1gbit", "cluster.workers=4"], ["dense"]), "fake").trials[0]
    profile = trial.expected.profile
    assert profile
    passes_s = profile.forward_s + profile.backward_s
    monkeypatch.setattr(speed, "passes_s", lambda model, batch_size: times * passes_s)
    elsewhere, here = (least_dilation(trial, Machine(cpu_count=2, is_here=is_here)) for is_here in (False, True))
    assert elsewhere > 1
    assert here == pytest.approx(times * elsewhere)


def test_defaults_stay_what_they_are() -> None:
    """A change that was not asked for must not appear because links are slowed."""
    slow = Link.model_validate({"up": {"delay": "1ms"}}).slowed(2)
    assert slow.pipe("w0", "up").rate_bps == slow.pipe("w0", "down").rate_bps == 50_000_000
    assert slow.pipe("w0", "down").delay_s == 0


@pytest.mark.parametrize(
    "asked", [{"rate": "100mbit"}, {"rate": "100mbit", "delay": "5ms"}, {"delay": "1ms", "mtu": 9000}]
)
@pytest.mark.parametrize("dilation", [0.5, 1.5, 8.0, 256.0])
def test_as_many_bytes_wait_for_a_link_however_slow_it_is(asked: dict[str, Any], dilation: float) -> None:
    """Else trials of one case, with other dilations, would have other links."""

    def waiting(topology: Topology) -> int:
        words = topology.qdisc(topology.pipes[0]).split()
        burst_bytes = int(words[words.index("burst") + 1]) if "burst" in words else 0
        return int(words[words.index("limit") + 1]) - burst_bytes

    topology = Topology(workers=2, link=Link.model_validate(asked))
    assert waiting(topology.slowed(dilation)) == pytest.approx(waiting(topology), abs=2)


def test_what_waits_for_a_rate_beyond_the_machine_is_no_more_than_a_kernel_can_count() -> None:
    slowed = Topology(workers=2, link=Link.model_validate({"rate": "400gbit"})).slowed(256)
    words = slowed.qdisc(slowed.pipes[0]).split()
    assert int(words[words.index("limit") + 1]) < 2**32


def test_a_dilated_case_keeps_its_figures_and_builds_a_slower_network(tmp_path: Path) -> None:
    file = Path(written(tmp_path / "p.json"))
    (plain, *_), (slow, *_) = (replayed(file, f"train.dilation={k}").trials for k in ("1.0", "10.0"))
    assert slow.expected.topology == plain.expected.topology
    assert slow.expected.built_topology.slowest_bps == 10_000_000
    assert slow.expected.lower_bound_s_per_step == plain.expected.lower_bound_s_per_step
    asked_s, dilated_s = (trial.expected.predicted_step_s or 0.0 for trial in (plain, slow))
    saved_s = 8 * (50_000 - MIN_BURST_BYTES) / 100e6
    assert dilated_s - asked_s == pytest.approx(saved_s - 0.9 * MESSAGE_S), (
        "smaller buckets; and processes wake as fast"
    )
    assert time_s(slow, Machine(2)) > 5 * time_s(plain, Machine(2))


def test_a_method_that_slows_its_links_is_refused_in_a_new_file(tmp_path: Path) -> None:
    (tmp_path / "slowed.toml").write_text(
        '[[methods]]\nname = "dense"\n\n[[methods]]\nname = "topk"\nslowed_to = "9mbit"\n'
    )
    says = r"slowed\.toml: methods\[2\] \(topk\)\.slowed_to: found '9mbit'; allowed: no such key .* train\.dilation"
    with pytest.raises(UsageError, match=says) as refused:
        load(str(tmp_path / "slowed.toml"))
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("slowed_to", [None, 20_000_000])
def test_runs_of_when_methods_slowed_their_links_are_read(slowed_to: int | None, tmp_path: Path) -> None:
    scenario = load("quickstart")
    stored = json.loads(scenario.model_dump_json(by_alias=True))
    stored["methods"] = [{**method, "slowed_to": slowed_to} for method in stored["methods"]]
    (tmp_path / "scenario.json").write_text(json.dumps(stored))
    assert Store.open(tmp_path).scenario() == scenario


def test_rows_of_a_replay_say_so_and_know_no_accuracy(tmp_path: Path) -> None:
    def silent(trial: Any) -> Any:
        from harness.cluster.fake import recite

        for message in recite(trial):
            if isinstance(message, Events):
                message = dataclasses.replace(message, rows=[row for row in message.rows if row[2] != "accuracy"])
            yield message

    plan = replayed(Path(written(tmp_path / "abacus.json")), "rounds=1", "train.dilation=2.0")
    store = Store.create(tmp_path / "run", plan.scenario)
    execute.run(plan, store, FakeCluster(silent), lambda _: None, lambda *_: None)
    rows = store.trials()
    assert set(rows["dataset"]) == {"made-up gradients (replay of abacus, modelled for abacus)"}
    assert set(rows["replay_source"]) == {"modelled"}
    assert rows["rate_bps"].eq(100e6).all(), "as asked, not as built"
    assert rows["measured_rate_bps"].eq(100e6).all(), "likewise"
    assert rows["final_accuracy"].isna().all(), "not zero: there is none"
    assert (rows["predicted_step_s"] > rows["lower_bound_s_per_step"]).all()
    (case,) = case_results(rows, plan.scenario)
    assert "time dilated by 2" in case.title
    assert case.methods[0].time_to_target.of == 0
    assert "nothing was learnt" in headline(case, plan.scenario)


def test_what_is_off_of_links_that_were_slowed_says_so_wherever_it_is_told(tmp_path: Path) -> None:
    class Drifting(FakeCluster):
        def verify(self) -> Readings:
            first, *others = super().verify().links
            sick = first.model_copy(update={"complaints": ("asked 25 Mbit/s, measured 20 Mbit/s",)})
            return self._readings.model_copy(update={"links": (sick, *others)})

    plan = replayed(Path(written(tmp_path / "p.json")), "rounds=1", "train.dilation=4.0")
    store = Store.create(tmp_path / "run", plan.scenario)
    execute.run(plan, store, Drifting(), lambda _: None, lambda *_: None)
    says = "asked 25 Mbit/s, measured 20 Mbit/s (at a dilation of 4)"
    assert set(store.trials()["reason"]) == {f"the links had changed after it: {says}"}
    rows = store.attempts().dropna(subset=["drift"])
    assert set(rows["drift"]) == {says}
    assert all(Readings.model_validate_json(after).links[0].complaints == (says,) for after in rows["verified_after"])


def test_a_round_trip_that_is_off_is_told_as_it_was_asked_for() -> None:
    off = Readings(links=(), rtt_s=(0.1,), rtt_s_asked=(0.08,), rtt_s_allowed=(0.004,), took_s=1.0)
    (says,) = off.undilated(4).complaints()
    assert "asked 20 ms, measured 25 ms (allowed: within 1 ms)" in says
