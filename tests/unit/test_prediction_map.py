"""The map: shares of a grid in which a method is predicted to be faster, against break-evens known in closed form."""

from __future__ import annotations

import itertools
import json
import math
import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from abacus import codec, written
from in_process import call_pacbench

import baselines
from harness.analysis import prediction_map
from harness.analysis.prediction_map import Grid, Subject
from harness.network.topology import Topology
from harness.plan import predict
from harness.plan.collectives import Network
from harness.plan.expected import state_of
from harness.report import prediction_map as report
from harness.scenario.load import load
from harness.scenario.schema import MethodSpec
from harness.workload.profile import Profile

ROOT = Path(__file__).resolve().parents[2]

ENTRIES = 25_000_000
"""Of the one gradient: so many that no message's own time, and no token bucket, is to be seen beside its bytes."""

ALONE = Grid(rtts_s=(0.0,), workers=(2,), speeds_percent=(100,))
HEADERS = 1514 / 1448


def spec(name: str, **params: Any) -> MethodSpec:
    return MethodSpec(name=name, label=name, params=baselines.get(name).State(**params).parameters)


def one_gradient(*codecs: dict[str, Any], computing_s: float = 0.02) -> Profile:
    """A model of one gradient, all of which leaves at the end of the backward pass."""
    gradient = {"parameter": "w", "shape": [5000, ENTRIES // 5000], "ready_s": computing_s / 2}
    content = {
        "schema": 1, "model": "one-gradient", "batch_size": 1, "device": "abacus", "source": "modelled",
        "made_by": "hand", "forward_s": computing_s / 2, "backward_s": computing_s / 2, "optimizer_s": 0.0,
        "gradients": [gradient], "codecs": codecs,
    }  # fmt: skip
    return Profile.model_validate(content)


def gains_of(profile: Profile, method: MethodSpec, grid: Grid) -> pd.DataFrame:
    subject = Subject("one-gradient", profile, spec("bf16"), (method,))
    return prediction_map.gains([subject], 10**9, grid)


SAVED_BYTES = 2 * ENTRIES * (1 - 0.4)
"""What a worker of two sends less of fp32 values at density 0.2 than of 16-bit ones: both go round one ring."""

PACTRAIN = spec("pactrain", density=0.2, values="fp32", warmup_steps=0)


@pytest.mark.parametrize("gap", range(len(Grid().rates_bps) - 1))
def test_the_share_is_that_of_the_rates_below_the_break_even(gap: int) -> None:
    """Two lines in the time of a byte: 16 bits without a codec, fewer with one. They cross where it saves its time."""
    rates_bps = Grid().rates_bps
    break_even_bps = math.sqrt(rates_bps[gap] * rates_bps[gap + 1])
    codec_s = 8 * HEADERS * SAVED_BYTES / break_even_bps
    costs = {**codec("pactrain", encode_s=codec_s), "params": PACTRAIN.params}
    found = gains_of(one_gradient(codec("bf16"), costs), PACTRAIN, ALONE)
    assert list(found.loc[found["gain"] > 1, "rate_bps"]) == list(rates_bps[: gap + 1])
    assert prediction_map.shares(found, ["label"])["pactrain"] == pytest.approx((gap + 1) / len(rates_bps))


def test_a_device_of_half_the_speed_breaks_even_at_half_the_rate() -> None:
    codec_s = 8 * HEADERS * SAVED_BYTES / 2e9  # breaks even at 2 Gbit/s
    costs = {**codec("pactrain", encode_s=codec_s), "params": PACTRAIN.params}
    grid = Grid((900_000_000, 1_100_000_000, 1_900_000_000, 2_100_000_000, 3_900_000_000, 4_100_000_000), (0.0,), (2,))
    found = gains_of(one_gradient(codec("bf16"), costs), PACTRAIN, grid)
    shares = prediction_map.shares(found, ["speed_percent"])
    assert [shares[percent] for percent in (50, 100, 200)] == pytest.approx([1 / 6, 3 / 6, 5 / 6])


def test_a_method_that_costs_and_saves_nothing_is_nowhere_faster() -> None:
    found = gains_of(one_gradient(codec("bf16"), codec("fp16")), spec("fp16"), Grid(workers=(2, 16)))
    assert (found["gain"] == 1).all()
    assert (prediction_map.shares(found, ["label"]) == 0).all()


@pytest.mark.parametrize("workers", [2, 8, 128])
@pytest.mark.parametrize("encode_s", [0.0, 0.004])
def test_more_bandwidth_never_makes_a_gain_greater_without_round_trips(workers: int, encode_s: float) -> None:
    costs = {**codec("pactrain", encode_s=encode_s), "params": PACTRAIN.params}
    found = gains_of(one_gradient(codec("bf16"), costs), PACTRAIN, ALONE._replace(workers=(workers,)))
    assert (np.diff(found["gain"]) <= 1e-9 * found["gain"][1:]).all()


@pytest.mark.parametrize("rtt_s", [1e-4, 0.02])
def test_the_map_says_what_plans_predict(rtt_s: float) -> None:
    scenario = load("convergence")
    (subject,), _ = prediction_map.subjects(scenario, ["fashion-cnn-xeon"])
    bucket_bytes = scenario.cases[0].train.bucket_bytes
    found = prediction_map.gains([subject], bucket_bytes, Grid((10**8, 10**9), (rtt_s,), (2, 8), (50,)))
    profile = subject.profile.at(50)
    for workers, rate in itertools.product((2, 8), ("100mbit", "1gbit")):
        link = {"rate": rate, "delay": f"{1e6 * rtt_s / 4:g}us"}
        network = Network(Topology.model_validate({"workers": workers, "link": link}))
        assert network.topology.rtt_s(0, 1) == pytest.approx(rtt_s)
        of_place = found[(found["workers"] == workers) & (found["rate_bps"] == network.topology.link.rate_bps)]
        base_s = predict.step_s(profile, subject.base, state_of(subject.base), network, bucket_bytes)
        for method in subject.methods:
            fresh = Network(network.topology)  # one that no other method was asked about before
            own_s = predict.step_s(profile, method, state_of(method), fresh, bucket_bytes)
            assert of_place.set_index("label")["gain"][method.label] == pytest.approx(base_s / own_s)


def test_a_profile_is_asked_about_what_it_knows(tmp_path: Path) -> None:
    scenario = load("convergence")
    chosen, left_out = prediction_map.subjects(scenario)
    by_name = {subject.name: subject for subject in chosen}
    assert by_name["resnet50-h100"].base.label == "bf16"
    assert by_name["vgg19-a40"].base.label == "fp16", "of a modelled A40, bf16's codec is not known"
    assert {method.label for method in by_name["vgg19-a40"].methods} == {"topk", "pactrain-fp32", "pactrain-ternary"}
    assert by_name["resnet18-cifar-v100"].knows_base
    assert left_out == ["fashion-cnn-cpu", "resnet18-a40"]
    free = written(tmp_path / "mine.json", codecs=[codec("topk")])
    (mine,), _ = prediction_map.subjects(scenario, [free])
    assert (mine.name, mine.base.label, mine.knows_base) == ("mine", "bf16", False)


def test_profiles_of_one_name_in_two_folders_have_rows_of_their_own(tmp_path: Path) -> None:
    for folder, encode_s in (("before", 0.0), ("after", 80_000.0)):
        (tmp_path / folder).mkdir()
        written(tmp_path / folder / "mine.json", codecs=[codec("topk", encode_s=encode_s)])
    named = ["before/mine.json", "after/mine.json", "before/mine.json@50%"]
    asked = [part for name in named for part in ("--profile", name)]
    ended = call_pacbench(("map", *asked, "--json"), tmp_path)
    assert ended.returncode == 0, ended.stderr
    shares = {row["profile"]: row["share"] for row in json.loads(ended.stdout)["shares"] if row["label"] == "topk"}
    assert list(shares) == [*named[:2], "mine@50%"]
    assert shares["before/mine.json"] > 0.1
    assert shares["after/mine.json"] == 0, "a codec of a day pays nowhere"
    page = (tmp_path / "results" / "map" / "map.md").read_text()
    assert all(name in page for name in shares)


@pytest.mark.parametrize("verb", ["map", "explore --scenario"])
def test_methods_whose_codec_no_profile_knows_are_refused(verb: str, tmp_path: Path) -> None:
    methods = "".join(f'[[methods]]\nname = "{name}"\n' for name in ("dense", "bf16"))
    (tmp_path / "mine.toml").write_text(f'{methods}[[methods]]\nname = "topk"\nratio = 0.37\n')
    ended = call_pacbench((*verb.split(), "mine.toml"), tmp_path)
    assert ended.returncode == 2
    assert "scenario: methods: found 'topk'; allowed: some whose codec a profile knows" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--profile", "resnet50-h1000"), r"command line: profile: found 'resnet50-h1000'; allowed: .*resnet50-h100"),
        (
            ("--profile", "nowhere.json"),
            r"command line: profile: found 'nowhere.json'; allowed: a profile's .json file",
        ),
        (
            ("--profile", "resnet50-h100", "--profile", "resnet50-h100@100%"),
            r"profile: found 'resnet50-h100@100%'; allowed: each profile once; resnet50-h100 is the same one",
        ),
        (("--profile", "resnet18-a40"), r"profile: found 'resnet18-a40, with codecs of none'; allowed: a profile"),
        (("replay", "--method", "bf16"), r"scenario: methods: found '.*'; allowed: a 16-bit all-reduce"),
        (("no-such-scenario",), r"no-such-scenario"),
        (("--method", "topkk"), r"topkk"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    ended = call_pacbench(("map", *arguments), tmp_path)
    assert ended.returncode == 2
    assert re.search(says, ended.stderr)
    assert ended.stderr.count("\n") == 1


def test_the_error_table_has_what_was_compared(tmp_path: Path) -> None:
    assert prediction_map.errors(tmp_path).empty
    emulated = pd.DataFrame(
        {"label": ["topk", "topk", "dense", "dense"], "workers": [4, 16, 4, 8], "found_s": [1.0, 2.0, 1.0, 3.0]}
    ).assign(predicted_s=[0.8, 1.8, 1.1, math.nan])
    emulated.to_csv(tmp_path / "flow_model_emulation.csv")
    fluid = {"setup": ["ring 64", "all-to-all 64"], "workers": 64, "found_s": 2.0, "predicted_s": [2.0, 1.9]}
    pd.DataFrame(fluid).to_csv(tmp_path / "flow_model_simgrid.csv")
    found = prediction_map.errors(tmp_path).set_index("compared")
    assert list(found.loc["topk, emulated", ["cases", "workers"]]) == [2, 16]
    assert list(found.loc["topk, emulated", ["median", "least", "most"]]) == pytest.approx([-0.15, -0.2, -0.1])
    assert found.loc["dense, emulated", "cases"] == 1, "what was not predicted is no case"
    assert found.loc["ring, by SimGrid", "most"] == 0
    assert found.loc["all-to-all, by SimGrid", "least"] == pytest.approx(-0.05)
    assert prediction_map.margin(found) == pytest.approx(1 / 0.8)


def test_the_page_has_picture_tables_and_what_it_leaves_out(tmp_path: Path) -> None:
    ended = call_pacbench(("map", "ablation", "--profile", "fashion-cnn-xeon", "--out", "here"), tmp_path)
    assert ended.returncode == 0, ended.stderr
    page = (tmp_path / "here" / "map.md").read_text()
    assert "nothing was measured" in page
    assert "Codecs were timed with 4 workers" in page
    cells = pd.read_csv(tmp_path / "here" / "map.csv")
    of_methods = pd.read_csv(tmp_path / "here" / "shares.csv").set_index("label")["share"]
    assert len(cells) == len(of_methods) * Grid().cells / len(Grid().speeds_percent)
    assert dict(cells.groupby("label")["share"].mean()) == pytest.approx(dict(of_methods), abs=1e-3)
    assert (tmp_path / "here" / "map.png").stat().st_size > 0


def test_who_is_ahead_in_most_cells_stands_first() -> None:
    rows = [
        {"profile": "p", "model": "m", "label": label, "base": "bf16", "speed_percent": 100, "workers": 2}
        | {"rtt_s": 0.0, "rate_bps": rate_bps, "gain": gain}
        for label, gains in {"slow": (0.5, 0.9), "fast": (3.0, 1.2), "half": (2.0, 0.8)}.items()
        for rate_bps, gain in zip((10**7, 10**8), gains, strict=True)
    ]
    found, compared = pd.DataFrame(rows), pd.DataFrame({"least": [-0.5]})
    shown = report.rows(found, compared)
    assert [row["method"] for row in shown] == ["fast", "half", "slow"]
    assert [row["shorter in"] for row in shown] == ["100 %", "50 %", "0 %"]
    assert [row["by more than 2.00x"] for row in shown] == ["50 %", "0 %", "0 %"]
    assert list(report.by_cell(found)["label"]) == ["fast", "fast", "half", "half", "slow", "slow"]


def test_the_table_that_is_kept_is_of_networks_as_they_are_drawn_now() -> None:
    """A row is predicted for the network of its number: a study that draws otherwise must not take it for another's."""
    found = runpy.run_path(str(ROOT / "tests" / "bench" / "flow_model.py"))
    rows = pd.read_csv(ROOT / "results" / "reference" / "flow_model_emulation.csv")
    for setup, own in rows.groupby("setup"):
        number = int(setup.split()[0])
        assert setup == " ".join(map(str, found["setup_of"](number)))
        assert (own["workers"] == found["drawn"](number).workers).all()
    assert rows["predicted_s"].notna().all()
