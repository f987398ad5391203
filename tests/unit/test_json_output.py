"""What verbs print with --json has the shape that JSON.md describes, and nothing else is on stdout."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from in_process import call_pacbench

from harness.cli import app, json_output, json_reference, verbs

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


def test_every_verb_that_takes_json_has_a_shape() -> None:
    from typer.main import get_command

    commands = get_command(app.make_app()).commands  # type: ignore[attr-defined]
    takes = {
        name
        for name, command in commands.items()
        if any("--json" in getattr(each, "opts", ()) and each.is_flag for each in command.params)
    }
    assert takes == set(json_output.SHAPES)


def test_the_page_is_what_the_types_say() -> None:
    page = Path(verbs.__file__).parents[3] / "JSON.md"
    assert page.read_text(encoding="utf-8") == json_reference.page()


def test_numbers_that_json_lacks_become_null(capsys: pytest.CaptureFixture[str]) -> None:
    json_output.print_json({"a": [float("inf"), float("nan"), 1.5], "b": (1,)})
    assert json.loads(capsys.readouterr().out) == {"a": [None, None, 1.5], "b": [1]}
