"""Bad input at the command line: one line that says what was found and what is allowed, and nothing has started."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from in_process import call_pacbench

from harness.cli.options import current_folder
from harness.cluster.fake import FakeCluster
from harness.errors import UsageError
from harness.messages import Exit, Message
from harness.provenance import ROOT
from harness.record.store import Store
from harness.report import page
from harness.workload.data import DATASETS
from harness.workload.profile import find

PLUGINS = ROOT / "examples" / "plugins"

Pacbench = Callable[..., "subprocess.CompletedProcess[str]"]

SCENARIO = """
rounds = 1
[cluster]
workers = 2
[train]
steps = 20
[[methods]]
name = "dense"
[[methods]]
name = "topk"
"""


@pytest.fixture
def pacbench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pacbench:
    monkeypatch.setattr(page, "write", lambda store: store.folder / "report.html")
    (tmp_path / "mine.toml").write_text(SCENARIO)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return call_pacbench(arguments, tmp_path)

    return run


def refused(done: subprocess.CompletedProcess[str], *says: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("pacbench: ")
    assert done.stderr.count("\n") == 1
    for each in says:
        assert each in done.stderr, done.stderr


@pytest.mark.parametrize("name", ["exp[1]", "what?", "all*", "[!a]", "50 % of é", 66 * "測"])
def test_a_run_of_any_name_is_resumed(pacbench: Pacbench, tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.toml").write_text(SCENARIO)
    command = ("run", f"{name}.toml", "--on", "fake")
    assert pacbench(*command).returncode == 0
    (folder,) = (tmp_path / "results").iterdir()
    next((folder / "trials.parquet").iterdir()).unlink()
    assert "1 of 2 trials are done" in pacbench(*command).stdout
    assert list((tmp_path / "results").iterdir()) == [folder]


def test_a_damaged_run_of_another_scenario_keeps_none_from_running(pacbench: Pacbench, tmp_path: Path) -> None:
    for name in ("exp", "exp-2"):
        (tmp_path / f"{name}.toml").write_text(SCENARIO)
    assert pacbench("run", "exp-2.toml", "--on", "fake").returncode == 0
    (damaged,) = (tmp_path / "results").iterdir()
    (damaged / "scenario.json").write_text("{")
    assert pacbench("run", "exp.toml", "--on", "fake").returncode == 0
    refused(pacbench("run", "exp-2.toml", "--on", "fake"), f"{damaged.name}/scenario.json: damaged", "move it away")


@pytest.mark.parametrize(
    "name", ["/tmp/x", "../x", "..", ".", ".hidden", "a/b", "", "x" * 201, "a\\u0000b", "a\\nb", "mine\\n"]
)
def test_a_name_that_leads_out_of_the_results_is_refused(pacbench: Pacbench, tmp_path: Path, name: str) -> None:
    (tmp_path / "mine.toml").write_text(f'name = "{name}"\n{SCENARIO}')
    for command in (("plan", "mine.toml"), ("run", "mine.toml"), ("reference", "mine.toml")):
        refused(pacbench(*command, "--on", "fake"), "mine.toml: name: found", "allowed: 1 to 200 bytes, without '/'")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]


@pytest.mark.parametrize("name", ["../scenarios/quickstart", "/etc/quickstart", "x" * 5000])
def test_a_scenario_is_named_within_its_folder(pacbench: Pacbench, name: str) -> None:
    refused(pacbench("plan", name), "SCENARIO: found")


BEYOND = [
    ("link.rate=1bit", "link.rate: found '1 bit/s'; allowed: 8 kbit/s to 1"),
    ("link.rate=100tbit", "link.rate: found"),
    ("link.rate=1e400mbit", "link.rate: found '1e400mbit'; allowed: a rate such as"),
    ("link.burst=10B", "link.burst: found '10 B'; allowed: at least 1530 B, a frame at an MTU of 1500"),
    ("link.burst=1514B", "link.burst: found"),
    ("link.burst=3GB", "link.burst: found '3 GB'; allowed"),
    ("link.up.burst=100B", "link.up.burst: found '100 B'"),
    ("link.workers.w1.burst=100B", "link.workers.w1.up.burst: found '100 B'"),
    ("link.queue=10B", "link.queue: found '10 B'; allowed: at least 1514 B, a frame"),
    ("link.queue=1e300B", "link.queue: found"),
    ("link.delay=11s", "link.delay: found '11 s'; allowed: 1 µs to 10 s"),
    ("link.delay=1e400s", "link.delay: found"),
    ("link.delay=1e-9us", "link.delay: found"),
    ("link.loss=0.6", "link.loss: found 0.6; allowed: 1e-07 to 0.5"),
    ("link.loss=nan", "link.loss: found"),
    ("link.corrupt=90%", "link.corrupt: found 0.9"),
    ("link.loss=1e-12", "link.loss: found"),
    ("link.loss_bursts={p=1.0,r=1e-9}", "link.loss_bursts.p, r: found p = 1, r = 1e-09"),
    ("link.loss_bursts={p=0.9,r=0.1}", "link.loss_bursts: found 0.9; allowed: 1e-07 to 0.5"),
    ("link.mtu=100000", "link.mtu: found 100000"),
    ("fabric.oversubscription=inf", "fabric.oversubscription: found inf"),
    ("fabric.oversubscription=1e-300", "fabric.oversubscription: found 1e-300; allowed: greater than or equal to 0.01"),
    ("fabric={groups='a b',oversubscription=1e-6}", "fabric.oversubscription: found 1e-06; allowed"),
    (
        "link.trace={rows=[{t_s=0.0,rate_bps=1000000}],period_s=1e-9}",
        "link.trace: period_s: found 1e-09; allowed: at least 0.01 for each of its rows, 1",
    ),
    *(
        (
            f"link.trace={{rows=[{{t_s=0.0,rate_bps=1000000}}],period_s={period_s}}}",
            f"link.trace: period_s: found {float(period_s):g}; allowed: up to 86400, a day",
        )
        for period_s in ("inf", "1e10")
    ),
    ("cluster.memory=1B", "cluster.memory: found '1B'; allowed: greater than or equal to 50000000"),
    ("cluster.cpuset=5-2", "cluster.cpuset: found '5-2'; allowed: CPUs from 0"),
    ("cluster.cpuset=99999", "cluster.cpuset: found 99999"),
    ("cluster.workers=100000", "cluster.workers: found 100000"),
    ("train.steps=100000000000000000000", "train.steps: found 100000000000000000000; allowed: less than or equal"),
    ("train.steps=1e9", "train.steps: found 1000000000.0"),
    ("train.batch_size=10000000000", "train.batch_size: found"),
    ("train.accumulate=10000000", "train.accumulate: found"),
    ("train.lr=inf", "train.lr: found inf; allowed: less than or equal to 1000000000"),
    ("train.lr=nan", "train.lr: found nan"),
    ("train.weight_decay=inf", "train.weight_decay: found inf"),
    ("train.momentum=nan", "train.momentum: found nan"),
    ("train.eval_every=100000000", "train.eval_every: found"),
    ("train.save_every=0", "train.save_every: found 0; allowed: greater than or equal to 1"),
    ("train.save_every=100000000", "train.save_every: found 100000000"),
    ("train.save_every=2.5", "train.save_every: found 2.5"),
    ("train.save_every='often'", "train.save_every: found 'often'"),
    ("train.bucket=1B", "train.bucket: found '1B'"),
    ("train.timeout=10000h", "train.timeout: found '10000h'"),
    ("train.dilation=1e9", "train.dilation: found"),
    ("train.gradient_density=1e-300", "train.gradient_density: found 1e-300"),
    ("train.optimizer={name='adamw',eps=inf}", "train.optimizer.eps: found inf"),
    ("train.schedule={kind='step',decay_every=10000000000}", "train.schedule.decay_every: found"),
    ("train.pretrain={steps=10000000000,lr=0.1}", "train.pretrain.steps: found"),
    ("train.target=loss 1e999", "train.target: found 'loss 1e999'"),
    ("rounds=100000", "rounds: found 100000"),
    ("seed=99999999999999999999", "seed: found"),
    ("tolerance=nan", "tolerance: found nan"),
    ("link.rate=['1mbit', '1bit']", "link.rate: found '1 bit/s'"),
]


@pytest.mark.parametrize(("override", "says"), BEYOND, ids=[override for override, _ in BEYOND])
def test_what_is_out_of_all_sense_is_refused_before_anything_starts(
    pacbench: Pacbench, tmp_path: Path, override: str, says: str
) -> None:
    refused(pacbench("plan", "mine.toml", "--on", "fake", "--set", override), says)
    refused(pacbench("run", "mine.toml", "--on", "fake", "--set", override), says)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]


@pytest.mark.parametrize(
    ("rate", "oversubscription", "says"),
    [
        ("1mbit", "10000", "trunk a: up.rate: found '100 bit/s'; allowed: 8 kbit/s to"),
        ("1tbit", "0.01", "trunk a: up.rate: found '100000 Gbit/s'; allowed: 8 kbit/s to"),
    ],
)
def test_trunks_that_oversubscription_takes_out_of_all_sense_are_refused(
    pacbench: Pacbench, rate: str, oversubscription: str, says: str
) -> None:
    fabric = f"fabric={{groups='a b',oversubscription={oversubscription}}}"
    done = pacbench("plan", "mine.toml", "--on", "fake", "--set", f"link.rate={rate}", "--set", fabric)
    refused(done, f"fabric.oversubscription: {says}")


def test_so_many_combinations_are_a_mistake(pacbench: Pacbench) -> None:
    many = list(range(4, 204))
    command = ("plan", "mine.toml", "--set", f"train.steps={many}", "--set", f"train.eval_every={many}")
    refused(pacbench(*command), "lists: found '40000 combinations'; allowed: at most 10000")


def test_of_what_is_very_long_the_beginning_is_shown(pacbench: Pacbench) -> None:
    for groups in (" ".join(["a"] * 9999), " ".join(f"g{number}" for number in range(9999))):
        done = pacbench("plan", "mine.toml", "--on", "fake", "--set", f"fabric.groups='{groups}'")
        refused(done, f"groups: found '{groups[:150]}", "...; allowed: ")
        assert len(done.stderr) < 500


LONG_LABEL = "label = '" + "x" * 201 + "'"


@pytest.mark.parametrize("parameter", ["ratio = inf", "ratio = nan", "lr = inf", 'label = ""', LONG_LABEL])
def test_a_methods_parameters_are_numbers(pacbench: Pacbench, tmp_path: Path, parameter: str) -> None:
    (tmp_path / "mine.toml").write_text(SCENARIO + parameter + "\n")
    done = pacbench("plan", "mine.toml", "--on", "fake")
    if parameter == 'label = ""':
        assert done.returncode == 0  # as if there were none
    else:
        refused(done, "mine.toml: methods")


def test_links_of_probe_and_exec_have_the_same_limits(pacbench: Pacbench) -> None:
    refused(pacbench("probe", "--on", "netns", "--set", "link.burst=10B"), "command line: link.burst: found '10 B'")
    refused(pacbench("exec", "--rate", "1bit", "--", "true"), "command line: link.rate: found '1 bit/s'")


BOM = b"\xef\xbb\xbf"


def test_a_mark_of_byte_order_is_read_over(pacbench: Pacbench, tmp_path: Path) -> None:
    trace = b"t_s,rate_bps\n0,5000000\n1,6000000\n"
    (tmp_path / "bom.csv").write_bytes(BOM + trace)
    (tmp_path / "bom.mm").write_bytes(BOM + b"0\n100\n")
    (tmp_path / "bom.toml").write_bytes(BOM + SCENARIO.encode())
    for trace_file in ("bom.csv", "bom.mm"):
        done = pacbench("plan", "bom.toml", "--on", "fake", "--set", f"link.trace={trace_file}")
        assert done.returncode == 0, done.stderr


TRACES = [
    ("1700000000000\n1700000000001\n", "in row 1"),
    ("-5\n10\n", "'-5' in row 1"),
    ("10\n20\n15\n", "'15' in row 3"),
    ("10\n" + "9" * 5000 + "\n", "(row 2)"),
    ("1.5\n", "(row 1)"),
    ("t_s,rate_bps\n0,1000000\n1,inf\n", "'1,inf' in row 2"),
    ("t_s,rate_bps\n0,1000000\n1,nan\n", "'1,nan' in row 2"),
    ("t_s,rate_bps\n0,1000000\ninf,1000000\n", "in row 2"),
    ("t_s,rate_bps\n0,1000000\n1,1e999\n", "in row 2"),
    ("t_s,rate_bps\n0,1000000\n1\n", "in row 2"),
    ("t_s,rate_bps\n0,1000000\n1,1000000,7\n", "in row 2"),
    ("t_s,rate_bps,t_s\n0,1000000,0\n", "each once"),
    ("t_s,rate_bps\n0,1000000\n1,1e30\n", "row 2: rate_bps: found"),
    ("t_s,rate_bps\n0,1000000\n1,5\n", "row 2: rate_bps: found '5 bit/s'; allowed: 8 kbit/s to"),
    ("t_s,rate_bps\n0,1000000\n100000,1000000\n", "row 2: t_s: found 100000; allowed: up to 86400, a day"),
    ("t_s,rate_bps,delay_s\n0,1000000,1\n1,1000000,100\n", "row 2: delay_s: found '100 s'"),
    ("t_s,rate_bps,loss\n0,1000000,0.9\n", "row 1: loss: found '90%'"),
    ("t_s,rate_bps,delay_s\n0,1000000,-1\n", "a delay of at least 0; x.trace has '0,1000000,-1' in row 1"),
    ("t_s,rate_bps,loss\n0,1000000,1\n", "a loss from 0 on, below 1; x.trace has '0,1000000,1' in row 1"),
    ("t_s,rate_bps\n0,1000000\n1,-5\n", "a rate above 0; x.trace has '1,-5' in row 2"),
    ("t_s,rate_bps\n1,1000000\n", "times from 0 on; x.trace has '1,1000000' in row 1"),
    ("t_s,rate_bps\n0,1000000\n2,1000000\n1,1000000\n", "in row 3"),
    ("t_s,rate_bps\n", "x.trace has a head alone"),
    ("t_s,rate_bps\n" + "".join(f"{number},1000000\n" for number in range(100_001)), "up to 100000 rows"),
]


@pytest.mark.parametrize(("text", "says"), TRACES, ids=[says for _, says in TRACES])
def test_a_trace_that_cannot_be_is_one_line_with_its_row(
    pacbench: Pacbench, tmp_path: Path, text: str, says: str
) -> None:
    (tmp_path / "x.trace").write_text(text)
    refused(pacbench("plan", "mine.toml", "--on", "fake", "--set", "link.trace=x.trace"), "link.trace", says)


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def far_too_large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10**12)


def a_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("make", [a_pipe, a_device, far_too_large, a_folder], ids=lambda make: make.__name__)
def test_what_never_ends_or_never_begins_is_not_read(
    pacbench: Pacbench, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    for name in ("x.toml", "x.json", "x.trace"):
        make(tmp_path / name)
    for command in (
        ("plan", "x.toml", "--on", "fake"),
        ("plan", "mine.toml", "--on", "fake", "--link", "x.toml"),
        ("plan", "mine.toml", "--on", "fake", "--set", "link.trace=x.trace"),
        ("plan", "mine.toml", "--on", "fake", "--set", "train.replay=x.json"),
        ("pilot", "--link", "x.toml", "--", "true"),
        ("pilot", "--recheck", "x.json"),
        ("gate", "x.json", "--against", "x.json"),
    ):
        refused(pacbench(*command))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"forward_s": 1e300}, "forward_s: found 1e+300; allowed: less than or equal to 86400"),
        ({"gradients": [{"parameter": "w", "shape": [10**12, 10**12], "ready_s": 0}]}, "gradients: found 1" + 24 * "0"),
        ({"gradients": [{"parameter": "w", "shape": [-1], "ready_s": 0}]}, "found -1; allowed: greater than or equal"),
    ],
    ids=["a time", "a shape", "a size"],
)
def test_a_profile_has_limits(pacbench: Pacbench, tmp_path: Path, change: dict[str, object], says: str) -> None:
    content = json.loads(find("resnet152-a40").read_bytes())
    (tmp_path / "x.json").write_text(json.dumps({**content, **change}))
    refused(pacbench("plan", "mine.toml", "--on", "fake", "--set", "train.replay=x.json"), "x.json", says)


def test_all_scenarios_are_checked_before_the_first_one_runs(pacbench: Pacbench, tmp_path: Path) -> None:
    (tmp_path / "wrong.toml").write_text(SCENARIO.replace("steps = 20", "steps = 20\nlr = -1"))
    refused(pacbench("run", "mine.toml", "wrong.toml", "--on", "fake"), "wrong.toml: train.lr: found -1")
    assert not (tmp_path / "results").exists()

    (tmp_path / "large.toml").write_text(
        SCENARIO.replace("workers = 2", "workers = 512").replace("steps", "batch_size = 1\nsteps")
    )
    refused(pacbench("run", "mine.toml", "large.toml", "--on", "fake"), "cluster.workers: found 512")
    assert not (tmp_path / "results").exists()

    (tmp_path / "limited.toml").write_text(SCENARIO.replace("workers = 2", 'workers = 2\nmemory = "1GB"'))
    refused(
        pacbench("run", "mine.toml", "limited.toml", "--on", "netns"), "limited: cluster.memory: found '1000000000B'"
    )
    assert not (tmp_path / "results").exists()


def test_folders_of_all_scenarios_are_checked_before_the_first_one_runs(pacbench: Pacbench, tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text(SCENARIO)
    assert pacbench("run", "other.toml", "--on", "fake", "--out", "all/other").returncode == 0
    command = ("run", "mine.toml", "other.toml", "--on", "fake", "--out", "all")
    refused(pacbench(*command, "--set", "train.steps=24"), "it holds 'other' with other settings")
    assert [path.name for path in (tmp_path / "all").iterdir()] == ["other"]
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "mine.toml").write_text(SCENARIO)
    refused(pacbench("run", "mine.toml", "sub/mine.toml", "--on", "fake", "--out", "all"), "SCENARIO: found 'mine'")
    assert [path.name for path in (tmp_path / "all").iterdir()] == ["other"]
    assert pacbench(*command).returncode == 0
    assert all(len(Store.open(tmp_path / "all" / name).trials()) == 2 for name in ("mine", "other"))


NO_TEXT = os.fsdecode(b"caf\xe9")
"""A name in Latin-1."""


@pytest.mark.parametrize(
    "command",
    [
        *((verb, f"{NO_TEXT}.toml", "--on", "fake") for verb in ("plan", "run", "reference")),
        *(
            ("run", "mine.toml", "--on", "fake", "--set", setting)
            for setting in (f"description={NO_TEXT}", f"link.workers.{NO_TEXT}.rate=1mbit", f"train.data_dir={NO_TEXT}")
        ),
        ("run", "mine.toml", "--on", "fake", "--method", f"{NO_TEXT}.py:block_sign"),
        ("profile", f"{NO_TEXT}.py:model", "-o", "profile.json"),
        ("exec", "--on", "netns", "--method", "topk", "--param", f"selection={NO_TEXT}", "--", "true"),
        ("exec", "--on", "netns", "--metric", f"({NO_TEXT})", "--", "true"),
        ("pilot", "--on", "netns", "--", "true", NO_TEXT),
    ],
    ids=lambda command: " ".join(command).encode(errors="replace").decode(),
)
def test_bytes_that_are_no_text_are_refused_where_files_would_hold_them(
    pacbench: Pacbench, tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / f"{NO_TEXT}.toml").write_text(SCENARIO)
    (tmp_path / f"{NO_TEXT}.py").write_text((PLUGINS / "block_sign.py").read_text())
    before = sorted(tmp_path.iterdir())
    refused(pacbench(*command), "found '", r"caf\udce9", "allowed: text in UTF-8")
    assert sorted(tmp_path.iterdir()) == before


def test_files_and_folders_may_have_any_name(pacbench: Pacbench, tmp_path: Path) -> None:
    for command in (
        ("run", "mine.toml", "--on", "fake", "--out", NO_TEXT),
        ("status", NO_TEXT),
        ("reference", "mine.toml", "--from", NO_TEXT, "--out", f"{NO_TEXT}.json"),
        ("compare", NO_TEXT, f"{NO_TEXT}.json"),
        ("gate", NO_TEXT, "--against", f"{NO_TEXT}.json", "--json", f"gate-{NO_TEXT}.json"),
        ("profile", "digits-cnn", "--derive-for", "a40", "-o", f"profile-{NO_TEXT}.json"),
        ("plan", "mine.toml", "--on", "fake", "--link", f"link-{NO_TEXT}.toml"),
        ("tune", "mine.toml", "--on", "fake", "--seeds", "1", "-o", f"{NO_TEXT}.toml"),
        ("plan", f"{NO_TEXT}.toml", "--on", "fake", "--set", "name=tuned"),
    ):
        (tmp_path / f"link-{NO_TEXT}.toml").write_text('[link]\nrate = "10mbit"\n')
        done = pacbench(*command)
        assert (done.returncode in (0, 4), done.stderr) == (True, ""), command
    made_by = json.loads((tmp_path / f"profile-{NO_TEXT}.json").read_text())["made_by"]
    assert made_by.endswith(r"-o 'profile-caf\udce9.json'")


def test_lists_of_nothing_leave_no_method_out(pacbench: Pacbench, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(f"{SCENARIO}ratio = []\n")
    done = pacbench("plan", "mine.toml", "--on", "fake")
    refused(done, "mine.toml: methods[2] (topk).ratio: found []; allowed: one value, or a list of some")


@pytest.mark.parametrize(
    "command",
    [
        *(("run", "mine.toml", "--on", "fake", option, "") for option in ("--until", "--out", "--method", "--set")),
        ("run", "mine.toml", "--on", "fake", "--out="),
        ("tune", "mine.toml", "--on", "fake", "-o", "x.toml", "--grid", ""),
        ("exec", "--on", "netns", "--image", "", "--", "true"),
        ("worker", "mine.toml", "--until", ""),
    ],
    ids=" ".join,
)
def test_an_option_whose_value_is_empty_is_not_taken_for_none(
    pacbench: Pacbench, tmp_path: Path, command: tuple[str, ...]
) -> None:
    refused(pacbench(*command), ": found ''; allowed: a value that is not empty")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]


def test_words_of_a_command_may_be_empty(pacbench: Pacbench) -> None:
    refused(pacbench("exec", "--on", "netns", "--", "no-such-command", "--out", ""), "COMMAND: found 'no-such-command'")


def test_a_folder_that_can_be_none_is_refused_before_the_first_scenario_runs(
    pacbench: Pacbench, tmp_path: Path
) -> None:
    (tmp_path / "other.toml").write_text(SCENARIO)
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "other").write_text("no folder")
    done = pacbench("run", "mine.toml", "other.toml", "--on", "fake", "--out", "all")
    refused(done, "--out: found 'all/other'; allowed: a folder that can be written (Not a directory)")
    assert [path.name for path in (tmp_path / "all").iterdir()] == ["other"]


@pytest.mark.parametrize(
    "command",
    [
        *(("reference", "mine.toml", "--on", "fake", "--out", f"/proc/{name}") for name in ("x.json", "x/y.json")),
        ("reproduce", "--quick", "--claim", "dgc-bytes", "--on", "fake", "--out", "/proc/x"),
        ("tune", "mine.toml", "--on", "fake", "-o", "/proc/x.toml"),
    ],
    ids=" ".join,
)
def test_what_even_root_cannot_write_is_refused_before_anything_runs(
    pacbench: Pacbench, tmp_path: Path, command: tuple[str, ...]
) -> None:
    done = pacbench(*command)
    assert done.returncode == 2, done
    assert "output: found '/proc/x" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]


def test_a_scenario_of_which_nothing_finished_keeps_none_from_running(
    pacbench: Pacbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other.toml").write_text(SCENARIO.replace("steps = 20", "steps = 24"))
    whole = FakeCluster.run

    def run(cluster: FakeCluster, task: str, spec: Mapping[str, Any], timeout_s: float) -> Iterator[Message]:
        if spec["trial"]["case"]["train"]["steps"] == 24:
            return iter([Exit(node="w0", code=1)])
        return whole(cluster, task, spec, timeout_s)

    monkeypatch.setattr(FakeCluster, "run", run)
    done = pacbench("run", "other.toml", "mine.toml", "--on", "fake", "--out", "all", "--json")
    assert done.returncode == 5
    assert "pacbench: all/other: no trial finished" in done.stderr
    assert [told["scenario"] for told in json.loads(done.stdout)] == ["mine"]
    assert Store.open(tmp_path / "all" / "mine").trials()["status"].tolist() == ["done", "done"]


def test_more_workers_than_a_run_may_have_are_refused_wherever_a_network_is_made(
    pacbench: Pacbench, tmp_path: Path
) -> None:
    (tmp_path / "link.toml").write_text('[link]\nrate = "10mbit"\n')
    for command in (
        ("probe", "--on", "netns", "--workers", "129"),
        ("exec", "--on", "netns", "--workers", "129", "--", "true"),
        ("pilot", "--on", "netns", "--workers", "129", "--", "true"),
        ("pilot", "--on", "netns", "--workers", "129", "--link", "link.toml", "--", "true"),
    ):
        refused(pacbench(*command), "--workers: found 129; allowed: at most 128")
    refused(pacbench("profile", "digits-cnn", "--workers", "129", "-o", "x.json"), "--workers")


def test_methods_in_cases_are_combinations_too(pacbench: Pacbench, tmp_path: Path) -> None:
    ratios = ", ".join(f"{number / 1000}" for number in range(1, 201))
    (tmp_path / "mine.toml").write_text(f"{SCENARIO}ratio = [{ratios}]\n")
    done = pacbench("plan", "mine.toml", "--on", "fake", "--set", f"train.batch_size={list(range(1, 101))}")
    refused(done, "lists: found '100 cases of 201 methods, 20100 combinations'; allowed: at most 10000")


def test_a_shell_that_names_another_folder_is_not_believed(
    pacbench: Pacbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for named in ("/nowhere", f"{tmp_path}/mine.toml/x", "x" * 300, "/", f"/{LONG}"):
        monkeypatch.setenv("PWD", named)
        monkeypatch.chdir(tmp_path)
        assert current_folder() == tmp_path
        done = pacbench("exec", "--on", "netns", "--", "no-such-command")
        refused(done, "COMMAND: found 'no-such-command'")


LONG = "x" * 300
"""More than a file's name may have."""


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("compare", LONG, LONG), "RUN or REFERENCE: found 'xxx"),
        (("gate", LONG, "--against", "ci"), "RUN or REFERENCE: found 'xxx"),
        (("status", LONG), "RUN_DIR: found 'xxx"),
        (("profile", "digits-cnn", "-o", f"{LONG}.json"), "File name too long"),
        (("tune", "mine.toml", "--on", "fake", "-o", f"{LONG}.toml"), "File name too long"),
        (("link", "192.0.2.1", "--token", "x", "-o", LONG), "File name too long"),
        (("run", "mine.toml", "--on", "fake", "--out", LONG), "File name too long"),
        (("plan", "mine.toml", "--set", f"train.replay={LONG}.json"), "train.replay: found 'xxx"),
        (
            (
                "run",
                "mine.toml",
                "--on",
                "fake",
                "--set",
                "train.dataset=text-folder",
                "--set",
                f"train.data_dir={LONG}",
            ),
            "",
        ),
        (("open", LONG), "FOLDER: found 'xxx"),
        (("pilot", "--recheck", LONG), "File name too long"),
        (("reproduce", "--judge", LONG, "--claim", "omnireduce-micro"), "File name too long"),
    ],
    ids=lambda each: each[0] if isinstance(each, tuple) else "",
)
def test_names_that_no_file_can_have_are_one_line(pacbench: Pacbench, command: tuple[str, ...], says: str) -> None:
    refused(pacbench(*command), says)


