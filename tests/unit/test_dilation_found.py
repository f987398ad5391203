"""Dilations that a run finds by itself, on machines that are made up."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from abacus import replayed, written
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.cluster.fake import ADDED_S, FakeCluster, recite
from harness.errors import MeasurementError, UsageError
from harness.messages import Trained
from harness.network.topology import Topology
from harness.plan.dilation import LADDER
from harness.plan.plan import make
from harness.plan.trial import Trial
from harness.record.row import Event
from harness.record.store import Store
from harness.run import execute
from harness.run.dilation import MOST_ADDED, TOLERATED, Dilations
from harness.run.outcome import Outcome
from harness.scenario.load import load
from harness.scenario.schema import NO_LIMITS, Resources

TRUE_S = 0.2


class Machine:
    """Runs a trial: its steps take ``TRUE_S``, what the machine adds, and noise, both in real seconds."""

    def __init__(self, added_s: float, noise_s: float = 0.0) -> None:
        self.added_s, self.noise_s = added_s, noise_s
        self.ran: list[Trial] = []
        self._dice = random.Random(0)

    def __call__(self, trial: Trial) -> Outcome:
        self.ran.append(trial)
        outcome = Outcome()
        outcome.results[0] = next(message for message in recite(trial) if isinstance(message, Trained))
        for step in range(trial.case.train.steps):
            late_s = (self.added_s + self._dice.gauss(0.0, self.noise_s)) / trial.slowing.at(step)
            for kind, value in (("step_s", TRUE_S + late_s), ("overrun_s", self.added_s / 10 / trial.slowing.at(step))):
                outcome.events.append(Event(0, step, 0.0, kind, value))
        return outcome


def a_trial(folder: Path, *overrides: str, label: str = "dense") -> Trial:
    plan = replayed(Path(written(folder / "p.json")), *overrides)
    return next(trial for trial in plan.trials if trial.method.label == label)


def dilations(folder: Path, machine: Callable[[Trial], Outcome], cluster: FakeCluster | None = None) -> Dilations:
    baseline = load("quickstart").methods[0]
    return Dilations(folder / "dilations.json", cluster or FakeCluster(), baseline, machine)


@settings(max_examples=40, deadline=None)
@given(added_s=st.floats(1e-5, 0.1), noise=st.floats(0.0, 0.1))
def test_what_is_left_of_what_a_machine_adds_is_small(
    tmp_path_factory: pytest.TempPathFactory, added_s: float, noise: float
) -> None:
    folder = tmp_path_factory.mktemp("run")
    trial = dilations(folder, Machine(added_s, noise * added_s)).settle(a_trial(folder))
    true_share = added_s / trial.dilation / TRUE_S
    left_s = added_s / trial.dilation - trial.slowing.taken_off_s(100)
    assert true_share <= MOST_ADDED + 3 * TOLERATED
    assert abs(left_s) <= 4 * TOLERATED * TRUE_S, "four standard errors"
    assert trial.dilation in LADDER


def test_a_machine_that_adds_little_runs_faster_than_real_time_and_no_faster_than_it_can(tmp_path: Path) -> None:
    idle = Machine(added_s=0.5e-3)
    assert dilations(tmp_path, idle).settle(a_trial(tmp_path)).dilation == LADDER[0]
    (tmp_path / "dilations.json").unlink()
    assert dilations(tmp_path, Machine(added_s=5e-3)).settle(a_trial(tmp_path)).dilation in (0.5, 0.75)
    (tmp_path / "dilations.json").unlink()
    delayed = a_trial(tmp_path, "link.delay=1ms")
    assert dilations(tmp_path, idle).settle(delayed).dilation == 1.0, "netem's timers are this kernel's"


def test_a_dilation_is_looked_for_once_a_run_and_also_by_a_run_that_goes_on(tmp_path: Path) -> None:
    machine = Machine(added_s=0.05)
    first = dilations(tmp_path, machine).settle(a_trial(tmp_path))
    ran = len(machine.ran)
    again = dilations(tmp_path, machine)
    assert again.settle(a_trial(tmp_path, "train.steps=200")).found == first.found
    assert len(machine.ran) == ran
    again.settle(a_trial(tmp_path, label="topk"))
    assert len(machine.ran) > ran


def test_short_trials_have_no_warm_up_and_evaluate_nothing(tmp_path: Path) -> None:
    machine = Machine(added_s=0.05)
    dilations(tmp_path, machine).settle(a_trial(tmp_path, label="dgc"))
    assert all(trial.is_probe for trial in machine.ran)
    assert {trial.method.params["warmup_steps"] for trial in machine.ran if trial.method.label == "dgc"} == {0}


def test_a_warm_up_runs_less_slowed_where_its_steps_are_longer(tmp_path: Path) -> None:
    trial = dilations(tmp_path, Machine(added_s=0.5)).settle(a_trial(tmp_path, label="dgc"))
    phases = trial.slowing.phases
    assert phases[0].from_step == 0
    assert phases[-1].from_step == 16
    assert [phase.dilation for phase in phases] == sorted(phase.dilation for phase in phases)
    assert phases[0].dilation < phases[-1].dilation == trial.dilation
    assert trial.slowing.at(0) == phases[0].dilation
    assert trial.slowing.at(16) == trial.slowing.at(999) == trial.dilation
    assert not dilations(tmp_path, Machine(0.5)).settle(a_trial(tmp_path, label="topk")).slowing.phases


def test_a_cluster_that_cannot_change_its_links_runs_all_at_one_dilation(tmp_path: Path) -> None:
    cluster = FakeCluster()
    cluster.changes_links = False
    assert not dilations(tmp_path, Machine(0.5), cluster).settle(a_trial(tmp_path, label="dgc")).slowing.phases


def test_a_machine_that_adds_too_much_at_any_dilation_is_told(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match="dense: at a dilation of 64 this machine still adds more than 5 % to a"):
        dilations(tmp_path, Machine(added_s=2.0)).settle(a_trial(tmp_path))


class Narrow(FakeCluster):
    """Carries little."""

    def __init__(self, most_bps: int) -> None:
        super().__init__()
        self.most_bps = most_bps

    def check(self, topology: Topology, resources: Resources = NO_LIMITS) -> None:
        rates = [queue.pipe.rate_bps or 0 for queue in topology.queues()]
        if max(rates) > self.most_bps:
            raise UsageError.at("scenario", "link.rate", max(rates), f"up to {self.most_bps}")


def test_links_are_as_slow_as_the_cluster_needs(tmp_path: Path) -> None:
    trial = a_trial(tmp_path)
    assert dilations(tmp_path, Machine(1e-3), Narrow(40_000_000)).settle(trial).dilation == 3.0
    (tmp_path / "dilations.json").unlink()
    with pytest.raises(UsageError, match=r"link\.rate: found \d+; allowed: up to 1000"):
        dilations(tmp_path, Machine(1e-3), Narrow(1000)).settle(trial)


def test_a_trial_whose_workers_metered_more_than_the_short_ones_is_told_and_a_greater_one_found(tmp_path: Path) -> None:
    found = dilations(tmp_path, Machine(added_s=0.05))
    trial = found.settle(a_trial(tmp_path))
    assert found.why_missed(trial, Machine(added_s=0.05)(trial)) is None
    reason = found.why_missed(trial, Machine(added_s=2.0)(trial))
    assert reason is not None
    assert "this machine added" in reason
    found.forget(trial)
    assert found.settle(trial).dilation > trial.dilation


def test_a_scenario_that_says_a_number_gets_it(tmp_path: Path) -> None:
    machine = Machine(added_s=0.05)
    assert dilations(tmp_path, machine).settle(a_trial(tmp_path, "train.dilation=2")).dilation == 2.0
    assert dilations(tmp_path, machine).settle(a_trial(tmp_path, "link.rate=unshaped")).dilation == 1.0
    assert not machine.ran


def test_a_run_stores_what_it_found_and_takes_off(tmp_path: Path) -> None:
    scenario = load(
        "quickstart", [f"train.replay={written(tmp_path / 'p.json')}", "train.pace=none", "train.target=none"]
    )
    plan = make(scenario, "fake")
    store = Store.create(tmp_path / "run", scenario)
    execute.run(plan, store, FakeCluster(), lambda _: None, lambda *_: None)
    trials = store.trials()
    assert set(trials["status"]) == {"done"}
    assert set(trials["trial_id"]) == {trial.id for trial in plan.trials}
    added_s = (trials["added_s_per_step"] * trials["trial_dilation"]).to_numpy()
    assert added_s == pytest.approx(ADDED_S, rel=0.3), "its noise is nearly of that size"
    assert trials["dilation"].isna().all()


@pytest.mark.parametrize("wrong", ["0", "-1", "inf", "true", '"fast"'])
def test_a_dilation_that_is_none_is_refused_in_one_line(wrong: str) -> None:
    with pytest.raises(UsageError, match=r"train\.dilation: found .*; allowed: a number greater than 0, or 'auto'"):
        load("replay", [f"train.dilation={wrong}"])
