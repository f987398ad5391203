"""Dilations that a run finds by itself, on machines that are made up."""

from __future__ import annotations

import dataclasses
import math
import random
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from abacus import replayed, written
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.analysis.cases import case_results
from harness.cluster.fake import ADDED_S, FakeCluster, recite
from harness.errors import MeasurementError, UsageError
from harness.files import NoRoomError
from harness.messages import Events, Message, Trained
from harness.network.readings import Readings
from harness.network.topology import Topology
from harness.plan import estimate
from harness.plan.dilation import AIM, LADDER, Look, look, tolerated
from harness.plan.plan import Plan, make
from harness.plan.trial import Trial
from harness.record.row import Event
from harness.record.store import Store
from harness.report import facts
from harness.run import dilation, execute
from harness.run.added import Added, _difference, _settled, added, added_within
from harness.run.dilation import Dilations
from harness.run.outcome import NO_RANK, RESUMED, Ended, Outcome
from harness.scenario.load import load
from harness.scenario.schema import NO_LIMITS, MethodSpec, Resources

TRUE_S = 0.2


class Machine:
    """Runs a trial: its steps take ``TRUE_S``, what the machine adds, and noise, both in real seconds.

    By ``spread_s`` steps differ among themselves, as by what they send, at every dilation alike.
    """

    def __init__(self, added_s: float, noise_s: float = 0.0, rounds_of: int = 0, spread_s: float = 0.0) -> None:
        self.added_s, self.noise_s, self.spread_s = added_s, noise_s, spread_s
        self.added_to_dense_s = added_s
        """What it adds to each step of a warm-up, if that is dense."""
        self.rounds_of = rounds_of
        """Of a method that chooses: once in so many steps it tries what sends four times the bytes."""
        self.ran: list[Trial] = []
        self._dice = random.Random(0)

    def __call__(self, trial: Trial) -> Outcome:
        self.ran.append(trial)
        outcome = Outcome()
        outcome.results[0] = next(message for message in recite(trial) if isinstance(message, Trained))
        clock_s, steps, warm_up = 0.0, trial.case.train.steps, trial.method.params.get("warmup_steps", 0)
        for step in range(steps):
            added_s = self.added_s if step >= warm_up else self.added_to_dense_s
            late_s = (added_s + self._dice.gauss(0.0, self.noise_s)) / trial.slowing.at(step)
            tries = 4 if self.rounds_of and step % self.rounds_of == 0 else 1
            true_s = tries * TRUE_S * _times_slower(trial, clock_s) + self._dice.gauss(0.0, self.spread_s)
            told = {"step_s": true_s + late_s, "overrun_s": self.added_s / 10 / trial.slowing.at(step)}
            clock_s += told["step_s"]
            for kind, value in (told | ({"formula_bytes": tries * 1e6} if self.rounds_of else {})).items():
                outcome.events.append(Event(0, step, clock_s, kind, value))
        outcome.events.append(Event(0, steps, clock_s, "accuracy", 0.9))
        outcome.steps_seen = steps
        outcome.results[0] = dataclasses.replace(outcome.results[0], train_time_s=clock_s)
        return outcome


def _times_slower(trial: Trial, clock_s: float) -> float:
    """How many times slower links are by now than they become at best."""
    trace = trial.case.link.trace
    return max(row.rate_bps for row in trace.rows) / trace.at(clock_s).rate_bps if trace else 1.0


def a_trial(folder: Path, *overrides: str, label: str = "dense") -> Trial:
    plan = replayed(Path(written(folder / "p.json")), *overrides)
    return next(trial for trial in plan.trials if trial.method.label == label)


def dilations(folder: Path, machine: Callable[[Trial], Outcome], cluster: FakeCluster | None = None) -> Dilations:
    baseline = load("quickstart").methods[0]
    return Dilations(folder / "dilations.json", cluster or FakeCluster(), baseline, machine)


def fixed_links() -> FakeCluster:
    """A cluster whose links do not change while a trial runs: dilations are found by short trials."""
    cluster = FakeCluster()
    cluster.machine = cluster.machine._replace(changes_links=False)
    return cluster


def recited(folder: Path, plan: Plan, cluster: FakeCluster, ended: Ended = lambda *_: None) -> Store:
    """What is stored of a run."""
    store = Store.create(folder / "run", plan.scenario)
    execute.run(plan, store, cluster, lambda _: None, ended)
    return store


def run_until_it_counts(found: Dilations, trial: Trial, machine: Machine) -> tuple[Trial, Outcome]:
    """Run a trial as a run does: again, as long as that is said of it."""
    for _ in range(len(LADDER)):
        trial = found.settle(trial)
        outcome = machine(trial)
        if not found.take_off(trial, outcome):
            return trial, outcome
    raise AssertionError("it is never slow enough")


