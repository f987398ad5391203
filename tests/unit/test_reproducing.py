"""What claims need, in waves: nothing runs twice, or once a verdict is there; what decides most comes first."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from synthetic import invent

from harness.analysis.claims.figures import Run
from harness.analysis.claims.judgements import judge
from harness.analysis.claims.plans import plans
from harness.analysis.claims.schema import Claim
from harness.analysis.spreads import FEWEST_CASES
from harness.cli.verbs.reproduce import _announce
from harness.cluster.protocol import ClusterBrokenError
from harness.errors import MeasurementError, PacbenchError, UsageError
from harness.files import InUseError
from harness.plan import plan
from harness.plan.machine import Machine
from harness.plan.plan import Plan
from harness.plan.trial import Trial
from harness.record.row import TrialRow
from harness.record.store import Store
from harness.run.execute import NoMemoryError
from harness.run.reproducing import needed, not_run, pending, reproduce
from harness.scenario.load import load
from harness.scenario.schema import Scenario

SPEED = {"dense": 1.0, "bf16": 2.0, "topk": 4.0}
MACHINE = Machine(cpu_count=2, changes_links=True)


def on_netns(scenario: Scenario) -> Plan:
    return plan.make(scenario, "netns")


def claim(identity: str, **changes: Any) -> Claim:
    fields: dict[str, Any] = {"id": identity, "source": "Somebody", "place": "abstract", "wording": "faster"}
    fields |= {"quantity": "throughput", "model": "resnet50", "rate": "10gbit", "workers": 8, "baseline": "dense"}
    fields |= {"method": "bf16", "range": (1.0, 12.0), "scenario": "paper/datacenter-resnet50"}
    return Claim.model_validate({**fields, **changes})


class Recorded:
    """Carries trials out by inventing them: as fast as ``SPEED`` says, but for a little in each round."""

    def __init__(self, folder: Path, lost: set[str] | None = None) -> None:
        self._folder, self._lost = folder, lost or set()
        self.trials: list[Trial] = []
        self.scenarios: list[str] = []

    def speed(self, trial: Trial) -> float:
        return SPEED.get(trial.method.label, 1.5)

    def __call__(self, name: str, run: Run, part: Plan) -> tuple[Run, int]:
        self.scenarios.append(name)
        if name in self._lost:
            return replace(run, problem="no such machine"), len(part.trials)
        store = run.store or Store.create(self._folder / name.replace("/", "-"), run.plan.scenario)
        for trial in pending(Run(run.plan, store), part):
            self.trials.append(trial)
            row, events = invent(trial)
            speed = 100.0 * self.speed(trial) * (1 + 1e-3 * (trial.round % 3))
            exact = 1 if trial.method.label == "dense" else 1 + 2e-3 * (-1) ** trial.round
            measured = {"samples_per_s": speed * exact, "replay": trial.case.train.replay}
            store.append(TrialRow(**{**row, **measured}), events)
        return replace(run, store=store), 0


def runs_of(chosen: list[Claim]) -> dict[str, Run]:
    return {name: Run(each) for name, each in plans(chosen, on_netns).items()}


def rounds_by_label(trials: list[Trial]) -> dict[str, int]:
    return dict(Counter(trial.method.label for trial in trials))


@pytest.mark.parametrize(("low", "rounds"), [(1.46, 3), (1.5, 2)])
def test_rounds_end_with_the_verdict_and_go_on_for_what_they_may_decide(
    low: float, rounds: int, tmp_path: Path
) -> None:
    clear, close = claim("clear", method="bf16"), claim("close", method="topk-ratio=0.1", range=(low, 12.0))
    recorded = Recorded(tmp_path)
    runs, failed = reproduce([clear, close], runs_of([clear, close]), recorded, MACHINE)
    assert failed == 0
    assert rounds_by_label(recorded.trials) == {"dense": rounds, "topk-ratio=0.1": rounds, "bf16": 2}
    is_at_the_end = low == 1.5
    verdicts = ["reproduced", "inconclusive" if is_at_the_end else "reproduced"]
    assert [judge(each, runs).verdict for each in (clear, close)] == verdicts
    assert ("rounds" in judge(close, runs).decides) == is_at_the_end


def test_trainings_run_whole_so_that_replays_are_not_run_for_want_of_them(tmp_path: Path) -> None:
    changes = {"model": "vit-b-16", "rate": "1gbit", "scenario": "paper/pactrain-vit-b-16", "range": (1.0, 3.0)}
    training = {"quantity": "time to accuracy", "convergence": "paper/convergence-vision"}
    asked = claim("asked", method="topk", **changes, **training)
    recorded = Recorded(tmp_path)
    runs, _ = reproduce([asked], runs_of([asked]), recorded, MACHINE)
    rounds = Counter((trial.scenario, trial.method.label) for trial in recorded.trials)
    assert {count for (scenario, _), count in rounds.items() if scenario == "convergence-vision"} == {12}
    judgement = judge(asked, runs)
    replayed = {count for (scenario, _), count in rounds.items() if scenario != "convergence-vision"}
    assert replayed == {2}, "either they are decided, or the seeds leave too much open"
    assert judgement.verdict != "inconclusive" or "seeds" in judgement.decides


def test_a_trial_that_several_claims_need_runs_once_and_what_is_done_not_again(tmp_path: Path) -> None:
    chosen = [claim("one"), claim("two", range=(1.5, 3.0)), claim("three", quantity="bytes")]
    recorded = Recorded(tmp_path)
    runs, _ = reproduce(chosen, runs_of(chosen), recorded, MACHINE)
    ids = [trial.id for trial in recorded.trials]
    assert len(ids) == len(set(ids)) == 4
    again = Recorded(tmp_path)
    reproduce(chosen, runs, again, MACHINE)
    assert again.trials == []


def test_what_decides_most_in_a_second_comes_first(tmp_path: Path) -> None:
    slow = claim("slow", model="bert-base", scenario="paper/datacenter-bert-base")
    fast = [claim(f"fast-{number}", range=(1.0 + number / 10, 12.0)) for number in range(3)]
    recorded = Recorded(tmp_path)
    reproduce([slow, *fast], runs_of([slow, *fast]), recorded, MACHINE)
    assert recorded.scenarios[:2] == ["paper/datacenter-resnet50", "paper/datacenter-bert-base"]


def test_a_scenario_that_cannot_be_run_is_tried_once_and_keeps_no_other_waiting(tmp_path: Path) -> None:
    lost = claim("lost", model="bert-base", scenario="paper/datacenter-bert-base")
    recorded = Recorded(tmp_path, lost={"paper/datacenter-bert-base"})
    runs, failed = reproduce([lost, claim("fine")], runs_of([lost, claim("fine")]), recorded, MACHINE)
    assert failed == 4
    assert recorded.scenarios.count("paper/datacenter-bert-base") == 1
    assert judge(claim("fine"), runs).verdict == "reproduced"
    judgement = judge(lost, runs)
    assert (judgement.verdict, judgement.reason) == ("inconclusive", "no such machine")
    assert judgement.decides == "a machine that can run it"


class Hindered(Recorded):
    """A scenario is kept from running by what may pass, so often."""

    def __init__(self, folder: Path, hindered: str, times: int) -> None:
        super().__init__(folder)
        self._hindered, self._times = hindered, times

    def __call__(self, name: str, run: Run, part: Plan) -> tuple[Run, int]:
        if name != self._hindered or self._times == 0:
            return super().__call__(name, run, part)
        self._times -= 1
        self.scenarios.append(name)
        return not_run(run, InUseError("another run is using the folder")), len(pending(run, part))


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("times", [1, 2])
def test_what_a_passing_hindrance_kept_from_running_is_tried_once_more(times: int, alone: bool, tmp_path: Path) -> None:
    lost = claim("lost", model="bert-base", scenario="paper/datacenter-bert-base")
    chosen = [lost] if alone else [lost, claim("fine")]
    recorded = Hindered(tmp_path, "paper/datacenter-bert-base", times)
    runs, failed = reproduce(chosen, runs_of(chosen), recorded, MACHINE)
    assert recorded.scenarios.count("paper/datacenter-bert-base") == 2
    assert recorded.scenarios[-1] == "paper/datacenter-bert-base", "in a later wave than what could be run"
    judgement = judge(lost, runs)
    if times == 1:
        assert (judgement.verdict, failed) == ("reproduced", 0)
        return
    assert failed > 0
    assert (judgement.verdict, judgement.reason) == ("inconclusive", "another run is using the folder")
    assert judgement.decides == "the same command, when the other one that uses its folder has ended"


def test_what_is_measured_in_one_piece_is_tried_once_more_too(tmp_path: Path) -> None:
    changes = {"model": "resnet152", "rate": "1gbit", "scenario": "paper/pactrain-resnet152", "range": (0.1, 9.0)}
    trainings = {"convergence": "paper/convergence-vision", "in_one_piece": "paper/convergence-vision-paced"}
    asked = claim("asked", method="topk", baseline="fp16", **changes, quantity="time to accuracy", **trainings)
    recorded = Hindered(tmp_path, "paper/convergence-vision-paced", 1)
    runs, failed = reproduce([asked], runs_of([asked]), recorded, MACHINE)
    assert recorded.scenarios[-2:] == ["paper/convergence-vision-paced"] * 2
    assert failed == 0
    assert judge(asked, runs).in_one_piece


@pytest.mark.parametrize(
    ("error", "decides"),
    [
        (ClusterBrokenError("its agent ended"), "the same command once more"),
        (NoMemoryError("1 GB is free"), "the same command, with more memory free"),
        (UsageError("no netem"), "a machine that can run it"),
        (MeasurementError("no network namespaces"), "a machine that can run it"),
    ],
)
def test_what_would_decide_a_claim_follows_from_what_kept_it_from_running(error: PacbenchError, decides: str) -> None:
    asked = claim("asked")
    runs = {name: not_run(run, error) for name, run in runs_of([asked]).items()}
    judgement = judge(asked, runs)
    assert (judgement.reason, judgement.decides) == (str(error), decides)


def test_what_does_not_fit_into_memory_is_not_run_and_all_else_is(tmp_path: Path) -> None:
    large, fine = claim("large", method="topk-ratio=0.1"), claim("fine")
    allowed = {"topk-ratio=0.1": "what fits into 1 GB; this needs 2 GB"}
    runs = {name: replace(run, too_large=allowed) for name, run in runs_of([large, fine]).items()}
    recorded = Recorded(tmp_path)
    runs, failed = reproduce([large, fine], runs, recorded, MACHINE)
    assert failed == 0
    assert rounds_by_label(recorded.trials) == {"dense": 2, "bf16": 2}
    judgement = judge(large, {name: replace(run, too_large=allowed) for name, run in runs.items()})
    assert judgement.verdict == "inconclusive"
    assert judgement.reason == "topk-ratio=0.1 does not fit into memory: what fits into 1 GB; this needs 2 GB"
    assert judgement.decides == "a machine with more memory"


def test_claims_that_need_nothing_run_nothing(tmp_path: Path) -> None:
    untestable = claim("untestable", scenario=None, not_testable="no such switch")
    recorded = Recorded(tmp_path)
    assert reproduce([untestable], runs_of([untestable]), recorded, MACHINE) == ({}, 0)


def test_of_a_share_the_cases_that_are_decided_need_no_more_rounds(tmp_path: Path) -> None:
    methods = ("bf16", "topk-ratio=0.1", "topk-ratio=0.2")
    share = claim("share", quantity="share", grid=["method"], method=methods, range=(0.0, 0.03))
    run = runs_of([share])
    recorded = Recorded(tmp_path)
    runs, _ = reproduce([share], run, recorded, MACHINE)
    more = dict.fromkeys(("dense", *methods[1:]), 3)
    assert rounds_by_label(recorded.trials) == {"bf16": 2, **more}, "its gain is large enough for two"
    assert not judge(share, runs).open_parts


class OneIsRestless(Recorded):
    """Two rounds of one scenario differ by chance as no others do."""

    def speed(self, trial: Trial) -> float:
        if trial.scenario != "byteps-resnet18-cifar" or trial.method.label == "dense" or trial.round > 1:
            return super().speed(trial)
        return super().speed(trial) * 1.03 ** (-1) ** trial.round


def test_what_later_scenarios_tell_of_the_spread_brings_a_claim_back_that_was_given_up(tmp_path: Path) -> None:
    of_byteps = {"model": "resnet18-cifar", "rate": "25gbit", "workers": 4, "scenario": "paper/byteps-resnet18-cifar"}
    early = claim("early", method="bf16", **of_byteps, range=(1.925, 12.0))
    labels = [each.label for each in load("paper/pactrain-vit-b-16").methods if each.label != "dense"]
    others = [
        claim(f"{model}-{rate}-{label}", model=model, rate=rate, method=label, scenario=f"paper/pactrain-{model}")
        for model in ("vit-b-16", "resnet152")
        for rate in ("100mbit", "500mbit", "1gbit")
        for label in labels
    ]
    chosen = [early, *others]
    recorded = OneIsRestless(tmp_path)
    first = recorded(*_two_rounds(early))[0]
    assert not judge(early, {"paper/byteps-resnet18-cifar": first}).open_parts, "by itself it seems hopeless"
    runs, _ = reproduce(chosen, runs_of(chosen) | {"paper/byteps-resnet18-cifar": first}, recorded, MACHINE)
    assert len(others) >= FEWEST_CASES
    assert judge(early, runs).verdict == "reproduced"
    assert max(trial.round for trial in recorded.trials if trial.scenario == "byteps-resnet18-cifar") > 1


def _two_rounds(asked: Claim) -> tuple[str, Run, Plan]:
    ((name, run),) = runs_of([asked]).items()
    return name, run, needed(name, run, [judge(asked, {name: run})], range(2))


class SlowDevicesGainLess(Recorded):
    """Those that are slower than the whole gain nothing."""

    def speed(self, trial: Trial) -> float:
        return super().speed(trial) if str(trial.case.train.replay).endswith("a40") else 1.0


@pytest.mark.parametrize(("kind", "verdict"), [(Recorded, "reproduced"), (SlowDevicesGainLess, "inconclusive")])
def test_what_lies_between_two_shares_of_a_device_is_run_where_these_differ(
    kind: type[Recorded], verdict: str, tmp_path: Path
) -> None:
    changes = {"model": "vit-b-16", "rate": "1gbit", "scenario": "paper/pactrain-vit-b-16", "range": (1.5, 3.0)}
    asked = claim("asked", devices=(1.0, 0.5, 0.25), **changes)
    recorded = kind(tmp_path)
    runs, _ = reproduce([asked], runs_of([asked]), recorded, MACHINE)
    rounds = Counter((str(trial.case.train.replay).partition("@")[2], trial.round) for trial in recorded.trials)
    of_the_ends = {(share, number): 2 for share in ("", "25%") for number in (0, 1)}
    between = {("50%", number): 2 for number in (0, 1)} if verdict == "inconclusive" else {}
    assert rounds == of_the_ends | between, "dense and bf16; what is opened by two rounds of others has its own at once"
    judgement = judge(asked, runs)
    assert judgement.verdict == verdict
    assert len(judgement.parts) == len({share for share, _ in rounds})
    (name, run), *_ = runs_of([asked]).items()
    most = needed(name, run, [judge(asked, {name: run})], range(5), at_most=True)
    assert len(pending(run, most)) == 3 * 5 * 2


class SlowDevicesGainLittle(Recorded):
    """The whole gains more than is claimed, a quarter as much as is claimed."""

    def speed(self, trial: Trial) -> float:
        gains = str(trial.case.train.replay).endswith("a40") and trial.method.label == "bf16"
        return 2 * super().speed(trial) if gains else super().speed(trial)


def test_what_lies_between_two_shares_that_both_hold_is_not_run(tmp_path: Path) -> None:
    changes = {"model": "vit-b-16", "rate": "1gbit", "scenario": "paper/pactrain-vit-b-16", "range": (1.5, 3.0)}
    asked = claim("asked", devices=(1.0, 0.5, 0.25), **changes)
    recorded = SlowDevicesGainLittle(tmp_path)
    runs, _ = reproduce([asked], runs_of([asked]), recorded, MACHINE)
    assert not [trial for trial in recorded.trials if "50%" in str(trial.case.train.replay)]
    judgement = judge(asked, runs)
    assert judgement.verdict == "reproduced"
    assert [part.verdict for part in judgement.parts] == ["exceeded", "reproduced"]


def test_what_lies_between_is_run_though_an_end_stays_open_after_its_last_round(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing of a quarter is left to run that would decide it, though a few rounds more would have."""
    changes = {"model": "vit-b-16", "rate": "1gbit", "scenario": "paper/pactrain-vit-b-16", "range": (1.9948, 3.0)}
    asked = claim("asked", devices=(1.0, 0.5, 0.25), **changes)
    ((name, run),) = runs_of([asked]).items()
    recorded = SlowDevicesGainLittle(tmp_path)
    ends, _ = recorded(name, run, run.plan.only(lambda trial: "50%" not in str(trial.case.train.replay)))
    whole, *_, quarter = judge(asked, {name: ends}).parts
    assert (whole.verdict, quarter.verdict) == ("exceeded", "inconclusive")
    assert 5 < int(re.sub(r"\D", "", quarter.decides)) <= 10
    assert [part.device for part in judge(asked, {name: ends}).open_parts] == [0.5]

    between = SlowDevicesGainLittle(tmp_path)
    runs, _ = reproduce([asked], {name: ends}, between, MACHINE)
    assert {str(trial.case.train.replay).partition("@")[2] for trial in between.trials} == {"50%"}
    assert [part.device for part in judge(asked, runs).parts] == [1.0, 0.5, 0.25]

    runs[name], _ = recorded(name, runs[name], runs[name].plan)
    assert judge(asked, runs).verdict == "inconclusive"
    capsys.readouterr()
    _announce([asked], runs, MACHINE)
    assert "(0 are open; for 1 nothing is to run)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("rounds", "count"), [(range(2), 4), (range(5), 10)])
