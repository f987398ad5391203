"""A disturbed trial is run again, at most twice; what stays disturbed is left out by rule, and the report tells it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from synthetic import make_store, only

from harness.analysis.cases import case_results
from harness.analysis.trials import leave_out_disturbed
from harness.cluster.fake import FakeCluster, Script, recite
from harness.messages import Events, Message
from harness.network.addresses import worker_name
from harness.plan.plan import Plan, make
from harness.plan.status import UNSETTLED_STEPS
from harness.plan.trial import Trial
from harness.record.store import Store
from harness.report import facts
from harness.run import execute
from harness.scenario.load import load

STOOD_STILL_S = 8.0


def plan_of(*overrides: str) -> Plan:
    return make(
        only(load("quickstart", ["rounds=3", "train.steps=40", "train.pace=none", *overrides]), ["topk"]), "fake"
    )


def standing_still(times: Mapping[tuple[str, int], int], step: int = 30) -> Script:
    """The usual script, but that the last worker stands still for so many attempts of these methods in these rounds.

    The others wait for it.
    """
    begun: Counter[tuple[str, int]] = Counter()

    def script(trial: Trial) -> Iterator[Message]:
        which = trial.method.label, trial.round
        begun[which] += 1
        late = begun[which] <= times.get(which, 0)
        last = worker_name(trial.case.cluster.workers - 1)
        for message in recite(trial):
            if late and isinstance(message, Events):
                longer = ("step_s", "compute_s" if message.node == last else "comm_s")
                extra_s = {(step, kind): STOOD_STILL_S for kind in longer}
                rows = [(*row[:3], row[3] + extra_s.get((row[0], row[2]), 0.0)) for row in message.rows]
                message = replace(message, rows=rows)
            yield message

    return script


def run(plan: Plan, folder: Path, script: Script) -> Store:
    store = Store.create(folder / "run", plan.scenario)
    with FakeCluster(script) as cluster:
        execute.run(plan, store, cluster, lambda progress: None, lambda *how: None)
    return store


def attempts_of(store: Store, label: str, number: int) -> list[str]:
    attempts = store.attempts()
    own = attempts[(attempts["label"] == label) & (attempts["round"] == number)]
    return own.sort_values("attempt")["status"].tolist()


def notes(store: Store) -> str:
    return "\n".join(facts.collect(store).notes)


def test_a_trial_in_which_nothing_stood_still_runs_once(tmp_path: Path) -> None:
    store = run(plan_of(), tmp_path, recite)
    trials = store.attempts()
    assert len(trials) == 6
    assert (trials["far_out_steps"] == 0).all()
    assert (trials["disturbed_share"] == 0).all()
    assert (trials["usable_cpus"] > 0).all()
    assert (trials[["stolen_s", "throttled_s"]] >= 0).all(axis=None)
    assert not any(word in notes(store) for word in ("Disturbed", "Not judged"))


def test_a_disturbed_trial_is_run_again_and_figures_are_those_of_the_second(tmp_path: Path) -> None:
    store = run(plan_of(), tmp_path / "late", standing_still({("dense", 1): 1}))
    calm = run(plan_of(), tmp_path / "calm", recite)
    assert attempts_of(store, "dense", 1) == ["disturbed", "done"]
    assert attempts_of(store, "topk", 1) == ["done"]
    first = store.attempts().query("status == 'disturbed'").iloc[0]
    assert first["far_out_steps"] == 1
    assert first["disturbed_share"] == pytest.approx(STOOD_STILL_S / (STOOD_STILL_S + 6.7), abs=0.1)
    assert "1 of 40 steps" in first["reason"]
    assert first["samples_per_s"] > 0, "nothing that was measured is lost"
    assert store.trials()["samples_per_s"].tolist() == calm.trials()["samples_per_s"].tolist()
    assert "Disturbed: dense, round 1" in notes(store)
    assert "run again, and all figures are those of its last attempt" in notes(store)
    assert not facts.collect(store).unfinished


@pytest.mark.parametrize("step", range(UNSETTLED_STEPS))
def test_a_worker_that_stands_still_in_a_first_step_is_found_as_well(tmp_path: Path, step: int) -> None:
    """It is on the training clock, though in no throughput."""
    store = run(plan_of(), tmp_path, standing_still({("topk", 1): 1}, step))
    assert attempts_of(store, "topk", 1) == ["disturbed", "done"]
    first = store.attempts().query("status == 'disturbed'").iloc[0]
    assert first["far_out_steps"] == 1
    assert first["disturbed_share"] > 0.9


def test_what_all_workers_prepare_in_their_first_step_disturbs_nothing(tmp_path: Path) -> None:
    def preparing(trial: Trial) -> Iterator[Message]:
        for message in recite(trial):
            if isinstance(message, Events):
                extra_s = {(0, "step_s"): STOOD_STILL_S, (0, "compute_s"): STOOD_STILL_S}
                rows = [(*row[:3], row[3] + extra_s.get((row[0], row[2]), 0.0)) for row in message.rows]
                message = replace(message, rows=rows)
            yield message

    store = run(plan_of(), tmp_path, preparing)
    assert len(store.attempts()) == 6
    assert (store.attempts()["disturbed_share"] == 0).all()


def test_it_is_run_again_twice_and_not_for_ever_also_when_resumed(tmp_path: Path) -> None:
    plan, script = plan_of(), standing_still({("dense", 1): 99})
    store = run(plan, tmp_path, script)
    assert attempts_of(store, "dense", 1) == ["disturbed", "disturbed", "done"]
    run(plan, tmp_path, script)
    assert len(store.attempts()) == 8


def test_attempts_before_an_interruption_count(tmp_path: Path) -> None:
    plan, script = plan_of(), standing_still({("dense", 0): 99})
    begun = 0

    def interrupted(trial: Trial) -> Iterator[Message]:
        nonlocal begun
        begun += 1
        if begun == 3:  # after topk, the links are measured again, and then it is run again
            raise KeyboardInterrupt
        return script(trial)

    with pytest.raises(KeyboardInterrupt):
        run(plan, tmp_path, interrupted)
    store = run(plan, tmp_path, script)
    assert attempts_of(store, "dense", 0) == ["disturbed", "interrupted", "disturbed", "done"]


def test_what_stays_disturbed_is_left_out_where_two_rounds_remain(tmp_path: Path) -> None:
    store = run(plan_of(), tmp_path, standing_still({("dense", 1): 99}))
    assert (store.trials()["status"] == "done").all()
    (case,) = case_results(store.trials(), store.scenario())
    dense, topk = case.method("dense"), case.method("topk")
    assert sorted(dense.done["round"]) == [0, 2]
    assert (dense.trials, dense.ways_lost) == (2, ())
    assert sorted(topk.done["round"]) == [0, 1, 2]
    assert topk.speedup is not None
    assert topk.speedup.n == 2, "ratios are paired within rounds"
    assert topk.quality.difference is not None
    assert topk.quality.difference.n == 3, "who stood still has learnt all the same"
    assert "It is left out of all times." in notes(store)


def test_where_too_few_rounds_would_remain_all_are_used_and_told(tmp_path: Path) -> None:
    store = run(plan_of(), tmp_path, standing_still({("dense", 1): 99, ("dense", 2): 99}))
    (case,) = case_results(store.trials(), store.scenario())
    assert sorted(case.method("dense").done["round"]) == [0, 1, 2]
    assert notes(store).count("used all the same: fewer than 2 undisturbed rounds remain") == 2


def test_links_that_change_or_lose_packets_are_not_judged_and_the_report_says_so(tmp_path: Path) -> None:
    store = run(plan_of("link.loss=0.01"), tmp_path, standing_still({("dense", 1): 1}))
    assert len(store.attempts()) == 6
    assert store.attempts()[["far_out_steps", "disturbed_share"]].isna().all(axis=None)
    assert notes(store).count("Not judged: 100 Mbit/s, 1 % loss, 3 workers") == 1


def test_runs_from_before_are_taken_as_undisturbed(tmp_path: Path) -> None:
    trials = make_store(tmp_path / "run").trials()
    assert trials["disturbed_share"].isna().all()
    assert leave_out_disturbed(trials)["status"].tolist() == trials["status"].tolist()


def test_stolen_time_throttling_and_missing_cpus_are_told(tmp_path: Path) -> None:
    lost = {"stolen_s": 1.5, "throttled_s": 0.25, "usable_cpus": 0.6}
    store = make_store(tmp_path / "run", methods=["topk"], ends={("topk", 1): lost})
    store.add_provenance({"cpu_count": 2})
    told = notes(store)
    assert "other machines on the same host took 1.5 s of CPU time in 1 of 6 attempts, at most 1.5 s (topk, rou" in told
    assert "the harness's cgroup had to wait for 250 ms" in told
    assert "Only 0.6 of this machine's 2 CPUs could be used" in told


def on_machines(folder: Path, of_topk: str, of_dense: str, **columns: Any) -> Store:
    """A run whose rounds had these machines, a letter a round."""
    ends = {
        (label, number): {"machine": machine, **columns}
        for label, machines in (("topk", of_topk), ("dense", of_dense))
        for number, machine in enumerate(machines)
    }
    return make_store(folder, methods=["topk"], ends=ends)


def test_rounds_that_two_machines_ran_are_named(tmp_path: Path) -> None:
    assert "machines ran this" not in notes(on_machines(tmp_path / "one", "aaa", "aaa"))
    told = notes(on_machines(tmp_path / "two", "aab", "aab"))
    assert "2 machines ran this: a (4 attempts), b (2 attempts). Ratios are paired within one of them." in told
    told = notes(on_machines(tmp_path / "resumed", "aab", "abb"))
    assert "Ratios are paired within one of them but for round 1 (100 Mbit/s, 3 workers, digits-cnn on digits" in told
    assert "there they compare machines as well." in told


def test_cpus_of_one_machine_are_not_held_against_those_of_another(tmp_path: Path) -> None:
    store = on_machines(tmp_path / "run", "aab", "aab", usable_cpus=2.0)
    store.add_provenance({"cpu_count": 2})
    store.add_provenance({"cpu_count": 64})
    assert "CPUs could be used" not in notes(store)
