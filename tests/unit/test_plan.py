"""Plans: order, identity, and what is known before anything runs."""

from __future__ import annotations

import json
import math
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from in_process import call_pacbench

import scenarios
from harness.cluster.fake import FakeCluster
from harness.errors import EXIT_REGRESSION, UsageError
from harness.plan import plan as planning
from harness.plan.estimate import (
    steady_s,
    time_s,
    total_as_text,
    total_s,
    usual_dilation,
    usually_added_s,
    waits_without_mean,
)
from harness.plan.machine import Machine
from harness.plan.plan import Plan, make
from harness.scenario.load import load
from harness.workload.models import MODELS

TWO_CPUS = Machine(cpu_count=2, changes_links=True)


def quickstart(*overrides: str) -> Plan:
    return make(load("quickstart", overrides), "fake")


def test_rounds_are_outermost_and_methods_alternate() -> None:
    plan = quickstart("rounds=2", 'link.rate=["10mbit", "1gbit"]')
    labels = [method.label for method in plan.scenario.methods]
    order = [(trial.round, trial.case.link.rate_bps, trial.method.label) for trial in plan.trials]
    assert order == [
        (number, rate, label)
        for number in (0, 1)
        for rate in (10**7, 10**9)
        for label in (labels if number == 0 else labels[::-1])
    ]


def test_methods_of_a_round_share_their_seed_and_rounds_do_not() -> None:
    seeds = {(trial.round, trial.seed) for trial in quickstart("seed=7").trials}
    assert seeds == {(0, 7), (1, 8), (2, 9)}


@given(st.sampled_from(["train.lr=0.07", "seed=5", "link.rate=99mbit", "cluster.workers=5", "train.eval_every=9"]))
def test_an_id_changes_with_whatever_changes_the_experiment(override: str) -> None:
    before, after = quickstart("rounds=1"), quickstart("rounds=1", override)
    assert not {trial.id for trial in before.trials} & {trial.id for trial in after.trials}


def test_ids_are_stable_and_unique_and_know_the_cluster_and_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = quickstart()
    ids = [trial.id for trial in plan.trials]
    assert ids == [trial.id for trial in quickstart().trials]
    assert len(set(ids)) == len(ids)
    assert not set(ids) & {trial.id for trial in make(load("quickstart"), "netns").trials}
    monkeypatch.setattr(planning, "trial_digest", lambda: "other")
    assert not set(ids) & {trial.id for trial in quickstart().trials}


def test_only_done_trials_are_skipped() -> None:
    plan = quickstart("rounds=1")
    first, second, third = (trial.id for trial in plan.trials[:3])
    attempts = pd.DataFrame(
        {"trial_id": [first, second, third, third], "status": ["done", "crashed", "timeout", "done"], "purpose": None}
    )
    assert [trial.id for trial in plan.pending(attempts)] == [
        trial.id for trial in plan.trials if trial.id not in (first, third)
    ]
    assert plan.foreign_trial_ids(attempts) == set()
    assert plan.foreign_trial_ids(pd.DataFrame({"trial_id": ["x", first], "purpose": None})) == {"x"}


def test_dense_bytes_and_bound_follow_the_ring() -> None:
    dense = next(trial for trial in quickstart().trials if trial.method.label == "dense")
    parameters = sum(map(math.prod, MODELS["digits-cnn"].shapes()))
    sent = dense.expected.wire_bytes_per_step
    assert sent == pytest.approx(2 * 2 / 3 * 4 * parameters)
    assert dense.expected.lower_bound_s_per_step == pytest.approx(8 * sent / 1e8)


def test_an_unshaped_link_has_no_bound() -> None:
    assert quickstart("link.rate=unshaped").trials[0].expected.lower_bound_s_per_step == 0


def test_a_slower_link_costs_time_but_no_bytes() -> None:
    trials = [quickstart(f"link.rate={rate}").trials[0] for rate in ("10mbit", "100mbit")]
    slow, fast = (trial.expected for trial in trials)
    assert slow.wire_bytes_per_step == fast.wire_bytes_per_step
    assert slow.lower_bound_s_per_step == pytest.approx(10 * fast.lower_bound_s_per_step)
    assert time_s(trials[0], TWO_CPUS) > time_s(trials[1], TWO_CPUS)


def test_what_a_kernel_within_a_machine_carries_and_needs_is_planned_for() -> None:
    trial = make(load("edge-100m", ["rounds=1"]), "fake").trials[0]
    plain, kernel = time_s(trial, TWO_CPUS), Machine(cpu_count=1, carried_bps=4e8 / 16)
    assert time_s(trial, TWO_CPUS._replace(trial_s=21.0)) == pytest.approx(plain + 20)
    assert usual_dilation(trial, kernel) == 16, "four links of 100 Mbit/s"
    unsure = TWO_CPUS._replace(error_s=0.32 * steady_s(trial))
    assert usual_dilation(trial, unsure) == pytest.approx(32), "so that it is 1 % of a step"


