"""Models, data sets and methods that are not pacbench's own: they run like its own, and a broken one is one line."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from in_process import call_pacbench

from harness import methods, plugins
from harness.errors import UsageError
from harness.plan.code import check_code
from harness.plan.expected import expect, shapes_of
from harness.plan.plan import make
from harness.record.store import Store
from harness.report import page
from harness.scenario.load import load
from harness.workload import data, models
from harness.workload.data import DATASETS
from harness.workload.models import MODELS

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "plugins"
FILES = ("tiny_net.py", "shifted_digits.py", "block_sign.py", "own.toml")

Pacbench = Callable[..., "subprocess.CompletedProcess[str]"]


def forget() -> None:
    """What a process of its own would not know yet."""
    for known in (plugins.load, plugins._module_in, plugins.installed, methods.method_named, models.check_scores):
        known.cache_clear()
    for catalogue in (MODELS, DATASETS):
        catalogue._read.cache_clear()  # type: ignore[attr-defined]
    for worked_out in (expect, shapes_of):
        worked_out.cache_clear()


@pytest.fixture(autouse=True)
def _forget_plugins() -> Iterator[None]:
    forget()
    yield
    forget()


@pytest.fixture
def toys(tmp_path: Path) -> Path:
    """The examples in a folder of their own."""
    folder = tmp_path / "toys"
    folder.mkdir()
    for name in FILES:
        shutil.copy(EXAMPLES / name, folder / name)
    return folder


@pytest.fixture
def pacbench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pacbench:
    """The command line, without the report's page."""
    monkeypatch.setattr(page, "write", lambda store: store.folder / "report.html")
    return lambda *arguments: call_pacbench(arguments, tmp_path)


def ids(scenario: Path) -> dict[str, str]:
    """Trial ids by label, as a new process would find them."""
    forget()
    return {trial.method.label: trial.id for trial in make(load(str(scenario), ["rounds=1"]), "fake").trials}


def test_toys_of_another_folder_are_run_gated_and_told_without_their_folder(
    pacbench: Pacbench, toys: Path, tmp_path: Path
) -> None:
    done = pacbench("run", "toys/own.toml", "--on", "fake", "--rounds", "3", "--out", "run")
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) not in done.stdout
    rows = Store.open(tmp_path / "run").trials()
    assert set(rows["model"]) == {"tiny_net.py:tiny_net"}
    assert set(rows["dataset"]) == {"shifted_digits.py:shifted_digits"}
    assert set(rows["method"]) == {"dense", "bf16", "block_sign.py:block_sign"}
    digest = plugins.load("method", f"{toys}/block_sign.py:block_sign").digest
    assert json.loads(rows.set_index("label")["plugin_code"]["block_sign-block=256"].iloc[0])["method"] == digest
    made = pacbench("reference", "toys/own.toml", "--from", "run", "--out", "ref.json")
    assert made.returncode == 0, made.stderr

    toys.rename(tmp_path / "moved")  # as on another machine
    forget()
    assert pacbench("run", "moved/own.toml", "--on", "fake", "--rounds", "3", "--out", "again").returncode == 0
    gated = pacbench("gate", "again", "--against", "ref.json")
    assert gated.returncode == 0, gated.stdout + gated.stderr


def test_a_plugin_on_the_command_line_starts_at_the_current_folder(pacbench: Pacbench, toys: Path) -> None:
    changes = ("--set", "train.model=toys/tiny_net.py:tiny_net", "--set", "train.pace=none", "--rounds", "1")
    added = ("--method", "toys/block_sign.py:block_sign", "--set", "baseline_16bit=dense")
    done = pacbench("plan", "quickstart", "--on", "fake", *changes, *added, "--json")
    assert done.returncode == 0, done.stderr
    trials = {trial["label"]: trial for trial in json.loads(done.stdout)["trials"]}
    assert set(trials) == {"dense", "block_sign"}
    numel = sum(map(math.prod, MODELS[f"{toys}/tiny_net.py:tiny_net"].shapes()))
    assert trials["block_sign"]["wire_bytes_per_step"] == pytest.approx(2 * 2 / 3 * numel * (1 + 4 / 256))
    assert trials["block_sign"]["params"] == {"block": 256}