@settings(max_examples=40, deadline=None)
@given(
    added_s=st.floats(1e-5, 0.1),
    noise=st.floats(0.0, 0.1),
    within=st.booleans(),
    most=st.sampled_from([0.02, 0.05, 0.2]),
)
def test_what_is_left_of_what_a_machine_adds_is_small(
    tmp_path_factory: pytest.TempPathFactory, added_s: float, noise: float, within: bool, most: float
) -> None:
    folder, machine = tmp_path_factory.mktemp("run"), Machine(added_s, noise * added_s)
    found = dilations(folder, machine, FakeCluster() if within else fixed_links())
    trial, outcome = run_until_it_counts(found, a_trial(folder, f"train.most_added={most}"), machine)
    assert outcome.added_s is not None
    assert added_s / trial.dilation / TRUE_S <= most + 3 * tolerated(most)
    assert abs(statistics.fmean(outcome.step_s) - TRUE_S) <= 4 * tolerated(most) * TRUE_S, "four standard errors"
    assert trial.dilation in LADDER


@pytest.mark.parametrize("rounds_of", [7, 9, 16])
def test_a_step_in_which_a_method_tries_something_else_is_nothing_that_the_machine_adds(
    tmp_path: Path, rounds_of: int
) -> None:
    machine = Machine(0.004, 0.0001, rounds_of)
    found, trial = dilations(tmp_path, machine), a_trial(tmp_path, "train.steps=60")
    _, outcome = run_until_it_counts(found, trial, machine)
    assert outcome.added_s == pytest.approx(0.004, abs=0.001)
    assert len(machine.ran) <= 2


def test_what_is_taken_off_leaves_the_training_clock_as_it_would_be(tmp_path: Path) -> None:
    machine = Machine(added_s=0.05)
    _, outcome = run_until_it_counts(dilations(tmp_path, machine), a_trial(tmp_path), machine)
    ends_s = [event.time_s for event in outcome.events if event.kind == "step_s"]
    assert ends_s == pytest.approx([TRUE_S * (step + 1) for step in range(len(ends_s))])
    assert outcome.results[0].train_time_s == pytest.approx(ends_s[-1])
    (evaluation,) = (event for event in outcome.events if event.kind == "accuracy")
    assert evaluation.time_s == pytest.approx(TRUE_S * evaluation.step)


@pytest.mark.parametrize("dense_was_found", [True, False])
def test_what_is_taken_off_a_dense_warm_up_was_found_of_dense_steps_if_it_was(
    tmp_path: Path, dense_was_found: bool
) -> None:
    dense, machine = Machine(added_s=4e-3), Machine(added_s=20e-3)
    found = dilations(tmp_path, machine)
    if dense_was_found:
        run_until_it_counts(found, a_trial(tmp_path), dense)
        machine.added_to_dense_s = dense.added_s
    trial, outcome = run_until_it_counts(found, a_trial(tmp_path, label="pactrain-fp32"), machine)
    assert outcome.step_s == pytest.approx([TRUE_S] * trial.train.steps)
    assert outcome.added_s == pytest.approx(machine.added_s)