def test_what_a_cpu_encodes_in_a_replay_is_planned_for_and_less_of_smaller_tensors() -> None:
    def usual(*overrides: str) -> dict[str, float]:
        trials = make(load("paper/pactrain-resnet152", ["rounds=1", "link.rate=100mbit", *overrides]), "netns").trials
        return {trial.method.label: usually_added_s(trial, TWO_CPUS) for trial in trials}

    whole, shrunk = usual("train.shrink=1"), usual("train.shrink=8")
    entries = 60_192_808
    assert whole["pactrain-ternary"] - whole["pactrain-fp32"] > 4 * 3e-9 * entries, "four workers share a core"
    for label, whole_s in whole.items():
        assert whole_s >= shrunk[label] > 0
    assert whole["pactrain-ternary"] > 3 * shrunk["pactrain-ternary"]


def test_workers_that_share_cores_start_one_after_the_other() -> None:
    def more_s(workers: int) -> float:
        overrides = ["rounds=1", "train.dilation=1.0", f"cluster.workers={workers}"]
        trial = make(load("replay", overrides), "netns").trials[0]
        return time_s(trial, TWO_CPUS) - time_s(trial, Machine(cpu_count=8))

    assert [more_s(2), more_s(8)] == pytest.approx([0, 3])


def test_packets_that_are_late_on_purpose_make_steps_longer() -> None:
    near, far = (quickstart(f"link.delay={delay}").trials[0] for delay in ("1us", "20ms"))
    more_s = far.expected.predicted_step_s - near.expected.predicted_step_s
    assert more_s > 0.02
    assert steady_s(far) - steady_s(near) == pytest.approx(more_s, rel=0.1)


@pytest.mark.parametrize(
    ("link", "at_least"),
    [
        ("link.rate=10mbit", False),
        ("link.loss=0.1%", True),
        ("link.down.loss=0.1%", True),
        ("link.corrupt=0.1%", True),
        ("link.loss_bursts={p=0.01,r=0.5}", True),
    ],
)
def test_what_waiting_for_lost_packets_takes_is_said_not_to_be_known(link: str, at_least: bool) -> None:
    plan = quickstart(link)
    assert total_as_text(plan.trials, TWO_CPUS).startswith("at least " if at_least else "about ")
    assert plan.trials[0].expected.topology.slowed(4).loses_packets == at_least


@pytest.mark.parametrize(
    ("link", "share"),
    [
        ("link.loss=10%", None),
        ("link.loss_bursts={p=0.0025,r=0.25}", 0.75),
        ("link.down.loss_bursts={p=0.01,r=0.5}", 0.5),
        ("link.loss_bursts={p=0.005,r=0.25,loss_bad=0.5}", None),
        ("link.loss_bursts={p=0.9,r=0.6,loss_bad=0.45,loss_good=0.55}", 0.51),
    ],
)
def test_bursts_in_which_a_lone_packet_is_lost_again_and_again_are_told(
    link: str, share: float | None, tmp_path: Path
) -> None:
    assert waits_without_mean(quickstart(link).trials) == (share and pytest.approx(share))
    done = call_pacbench(("plan", "quickstart", "--on", "fake", "--set", link), tmp_path)
    assert ("single steps may take minutes" in done.stdout) == (share is not None)
    assert (f"In a burst {share or 0:.0%} of the packets" in done.stdout) == (share is not None)


def test_short_trials_are_counted_where_others_have_too_few_steps_to_show_what_the_machine_adds() -> None:
    def planned_s(steps: int, dilation: str = "auto") -> float:
        overrides = [f"train.steps={steps}", f"train.dilation={dilation}", "rounds=1"]
        return total_s(make(load("replay", overrides), "fake").trials, TWO_CPUS)

    assert planned_s(7) > 2 * planned_s(8)
    assert planned_s(7, "4.0") < planned_s(8, "4.0")


def test_short_trials_are_counted_where_links_do_not_change_for_single_steps(tmp_path: Path) -> None:
    """As they cannot on clusters of containers, and on links that a trace changes."""
    (tmp_path / "trace.csv").write_text("t_s,rate_bps\n0,50000000\n1,100000000\n")
    still = TWO_CPUS._replace(changes_links=False)

    def planned_s(machine: Machine, *overrides: str) -> float:
        return total_s(make(load("replay", ["rounds=1", *overrides]), "fake").trials, machine)

    kinds, one_s = len(load("replay").methods), still.network_s + still.trial_s
    assert planned_s(still) > planned_s(TWO_CPUS) + kinds * one_s
    traced = f"link.trace='{tmp_path}/trace.csv'"
    assert planned_s(TWO_CPUS, traced) == planned_s(still, traced)
    dilated = planned_s(still._replace(slows_time=False)), planned_s(still, "train.dilation=1.0")
    assert dilated[0] == dilated[1], "where time cannot be slowed there is nothing to find"


