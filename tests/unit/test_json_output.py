"""What verbs print with --json has the shape that JSON.md describes, and nothing else is on stdout."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from executed import execution
from in_process import call_pacbench
from typer.main import get_command

from harness.cli import app, json_output, json_reference, verbs
from harness.messages import Output
from harness.record.observed import Metric, Training
from harness.run import attached as run_attached

Pacbench = Callable[..., "subprocess.CompletedProcess[str]"]

pytestmark = pytest.mark.usefixtures("without_figures")

RUN = ("quickstart", "--on", "fake", "--set", "train.steps=40", "--rounds", "2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, without_figures: None) -> Path:
    """A folder with two runs."""
    place = tmp_path_factory.mktemp("runs")
    for name in ("one", "two"):
        assert call_pacbench(("run", *RUN, "--out", name), place).returncode == 0
    return place


def printed(folder: Path, *arguments: str, code: int = 0) -> Any:
    """What a verb prints, once its shape is that of its verb."""
    done = call_pacbench((*arguments, "--json"), folder)
    assert done.returncode == code, done.stderr
    json_reference.adapter(arguments[0]).validate_json(done.stdout, strict=True)
    return json.loads(done.stdout)


def test_runs_and_reports_tell_their_figures(folder: Path) -> None:
    (run,) = printed(folder, "run", *RUN, "--out", "one")
    assert run == printed(folder, "report", "one")
    by_label = {each["label"]: each for each in run["methods"]}
    ratio = by_label["topk"]["samples_per_s"]["value"] / by_label["bf16"]["samples_per_s"]["value"]
    assert by_label["topk"]["over"]["bf16"]["value"] == pytest.approx(ratio, rel=0.02)
    assert "bf16" not in by_label["bf16"]["over"]
    assert len(run["sentences"]) == 1


def test_status_counts_the_trials(folder: Path) -> None:
    status = printed(folder, "status", "one")
    assert status["done"] == status["trials"] > 0
    assert (status["failed"], status["at_work"]) == (0, [])


def test_a_plan_lists_its_trials(folder: Path) -> None:
    plan = printed(folder, "plan", *RUN)
    assert {trial["label"] for trial in plan["trials"]} >= {"dense", "bf16", "topk"}


def test_a_comparison_of_a_run_with_its_like_finds_nothing_slower(folder: Path) -> None:
    assert printed(folder, "compare", "one", "two")["exit_code"] == 0


def test_tuning_tells_each_rate(folder: Path) -> None:
    asked = ("tune", "quickstart", "--on", "fake", "--set", "train.steps=40", "--method", "topk", "--seeds", "1")
    tuned = printed(folder, *asked, "-o", "tuned.toml")
    topk = next(method for method in tuned["methods"] if method["label"] == "topk")
    assert topk["best_lr"] in [each["lr"] for each in topk["tried"]]
    assert (folder / tuned["written"]).is_file()


def test_a_map_gives_shares_of_its_grid(folder: Path) -> None:
    found = printed(folder, "map", "quickstart", "--profile", "fashion-cnn-xeon", "--method", "topk", "--out", "map")
    assert {each["label"] for each in found["shares"]} == {"topk"}
    assert all(0 <= each["share"] <= 1 for each in found["shares"])


def test_claims_are_printed_as_their_file_holds_them(folder: Path) -> None:
    found = printed(folder, "reproduce", "--claim", "dgc-bytes", "--on", "fake", "--out", "claims")
    assert found == json.loads((folder / "claims" / "claims.json").read_text())


@pytest.mark.parametrize("kind", ["methods", "json"])
def test_a_list_has_names_and_summaries(folder: Path, kind: str) -> None:
    found = printed(folder, "list", kind)
    assert {each["name"] for each in found[kind]} >= ({"dense"} if kind == "methods" else {"plan"})


def test_a_machine_is_examined(folder: Path) -> None:
    assert all(check["found"] for check in printed(folder, "doctor")["checks"])


def test_a_reference_tells_its_file_and_the_figures_of_its_run(folder: Path) -> None:
    found = printed(folder, "reference", RUN[0], "--from", "one", "--out", "reference.json")
    assert found["run"] == printed(folder, "report", "one")
    assert (folder / found["reference"]).is_file()


def test_a_gate_writes_its_shape_into_a_file(folder: Path) -> None:
    done = call_pacbench(("gate", "one", "--against", "two", "--json", "gate.json"), folder)
    written = (folder / "gate.json").read_text(encoding="utf-8")
    json_reference.adapter("gate").validate_json(written, strict=True)
    found = json.loads(written)
    assert found["exit_code"] == done.returncode
    assert {each["label"] for each in found["methods"]} >= {"bf16", "topk"}


@pytest.mark.parametrize("attached", [False, True])
def test_a_command_tells_what_its_links_carried_and_its_words_go_aside(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attached: bool
) -> None:
    seen = Training(method="topk", params={"ratio": 0.1}, seed=3, steps_asked=None, steps=7, shortfall=None)
    metrics = tuple(Metric(name="loss", value=value, steps=None) for value in (2.0, 1.5, 1.0))

    def ran(cluster, asked, job, into_scripts, shown, command, into):  # type: ignore[no-untyped-def]
        shown(Output(node="w0", rank=0, lines=["step 1"], to_stderr=False))
        return execution(training=seen, metrics=metrics) if attached else execution()

    monkeypatch.setattr(run_attached, "execute_attached", ran)
    done = call_pacbench(("exec", "--on", "netns", "--out", "record", "--json", "--", "python", "train.py"), tmp_path)
    assert done.returncode == 0, done.stderr
    json_reference.adapter("exec").validate_json(done.stdout, strict=True)
    assert "w0 | step 1\n" in done.stderr
    found = json.loads(done.stdout)
    assert [(each["link"], each["direction"], each["mean_bps"]) for each in found["links"]] == [
        *(("w0", "up", 800.0), ("w0", "down", 800.0), ("w1", "up", 800.0), ("w1", "down", 800.0))
    ]
    assert found["uses"][1]["exit_codes"] == {"1": 0}
    assert (tmp_path / found["report"]).is_file()
    assert (found["training"] is not None) == attached
    assert found["metrics"] == ([{"name": "loss", "times": 3, "first": 2.0, "last": 1.0}] if attached else [])


def test_every_verb_that_takes_json_has_a_shape() -> None:
    assert takes_json() == set(json_output.SHAPES)


def takes_json() -> set[str]:
    """The verbs with --json, as a switch or with a file's name."""
    commands = get_command(app.make_app()).commands  # type: ignore[attr-defined]
    return {
        name
        for name, command in commands.items()
        if any("--json" in getattr(each, "opts", ()) for each in command.params)
    }


TABLES = re.compile(r"print_table|run_and_report|write_report")
"""By which of our functions a verb prints tables."""


def test_every_verb_that_prints_a_table_takes_json() -> None:
    sources = {path.stem: path.read_text(encoding="utf-8") for path in Path(verbs.__path__[0]).glob("*.py")}
    print_tables = {name for name, source in sources.items() if TABLES.search(source)}
    assert {"run", "worker", "exec", "gate"} <= print_tables
    assert print_tables <= takes_json()


def test_the_page_is_what_the_types_say() -> None:
    page = Path(verbs.__file__).parents[3] / "JSON.md"
    assert page.read_text(encoding="utf-8") == json_reference.page()


def test_numbers_that_json_lacks_become_null(capsys: pytest.CaptureFixture[str]) -> None:
    json_output.print_json({"a": [float("inf"), float("nan"), 1.5], "b": (1,)})
    assert json.loads(capsys.readouterr().out) == {"a": [None, None, 1.5], "b": [1]}
