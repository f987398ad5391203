"""Replays on real links: what a profile says is waited for, bytes are real, and dilated time tells the same story."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from in_process import call_pacbench
from sent import assert_sends_its_formula

from harness.plan.dilation import LADDER
from harness.record.store import Store
from harness.report import page
from harness.workload.profile import read

pytestmark = [pytest.mark.netns, pytest.mark.job]

RunScenario = Callable[..., Store]

METHODS = """
[train]
model = "digits-cnn"
steps = 12
replay = "profile.json"

[link]
rate = "50mbit"

[[methods]]
name = "dense"

[[methods]]
name = "topk"

[[methods]]
name = "dgc"
ratio = 0.01
warmup_steps = 0

[[methods]]
name = "pactrain"
values = "ternary"
warmup_steps = 4
"""


LESS = ("cluster.workers=2",)
"""Fewer processes, where how many there are is not what is tested: each computes on one of few processors."""


def profiled(*options: str, folder: Path) -> None:
    """Make ``profile.json`` by the command line."""
    made = call_pacbench(("profile", "digits-cnn", *options, "-o", "profile.json"), folder)
    assert made.returncode == 0, made.stderr


def test_a_model_is_profiled_replayed_and_replayed_slower(run_scenario: RunScenario, tmp_path: Path) -> None:
    (tmp_path / "replay.toml").write_text(METHODS)
    profiled("--workers", "2", "--steps", "3", "--codecs", "replay.toml", folder=tmp_path)
    profile = read(str(tmp_path / "profile.json"))
    assert profile.source == "measured"
    assert {codec.method for codec in profile.codecs} == {"dense", "topk", "dgc", "pactrain"}
    assert next(codec for codec in profile.codecs if codec.method == "topk").encode_s > 0
    assert {layer.layer for layer in profile.layers} == {"features.0", "features.3", "classifier.1", "classifier.3"}
    assert profile.gradients[0].parameter.startswith("classifier.3"), "the last layer's gradients come first"

    planned = json.loads(call_pacbench(("plan", "replay.toml", "--on", "netns", "--json"), tmp_path).stdout)
    assert all(trial["predicted_step_s"] > trial["lower_bound_s_per_step"] for trial in planned["trials"])

    replay = f"train.replay={tmp_path}/profile.json"  # its agent is not in this folder
    at_once = run_scenario("replay.toml", [replay, "train.dilation=1.0"], out="plain")
    slower = run_scenario("replay.toml", [replay, "train.dilation=2.0"], ["dense"], out="slow")
    plain, slow = (store.trials().set_index("label") for store in (at_once, slower))
    for frame in (plain, slow):
        assert (frame["status"] == "done").all()
        assert_sends_its_formula(frame)
        assert (frame["step_time_median_s"] > frame["lower_bound_s_per_step"]).all(), "nothing beats its bound"
        assert (frame["compute_s_per_step"] > 0.9 * (profile.forward_s + profile.gradients[-1].ready_s)).all()
        assert frame["measured_rate_bps"].between(45e6, 52e6).all()
        assert frame["final_accuracy"].isna().all()
    assert slow.loc["dense", "wall_time_s"] > 12 * 2 * slow.loc["dense", "lower_bound_s_per_step"]
    page.write(at_once, [])
    assert "made-up gradients (replay of profile, measured on" in (tmp_path / "plain" / "report.md").read_text()


def test_a_replay_of_smaller_tensors_on_thinner_links_tells_whole_bytes(
    run_scenario: RunScenario, tmp_path: Path
) -> None:
    """As the kernel counts them: the formula is of the whole tensors."""
    (tmp_path / "replay.toml").write_text(METHODS)
    settings = (*LESS, "train.replay=digits-cnn-epyc", "train.batch_size=16", "train.dilation=1.0", "train.shrink=4")
    trials = run_scenario("replay.toml", settings, ["dense", "topk"]).trials()
    assert (trials["status"] == "done").all(), trials["reason"].to_dict()
    assert_sends_its_formula(trials)
    assert trials["measured_rate_bps"].between(45e6, 52e6).all()
    assert (trials["step_time_median_s"] > 0.9 * trials["lower_bound_s_per_step"]).all(), "a bucket has saved more"
    assert set(trials["dataset"].str.split(" (", regex=False).str[0]) == {"made-up gradients, 1 entry in 4"}


def test_a_paced_training_takes_its_profiles_time_and_learns_bit_for_bit_what_an_unpaced_one_learns(
    run_scenario: RunScenario, tmp_path: Path
) -> None:
    (tmp_path / "paced.toml").write_text(METHODS.replace('replay = "profile.json"\n', ""))
    profiled("--workers", "2", "--steps", "3", "--codecs", "paced.toml", "--processor-time", folder=tmp_path)
    profile = read(str(tmp_path / "profile.json"))
    assert profile.device.endswith("processor time")
    plain = run_scenario("paced.toml", out="plain")
    paced = run_scenario("paced.toml", [f"train.pace={tmp_path}/profile.json", "train.dilation=2.0"], out="paced")
    hashes = [store.trials().set_index("label")["parameter_hash"].to_dict() for store in (plain, paced)]
    assert hashes[0] == hashes[1]
    trials = paced.trials().set_index("label")
    assert (trials["compute_s_per_step"] > 0.9 * (profile.forward_s + profile.gradients[-1].ready_s)).all()
    assert trials["measured_rate_bps"].between(45e6, 52e6).all(), "told as asked"
    assert_sends_its_formula(trials)


LOCAL = """
[train]
model = "digits-cnn"
batch_size = 16
steps = 12
eval_every = 12

