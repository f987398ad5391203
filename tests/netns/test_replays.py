"""Replays on real links: what a profile says is waited for, bytes are real, and dilated time tells the same story."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.plan.dilation import LADDER
from harness.record.store import Store
from harness.workload.profile import read

pytestmark = pytest.mark.netns

Run = Callable[..., "subprocess.CompletedProcess[str]"]

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


def test_a_model_is_profiled_replayed_and_replayed_slower(pacbench: Run, tmp_path: Path) -> None:
    (tmp_path / "replay.toml").write_text(METHODS)
    made = pacbench(
        *("profile", "digits-cnn", "--workers", "2", "--steps", "3", "--codecs", "replay.toml", "-o", "profile.json")
    )
    assert made.returncode == 0, made.stderr
    profile = read(str(tmp_path / "profile.json"))
    assert profile.source == "measured"
    assert {codec.method for codec in profile.codecs} == {"dense", "topk", "dgc", "pactrain"}
    assert next(codec for codec in profile.codecs if codec.method == "topk").encode_s > 0
    assert {layer.layer for layer in profile.layers} == {"features.0", "features.3", "classifier.1", "classifier.3"}
    assert profile.gradients[0].parameter.startswith("classifier.3"), "the last layer's gradients come first"

    planned = json.loads(pacbench("plan", "replay.toml", "--on", "netns", "--json").stdout)
    assert all(trial["predicted_step_s"] > trial["lower_bound_s_per_step"] for trial in planned["trials"])

    at_once = ("--set", "train.dilation=1.0", "--rounds", "1", "--out", "plain")
    done = pacbench("run", "replay.toml", "--on", "netns", *at_once)
    assert done.returncode == 0, done.stderr
    slower = ("--set", "train.dilation=2.0", "--method", "dense", "--rounds", "1", "--out", "slow")
    done = pacbench("run", "replay.toml", "--on", "netns", *slower)
    assert done.returncode == 0, done.stderr

    plain, slow = (Store.open(tmp_path / run).trials().set_index("label") for run in ("plain", "slow"))
    for frame in (plain, slow):
        assert (frame["status"] == "done").all()
        assert (frame["wire_bytes_per_step"] / frame["formula_bytes_per_step"]).between(0.95, 1.05).all()
        assert (frame["step_time_median_s"] > frame["lower_bound_s_per_step"]).all(), "nothing beats its bound"
        assert (frame["compute_s_per_step"] > 0.9 * (profile.forward_s + profile.gradients[-1].ready_s)).all()
        assert frame["measured_rate_bps"].between(45e6, 52e6).all()
        assert frame["final_accuracy"].isna().all()
    assert slow.loc["dense", "wall_time_s"] > 12 * 2 * slow.loc["dense", "lower_bound_s_per_step"]
    assert "made-up gradients (replay of profile, measured on" in (tmp_path / "plain" / "report.md").read_text()


def test_a_paced_training_takes_its_profiles_time_and_learns_bit_for_bit_what_an_unpaced_one_learns(
    pacbench: Run, tmp_path: Path
) -> None:
    (tmp_path / "paced.toml").write_text(METHODS.replace('replay = "profile.json"\n', ""))
    timed = ("--workers", "2", "--steps", "3", "--codecs", "paced.toml", "--processor-time", "-o", "profile.json")
    made = pacbench("profile", "digits-cnn", *timed)
    assert made.returncode == 0, made.stderr
    profile = read(str(tmp_path / "profile.json"))
    assert profile.device.endswith("processor time")
    for out, pace in (("plain", ()), ("paced", ("--set", "train.pace=profile.json", "--set", "train.dilation=2.0"))):
        done = pacbench("run", "paced.toml", "--on", "netns", "--rounds", "1", "--out", out, *pace)
        assert done.returncode == 0, done.stderr
    plain, paced = (Store.open(tmp_path / run) for run in ("plain", "paced"))
    hashes = [store.trials().set_index("label")["parameter_hash"].to_dict() for store in (plain, paced)]
    assert hashes[0] == hashes[1]
    trials = paced.trials().set_index("label")
    assert (trials["compute_s_per_step"] > 0.9 * (profile.forward_s + profile.gradients[-1].ready_s)).all()
    assert trials["measured_rate_bps"].between(45e6, 52e6).all(), "told as asked"
    assert (trials["wire_bytes_per_step"] / trials["formula_bytes_per_step"]).between(0.95, 1.05).all()


def test_a_run_finds_dilations_and_a_warm_up_on_links_that_change_learns_the_same(
    pacbench: Run, tmp_path: Path
) -> None:
    (tmp_path / "paced.toml").write_text(METHODS.replace('replay = "profile.json"\n', 'pace = "digits-cnn-epyc"\n'))
    only = ("--method", "pactrain", "--rounds", "1", "--set", "link.rate=200mbit")
    for out, dilation in (("numbered", "16.0"), ("found", "auto")):
        done = pacbench("run", "paced.toml", *only, "--out", out, "--set", f"train.dilation={dilation}")
        assert done.returncode == 0, done.stderr
    numbered, found = (Store.open(tmp_path / run).trials().set_index("label") for run in ("numbered", "found"))
    assert numbered["parameter_hash"].to_dict() == found["parameter_hash"].to_dict()
    assert numbered["added_s_per_step"].isna().all()
    assert found["dilation"].isna().all()
    assert found["trial_dilation"].isin(LADDER).all()
    assert found["added_s_per_step"].between(0, 0.1 * found["step_time_median_s"]).all()
    assert found["drift"].isna().all(), "what a warm-up changed was put right"
    kept = json.loads((tmp_path / "found" / "dilations.json").read_text())
    assert {each["label"] for each in kept.values()} == {"dense", "pactrain"}


def test_a_training_at_this_machines_own_pace_makes_its_profile_once(pacbench: Run, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(METHODS.replace('replay = "profile.json"', 'pace = "self"'))
    command = ("run", "own.toml", "--on", "netns", "--rounds", "1", "--out", "own")
    done = pacbench(*command, "--method", "dense")
    assert done.returncode == 0, done.stderr
    file = tmp_path / "own" / "profiles" / "digits-cnn-32-digits-4" / "self.json"
    profile, made_at_ns = read(str(file)), file.stat().st_mtime_ns
    assert profile.source == "measured"
    assert profile.device.endswith("processor time")
    assert [codec.method for codec in profile.codecs] == ["dense"]

    store = Store.open(tmp_path / "own")
    (row,) = store.trials().itertuples()
    assert (row.status, row.pace, row.replay_source) == ("done", "self", "measured")
    assert row.compute_s_per_step > 0.9 * (profile.forward_s + profile.gradients[-1].ready_s)
    for part in ("trials", "events"):  # as if the trial had never run
        (trial,) = (store.folder / f"{part}.parquet").glob("*.parquet")
        trial.unlink()
    done = pacbench(*command, "--method", "dense")
    assert done.returncode == 0, done.stderr
    assert list(store.trials()["trial_id"]) == [row.trial_id]
    assert file.stat().st_mtime_ns == made_at_ns


def test_bad_input_ends_with_one_line_and_2(pacbench: Run, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"schema": 7}')
    for overrides, says in (
        (["train.replay=nowhere"], "train.replay: found 'nowhere'"),
        (["train.replay=other.json"], "schema: found 7; allowed: 1"),
        (["train.dilation=0.5"], "train.dilation: found 0.5"),
    ):
        refused = pacbench(
            *("run", "quickstart", "--on", "netns", "--set", "train.pace=none"),
            *(word for one in overrides for word in ("--set", one)),
        )
        assert refused.returncode == 2
        assert len(refused.stderr.splitlines()) == 1
        assert says in refused.stderr
    refused = pacbench("profile", "digits-cnn", "--dataset", "fashion-mnist", "-o", "p.json")
    assert refused.returncode == 2
    assert "--dataset: found 'fashion-mnist'; allowed: digits" in refused.stderr
    refused = pacbench("profile", "digits-cnn", "--dataset", "digits", "--derive-for", "a40", "-o", "p.json")
    assert refused.returncode == 2
    assert "--dataset: found 'digits'; allowed: none with --derive-for" in refused.stderr
    refused = pacbench("profile", "digits-cnn", "--derive-for", "abacus", "-o", "p.json")
    assert refused.returncode == 2
    assert "--derive-for: found 'abacus'; allowed: a40" in refused.stderr