@pytest.mark.parametrize("within", [True, False])
@pytest.mark.parametrize("place", [-1, 1])
def test_steps_with_which_a_trial_went_on_say_nothing_of_what_a_machine_adds(
    tmp_path: Path, within: bool, place: int
) -> None:
    machine = Machine(added_s=4e-3)
    found = dilations(tmp_path, machine, FakeCluster() if within else fixed_links())
    trial = found.settle(a_trial(tmp_path))
    outcome = machine(trial)
    at = place + (trial.slowing.look.from_step if trial.slowing.look else trial.train.steps // 2)
    outcome.events = [
        event._replace(value=event.value + 1.0 * (event.step in (at, at + 1) and event.kind in ("step_s", "overrun_s")))
        for event in outcome.events
    ]
    outcome.events.append(Event(NO_RANK, at, 0.0, RESUMED, float(at)))
    assert found.take_off(trial, outcome) is None
    assert outcome.added_s == pytest.approx(machine.added_s)


def test_of_a_method_that_sends_once_in_a_period_no_part_of_one_is_left_out(tmp_path: Path) -> None:
    seldom = MethodSpec(name="local_sgd", label="local_sgd", params={"period": 4}, lr=None)
    trial, outcome = a_trial(tmp_path).model_copy(update={"method": seldom}), Outcome()
    near, far = [*range(8, 16), *range(24, 32)], range(16, 24)
    assert _settled(outcome, trial, near, far) == (near, [*far])
    outcome.events.append(Event(NO_RANK, 15, 0.0, RESUMED, 15.0))
    assert _settled(outcome, trial, near, far) == ([8, 9, 10, 11, *range(24, 32)], [20, 21, 22, 23])
    outcome.events.append(Event(NO_RANK, 22, 0.0, RESUMED, 22.0))
    assert _settled(outcome, trial, near, far) == (near, far), "else nothing slower would be left"


def test_a_machine_that_adds_little_runs_faster_than_real_time_and_no_faster_than_it_can(tmp_path: Path) -> None:
    def settled(added_s: float, *overrides: str) -> float:
        (tmp_path / "dilations.json").unlink(missing_ok=True)
        machine = Machine(added_s)
        found, trial = dilations(tmp_path, machine), a_trial(tmp_path, *overrides)
        for _ in LADDER:
            run_until_it_counts(found, trial, machine)
        return found.settle(trial).dilation

    assert settled(0.3e-4) == LADDER[0]
    assert settled(0.3e-3) == 0.0625
    assert settled(4e-3) in (0.5, 0.75)
    assert settled(4e-3, "train.most_added=0.2") in (0.125, 0.1875), "a quarter of that"
    assert settled(0.4e-3, "link.delay=1ms") == 1.0, "netem's timers are this kernel's"


def test_the_next_trial_of_a_kind_runs_as_slow_as_the_last_one_says_also_in_a_run_that_goes_on(tmp_path: Path) -> None:
    machine = Machine(added_s=0.05)
    first = dilations(tmp_path, machine)
    first_trial = a_trial(tmp_path)
    guessed, _ = run_until_it_counts(first, first_trial, machine)
    settled = first.settle(guessed)
    assert 0.05 / settled.dilation / TRUE_S <= AIM * first_trial.case.train.most_added
    again = dilations(tmp_path, machine)
    assert again.settle(a_trial(tmp_path, "train.steps=200")).dilation == settled.dilation
    assert again.is_known(guessed)
    assert not again.is_known(a_trial(tmp_path, label="topk"))


def test_a_guess_knows_what_the_method_needed_elsewhere(tmp_path: Path) -> None:
    trial, other = a_trial(tmp_path, label="topk"), a_trial(tmp_path, "link.rate=1001mbit", label="topk")
    first = dilations(tmp_path, Machine(added_s=0.0)).settle(trial)
    machine = Machine(added_s=1.8 * trial.case.train.most_added * TRUE_S * first.dilation)
    found = dilations(tmp_path, machine)
    assert found.take_off(first, machine(first)), "a guess that knew of nothing"
    run_until_it_counts(found, trial, machine)
    assert not found.is_known(other)
    guessed = found.settle(other)
    assert found.take_off(guessed, machine(guessed)) is None


def test_one_trial_to_the_next_changes_by_two_at_most(tmp_path: Path) -> None:
    """What one moment showed must not decide over all that follows."""
    quiet, busy = Machine(added_s=1e-3), Machine(added_s=1.0)
    found = dilations(tmp_path, quiet)
    first = found.settle(a_trial(tmp_path))
    assert found.take_off(first, busy(first))
    second = found.settle(first)
    assert second.dilation == 2 * first.dilation
    assert found.take_off(second, quiet(second)) is None
    above = LADDER[LADDER.index(first.dilation) + 1]
    assert found.settle(first).dilation == above, "the first was too low: half as slow would be it"


def test_a_trial_that_shows_too_little_for_sure_does_not_slow_all_that_follow(tmp_path: Path) -> None:
    found = dilations(tmp_path, Machine(added_s=1e-3))
    first = found.settle(a_trial(tmp_path))
    reason = found.take_off(first, Machine(added_s=1e-3, noise_s=0.2)(first))
    assert reason is not None
    assert "was known to" in reason
    second = found.settle(first)
    assert second.dilation == LADDER[LADDER.index(first.dilation) + 1]
    assert found.take_off(second, Machine(added_s=1e-3)(second)) is None
    assert found.settle(first).dilation <= first.dilation


LONG_WAITS_S = [0.2, 20.0, 0.2, 4.0, 0.2, 18.6, 0.2, 3.4]


def test_what_lost_packets_make_long_is_nothing_that_the_machine_adds() -> None:
    """Plain steps waited for lost packets, and slower ones did not, so that less than nothing is left."""
    within = added(LONG_WAITS_S, 4, [0.2, 0.25, 0.2, 0.22], 8, are_alike=False)
    assert within.step_s <= 0
    assert not within.is_known(1e9, 0.05)
    assert "was known to" in str(within.why_too_much(4, 0.05))
    usual = within.beside(0.009, 0.009, 4)
    assert usual.why_too_much(4, 0.05) is None
    assert usual.step_s == pytest.approx(statistics.fmean(LONG_WAITS_S), rel=0.01)


def test_of_steps_of_which_nothing_would_be_left_nothing_is_kept(tmp_path: Path) -> None:
    found, trial = dilations(tmp_path, Machine(0.001)), a_trial(tmp_path)
    settled = found.settle(trial)
    assert found._learn(settled, Added(-1.3, 23.4, 0.1))
    assert not (tmp_path / "dilations.json").exists()
    assert found.settle(trial).dilation > settled.dilation


def test_steps_that_differ_among_themselves_are_soon_slow_enough(tmp_path: Path) -> None:
    machine = Machine(added_s=0.02, spread_s=0.06 * TRUE_S)
    found, trial = dilations(tmp_path, machine), a_trial(tmp_path)
    for _ in range(4):
        trial, outcome = run_until_it_counts(found, trial, machine)
        assert outcome.added_s is not None
        assert outcome.added_s / trial.dilation <= 0.03 * TRUE_S
    assert len(machine.ran) <= 8


def test_what_was_known_well_enough_is_not_run_so_fast_that_it_no_longer_is(tmp_path: Path) -> None:
    restless = Machine(added_s=1e-4, noise_s=0.02)
    found, trial = dilations(tmp_path, restless), a_trial(tmp_path)
    run_until_it_counts(found, trial, restless)
    tried = len(restless.ran)
    for _ in range(20):
        run_until_it_counts(found, trial, restless)
    assert len(restless.ran) - tried <= 22, "of twenty trials two at most run again"


def test_what_is_known_too_little_at_the_greatest_dilation_is_tried_there_again(tmp_path: Path) -> None:
    restless = Machine(added_s=1e-3, noise_s=10.0)
    found = dilations(tmp_path, restless)
    for _ in range(2 * len(LADDER)):
        trial = found.settle(a_trial(tmp_path))
        found.take_off(trial, restless(trial))
    assert trial.dilation in LADDER


def test_what_earlier_trials_of_its_kind_showed_counts_where_one_shows_too_little_for_sure(tmp_path: Path) -> None:
    quiet, restless = Machine(added_s=4e-3), Machine(added_s=4e-3, noise_s=0.05)
    found = dilations(tmp_path, quiet)
    first, _ = run_until_it_counts(found, a_trial(tmp_path), quiet)
    second = found.settle(first)
    outcome = restless(second)
    noisy_s = statistics.fmean(outcome.step_s)
    assert found.take_off(second, outcome) is None
    assert outcome.added_s == pytest.approx(4e-3, rel=0.1)
    assert statistics.fmean(outcome.step_s) < noisy_s


def test_a_machine_that_is_not_what_it_was_is_believed_now(tmp_path: Path) -> None:
    sure, unsure = Added(TRUE_S, 4e-3, 1e-4), Added(TRUE_S, 40e-3, 10e-3)
    assert unsure.beside(sure.added_s, sure.error_s, 1.0) == unsure
    near = Added(TRUE_S, 14e-3, 10e-3).beside(sure.added_s, sure.error_s, 1.0)
    assert near.added_s == pytest.approx(4e-3, rel=0.01)
    assert near.step_s + near.added_s == pytest.approx(TRUE_S + 14e-3), "the steps took what they took"


def test_where_nearly_too_much_was_shown_the_next_trial_runs_slower_and_this_one_counts(tmp_path: Path) -> None:
    found = dilations(tmp_path, Machine(added_s=1e-3))
    trial = found.settle(a_trial(tmp_path))
    machine = Machine(added_s=0.045 * TRUE_S * trial.dilation)
    assert found.take_off(trial, machine(trial)) is None
    assert found.settle(trial).dilation > trial.dilation


def test_some_steps_run_slower_still_and_are_put_beside_those_around_them(tmp_path: Path) -> None:
    trial = dilations(tmp_path, Machine(0.05)).settle(a_trial(tmp_path, label="dgc"))
    looked, steps = trial.slowing.look, trial.case.train.steps
    assert looked is not None
    slower = [step for step in range(steps) if trial.slowing.at(step) > trial.dilation]
    assert slower == list(range(looked.from_step, looked.from_step + looked.steps))
    assert looked.from_step - looked.beside >= 8, "after the warm-up"
    assert looked.end <= steps


@pytest.mark.parametrize("within", [True, False])
def test_what_is_put_beside_slower_steps_sends_segments_that_are_no_longer_than_theirs(
    tmp_path: Path, within: bool
) -> None:
    """Else the slower ones would be split on their way, which takes the processor as much time as it saves."""
    would_differ = False
    for rate in ("100mbit", "300mbit", "1gbit", "3gbit"):
        machine, folder = Machine(0.01), tmp_path / rate
        folder.mkdir()
        trial = a_trial(folder, f"link.rate={rate}")
        found = dilations(folder, machine, FakeCluster() if within else fixed_links())
        settled, thinned = found.settle(trial), trial.expected.thinned
        longest = _segments(thinned.slowed(settled.dilation * settled.slowing.slows_by))
        assert all(_segments(each.network) == longest for each in (settled, *machine.ran))
        would_differ |= _segments(settled.expected.built_topology) != longest
    assert would_differ


def _segments(topology: Topology) -> str:
    up = next(str(each) for each in topology.build() if "link set eth0" in str(each))
    return up.partition("gso_max_segs")[2]


def test_a_network_of_its_own_is_measured_again_before_another_takes_its_place(tmp_path: Path) -> None:
    """Trials of one dilation, of which one looks at steps that are four times slower, and one at twice as slow ones."""
    seen: list[str] = []

    class Listening(FakeCluster):
        def use(self, topology: Topology, resources: Resources = NO_LIMITS) -> Readings:
            seen.append(f"slowed by {topology.slows_by:g}")
            return super().use(topology, resources)

        def verify(self) -> Readings:
            seen.append("measured again")
            return super().verify()

    plan = replayed(Path(written(tmp_path / "p.json")), "rounds=1")
    plan = plan.only(lambda trial: trial.method.label in ("dense", "topk", "dgc"))
    store = Store.create(tmp_path / "run", plan.scenario)
    known = dilations(store.folder, Machine(0.0))
    for trial in plan.trials:
        known._keep(trial, 4.0, Added(estimate.steady_s(trial), ADDED_S, 0.0))
    execute.run(plan, store, Listening(), lambda _: None, lambda *_: None)
    assert set(store.trials()["trial_dilation"]) == {4.0}
    assert seen == ["slowed by 2", "measured again", "slowed by 4", "slowed by 4", "measured again"]


def test_where_steps_are_too_few_none_run_slower_still() -> None:
    assert look(first=2, end=5, dilation=1.0, step_s=0.1) is None
    assert look(first=2, end=8, dilation=1.0, step_s=0.1) == Look(from_step=4, steps=2, dilation=4.0, beside=2)
    seldom = look(first=2, end=66, dilation=1.0, step_s=0.1, period=16)
    assert seldom == Look(from_step=18, steps=16, dilation=4.0, beside=16), "each of a period is seen"
    assert look(first=2, end=48, dilation=1.0, step_s=0.1, period=16) is None


def test_short_trials_have_no_warm_up_and_evaluate_nothing(tmp_path: Path) -> None:
    machine = Machine(added_s=0.05)
    trial = dilations(tmp_path, machine, fixed_links()).settle(a_trial(tmp_path, label="dgc"))
    assert not trial.slowing.changes
    assert machine.ran
    assert all(trial.is_probe for trial in machine.ran)
    assert {trial.method.params["warmup_steps"] for trial in machine.ran if trial.method.label == "dgc"} == {0}


def test_short_trials_on_links_that_change_have_them_at_their_fastest(tmp_path: Path) -> None:
    """Else one of them would see more of the changes than the other, and these be what the machine adds."""
    (tmp_path / "x.csv").write_text("t_s,rate_bps\n0,500000000\n1,1000000000\n4,50000000\n")
    machine = Machine(added_s=4e-3)
    found = dilations(tmp_path, machine)
    trial = found.settle(a_trial(tmp_path, f"link.trace={tmp_path / 'x.csv'}"))
    assert {each.case.link.pipe("w0", "up").rate_bps for each in machine.ran} == {10**9}
    assert len({_segments(each.network) for each in (trial, *machine.ran)}) == 1
    outcome = machine(trial)
    assert found.take_off(trial, outcome) is None
    assert outcome.added_s == pytest.approx(machine.added_s)


@pytest.mark.parametrize(
    "losses",
    [
        ("link.loss=2%",),
        ("link.loss_bursts={p=0.01,r=0.2}", "link.down.loss=0.0"),
        ("link.up.loss_bursts={p=0.01,r=0.2}", "link.workers.w1.down.corrupt=1%"),
        ("fabric.groups=a b", "fabric.trunk.loss=1%", "link.workers.w2.loss=5%"),
        ("link.trace={x.csv}",),
    ],
)
def test_short_trials_on_links_that_lose_packets_lose_none(tmp_path: Path, losses: tuple[str, ...]) -> None:
    """Else what each of them loses, and TCP's timers, would be taken for what the machine adds."""
    (tmp_path / "x.csv").write_text("t_s,rate_bps,loss\n0,500000000,0.01\n1,1000000000,0.02\n")
    machine = Machine(added_s=4e-3)
    asked = [each.replace("{x.csv}", str(tmp_path / "x.csv")) for each in losses]
    trial = dilations(tmp_path, machine).settle(a_trial(tmp_path, *asked))
    assert trial.expected.topology.loses_packets
    assert trial.slowing.look is None
    assert machine.ran
    lost = {pipe.mean_loss + pipe.corrupt for each in machine.ran for pipe in each.network.pipes}
    assert lost == {0.0}
    assert len({_segments(each.network) for each in (trial, *machine.ran)}) == 1
    links = [each.case.link.model_dump(exclude={"trace"}) for each in (trial, *machine.ran)]
    kept = [{**link, **dict.fromkeys(("loss", "loss_bursts", "up", "down", "workers"))} for link in links]
    assert all(each == kept[0] for each in kept), "all else is as it was"


NEEDS_ITS_WARM_UP = '''
"""Needy: an all-reduce that cannot be without its first steps."""

from typing import Annotated

from pydantic import Field

from baselines import MethodState, parameters
from baselines._state import numel, ring_all_reduce_bytes

LABEL, COLOR, MARKER = "Needy", "#112233", "o"


@parameters
class State(MethodState):
    """What it keeps.

    Args:
        patience: its first steps.
    """

    warmup_parameters = ("patience",)

    patience: Annotated[int, Field(ge=2)] = 8

    @property
    def steady_from_step(self):
        return self.patience

    def wire_bytes(self, shapes, world_size, step=None):
        return ring_all_reduce_bytes(4 * numel(shapes), world_size)


def needy_hook(state, bucket):
    raise NotImplementedError
'''


def test_short_trials_of_a_method_that_needs_its_warm_up_have_it(tmp_path: Path) -> None:
    (tmp_path / "needy.py").write_text(NEEDS_ITS_WARM_UP)
    needy = MethodSpec(name=f"{tmp_path / 'needy.py'}:needy", label="needy", params={"patience": 5}, lr=None)
    machine = Machine(added_s=4e-3)
    trial = dilations(tmp_path, machine, fixed_links()).settle(a_trial(tmp_path).model_copy(update={"method": needy}))
    assert trial.found
    assert machine.ran
    assert all(each.method == needy and each.train.steps > 5 for each in machine.ran)


def test_a_warm_up_runs_less_slowed_where_its_steps_are_longer(tmp_path: Path) -> None:
    machine = Machine(added_s=0.05)
    found = dilations(tmp_path, machine)
    for label in ("dense", "bf16", "topk"):
        run_until_it_counts(found, a_trial(tmp_path, label=label), machine)
    trial = found.settle(a_trial(tmp_path, label="dgc"))
    phases = trial.slowing.phases
    assert phases[0].from_step == 0
    assert phases[-1].from_step == 8
    assert [phase.dilation for phase in phases] == sorted(phase.dilation for phase in phases)
    assert phases[0].dilation < phases[-1].dilation == trial.dilation
    assert trial.slowing.at(0) == phases[0].dilation
    assert trial.slowing.at(8) == trial.slowing.at(999) == trial.dilation
    assert not found.settle(a_trial(tmp_path, label="topk")).slowing.phases


def test_no_part_of_a_warm_up_is_faster_than_netems_timers(tmp_path: Path) -> None:
    scenario, cluster = load("edge-100m", ["link.rate=10mbit", "baseline=bf16"]), FakeCluster()
    cluster.machine = cluster.machine._replace(cpu_count=2)
    bf16 = next(method for method in scenario.methods if method.label == "bf16")
    found = Dilations(tmp_path / "dilations.json", cluster, bf16, Machine(0.0))
    warmed_up = [trial for trial in make(scenario, "fake").trials if trial.method.name == "pactrain"]
    slowings = [found.settle(trial).slowing for trial in warmed_up]
    assert all(slowing.phases for slowing in slowings)
    assert {slowing.phases[0].dilation for slowing in slowings} == {1.0}


@pytest.mark.parametrize("within", [True, False])
def test_a_machine_that_adds_too_much_at_any_dilation_is_told(tmp_path: Path, within: bool) -> None:
    machine = Machine(added_s=8.0)
    found = dilations(tmp_path, machine, FakeCluster() if within else fixed_links())
    with pytest.raises(
        MeasurementError, match="dense: at a dilation of 256 this machine still adds more than 5 % to a"
    ):
        run_until_it_counts(found, a_trial(tmp_path), machine)
    assert dilations(tmp_path, machine), "what it found can be read again"


def test_fewer_steps_than_those_that_run_slower_still_are_compared_by_their_means() -> None:
    """Of a method that sends in every third step, and nothing is added."""
    assert _difference([0.01, 0.01, 0.1] * 2, [0.01, 0.01, 0.1] * 3, are_alike=False)[0] == pytest.approx(0.0)


@pytest.mark.parametrize("delay", ["0ms", "5ms"])
def test_ranks_that_were_out_of_step_are_nothing_that_the_machine_adds(tmp_path: Path, delay: str) -> None:
    """Top-k in home-asymmetric: 100 ms a step until ranks meet for the slower steps, 89 from then on, and 100 again."""

    def out_of_step_until_they_meet(trial: Trial) -> Outcome:
        outcome, look = machine(trial), trial.slowing.look
        assert look
        in_step = range(look.from_step, look.from_step + 2 * look.steps)
        outcome.events = [
            event._replace(value=1.12 * event.value) if event.kind == "step_s" and event.step not in in_step else event
            for event in outcome.events
        ]
        return outcome

    machine = Machine(0.002)
    found = dilations(tmp_path, out_of_step_until_they_meet)
    trial = found.settle(a_trial(tmp_path, f"link.delay={delay}", "train.steps=60"))
    within = added_within(out_of_step_until_they_meet(trial), trial)
    assert within
    if delay == "0ms":
        assert within.added_s > 0.01, "what is there without a delay, a machine has done"
    else:
        assert within.added_s == pytest.approx(0.002)
        assert within.step_s == pytest.approx(TRUE_S)


def test_steps_that_chance_makes_differ_are_known_no_better_than_chance_allows() -> None:
    """Of steps with a spread of 20 % the difference of few is known badly, however they are put beside one another."""
    dice = random.Random(0)
    draws = [
        added([dice.gauss(1.0, 0.2) for _ in range(16)], 1, [dice.gauss(1.0, 0.2) for _ in range(8)], math.inf)
        for _ in range(400)
    ]
    above = [draw.added_s for draw in draws if draw.added_s > 0]
    assert len(above) == pytest.approx(len(draws) / 2, rel=0.2)
    spread_s = math.sqrt(statistics.fmean(each**2 for each in above))
    assert statistics.fmean(draw.error_s for draw in draws) == pytest.approx(spread_s, rel=0.2)


class Narrow(FakeCluster):
    """Carries little."""

    def __init__(self, most_bps: int) -> None:
        super().__init__()
        self.most_bps = most_bps

    def check(self, topology: Topology, resources: Resources = NO_LIMITS) -> None:
        if topology.at_once_bps > self.most_bps:
            raise UsageError.at("scenario", "link.rate", int(topology.at_once_bps), f"up to {self.most_bps}")


def test_links_are_as_slow_as_the_cluster_needs(tmp_path: Path) -> None:
    trial = a_trial(tmp_path)
    assert dilations(tmp_path, Machine(1e-3), Narrow(40_000_000)).settle(trial).dilation == 3.0
    (tmp_path / "dilations.json").unlink(missing_ok=True)
    with pytest.raises(UsageError, match=r"link\.rate: found \d+; allowed: up to 1000"):
        dilations(tmp_path, Machine(1e-3), Narrow(1000)).settle(trial)


def test_links_that_change_are_as_slow_as_the_cluster_needs_for_the_fastest_of_them(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("t_s,rate_bps\n0,10000000\n1,100000000\n")
    trial = a_trial(tmp_path, f"link.trace={tmp_path / 'x.csv'}")
    assert dilations(tmp_path, Machine(1e-3), Narrow(40_000_000)).settle(trial).dilation == 3.0


def test_where_time_cannot_be_slowed_nothing_is_looked_for_and_nothing_taken_off(tmp_path: Path) -> None:
    """As on hosts, whose links have delays of their own."""
    machine, cluster = Machine(added_s=0.05), FakeCluster()
    cluster.machine = cluster.machine._replace(slows_time=False)
    found, asked = dilations(tmp_path, machine, cluster), a_trial(tmp_path)
    assert found.is_known(asked)
    trial = found.settle(asked)
    outcome = machine(trial)
    assert (trial.dilation, machine.ran) == (1.0, [trial])
    assert found.take_off(trial, outcome) is None
    assert outcome.added_s is None


def test_where_time_cannot_be_slowed_the_links_are_checked_as_they_were_asked_for(tmp_path: Path) -> None:
    checked: list[float] = []

    class Listening(FakeCluster):
        def check(self, topology: Topology, resources: Resources = NO_LIMITS) -> None:
            checked.append(topology.dilation)

    cluster, trial = Listening(), a_trial(tmp_path)
    plan = replayed(tmp_path / "p.json", "rounds=1").only(lambda each: each.method == trial.method)
    for slows_time in (True, False):
        cluster.machine = cluster.machine._replace(slows_time=slows_time)
        execute._prepare(plan, plan.trials, cluster)
    assert checked == [LADDER[-1], 1.0]


def test_a_trial_whose_workers_metered_more_than_the_short_ones_is_told_and_a_greater_one_found(tmp_path: Path) -> None:
    found = dilations(tmp_path, Machine(added_s=0.05), fixed_links())
    trial = found.settle(a_trial(tmp_path))
    assert found.take_off(trial, Machine(added_s=0.05)(trial)) is None
    reason = found.take_off(trial, Machine(added_s=8.0)(trial))
    assert reason is not None
    assert "more to a step than when that was found" in reason
    assert found.settle(trial).dilation > trial.dilation


def test_a_trial_that_shows_too_much_ends_early_and_is_run_again_slower(tmp_path: Path) -> None:
    ended: list[tuple[str, str | None]] = []

    def busy(trial: Trial) -> Iterator[Message]:
        """Until the first trial has ended, more is added to a step, and no more is heard than what is looked at."""
        looked = trial.slowing.look
        assert looked is not None
        for message in recite(trial):
            if isinstance(message, Trained) and not ended:
                return
            if isinstance(message, Events) and not ended:
                rows = [
                    (step, time_s, kind, value + 0.1 / trial.slowing.at(step) * (kind == "step_s"))
                    for step, time_s, kind, value in message.rows
                    if step < looked.end
                ]
                message = dataclasses.replace(message, rows=rows)
            yield message

    plan = replayed(Path(written(tmp_path / "p.json")), "rounds=1")
    store = recited(tmp_path, plan, FakeCluster(busy), lambda _, status, reason: ended.append((status, reason)))
    status, reason = ended[0]
    assert status == "disturbed"
    assert reason is not None
    assert "this machine added" in reason
    assert set(store.trials()["status"]) == {"done"}
    first, last, *_ = store.attempts().query("label == 'dense'")["trial_dilation"]
    assert last > first


@pytest.mark.parametrize(("added_s", "counted"), [(0.6, True), (500.0, False)])
def test_what_is_too_fast_whenever_it_is_run_is_told_and_left_out(
    tmp_path: Path, added_s: float, counted: bool
) -> None:
    """The first rounds are not slow enough at their third attempt either; later ones are, or none can be."""

    def slow(trial: Trial) -> Iterator[Message]:
        more_s = added_s if trial.method.label == "dense" else 0.0
        for message in recite(trial):
            if isinstance(message, Events):
                rows = [
                    (step, time_s, kind, value + more_s / trial.slowing.at(step) * (kind == "step_s"))
                    for step, time_s, kind, value in message.rows
                ]
                message = dataclasses.replace(message, rows=rows)
            yield message

    plan = replayed(Path(written(tmp_path / "p.json")), "rounds=4")
    store = recited(tmp_path, plan, FakeCluster(slow))
    assert {trial.id for trial in plan.trials} == set(store.trials()["trial_id"]), "nothing is lost"
    dense = store.attempts().query("label == 'dense'")
    first = dense[dense["round"] == 0]
    (case,) = case_results(store.trials(), plan.scenario)
    if counted:
        assert first["status"].tolist() == ["disturbed", "disturbed", "done"]
        assert "this machine added" in first["reason"].iloc[-1]
        assert sorted(case.method("dense").done["round"]) == [2, 3]
        told = [note for note in facts.collect(store).notes if note.startswith("Unsure: dense, round 0")]
        assert len(told) == 1
        assert told[0].endswith("It is left out of all times.")
    else:
        assert dense["status"].iloc[-1] == "failed"
        assert "at a dilation of 256 this machine still adds more than" in dense["reason"].iloc[-1]
    assert set(store.trials().query("label != 'dense'")["status"]) == {"done"}


def test_a_trial_ends_early_by_what_decides_at_its_end(tmp_path: Path) -> None:
    dice, reasons = random.Random(0), []

    def restless(trial: Trial) -> Iterator[Message]:
        """From the second round on steps tell too little by themselves: what earlier ones told is enough."""
        for message in recite(trial):
            if isinstance(message, Events) and trial.round:
                rows = [
                    (step, time_s, kind, value * (1 + abs(dice.gauss(0.0, 0.05)) * (kind == "step_s")))
                    for step, time_s, kind, value in message.rows
                ]
                message = dataclasses.replace(message, rows=rows)
            yield message

    plan = replayed(Path(written(tmp_path / "p.json")), "rounds=3", "train.steps=40")
    recited(tmp_path, plan, FakeCluster(restless), lambda _, __, reason: reasons.append(reason))
    assert not any(reasons)


def test_evaluations_after_each_step_are_none_of_the_steps_that_are_looked_at(tmp_path: Path) -> None:
    def told_at_once(trial: Trial) -> Iterator[Message]:
        """What a step measured, and the evaluation after it: as where a checkpoint is made after each."""
        for message in recite(trial):
            if isinstance(message, Events):
                for made in range(1, trial.train.steps + 1):
                    rows = [row for row in message.rows if row[0] + (row[2] not in ("accuracy", "test_loss")) == made]
                    yield dataclasses.replace(message, rows=rows)
            else:
                yield message

    plan = replayed(Path(written(tmp_path / "p.json")), "rounds=1", "train.eval_every=1")
    store = recited(tmp_path, plan, FakeCluster(told_at_once))
    assert set(store.trials()["trial_id"]) == {trial.id for trial in plan.trials}
    assert set(store.trials()["status"]) == {"done"}


def test_a_scenario_that_says_a_number_gets_it(tmp_path: Path) -> None:
    machine = Machine(added_s=0.05)
    assert dilations(tmp_path, machine).settle(a_trial(tmp_path, "train.dilation=2")).dilation == 2.0
    assert dilations(tmp_path, machine).settle(a_trial(tmp_path, "link.rate=unshaped")).dilation == 1.0
    assert not machine.ran


def test_a_run_stores_what_it_found_and_takes_off(tmp_path: Path) -> None:
    plan = replayed(Path(written(tmp_path / "p.json")))
    store = recited(tmp_path, plan, FakeCluster())
    trials = store.trials()
    assert set(trials["status"]) == {"done"}
    assert set(trials["trial_id"]) == {trial.id for trial in plan.trials}
    added_s = (trials["added_s_per_step"] * trials["trial_dilation"]).to_numpy()
    assert added_s == pytest.approx(ADDED_S, abs=0.001), "its noise is of that size"
    assert trials["dilation"].isna().all()


def test_trials_are_stored_where_what_they_found_has_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_full(path: Path, content: bytes) -> None:
        raise NoRoomError(f"{path}: cannot be written: No space left on device")

    monkeypatch.setattr(dilation, "write_whole", is_full)
    plan = replayed(Path(written(tmp_path / "p.json")), "rounds=1")
    store = recited(tmp_path, plan, FakeCluster())
    assert set(store.trials()["status"]) == {"done"}
    assert set(store.trials()["trial_id"]) == {trial.id for trial in plan.trials}
    assert not list(store.folder.glob("dilations*"))


@pytest.mark.parametrize("wrong", ["0", "-1", "inf", "true", '"fast"'])
def test_a_dilation_that_is_none_is_refused_in_one_line(wrong: str) -> None:
    with pytest.raises(
        UsageError, match=r"train\.dilation: found .*; allowed: a number greater than 0, up to 10000, or 'auto'"
    ):
        load("replay", [f"train.dilation={wrong}"])