def test_what_cannot_be_looked_at_is_not_there(pacbench: Pacbench) -> None:
    assert pacbench("pilot", "--plan", "--on", "netns", "-o", LONG, "--", "true").returncode == 0
    assert pacbench("run", "mine.toml", "--on", "fake", "--join", "--out", "shared", "--mark", LONG).returncode == 5
    for dataset in ("cifar-10", "fashion-mnist", "image-folder-32"):
        with pytest.raises(UsageError, match=r"train\.data_dir: found 'xxx"):
            DATASETS[dataset].load(Path(LONG))


@pytest.mark.parametrize("part", ["trials.parquet", "verified.parquet"])
def test_a_run_of_which_a_folder_cannot_be_read_is_not_taken_for_an_empty_one(
    pacbench: Pacbench, tmp_path: Path, part: str
) -> None:
    assert pacbench("run", "mine.toml", "--on", "fake", "--out", "run").returncode == 0
    shutil.rmtree(tmp_path / "run" / part)
    (tmp_path / "run" / part).write_text("no folder")
    for verb in ("status", "report"):
        refused(pacbench(verb, "run"), f"run/{part}: cannot be read: Not a directory")


def test_files_of_other_names_among_claims_are_none(pacbench: Pacbench, tmp_path: Path) -> None:
    command = ("run", "mine.toml", "--on", "fake", "--join", "--out", "run")
    assert pacbench(*command).returncode == 0
    claim = next((tmp_path / "run" / "claims").glob("*.claim"))
    for name in ("x.claim", f"{claim.stem} (copy).claim", f"{claim.stem}0x.claim", "a.0.claim"):
        shutil.copyfile(claim, claim.with_name(name))
    for each in (("status", "run"), command):
        assert pacbench(*each).returncode == 0
