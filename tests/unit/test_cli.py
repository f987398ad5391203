"""The command line on the fake cluster: what it prints, and how it ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from in_process import call_pacbench
from synthetic import make_store

import baselines
from harness.cli import app, verbs
from harness.cli.verbs import reproduce
from harness.record.store import Store
from harness.report import facts, page
from harness.report.figures import registry
from harness.report.figures.throughput import throughput
from harness.scenario.load import load

Pacbench = Callable[..., "subprocess.CompletedProcess[str]"]

FAST = ("quickstart", "--on", "fake", "--set", "train.steps=40", "--set", "baseline_16bit=dense")


@pytest.fixture
def whole_pacbench(tmp_path: Path) -> Pacbench:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return call_pacbench(arguments, tmp_path)

    return run


@pytest.fixture
def pacbench(whole_pacbench: Pacbench, monkeypatch: pytest.MonkeyPatch) -> Pacbench:
    """The same, but verbs that run trials draw no report: its figures take longer than all else."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        with monkeypatch.context() as patch:
            if arguments and arguments[0] in ("run", "reference", "reproduce"):
                patch.setattr(page, "write", lambda store: store.folder / "report.html")
            return whole_pacbench(*arguments)

    return run


def test_help_names_every_verb(pacbench: Pacbench) -> None:
    done = pacbench()
    assert done.returncode == 0
    for verb in (
        *("list", "plan", "run", "report", "compare", "gate", "reference"),
        *("reproduce", "probe", "calibrate", "doctor", "clean"),
    ):
        assert verb in done.stdout
    assert done.stdout == pacbench("--help").stdout