[link]
rate = "50mbit"

[[methods]]
name = "dense"

[[methods]]
name = "local_sgd"
period = 2
"""


@pytest.mark.parametrize("kind", ["pace", "replay"])
def test_a_device_computes_all_of_a_step_also_after_ranks_have_met(
    run_scenario: RunScenario, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "local.toml").write_text(LOCAL)
    profile = read("digits-cnn-epyc")
    device = [f"train.{kind}=digits-cnn-epyc", "train.dilation=2.0"]
    store = run_scenario("local.toml", device, ["local_sgd"])
    trials = store.trials()
    local = trials.loc[trials["label"] == "local_sgd", "trial_id"].item()
    events = store.events(trials)
    step_s = events[(events["trial_id"] == local) & (events["kind"] == "step_s")].groupby("step")["value"].max()
    meeting_s, alone_s = step_s.iloc[1::2], step_s.iloc[0::2]
    assert (alone_s > 0.9 * (profile.forward_s + profile.gradients[-1].ready_s + profile.optimizer_s)).all()
    assert meeting_s.median() > alone_s.median() + 0.9 * trials["lower_bound_s_per_step"].max()


def test_a_run_finds_dilations_and_a_warm_up_on_links_that_change_learns_the_same(
    run_scenario: RunScenario, tmp_path: Path
) -> None:
    pace = 'pace = "digits-cnn-epyc"\nbatch_size = 16\n'
    (tmp_path / "paced.toml").write_text(METHODS.replace('replay = "profile.json"\n', pace))
    numbered, found = (
        run_scenario("paced.toml", [*LESS, "link.rate=200mbit", f"train.dilation={dilation}"], ["pactrain"], out=out)
        .trials()
        .set_index("label")
        for out, dilation in (("numbered", "4.0"), ("found", "auto"))
    )
    assert numbered["parameter_hash"].to_dict() == found["parameter_hash"].to_dict()
    assert numbered["added_s_per_step"].isna().all()
    assert found["dilation"].isna().all()
    assert found["trial_dilation"].isin(LADDER).all()
    assert found["added_s_per_step"].between(0, 0.1 * found["step_time_median_s"]).all()
    assert found["drift"].isna().all(), "what a warm-up changed was put right"
    kept = json.loads((tmp_path / "found" / "dilations.json").read_text())
    assert {each["label"] for each in kept.values()} == {"dense", "pactrain"}


def test_a_training_at_this_machines_own_pace_makes_its_profile_once(run_scenario: RunScenario, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(METHODS.replace('replay = "profile.json"', 'pace = "self"'))
    settings = [*LESS, "train.dilation=4.0"]
    store = run_scenario("own.toml", settings, ["dense"])
    file = tmp_path / "run" / "profiles" / "digits-cnn-32-digits-2" / "self.json"
    profile, made_at_ns = read(str(file)), file.stat().st_mtime_ns
    assert profile.source == "measured"
    assert profile.device.endswith("processor time")
    assert [codec.method for codec in profile.codecs] == ["dense"]

    (row,) = store.trials().itertuples()
    assert (row.status, row.pace, row.replay_source) == ("done", "self", "measured")
    assert row.compute_s_per_step > 0.9 * (profile.forward_s + profile.gradients[-1].ready_s)
    for part in ("trials", "events"):  # as if the trial had never run, disturbed or not
        for attempt in (store.folder / f"{part}.parquet").glob("*.parquet"):
            attempt.unlink()
    run_scenario("own.toml", settings, ["dense"])
    assert list(store.trials()["trial_id"]) == [row.trial_id]
    assert file.stat().st_mtime_ns == made_at_ns
