"""More workers than a machine emulates: they are planned and predicted, and never run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from in_process import call_pacbench

from harness.errors import UsageError
from harness.network.topology import Topology
from harness.plan.check import check_size
from harness.plan.collectives import MESSAGE_S
from harness.plan.plan import make
from harness.scenario.load import load
from harness.scenario.schema import MOST_EMULATED

MANY = 4096

REPLAY = """
[cluster]
workers = 4
[link]
rate = "100mbit"
[train]
replay = "digits-cnn-epyc"
model = "digits-cnn"
target = "none"
steps = 20
batch_size = 16
[[methods]]
name = "dense"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "replayed.toml").write_text(REPLAY)
    return tmp_path


@pytest.mark.parametrize("verb", ["run replayed.toml --on fake --out run", "plan replayed.toml --on fake --show-tc"])
def test_what_would_make_so_many_workers_is_refused_in_one_line(folder: Path, verb: str) -> None:
    done = call_pacbench((*verb.split(), "--set", f"cluster.workers={MANY}"), folder)
    assert done.returncode == 2
    assert done.stderr == (
        f"pacbench: replayed: cluster.workers: found {MANY}; "
        f"allowed: at most {MOST_EMULATED} to run; what more would do, pacbench plan predicts\n"
    )
    assert not (folder / "run").exists()


def test_as_many_as_can_be_emulated_are_and_one_more_is_not(folder: Path) -> None:
    file = str(folder / "replayed.toml")
    check_size(load(file, [f"cluster.workers={MOST_EMULATED}"]))
    with pytest.raises(UsageError, match=f"found {MOST_EMULATED + 1}"):
        check_size(load(file, [f"cluster.workers=[4, {MOST_EMULATED + 1}]"]))


def test_a_plan_says_which_trials_are_predicted_only(folder: Path) -> None:
    arguments = ("plan", "replayed.toml", "--on", "fake", "--rounds", "1", "--set", f"cluster.workers=[4, {MANY}]")
    shown = call_pacbench(arguments, folder)
    assert shown.returncode == 0, shown.stderr
    assert f"1 predicted, with more than the {MOST_EMULATED} workers that can be emulated" in shown.stdout
    row = next(line for line in shown.stdout.splitlines() if f" {MANY} " in line)
    assert row.split()[-1] == "predicted"

    told = json.loads(call_pacbench((*arguments, "--json"), folder).stdout)
    few, many = told["trials"]
    assert (few["workers"], many["workers"]) == (4, MANY)
    assert many["time_s"] is None
    assert told["total_s"] > few["time_s"] > 0
    assert many["predicted_step_s"] > few["predicted_step_s"]


def test_a_ring_of_thousands_is_predicted_by_its_messages(folder: Path) -> None:
    """Their bytes hardly grow, 2 (p - 1) / p of the gradients. Of the segments, two a worker and round, two are under
    way at once, and each wakes processes."""
    scenario = load(str(folder / "replayed.toml"), [f"cluster.workers=[{MANY // 4}, {MANY}]"])
    fewer, more = [trial for trial in make(scenario, "fake").trials if trial.round == 0]
    added_s = (more.expected.predicted_step_s or 0) - (fewer.expected.predicted_step_s or 0)
    segments = 2 * 2 * (MANY - MANY // 4)
    assert added_s == pytest.approx(segments * MESSAGE_S / 2, rel=0.15)


def test_links_that_are_alike_are_one_and_bounds_are_as_of_each_by_itself() -> None:
    link = {"rate": "100mbit", "delay": "2ms", "workers": {"w3": {"rate": "40mbit", "down": {"delay": "7ms"}}}}
    fabric = {"groups": "a b", "trunk": {"rate": "300mbit", "delay": "10ms"}}
    uneven = Topology.model_validate({"workers": 6, "link": link, "fabric": fabric})
    queues = list(uneven.queues())
    assert set(uneven.pipes) == {queue.pipe for queue in queues}
    assert len(uneven.pipes) == 4, "a plain link's, both of w3's, and a trunk's"
    farthest_s = max(sum(queue.pipe.delay_s for queue in uneven.path(0, other)) for other in range(1, 6))
    assert uneven.bound_s(0.0, 0.0) == pytest.approx(farthest_s)
    slowest_s = max(8 * 1e6 / queue.pipe.rate_bps + queue.pipe.delay_s for queue in queues if queue.pipe.rate_bps)
    assert uneven.bound_s(1e6, 0.0) == pytest.approx(slowest_s)
    fastest_s = min(
        8 * 1e9 / queue.pipe.rate_bps for queue in queues if queue.pipe.rate_bps and queue.worker is not None
    )
    assert uneven.bound_s(1e6, 1e9) == pytest.approx(fastest_s)