def test_help_imports_nothing_heavy() -> None:
    heavy = {"docker", "matplotlib", "numpy", "pandas", "pydantic", "rich", "torch", "tqdm"}
    code = (
        "import sys; from harness.cli.main import make_app; make_app(); "
        f"import harness; harness.__all__; print(sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_verbs_are_listed_in_the_order_in_which_one_needs_them_and_others_follow(
    pacbench: Pacbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert app.names() == list(app.ORDER), "each file is a verb"
    (tmp_path / "greet.py").write_text(
        'def verb(name: str, loud: bool = False) -> None:\n    """Say hello."""\n    print("hello", name)\n'
    )
    monkeypatch.setattr(verbs, "__path__", [*verbs.__path__, str(tmp_path)])
    assert app.names() == [*app.ORDER, "greet"]
    assert pacbench("greet", "world").stdout == "hello world\n"
    assert re.search(r"greet +Say hello\.", pacbench("--help").stdout)


def test_methods_md_is_what_the_code_says(pacbench: Pacbench) -> None:
    written = (Path(__file__).resolve().parents[2] / "METHODS.md").read_text()
    assert written == pacbench("list", "methods", "-v").stdout, "run: pacbench list methods -v > METHODS.md"


def test_the_readme_counts_the_methods() -> None:
    written = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    assert f"It compares {len(baselines.names())} methods" in written


def test_list_shows_what_can_be_named(pacbench: Pacbench) -> None:
    everything = pacbench("list").stdout
    for name in ("quickstart", "pactrain", "digits-cnn", "fashion-mnist"):
        assert name in everything
    assert "quickstart" not in pacbench("list", "methods").stdout


def test_plan_starts_nothing_and_adds_up(pacbench: Pacbench, tmp_path: Path) -> None:
    plan = json.loads(pacbench("plan", "quickstart", "--json").stdout)
    assert len(plan["trials"]) == 18
    assert plan["total_s"] > sum(trial["time_s"] for trial in plan["trials"])
    dense = next(trial for trial in plan["trials"] if trial["label"] == "dense")
    topk = next(trial for trial in plan["trials"] if trial["label"] == "topk")
    # methods.md's crossover: top-k sends k * p of what dense does, here 3 %.
    assert topk["wire_bytes_per_step"] == pytest.approx(0.03 * dense["wire_bytes_per_step"], rel=0.01)
    assert list(tmp_path.iterdir()) == []
    assert "pactrain-ternary" in pacbench("plan", "quickstart").stdout


def test_a_run_goes_from_scenario_to_report_and_resumes(
    whole_pacbench: Pacbench, pacbench: Pacbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "figures", lambda for_paper=False: [throughput])  # one stands for all
    done = whole_pacbench("run", *FAST, "--rounds", "2")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (folder,) = (tmp_path / "results").iterdir()
    assert "12 trials" in done.stdout
    assert "85 % accuracy" in done.stdout
    assert " sooner than dense at 100 Mbit/s" in done.stdout
    assert str(folder.relative_to(tmp_path) / "report.html") in done.stdout
    assert {path.name for path in folder.iterdir()} >= {"trials.parquet", "events.parquet", "report.html", "report.md"}

    (folder / "report.html").unlink()
    assert whole_pacbench("report", str(folder), "--paper").returncode == 0
    assert (folder / "paper" / "results.tex").exists()
    assert (folder / "report.html").exists()

    next(iter((folder / "trials.parquet").glob("*.parquet"))).unlink()
    again = pacbench("run", *FAST, "--rounds", "2")
    assert "11 of 12 trials are done" in again.stdout
    assert "all 12 trials are done" in pacbench("run", *FAST, "--rounds", "2", "--out", str(folder)).stdout


def test_a_target_that_files_written_before_had_is_still_read(pacbench: Pacbench, tmp_path: Path) -> None:
    methods = "".join(f"[[methods]]\nname = '{name}'\n" for name in ("dense", "topk"))
    (tmp_path / "old.toml").write_text(f"rounds = 1\n[train]\nsteps = 40\ntarget_accuracy = 0.9\n{methods}")
    assert pacbench("run", "old.toml", "--on", "fake", "--out", "run").returncode == 0
    assert set(Store.open(tmp_path / "run").trials()["target"]) == {"accuracy 0.9"}


def test_more_seeds_are_trained_where_the_rounds_leave_accuracy_unknown(pacbench: Pacbench, tmp_path: Path) -> None:
    """What the fake cluster recites is the same for all methods: known after two rounds, and after one never."""
    planned = json.loads(pacbench("plan", "quickstart", "--set", "accuracy_seeds=8", "--json").stdout)
    assert planned["more_seeds"] == 6 * 5
    done = pacbench("run", *FAST, "--rounds", "3", "--out", "known")
    assert done.returncode == 0, done.stderr
    again = pacbench("run", *FAST, "--rounds", "3", "--seeds", "8", "--out", "known")
    assert again.returncode == 0, again.stderr
    assert "all 18 trials are done already; nothing is run again" in again.stdout, (
        "another cap of seeds is the same run"
    )
    assert len(Store.open(tmp_path / "known").trials()) == 6 * 3


def test_several_scenarios_get_a_folder_each(pacbench: Pacbench, tmp_path: Path) -> None:
    done = pacbench(
        "run", "quickstart", "ci", "--on", "fake", "--rounds", "1", "--method", "topk", "--out", str(tmp_path / "all")
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "all").iterdir()} == {"quickstart", "ci"}


@pytest.mark.parametrize("claim", ["netsenseml", "byteps-100mbit-topk"])
def test_claims_that_nothing_can_be_run_for_have_a_page(pacbench: Pacbench, tmp_path: Path, claim: str) -> None:
    done = pacbench("reproduce", "--on", "fake", "--claim", claim, "--json")
    assert done.returncode == 0, done.stderr
    (told,) = json.loads(done.stdout)["claims"]
    assert told["verdict"] in ("not testable here", "source inconsistent")


