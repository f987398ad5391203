"""The schema: strict, expanded, and clear about what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.cluster.universe import TRIAL
from harness.errors import UsageError
from harness.network.addresses import SWITCH, worker_name
from harness.network.player import PLAYER
from harness.scenario.load import _combinations, available, load
from harness.scenario.schema import Scenario

MINIMAL = """
rounds = 2
[link]
rate = "100mbit"
[[methods]]
name = "dense"
"""


@pytest.fixture
def write(tmp_path: Path):  # type: ignore[no-untyped-def]
    def write_scenario(text: str = MINIMAL) -> str:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return str(path)

    return write_scenario


def test_every_scenario_that_comes_with_pacbench_loads_and_says_what_it_is() -> None:
    found = available()
    assert {"quickstart", "ci", "bandwidth_sweep"} <= set(found)
    for name, description in found.items():
        assert load(name).methods
        assert description, name


def test_the_name_is_the_files(write: Any) -> None:
    assert load(write()).name == "mine"


def test_lists_become_every_combination(write: Any) -> None:
    text = MINIMAL.replace('"100mbit"', '["10mbit", "1gbit", "unshaped"]') + "[cluster]\nworkers = [2, 4]\n"
    cases = load(write(text)).cases
    assert {(case.cluster.workers, case.link.rate_bps) for case in cases} == {
        (workers, rate) for workers in (2, 4) for rate in (10**7, 10**9, None)
    }


def test_variants_of_a_method_are_told_apart_by_what_differs(write: Any) -> None:
    text = MINIMAL + '[[methods]]\nname = "pactrain"\nvalues = ["fp32", "ternary"]\n'
    assert [method.label for method in load(write(text)).methods] == ["dense", "pactrain-fp32", "pactrain-ternary"]
    text = MINIMAL + '[[methods]]\nname = "topk"\nratio = [0.01, 0.001]\n'
    assert [method.label for method in load(write(text)).methods][1:] == ["topk-ratio=0.01", "topk-ratio=0.001"]


def test_overrides_reach_every_field(write: Any) -> None:
    changed = load(write(), ["train.steps=7", "link.rate=1gbit", "rounds=9", "train.model=digits-cnn"])
    assert changed.cases[0].train.steps == 7
    assert changed.cases[0].link.rate_bps == 10**9
    assert changed.rounds == 9


@pytest.mark.parametrize("field", ["pace", "replay", "target"])
def test_none_is_a_word_for_what_a_scenario_is_to_do_without(write: Any, field: str) -> None:
    assert getattr(load(write(), [f"train.{field}=none"]).cases[0].train, field) is None


def test_only_named_methods_and_the_baseline_stay(write: Any) -> None:
    text = MINIMAL + '[[methods]]\nname = "fp16"\n[[methods]]\nname = "topk"\n'
    assert [method.name for method in load(write(text), only_methods=["topk"]).methods] == ["dense", "fp16", "topk"]
    assert [method.name for method in load(write(text), only_methods=["fp16"]).methods] == ["dense", "fp16"]
    with pytest.raises(UsageError, match="--method: found 'zip'; allowed: dense, fp16, topk"):
        load(write(text), only_methods=["zip"])


def test_a_scenario_survives_its_own_json(write: Any) -> None:
    original = load(write(), ["link.rate=unshaped", "link.burst=64KiB", "train.timeout=90s"])
    assert Scenario.model_validate_json(original.model_dump_json(by_alias=True)) == original


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.stps=3", r"train\.stps: unknown key; allowed: model, dataset"),
        ("colour=3", r"colour: unknown key; allowed: name, description, rounds"),
        ("link.rate=100", r"link\.rate: found 100; allowed: a rate such as '100mbit'"),
        ("link.rate=-5mbit", r"link\.rate: found '-5mbit'; allowed"),
        ("link.congestion_control=cubic up", r"link\.congestion_control: found 'cubic up'"),
        ("link.rate=5mbps", r"link\.rate: found '5mbps'; allowed"),
        ("cluster.workers=1", r"cluster\.workers: found 1; allowed: greater than or equal to 2"),
        ("cluster.workers=4.5", r"cluster\.workers: found 4\.5; allowed: a valid integer"),
        ("rounds=0", r"rounds: found 0; allowed: greater than or equal to 1"),
        ("train.timeout=0s", r"train\.timeout: found '0s'; allowed"),
        ("train.lr=-1", r"train\.lr: found -1; allowed: greater than 0"),
        *(
            (f"train.{field}=", rf"train\.{field}: found ''; allowed: .*at least 1")
            for field in ("pace", "replay", "data_dir", "checkpoint")
        ),
        ("train=4", r"train: found 4; allowed: a table"),
        ("methods=4", r"methods: found 4; allowed: at least one"),
        ("baseline=zip", r"baseline: found 'zip'; allowed: the label of a method: dense"),
        ("train", r"--set: key=value: found 'train'"),
        ("rounds.of.beer=1", r"--set: rounds\.of\.beer"),
    ],
)
def test_bad_input_is_one_line_with_file_field_found_and_allowed(write: Any, override: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as error:
        load(write(), [override])
    assert "\n" not in str(error.value)


def test_directions_workers_and_trunks_override_and_survive_their_json(write: Any) -> None:
    text = MINIMAL.replace('rate = "100mbit"', 'rate = "100mbit"\nup = { rate = "20mbit" }\nloss = "1%"') + (
        '[link.workers.w1]\ndelay = "3ms"\ndown = { loss = 0.0 }\n'
        '[fabric]\ngroups = "a b"\ntrunk = { rate = "50mbit" }\n[fabric.trunks.b]\nup = { delay = "9ms" }\n'
    )
    original = load(write(text))
    case = original.cases[0]
    assert case.link.pipe("w0", "up").rate_bps == 20_000_000
    assert (case.link.pipe("w1", "down").delay_s, case.link.pipe("w1", "down").loss) == (0.003, 0.0)
    assert case.fabric.pipe("b", "up", None).delay_s == pytest.approx(0.009)
    assert case.fabric.pipe("a", "down", 7).rate_bps == 50_000_000
    again = Scenario.model_validate_json(original.model_dump_json(by_alias=True))
    assert again == original
    assert again.cases[0].link.pipe("w1", "up") == case.link.pipe("w1", "up"), "what was not given still follows"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("link.loss=2", r"link\.loss: found 2; allowed: a share from 0 to 1 such as 0\.01, or '1%'"),
        ("link.loss=100%", r"link\.loss: found 1\.0; allowed: below 1"),
        ("link.jitter=3ms", r"link\.jitter: found '3 ms'; allowed: at most the delay, 0 µs"),
        ("link.reorder=0.1", r"link\.reorder: found 0\.1; allowed: 0 without a delay"),
        ("link.up.rat=3", r"link\.up\.rat: unknown key; allowed: rate, burst, queue, delay"),
        ("link.up.jitter=1ms", r"link\.up\.jitter: found '1 ms'"),
        ("link.workers.w9.rate=1mbit", r"link\.workers: found 'w9'; allowed: w0 to w3"),
        ("link.workers.w1.up.rate=3", r"link\.workers\.w1\.up\.rate: found 3; allowed: a rate"),
        ("link.loss_bursts.p=0.1", r"link\.loss_bursts\.r: missing"),
        ("link.jitter_distribution=flat", r"link\.jitter_distribution: found 'flat'; allowed: 'normal'"),
        ("fabric.groups=alone", r"fabric\.groups: found 'alone'; allowed: two or more"),
        ("fabric.groups=a switch", r"fabric\.groups: found 'a switch'"),
        ("fabric.groups=a b c d e", r"fabric\.groups: found 'a b c d e'; allowed: at most 4"),
        ("fabric.trunks.x.rate=1mbit", r"fabric\.trunks: found 'x'; allowed: none without groups"),
        ("fabric.oversubscription=0", r"fabric\.oversubscription: found 0; allowed: greater than or equal to 0.01"),
    ],
)
def test_links_that_cannot_be_are_refused_when_they_are_read(write: Any, override: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as error:
        load(write(), [override])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [worker_name(0), SWITCH, PLAYER, TRIAL, "a" * 65])
def test_no_group_has_the_name_of_another_node_or_one_too_long_for_a_host(write: Any, name: str) -> None:
    allowed = "two or more names of up to 64 letters, all different, none of w0, w1, ..., switch, player, trial"
    with pytest.raises(UsageError, match=rf"fabric\.groups: found '{name} b'; allowed: {allowed}"):
        load(write(), [f"fabric.groups={name} b"])
    assert load(write(), [f"fabric.groups={'a' * 64} players"]).cases


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ('name = "zip"', r"methods\[2\]\.name: found 'zip'; allowed: .*dense"),
        ('name = "topk"\nratio = 2.0', r"methods\[2\] \(topk\)\.ratio: found 2\.0; allowed"),
        ('name = "topk"\nration = 0.1', r"methods\[2\] \(topk\)\.ration: unknown key; allowed: .*ratio"),
        ('name = "dense"', r"methods: found 'dense'; allowed: each method once"),
    ],
)
def test_bad_methods_are_named_by_their_place(write: Any, method: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as error:
        load(write(MINIMAL + f"[[methods]]\n{method}\n"))
    assert "\n" not in str(error.value)


def test_what_is_not_toml_or_not_there_is_said(write: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"mine\.toml: not valid TOML"):
        load(write("rounds = = 3"))
    with pytest.raises(UsageError, match=r"gone\.toml: cannot be read"):
        load(str(tmp_path / "gone.toml"))
    with pytest.raises(UsageError, match="SCENARIO: found 'nosuch'; allowed: .*quickstart"):
        load("nosuch")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot be read"):
        load(str(tmp_path / "binary.toml"))


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3), min_size=1, max_size=3))
def test_combinations_are_the_product_of_the_lists(lists: list[list[int]]) -> None:
    section = {f"field{number}": values for number, values in enumerate(lists)}
    combinations = _combinations({"section": section}, "scenario")
    expected = 1
    for values in lists:
        expected *= len(values)
    assert len(combinations) == expected
    for combination in combinations:
        assert all(combination["section"][key] in section[key] for key in section)