@pytest.mark.parametrize(
    ("file", "changed"),
    [("tiny_net.py", {"dense", "bf16"}), ("shifted_digits.py", {"dense", "bf16"}), ("block_sign.py", set())],
)
def test_an_edit_makes_new_trials_of_all_that_run_the_code(file: str, changed: set[str], toys: Path) -> None:
    before = ids(toys / "own.toml")
    with (toys / file).open("a") as code:
        code.write("# edited\n")
    after = ids(toys / "own.toml")
    own = {"block_sign-block=256", "block_sign-block=4096"}
    assert {label for label in before if before[label] != after[label]} == own | changed


def test_a_worker_refuses_code_that_was_edited_since_it_was_planned(toys: Path) -> None:
    trial = make(load(str(toys / "own.toml")), "fake").trials[-1]
    check_code(trial.plugins, trial.case, trial.method)
    (toys / "block_sign.py").write_text((toys / "block_sign.py").read_text() + "# edited\n")
    forget()
    with pytest.raises(UsageError, match=r"method block_sign\.py:block_sign: its code is \w+ where it runs, and was"):
        check_code(trial.plugins, trial.case, trial.method)


def test_a_methods_own_parameters_are_checked_as_built_in_ones_are(pacbench: Pacbench, toys: Path) -> None:
    scenario = (toys / "own.toml").read_text()
    for line, says in (
        ("block = 4", "block: found 4; allowed:"),
        ("blocks = 256", "blocks: unknown key; allowed: block"),
    ):
        (toys / "bad.toml").write_text(scenario.replace("block = [256, 4096]", line))
        done = pacbench("plan", "toys/bad.toml", "--on", "fake")
        assert done.returncode == 2
        assert f"methods[3] (block_sign.py:block_sign).{says}" in done.stderr


SAMPLES = "from harness.workload.data import Data, dataset\nimport torch\n"
GOOD_MODEL = "@model(input_shape=(1, 8, 8), classes=10)\n"
MODEL = f"from harness.workload.models import model\nfrom torch import nn\n\n{GOOD_MODEL}"


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (None, r"toy\.py: no plug-in: No such file or directory"),
        ("x = (\n", r"toy\.py:1: SyntaxError"),
        ("\nimport no_such_thing\n", r"toy\.py:2: ModuleNotFoundError: No module named 'no_such_thing'"),
        ("import sys\nsys.exit(0)\n", r"toy\.py:2: SystemExit: 0"),
        ("def other(): ...\n", r"toy\.py: it has no toy; there are other"),
        ("\ntoy = 3\n", r"toy\.py:2: toy has no @model"),
        ("\ndef toy(): ...\n", r"toy\.py:2: toy has no @model"),
        (MODEL + "def toy(width): ...\n", r"toy\.py:5: toy\(width\) is called with 0 arguments"),
        (MODEL + "def toy():\n    return 3\n", r"toy\.py:5: toy gives int; allowed: a torch\.nn\.Module"),
        (MODEL + "def toy():\n    return nn.Linear(1 / 0, 2)\n", r"toy\.py:6: ZeroDivisionError"),
        (MODEL + "def toy():\n    return nn.Linear(3, 10)\n", r"toy\.py:5: RuntimeError"),
        (MODEL + "def toy():\n    return nn.Flatten()\n", r"toy\.py:5: scores of 2 samples have the shape \(2, 64\)"),
    ],
)
def test_a_broken_model_is_one_line_with_its_place(
    code: str | None, says: str, pacbench: Pacbench, tmp_path: Path
) -> None:
    if code is not None:
        (tmp_path / "toy.py").write_text(code)
    settings = ("--set", "train.model=toy.py:toy", "--set", "train.pace=none")
    done = pacbench("plan", "quickstart", "--on", "fake", *settings)
    assert done.returncode == 2, done.stdout
    assert re.fullmatch(rf"pacbench: {tmp_path}/{says}.*\n", done.stderr), done.stderr


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "def block_sign_hook",
            "def sign_hook",
            r"block_sign\.py: it has no block_sign_hook; there are State, sign_hook",
        ),
        ("hook(state: State, bucket: dist.GradBucket)", "hook(state)", r":\d+: block_sign_hook\(state\).* 2 arguments"),
        (
            "class State(MethodState):",
            "class State:",
            r":\d+: State is no class that derives from baselines\.MethodState",
        ),
        ("@parameters\n", "", r":\d+: State has no @parameters"),
        ("def wire_bytes", "def no_bytes", r":\d+: State has no wire_bytes"),
        ("1 + 4 / self.block", "1 + 4 / self.blok", r":\d+: AttributeError: .*State has no 'blok'"),
        ('"#882255"', '"purple-ish"', r":\d+: COLOR: found 'purple-ish'; allowed: a colour"),
        ('"P"', '"Q"', r":\d+: MARKER: found 'Q'; allowed: one of"),
    ],
)
def test_a_broken_method_is_one_line_with_its_place(old: str, new: str, says: str, toys: Path) -> None:
    file = toys / "block_sign.py"
    code = file.read_text()
    assert old in code
    file.write_text(code.replace(old, new))
    with pytest.raises(UsageError, match=says) as found:
        load(str(toys / "own.toml"))
    assert str(found.value).startswith(str(file))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("return Data(", "return (", r":\d+: shifted_digits gives tuple; allowed: a harness"),
        ("dtype=torch.float32", "dtype=torch.float64", r"gives train_inputs as .*float64"),
        ("classes=10", "classes=9", r"gives train_targets from 0 to 9; allowed: 0 to 8"),
        ("load_digits()", "load_digits(9, 9, 9, 9)", r":\d+: TypeError"),
    ],
)
def test_a_broken_data_set_is_one_line_with_its_place(old: str, new: str, says: str, toys: Path) -> None:
    file = toys / "shifted_digits.py"
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(UsageError, match=says) as found:
        DATASETS[f"{file}:shifted_digits"].load(None)
    assert str(found.value).startswith(str(file))