def test_claims_are_reproduced_resumed_and_judged(pacbench: Pacbench, tmp_path: Path) -> None:
    wanted = ("--claim", "byteps-25gbit-topk/dense", "--claim", "byteps-25gbit-onebit/dense")
    command = ("reproduce", "--on", "fake", "--quick", *wanted)
    announced = pacbench(*command, "--plan")
    assert announced.returncode == 0, announced.stderr
    assert "2 claims: about" in announced.stdout
    assert list(tmp_path.iterdir()) == []

    done = pacbench(*command)
    assert done.returncode == 0, done.stderr
    assert "byteps-25gbit-topk: of 1, 1 " in done.stdout
    content = json.loads((tmp_path / "results" / "claims" / "claims.json").read_text())
    assert [each["id"] for each in content["claims"]] == ["byteps-25gbit-topk/dense", "byteps-25gbit-onebit/dense"]
    for each in content["claims"]:
        assert each["found"]["n"] == 3 if each["verdict"] == "inconclusive" else each["found"]["n"] in (2, 3)
        assert each["origins"]
        assert bool(each["decides"]) == (each["verdict"] == "inconclusive")
    written = {path.name for path in (tmp_path / "results" / "claims").iterdir()}
    assert written >= {"claims.md", "claims.png", "turning.csv"}

    (folder,) = (tmp_path / "results").glob("byteps-*")
    before = set(Store.open(folder).attempts()["trial_id"])
    assert pacbench(*command).returncode == 0
    assert set(Store.open(folder).attempts()["trial_id"]) == before, "nothing is run again"
    whole = pacbench("reproduce", "--on", "fake", "--claim", "byteps-25gbit-topk/dense")
    assert whole.returncode == 0, whole.stderr
    assert set(Store.open(folder).attempts()["trial_id"]) >= before, "a quick run is a part of the whole one"
    assert list((tmp_path / "results").glob("byteps-*")) == [folder]

    held = contents(folder)
    again = pacbench("reproduce", "--judge", "results", *wanted, "--out", "again", "--json")
    assert again.returncode == 0, again.stderr
    told = json.loads(again.stdout)
    assert [each["id"] for each in told["claims"]] == [each["id"] for each in content["claims"]]
    assert told["claims"][1]["found"] == content["claims"][1]["found"]
    assert folder.name in told["provenance"]["runs"]
    assert contents(folder) == held, "what is judged is only read"


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_has_run_is_judged_when_the_rest_is_interrupted(
    pacbench: Pacbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carry_out, begun = reproduce._carry_out, []

    def interrupted(*arguments: Any) -> Any:
        begun.append(arguments)
        if len(begun) > 1:
            raise KeyboardInterrupt
        return carry_out(*arguments)

    monkeypatch.setattr(reproduce, "_carry_out", interrupted)
    done = pacbench(
        "reproduce", "--on", "fake", "--claim", "byteps-25gbit-topk/dense", "--claim", "dgc-bytes/dense/wire"
    )
    assert done.returncode == 130
    assert "interrupted; what had finished is kept" in done.stderr
    told = json.loads((tmp_path / "results" / "claims" / "claims.json").read_text())["claims"]
    run, left = sorted(told, key=lambda each: not each["origins"])
    assert run["found"]["n"] == 2
    assert (left["verdict"], left["origins"]) == ("inconclusive", [])


def test_two_commands_in_one_folder_keep_what_the_other_one_runs_open(pacbench: Pacbench, tmp_path: Path) -> None:
    """The other one may have ended later; then the same command resumes."""
    command = ("reproduce", "--on", "fake", "--claim", "byteps-25gbit-topk/dense")
    scenario = load("paper/byteps-resnet18-cifar")
    other = Store.create(tmp_path / "results" / "byteps-resnet18-cifar-20260101-000000", scenario)
    with other.locked():
        done = pacbench(*command)
    assert done.returncode == 5
    assert "another pacbench run is using this folder" in done.stdout + done.stderr
    (told,) = json.loads((tmp_path / "results" / "claims" / "claims.json").read_text())["claims"]
    assert told["verdict"] == "inconclusive"
    assert told["decides"] == "the same command, when the other one that uses its folder has ended"
    assert pacbench(*command).returncode == 0
    (told,) = json.loads((tmp_path / "results" / "claims" / "claims.json").read_text())["claims"]
    assert told["origins"]


def test_a_run_with_other_settings_is_told_where_claims_are_judged_by_it(pacbench: Pacbench, tmp_path: Path) -> None:
    name = "byteps-resnet18-cifar-20260101-000000"
    make_store(tmp_path / "results" / name, ["train.steps=12"], "paper/byteps-resnet18-cifar")
    done = pacbench("reproduce", "--judge", "results", "--claim", "byteps-25gbit-topk/dense", "--out", "here", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["provenance"]["differs"] == {name: "train.steps is 12, not 8"}
    sentence = f"{name} was run with other settings than the scenario comes with: train.steps is 12, not 8."
    assert sentence in done.stderr
    assert sentence in (tmp_path / "here" / "claims.html").read_text()
    assert "train.steps is 12, not 8" in (tmp_path / "here" / "claims.md").read_text()


def test_rounds_end_when_every_interval_is_narrow_and_the_same_command_runs_no_more(
    pacbench: Pacbench, tmp_path: Path
) -> None:
    command = ("run", *FAST, "--method", "topk", "--until", "20%")
    done = pacbench(*command)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "results").iterdir()
    assert sorted(set(Store.open(folder).trials()["round"])) == [0, 1, 2, 3, 4]
    assert Store.open(folder).provenance()[-1]["until"] == 0.2
    assert facts.collect(Store.open(folder)).not_run == []
    assert "every interval is narrow enough already" in pacbench(*command).stdout
    assert list((tmp_path / "results").iterdir()) == [folder]


def test_rounds_end_at_their_limit_though_intervals_are_wide(pacbench: Pacbench, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = pacbench("run", *FAST, "--method", "topk", "--until", "0.0001%", "--rounds", "6", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert Store.open(out).trials()["round"].max() == 5
    assert "after 6 rounds an interval still reaches further than 0.0001 %" in done.stdout


def test_a_gate_holds_a_run_against_a_reference_made_by_one_command(pacbench: Pacbench, tmp_path: Path) -> None:
    made = pacbench("reference", *FAST, "--method", "topk")
    assert made.returncode == 0, made.stderr
    reference = tmp_path / "results" / "reference" / "quickstart.json"
    assert json.loads(reference.read_text())["provenance"][0]["command"][:2] == ["pacbench", "reference"]
    assert len(json.loads(reference.read_text())["trials"]) == 20

    out = tmp_path / "run"
    assert pacbench("run", *FAST, "--method", "topk", "--out", str(out)).returncode == 0
    files = {kind: tmp_path / f"gate.{kind}" for kind in ("markdown", "junit", "json", "benchmark-json")}
    options = [part for kind, path in files.items() for part in (f"--{kind}", str(path))]
    done = pacbench("gate", str(out), "--against", str(reference), *options)
    assert done.returncode == 0, done.stderr
    assert "pass at a limit of 10 %: 1 pass" in done.stdout
    assert all(path.stat().st_size > 100 for path in files.values())
    assert json.loads(files["json"].read_text())["verdict"] == "pass"

    again = pacbench("reference", "quickstart", "--from", str(out), "--out", str(tmp_path / "other.json"))
    assert again.returncode == 0, again.stderr
    assert pacbench("compare", str(tmp_path / "other.json"), str(out)).returncode == 0
    assert pacbench("reference", "ci", "--from", str(out)).returncode == 2
    for option in (("--set", "train.steps=9"), ("--method", "topk"), ("--rounds", "3"), ("--on", "fake")):
        refused = pacbench("reference", "quickstart", "--from", str(out), *option)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert f"{option[0]}: found 'with --from'; allowed: the run as it is" in refused.stderr


def test_the_workflow_that_is_shown_uses_options_that_there_are(pacbench: Pacbench) -> None:
    workflow = (Path(__file__).resolve().parents[2] / "examples" / "github-actions.yml").read_text()
    commands = re.findall(r"pacbench (run|gate|doctor)\b(.*)", workflow.replace("\\\n", " "))
    assert {verb for verb, _ in commands} == {"run", "gate", "doctor"}
    for verb, arguments in commands:
        known = pacbench(verb, "--help").stdout
        assert all(option in known for option in re.findall(r"--[a-z-]+", arguments)), (verb, arguments)


@pytest.mark.parametrize(
    ("topk", "code", "says"),
    [
        ([300.0, 301.0, 299.0], 3, "regression at a limit of 10 %: 1 regression"),
        ([500.0, 900.0, 250.0], 4, "inconclusive at a limit of 10 %: 1 inconclusive"),
        ([500.0, 501.0, None], 5, "failed at a limit of 10 %: 1 failed"),
    ],
)
def test_every_verdict_has_its_exit_code(
    pacbench: Pacbench, tmp_path: Path, topk: list[float | None], code: int, says: str
) -> None:
    for name, rates in (("before", [500.0, 501.0, 499.0]), ("after", topk)):
        ends = {("dense", number): {"samples_per_s": 100.0} for number in range(3)} | {
            ("topk", number): {"samples_per_s": rate} if rate else {"status": "timeout", "reason": "too long"}
            for number, rate in enumerate(rates)
        }
        make_store(tmp_path / name, ["train.steps=8"], methods=["topk"], ends=ends)
    done = pacbench("gate", "after", "--against", "before")
    assert done.returncode == code
    assert says in done.stdout
    assert done.stderr == ""
    compared = pacbench("compare", "before", "after", "--json")
    assert compared.returncode == (3 if code == 3 else 0)
    assert json.loads(compared.stdout)["changes"][1]["label"] == "topk"


def test_what_cannot_be_compared_is_one_line(pacbench: Pacbench, tmp_path: Path) -> None:
    make_store(tmp_path / "run", ["rounds=2", "train.steps=8"], methods=["topk"])
    make_store(tmp_path / "other", ["rounds=2", "train.steps=9"], methods=["topk"])
    make_store(tmp_path / "empty", ["rounds=2", "train.steps=8"], methods=["topk"])
    for path in (tmp_path / "empty" / "trials.parquet").iterdir():
        path.unlink()
    (tmp_path / "old.json").write_text('{"format": 0}')
    for before, after, code, says in (
        ("other", "run", 2, "train.steps is 8 and was 9"),
        ("run", "empty", 5, "nothing was measured"),
        ("empty", "run", 5, "nothing was measured"),
        ("old.json", "run", 2, "format: found 0"),
        ("nowhere", "run", 2, "found 'nowhere'"),
    ):
        for command in (["gate", after, "--against", before], ["compare", before, after]):
            done = pacbench(*command)
            assert done.returncode == code, command
            assert says in done.stderr
            assert done.stderr.count("\n") == 1
    done = pacbench("gate", "run", "--against", "run", "--max-slowdown", "ten")
    assert done.returncode == 2
    assert "--max-slowdown: found 'ten'; allowed: a percentage above zero, such as '10%'" in done.stderr
    assert pacbench("gate", "run", "--against", "run", "--junit", "/nowhere/x").returncode == 2


def test_of_two_kinds_of_cluster_there_is_a_page_and_no_json(pacbench: Pacbench, tmp_path: Path) -> None:
    for kind in ("netns", "fake"):
        make_store(tmp_path / kind, ["rounds=2", "train.steps=8"], cluster=kind, methods=["topk"])
    done = pacbench("compare", "netns", "fake", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--json: found 'two kinds of cluster'; allowed: runs on one kind of cluster" in done.stderr
    assert "| method | samples/s on netns" in pacbench("compare", "netns", "fake").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["run", "nosuch"], 2, "SCENARIO: found 'nosuch'"),
        (["run", *FAST, "--on", "mars"], 2, "--on: found 'mars'; allowed: auto, netns, uml, docker, fake"),
        (["run", *FAST, "--set", "train.lr=x"], 2, "train.lr: found 'x'"),
        (["run", *FAST, "--method", "zip"], 2, "--method: found 'zip'"),
        (["run", *FAST, "--out", "/dev/null/x"], 2, "--out: found '/dev/null/x'"),
        (["run", *FAST, "--rounds", "0"], 2, "rounds: found 0"),
        (["reference", *FAST, "--rounds", "0"], 2, "rounds: found 0"),
        (["run", *FAST, "--rounds", "many"], 2, "--rounds"),
        (["run", *FAST, "--set", "train.target=f1 0.9"], 2, "train.target: found 'f1 0.9'; allowed: a target such as"),
        (["run", *FAST, "--set", "train.target=perplexity 9"], 2, "only a language has a perplexity"),
        (
            ["run", "ci", "--on", "fake", "--set", "train.target=loss 1"],
            2,
            "allowed: 'none' with train.replay: nothing is learnt",
        ),
        (["run", *FAST, "--set", "train.steps=8"], 2, "train.steps: found 8; allowed: more than "),
        (["run", *FAST, "--set", "tolerance=-0.1"], 2, "tolerance: found -0.1; allowed: greater than or equal to 0"),
        (["run", *FAST, "--set", "baseline=nope"], 2, "baseline: found 'nope'; allowed: the label of a method"),
        (["run", *FAST, "--set", "baseline_16bit=nope"], 2, "baseline_16bit: found 'nope'; allowed: the label of a"),
        (["run", *FAST, "--seeds", "-1"], 2, "--seeds"),
        (["run", *FAST, "--seeds", "8", "--rounds", "1"], 2, "--seeds: found 8; allowed: more than the rounds"),
        (
            ["run", *FAST, "--set", "train.target=[]"],
            2,
            "train.target: found []; allowed: one value, or a list of some",
        ),
        (["run", *FAST, "--until", "0%"], 2, "--until: found '0%'; allowed: a percentage above zero"),
        (["plan"], 2, "SCENARIO"),
        (["plan", *FAST, "--show-tc", "--json"], 2, "--json: found 'with --show-tc'"),
        (["list", "methods", "-v", "--json"], 2, "--json: found 'with -v'"),
        (
            ["reproduce", "--judge", ".", "--quick"],
            2,
            "--quick: found 'with --judge'; allowed: --claim, --out and --json",
        ),
        (
            ["reproduce", "--judge", ".", "--on", "fake"],
            2,
            "--on: found 'with --judge'; allowed: --claim, --out and --js",
        ),
        (["reproduce", "--judge", "."], 2, "--judge: found '.'; allowed: a folder with runs of pactrain-resnet152, "),
        (["reproduce", "--claim", "nosuch"], 2, "--claim: found 'nosuch'; allowed: pactrain-throughput"),
        (["list", "models", "-v"], 2, "found 'list models'; allowed: list methods -v"),
        (["list", "beer"], 2, "found 'beer'; allowed: scenarios, methods, models, datasets"),
        (["report", "."], 2, "RUN_DIR: found '.'"),
        (["probe", "--rate", "5"], 2, "link.rate: found '5'"),
        (["probe", "--workers", "1"], 2, "workers: found 1"),
        (["fly"], 2, "No such command 'fly'"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(pacbench: Pacbench, arguments: list[str], code: int, says: str) -> None:
    done = pacbench(*arguments)
    assert done.returncode == code
    assert says in done.stderr
    assert done.stderr.startswith("pacbench: ")
    assert done.stderr.count("\n") == 1


def test_a_damaged_run_is_one_line_and_stays_as_it_is(pacbench: Pacbench, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert pacbench("run", *FAST, "--rounds", "1", "--out", str(out)).returncode == 0
    damaged = next(iter((out / "trials.parquet").glob("*.parquet")))
    damaged.write_bytes(b"not parquet")
    before = sorted(path.name for path in (out / "trials.parquet").iterdir())
    for command in (["report", str(out)], ["run", *FAST, "--rounds", "1", "--out", str(out)]):
        done = pacbench(*command)
        assert done.returncode == 2
        assert f"{damaged.name}: damaged" in done.stderr
        assert done.stderr.count("\n") == 1
    assert sorted(path.name for path in (out / "trials.parquet").iterdir()) == before


def test_an_empty_run_measured_nothing(pacbench: Pacbench, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert pacbench("run", *FAST, "--rounds", "1", "--out", str(out)).returncode == 0
    for path in (out / "trials.parquet").glob("*.parquet"):
        path.unlink()
    done = pacbench("report", str(out))
    assert done.returncode == 5
    assert "nothing was measured" in done.stderr


def completed(words: str, folder: Path) -> list[str]:
    """What a shell offers for the last of these words."""
    environment = {
        **os.environ,
        "_PACBENCH_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    command = [str(Path(sys.executable).with_name("pacbench"))]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.split()


def test_a_shell_completes_verbs_scenarios_files_and_methods(tmp_path: Path) -> None:
    (tmp_path / "quick.toml").touch()
    assert completed("pacbench rep", tmp_path) == ["report", "reproduce"]
    assert completed("pacbench run quick", tmp_path) == ["quickstart", "quick.toml"]
    assert completed("pacbench plan quickstart --method pact", tmp_path) == ["pactrain"]
    assert completed("pacbench run quickstart --on net", tmp_path) == ["netns"]


def test_open_shows_the_newest_page(whole_pacbench: Pacbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown, browser = tmp_path / "shown", tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {shown}\n')
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER", str(browser))
    done = whole_pacbench("open")
    assert (done.returncode, "allowed: a folder in or below which there is a page" in done.stderr) == (2, True)
    for age, name in enumerate(["old", "new"]):
        page_file = tmp_path / "results" / name / "report.html"
        page_file.parent.mkdir(parents=True)
        page_file.touch()
        os.utime(page_file, (age, age))
    assert whole_pacbench("open").stdout == "results/new/report.html\n"
    assert shown.read_text().strip() == page_file.as_uri()