def test_time_on_links_that_change_is_that_of_each_moment_s_rate(tmp_path: Path) -> None:
    def estimated_s(*overrides: str) -> float:
        return time_s(quickstart("train.dilation=2.0", *overrides).trials[0], TWO_CPUS)

    def traced_s(*rows: str) -> float:
        (tmp_path / "trace.csv").write_text("\n".join(("t_s,rate_bps", *rows)) + "\n")
        return estimated_s(f"link.trace='{tmp_path}/trace.csv'", "link.rate=unshaped")

    fast_s, slow_s = estimated_s("link.rate=100mbit"), estimated_s("link.rate=10mbit")
    a_slow_step_s = slow_s / 60
    assert traced_s("0,100000000") == pytest.approx(fast_s)
    assert traced_s("0,100000000", "0.000001,10000000") == pytest.approx(slow_s, abs=a_slow_step_s)
    back_and_forth_s = traced_s("0,100000000", "0.3,10000000", "0.6,100000000")
    assert fast_s + 0.3 < back_and_forth_s < slow_s
    assert traced_s("0,10000000", "0.000001,100000000") == pytest.approx(fast_s, abs=a_slow_step_s)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.model=vgg", r"train\.model: found 'vgg'; allowed: .*digits-cnn"),
        ("train.dataset=cats", r"train\.dataset: found 'cats'; allowed: .*digits"),
        ("train.model=fashion-cnn", r"train\.model: found 'fashion-cnn'; allowed: for digits: digits-cnn"),
        ("train.batch_size=500", r"train\.batch_size: found '500 x 3 workers'; allowed: at most 1437 samples"),
        ("train.steps=8", r"train\.steps: found 8; allowed: more than \d"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_starts(override: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        quickstart("train.pace=none", override)


def checkpoint(model: str, path: Path) -> Path:
    torch.save(MODELS[model].build().state_dict(), path)
    return path


def test_an_id_knows_the_content_of_the_checkpoint(tmp_path: Path) -> None:
    ids = []
    for name in ("one", "two"):  # weights differ from build to build
        file = checkpoint("digits-cnn", tmp_path / f"{name}.pt")
        ids.append({trial.id for trial in quickstart("rounds=1", f"train.checkpoint={file}").trials})
    assert not ids[0] & ids[1]


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "another model's"])
def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    if kind == "another model's":
        checkpoint("fashion-cnn", file)
    elif kind != "missing":
        file.write_text("hello" * (kind == "text"))
    with pytest.raises(UsageError, match=r"train\.checkpoint: found .*state_dict of digits-cnn \(.+\)") as refused:
        quickstart(f"train.checkpoint={file}")
    assert "\n" not in str(refused.value)


STUDY = Path(__file__).parents[1] / "bench" / "plans.py"


def test_the_study_of_plans_is_of_all_that_is_shipped() -> None:
    shipped = runpy.run_path(str(STUDY))["SHIPPED"]
    assert {"quickstart", "paper/pactrain-vgg19"} <= set(shipped)
    assert "paper/claims" not in shipped, "which is no scenario"
    root = Path(scenarios.__file__).parent
    assert len(shipped) == len(list(root.rglob("*.toml"))) - 1


@pytest.mark.parametrize(
    ("other", "code"), [("edge-100m", 0), ("racks", EXIT_REGRESSION), ("no-such", EXIT_REGRESSION)]
)
def test_the_study_of_plans_fails_where_one_was_far_off_or_cannot_be_run(other: str, code: int, tmp_path: Path) -> None:
    """Trials that ended are planned anew, so that a run need not be repeated for other constants."""
    for name, off in (("quickstart", 1.1), ("edge-100m", 0.85), ("racks", 1.25)):
        plan = make(load(name, ["rounds=1"]), "fake")
        kept = {"ran": [0, 2], "taken_s": off * total_s([plan.trials[0], plan.trials[2]], FakeCluster.machine)}
        (tmp_path / f"{name}.json").write_text(json.dumps(kept))  # so that it is not run again
    asked = ("--on", "fake", "--out", tmp_path, "--scenarios", "quickstart", other)
    done = subprocess.run([sys.executable, STUDY, *asked], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert f"planned within 20%: {2 if code == 0 else 1} of 2" in done.stdout
    assert len((tmp_path / "plans.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize(("at_most", "ran"), [("1ms", range(1, 7)), ("1h", [6])])
def test_the_study_of_plans_runs_what_its_time_allows(at_most: str, ran: Sequence[int], tmp_path: Path) -> None:
    asked = ("--on", "fake", "--out", tmp_path, "--scenarios", "quickstart", "--for", at_most)
    done = subprocess.run([sys.executable, STUDY, *asked], capture_output=True, text=True, check=False)
    assert done.returncode == EXIT_REGRESSION, done.stderr
    (found,) = pd.read_csv(tmp_path / "plans.csv").to_dict("records")
    assert found["ran"] in ran
    assert found["trials"] == 6
    assert 0 < found["taken_over_planned"] < 0.8, "nothing real was run"