def test_a_plan_says_what_would_run_at_least_and_at_most(rounds: range, count: int) -> None:
    asked = claim("asked")
    (name, run), *_ = runs_of([asked]).items()
    part = needed(name, run, [judge(asked, {name: run})], rounds)
    assert len(pending(run, part)) == count
    assert {trial.method.label for trial in part.trials} == {"dense", "bf16"}


def test_what_is_measured_in_one_piece_comes_last_and_whole_whatever_the_verdicts_are(tmp_path: Path) -> None:
    changes = {"model": "resnet152", "rate": "1gbit", "scenario": "paper/pactrain-resnet152", "range": (0.1, 9.0)}
    trainings = {"convergence": "paper/convergence-vision", "in_one_piece": "paper/convergence-vision-paced"}
    asked = claim("asked", method="topk", baseline="fp16", **changes, quantity="time to accuracy", **trainings)
    recorded, others = Recorded(tmp_path), claim("other")
    runs, _ = reproduce([asked, others], runs_of([asked, others]), recorded, MACHINE)
    assert recorded.scenarios[-1] == "paper/convergence-vision-paced"
    paced = [trial for trial in recorded.trials if trial.scenario == "convergence-vision-paced"]
    assert Counter(trial.method.label for trial in paced) == {"topk": 3, "fp16": 3}, "three seeds at its ratio"
    assert judge(asked, runs).in_one_piece
    again = Recorded(tmp_path)
    reproduce([asked, others], runs, again, MACHINE)
    assert again.trials == []