def test_the_example_data_set_is_what_it_declares() -> None:
    known = DATASETS[f"{EXAMPLES}/shifted_digits.py:shifted_digits"]
    found = known.load(None)
    assert isinstance(found, data.Data)
    assert len(found.train_inputs) == known.train_size
    assert abs(float(found.train_inputs.mean())) < 0.1


def test_two_files_that_results_would_call_alike_are_refused(toys: Path) -> None:
    (toys / "other").mkdir()
    shutil.copy(toys / "tiny_net.py", toys / "other" / "tiny_net.py")
    scenario = toys / "own.toml"
    both = '["tiny_net.py:tiny_net", "other/tiny_net.py:tiny_net"]'
    scenario.write_text(scenario.read_text().replace('"tiny_net.py:tiny_net"', both))
    with pytest.raises(
        UsageError, match=r"tiny_net\.py:tiny_net: found .* and .*; allowed: one, or files of different"
    ):
        load(str(scenario))


@pytest.fixture
def site(tmp_path: Path, toys: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages in which one is installed that brings the toys."""
    site = tmp_path / "site"
    package, facts = site / "toy_plugins", site / "toy_plugins-1.2.dist-info"
    package.mkdir(parents=True)
    facts.mkdir()
    (package / "__init__.py").touch()
    for name in FILES[:3]:
        shutil.copy(toys / name, package / name)
    (package / "broken.py").write_text("\nimport no_such_thing\n")
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-plugins\nVersion: 1.2\n")
    (facts / "entry_points.txt").write_text(
        "[pacbench.models]\ntiny-net = toy_plugins.tiny_net:tiny_net\nbroken-net = toy_plugins.broken:net\n"
        "[pacbench.datasets]\nshifted = toy_plugins.shifted_digits:shifted_digits\n"
        "[pacbench.methods]\nblock-sign = toy_plugins.block_sign\ndense = toy_plugins.block_sign\n"
    )
    monkeypatch.syspath_prepend(site)
    forget()
    return site


def test_installed_plugins_are_named_listed_and_hashed_with_their_whole_package(site: Path, pacbench: Pacbench) -> None:
    listed = pacbench("list").stdout
    assert "(from toy-plugins 1.2)" in next(line for line in listed.splitlines() if "  tiny-net " in line)
    assert "(from toy-plugins 1.2)" in next(line for line in listed.splitlines() if "  shifted " in line)
    assert "(from toy-plugins 1.2)" in next(line for line in listed.splitlines() if "  block-sign " in line)
    broken = next(line for line in listed.splitlines() if "  broken-net " in line)
    assert f"cannot be used: {site}/toy_plugins/broken.py:2: ModuleNotFoundError" in broken
    assert "dense of toy-plugins 1.2" in listed
    changes = ("train.model=tiny-net", "train.dataset=shifted", "train.pace=none", "rounds=1")
    trial = make(load("quickstart", changes, ["dense"]), "fake").trials[0]
    assert trial.plugins.method is None, "pacbench's own comes first"
    assert trial.plugins.model == trial.plugins.dataset, "the package as a whole"
    (site / "toy_plugins" / "__init__.py").write_text("# edited\n")
    plugins.load.cache_clear()
    assert plugins.load("model", "tiny-net").digest != trial.plugins.model
    assert methods.method_named("block-sign").State().parameters == {"block": 256}
