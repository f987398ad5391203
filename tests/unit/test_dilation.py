"""Time that is dilated: networks that are slower, and figures that are told as if they were not."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from abacus import replayed, written

from harness.analysis.cases import case_results
from harness.cluster.fake import FakeCluster
from harness.errors import UsageError
from harness.messages import Events
from harness.network.topology import Topology
from harness.plan import predict
from harness.plan.estimate import time_s
from harness.plan.plan import make
from harness.record.store import Store
from harness.report.page import headline
from harness.run import execute
from harness.scenario.links import Link
from harness.scenario.load import load


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


def test_defaults_stay_what_they_are() -> None:
    """A change that was not asked for must not appear because links are slowed."""
    slow = Link.model_validate({"up": {"delay": "1ms"}}).slowed(2)
    assert slow.pipe("w0", "up").rate_bps == slow.pipe("w0", "down").rate_bps == 50_000_000
    assert slow.pipe("w0", "down").delay_s == 0


def test_a_dilated_case_keeps_its_figures_and_builds_a_slower_network(tmp_path: Path) -> None:
    file = Path(written(tmp_path / "p.json"))
    (plain, *_), (slow, *_) = (replayed(file, f"train.dilation={k}").trials for k in ("1.0", "10.0"))
    assert slow.expected.topology == plain.expected.topology
    assert slow.expected.built_topology.slowest_bps == 10_000_000
    assert slow.expected.lower_bound_s_per_step == plain.expected.lower_bound_s_per_step
    asked_s, dilated_s = (trial.expected.predicted_step_s or 0.0 for trial in (plain, slow))
    assert asked_s - dilated_s == pytest.approx(0.9 * 6 * predict.MESSAGE_S), "this machine wakes as fast as ever"
    assert time_s(slow, 2) > 5 * time_s(plain, 2)


SLOWED = """
[train]
model = "digits-cnn"
replay = "{file}"
batch_size = 32
steps = 40

[link]
rate = ["100mbit", "10mbit"]

[[methods]]
name = "dense"

[[methods]]
name = "topk"
slowed_to = "20mbit"
"""


def test_a_method_slows_its_links_and_time_with_them(tmp_path: Path) -> None:
    file = written(tmp_path / "p.json")
    (tmp_path / "slowed.toml").write_text(SLOWED.format(file=file))
    plan = make(load(str(tmp_path / "slowed.toml"), ["rounds=2"]), "fake")
    first = {(trial.case.link.rate_bps, trial.method.label): trial for trial in plan.trials if trial.round == 0}
    assert {key: trial.dilation for key, trial in first.items()} == {
        (100_000_000, "dense"): 1.0,
        (100_000_000, "topk"): 5.0,
        (10_000_000, "dense"): 1.0,
        (10_000_000, "topk"): 1.0,  # slow enough as it is
    }
    assert first[100_000_000, "topk"].expected.built_topology.slowest_bps == 20_000_000
    assert first[100_000_000, "dense"].expected.built_topology.slowest_bps == 100_000_000

    store = Store.create(tmp_path / "run", plan.scenario)
    execute.run(plan, store, FakeCluster(), lambda _: None, lambda *_: None)
    rows = store.trials()
    assert (rows["status"] == "done").all()
    assert rows["measured_rate_bps"].eq(rows["rate_bps"]).all(), "told as asked"
    cases = case_results(rows, store.scenario())
    assert len(cases) == 2, "a method's own pace makes no case of its own"
    assert all(case.method("topk").speedup for case in cases)
    assert cases[-1].method("topk").mean("trial_dilation") == 5.0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (('"20mbit"', '"fast"'), r"methods \(topk\): slowed_to: found 'fast'; allowed: a rate such as"),
        (('"10mbit"', '"unshaped"'), r"methods \(topk\)\.slowed_to: allowed: in replays over links that have a rate"),
        (('replay = "{file}"', ""), r"methods \(topk\)\.slowed_to: allowed: in replays over links that have a rate"),
    ],
)
def test_links_are_slowed_for_a_method_in_replays_alone(change: tuple[str, str], says: str, tmp_path: Path) -> None:
    (tmp_path / "slowed.toml").write_text(SLOWED.replace(*change).format(file=written(tmp_path / "p.json")))
    with pytest.raises(UsageError, match=says):
        load(str(tmp_path / "slowed.toml"))


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
