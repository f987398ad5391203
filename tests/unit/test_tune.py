"""Learning rates: all methods get the same number of trials, and the best is not left at an edge."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
from in_process import call_pacbench

from harness.errors import MeasurementError, UsageError
from harness.run.tuning import GRID, Tried, best_rates, check, stage
from harness.scenario.load import load

SHORT = ("train.pace=none", "train.steps=24")

PLUGINS = Path(__file__).resolve().parents[2] / "examples" / "plugins"


def valley(at: float, rates: list[float]) -> Tried:
    return Tried("m", {rate: math.log(rate / at) ** 2 for rate in rates})


def test_the_grid_is_widened_towards_the_best_and_else_refined() -> None:
    rates = [0.25, 0.5, 1.0, 2.0, 4.0]
    below, within, above = (valley(at, rates) for at in (0.1, 0.9, 9.0))
    assert (below.next_rate(), above.next_rate()) == (0.125, 8.0)
    assert (below.is_at_edge, within.is_at_edge, above.is_at_edge) == (True, False, True)
    assert within.next_rate() == pytest.approx(math.sqrt(0.5))


def test_a_method_that_always_diverges_has_no_rate() -> None:
    with pytest.raises(MeasurementError, match="topk: it diverged with every rate"):
        best_rates([Tried("topk", {0.1: math.inf, 0.2: math.inf})])


def test_a_stage_has_the_same_trials_for_all_on_unshaped_links() -> None:
    scenario = load("quickstart")
    grid = {method.label: GRID for method in scenario.methods}
    made = stage(scenario, grid, seeds=2, steps=8)
    assert len(made.methods) == len(GRID) * len(scenario.methods)
    assert (made.rounds, made.cases[0].train.steps, made.cases[0].link.rate_bps) == (2, 8, None)


def test_several_workloads_are_refused() -> None:
    with pytest.raises(UsageError, match="found '2 workloads'; allowed: one"):
        check(load("quickstart", ["train.batch_size=[16, 32]"]), GRID)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--seeds", "1001"), "--seeds"),
        (("--steps", "1000001"), "--steps"),
        (("--steps", "8", "--set", "train.schedule={kind='cosine',warmup_steps=8}"), "--steps: found 8; allowed: more"),
        (("--grid", "0.010001,0.010002,0.010003"), "--grid: found [0.010001, 0.010002, 0.010003]; allowed: rates that"),
        (("--grid", "0.01,0.01,0.02,0.03"), "--grid: found [0.01, 0.01, 0.02, 0.03]; allowed: rates that differ"),
        (("--grid", ""), "--grid: found ''; allowed: "),
        (("--method", "long"), "methods.0.label: found 'xxx"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, tuple) else "",
)
def test_what_no_stage_can_be_is_refused_before_anything_is_stored(
    tmp_path: Path, options: tuple[str, ...], says: str
) -> None:
    """What is stored would be gone on with by the corrected command."""
    longest = "x" * 199 if "long" in options else "dense"
    content = (
        f'rounds = 1\nbaseline = "{longest}"\n[train]\nsteps = 24\n[[methods]]\nname = "dense"\nlabel = "{longest}"\n'
    )
    (tmp_path / "own.toml").write_text(content)
    more = options if "long" not in options else ()
    done = call_pacbench(("tune", "own.toml", "-o", "tuned.toml", "--on", "fake", *more), tmp_path)
    assert done.returncode == 2, done
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert [each.name for each in tmp_path.iterdir()] == ["own.toml"]


def test_rates_are_written_into_a_scenario_that_says_so(tmp_path: Path) -> None:
    short = (word for setting in SHORT for word in ("--set", setting))
    options = ("--on", "fake", "--seeds", "1", "--method", "topk", *short)
    done = call_pacbench(("tune", "quickstart", "-o", "tuned.toml", "--folder", "runs", *options), tmp_path)
    assert done.returncode == 0, done.stderr
    tuned = load(str(tmp_path / "tuned.toml"))
    assert all(method.lr for method in tuned.methods)
    assert tuned.tuned is not None
    assert tuned.tuned.startswith("pacbench tune quickstart")
    assert tuned.cases == load("quickstart", SHORT).cases
    again = call_pacbench(("tune", "quickstart", "-o", "again.toml", "--folder", "runs", *options), tmp_path)
    assert again.returncode == 0, again.stderr
    assert load(str(tmp_path / "again.toml")).methods == tuned.methods


def test_an_optimizer_of_a_methods_own_is_written_too(tmp_path: Path) -> None:
    optimizer = 'optimizer = { name = "adamw", betas = [0.8, 0.95] }\nlr = 0.001\n'
    methods = f'[[methods]]\nname = "dense"\n[[methods]]\nname = "topk"\n{optimizer}'
    (tmp_path / "own.toml").write_text(f"rounds = 1\n[train]\nsteps = 24\n{methods}")
    done = call_pacbench(("tune", "own.toml", "-o", "tuned.toml", "--on", "fake", "--seeds", "1"), tmp_path)
    assert done.returncode == 0, done.stderr
    given, found = (load(str(tmp_path / name)).methods[1].optimizer for name in ("own.toml", "tuned.toml"))
    assert found == given
    assert found is not None


def test_plugins_that_were_tuned_are_found_from_another_folder(tmp_path: Path) -> None:
    shutil.copytree(PLUGINS, tmp_path / "toys")
    (tmp_path / "elsewhere").mkdir()
    options = ("--on", "fake", "--seeds", "1", "--set", "train.target=none", "--set", "train.steps=24")
    done = call_pacbench(("tune", "toys/own.toml", "-o", "elsewhere/tuned.toml", *options), tmp_path)
    assert done.returncode == 0, done.stderr
    tuned, plain = load(str(tmp_path / "elsewhere" / "tuned.toml")), load(str(tmp_path / "toys" / "own.toml"))
    assert tuned.cases[0].train.model == f"{tmp_path}/toys/tiny_net.py:tiny_net"
    assert [(each.name, each.params) for each in tuned.methods] == [(each.name, each.params) for each in plain.methods]
    assert all(method.lr for method in tuned.methods)
