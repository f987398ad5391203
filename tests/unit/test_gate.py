"""Gates: verdicts that follow from numbers, references, and what they write."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from gate_runs import EVIL, MakeRun, around, store_of
from scipy.stats import ttest_ind
from synthetic import make_store

from harness.analysis import compare, gate, reference
from harness.analysis.gate import judge
from harness.analysis.noise import Noise
from harness.analysis.reference import Measured, read
from harness.analysis.shifts import log_shift
from harness.errors import MeasurementError, UsageError
from harness.record.store import Store
from harness.report import export, text, verdicts
from harness.scenario.load import load


def verdict_of(found: gate.Gate) -> tuple[str, int]:
    (judgement,) = found.methods
    return judgement.verdict, found.exit_code


@pytest.mark.parametrize(
    ("now", "spread", "verdict", "code"),
    [
        (500.0, 0.01, "pass", 0),
        (600.0, 0.01, "pass", 0),
        (480.0, 0.01, "pass", 0),  # 4 % slower, certainly so, and certainly less than 10 %
        (500 / 1.1, 0.01, "regression", 3),  # exactly at the limit
        (250.0, 0.01, "regression", 3),
        (500.0, 0.2, "inconclusive", 4),
        (250.0, 0.2, "regression", 3),  # however noisy
    ],
)
def test_a_verdict_is_what_the_interval_rules_out(
    make_run: MakeRun, now: float, spread: float, verdict: str, code: int
) -> None:
    found = judge(make_run(around(now, spread)), make_run(around(500.0, spread)))
    assert verdict_of(found) == (verdict, code)


@pytest.mark.parametrize(
    ("now", "computing", "verdict"),
    [
        (300.0, 6.8, "inconclusive"),  # the rest of the machine was busy
        (300.0, 1.05, "regression"),  # a slowdown of 67 % is more than it explains
        (500.0, 6.8, "pass"),  # nothing became slower, in spite of it
        (500.0, 0.5, "inconclusive"),  # a slowdown may hide behind a faster machine
        (500.0, 0.97, "pass"),
    ],
)
def test_what_the_machine_explains_is_held_neither_against_a_method_nor_to_its_credit(
    make_run: MakeRun, now: float, computing: float, verdict: str
) -> None:
    run, before = make_run(around(now)), make_run(around(500.0))
    run.trials["compute_s_per_step"] *= computing
    found = judge(run, before)
    assert verdict_of(found)[0] == verdict
    assert found.methods[0].change.computing == pytest.approx(computing)
    if verdict == "inconclusive":
        assert f"surely took {computing:.2f} times as long to compute" in found.methods[0].reason


def test_a_method_is_judged_at_the_pace_of_the_references_machine(make_run: MakeRun) -> None:
    """The processor takes 40 % of top-k's step and nothing of dense's, and becomes half as fast."""
    before = make_run(around(500.0))
    topk = before.trials["label"] == "topk"
    step_s = before.trials["workers"] * before.trials["batch_size"] / before.trials["samples_per_s"]

    def run(processor_share: float, yardstick_s: float) -> Measured:
        longer = 1 + (processor_share - 0.4) * topk
        trials = before.trials.assign(
            samples_per_s=before.trials["samples_per_s"] / longer,
            processor_s_per_step=processor_share * step_s * topk,
            compute_s_per_step=before.trials["compute_s_per_step"] * np.nan_to_num(yardstick_s / 1e-3, nan=1.0),
            yardstick_s=yardstick_s,
        )
        return replace(before, trials=trials)

    unknown = math.nan
    assert verdict_of(judge(run(0.8, unknown), run(0.4, unknown)))[0] == "regression", "nothing tells of the machine"
    found = judge(run(0.8, 2e-3), run(0.4, 1e-3))
    assert verdict_of(found) == ("pass", 0)
    assert found.methods[0].slowdown is not None
    assert found.methods[0].slowdown[0] == pytest.approx(0.0, abs=1e-9)
    assert any("2.00 times as long for a fixed piece of work" in note for note in verdicts.notes(found))
    assert verdict_of(judge(run(1.2, 2e-3), run(0.4, 1e-3)))[0] == "regression", "more than the machine explains"
    assert verdict_of(judge(run(0.4, 0.5e-3), run(0.4, 1e-3)))[0] == "regression", "a faster machine hides nothing"


def test_the_limit_is_the_one_that_is_given(make_run: MakeRun) -> None:
    run, before = make_run(around(500 / 1.25)), make_run(around(500.0))
    assert verdict_of(judge(run, before, 0.2)) == ("regression", 3)
    assert verdict_of(judge(run, before, 0.5)) == ("pass", 0)


def test_a_slower_machine_is_no_regression(make_run: MakeRun) -> None:
    before = make_run(around(500.0), [100.0] * 5)
    after = make_run(around(50.0), [10.0] * 5)
    found = judge(after, before)
    assert verdict_of(found) == ("pass", 0)
    (change,) = [change for change in compare.changes(before, after) if change.label == "topk"]
    assert change.absolute is not None
    assert change.absolute.value == pytest.approx(0.1)


def test_rounds_that_agree_by_chance_are_not_believed_to_be_quieter_than_the_machine(make_run: MakeRun) -> None:
    """The run's two rounds differ by nothing; what a round varies by is known from the reference's."""
    quiet = log_shift(np.array([1.0, 1.0]), np.array([1.0, 1.0]), (None, None)).estimate()
    floored = log_shift(np.array([1.0, 1.0]), np.array([1.0, 1.0]), (Noise(0.1, 8), Noise(0.1, 8))).estimate()
    assert (quiet.low, quiet.high) == (1.0, 1.0)
    assert floored.low is not None
    assert floored.low < 0.8


def test_a_slowdown_reads_as_longer_steps(make_run: MakeRun) -> None:
    found = judge(make_run(around(400.0)), make_run(around(500.0)))
    (judgement,) = found.methods
    value, low, high = judgement.slowdown or (None, None, None)
    assert value == pytest.approx(0.25)
    assert low is not None
    assert high is not None
    assert low < 0.25 < high
    assert text.slowdown(judgement.slowdown).startswith("+25.0 % [+2")


def test_the_interval_is_welchs_as_scipy_knows_it() -> None:
    before, after = [0.0, 0.1, 0.05, 0.2], [0.3, 0.5, 0.35]
    found = log_shift(np.exp(before), np.exp(after), (None, None)).estimate()
    expected = ttest_ind(after, before, equal_var=False).confidence_interval(0.95)
    assert np.log([found.low, found.high]) == pytest.approx([expected.low, expected.high])  # type: ignore[list-item]


@pytest.mark.parametrize("lost", [1, 4, 5])
def test_a_trial_that_did_not_finish_never_passes(make_run: MakeRun, lost: int) -> None:
    run = make_run([None] * lost + around(500.0)[lost:])
    found = judge(run, make_run(around(500.0)))
    assert verdict_of(found) == ("failed", 5)
    assert found.methods[0].reason.count("crashed: w1: <script>") == lost


def test_a_baseline_that_lost_a_trial_is_judged_too(make_run: MakeRun) -> None:
    run = make_run(around(500.0), [None, 100.0, 100.0, 100.0, 100.0])
    found = judge(run, make_run(around(500.0)))
    assert {(j.change.label, j.verdict) for j in found.methods} == {("dense", "failed"), ("topk", "pass")}
    assert found.exit_code == 5


def test_a_regression_is_graver_than_what_failed(make_run: MakeRun) -> None:
    run = make_run(around(300.0), [None, 100.0, 100.0, 100.0, 100.0])
    assert judge(run, make_run(around(500.0))).exit_code == 3


def test_one_round_is_inconclusive(make_run: MakeRun) -> None:
    found = judge(make_run([500.0]), make_run(around(500.0)))
    assert verdict_of(found) == ("inconclusive", 4)
    assert "1 round in which both it and the baseline have a throughput; 2 are needed" in found.methods[0].reason


@pytest.fixture
def of_both_and_of_one(tmp_path: Path) -> tuple[Measured, Measured]:
    """A run of top-k and bf16, and one that was asked for top-k alone."""
    overrides = ["rounds=5", "train.steps=8"]
    both = read(make_store(tmp_path / "both", overrides, methods=["topk", "bf16"]).folder)
    return both, read(make_store(tmp_path / "one", overrides, methods=["topk"]).folder)


def test_a_method_that_the_reference_lacks_is_inconclusive(of_both_and_of_one: tuple[Measured, Measured]) -> None:
    both, one = of_both_and_of_one
    found = {j.change.label: (j.verdict, j.reason) for j in judge(both, one).methods}
    assert found["topk"][0] == "pass"
    assert found["bf16"] == ("inconclusive", f"{one.where} does not have it")


def test_what_a_run_was_not_asked_for_is_named_and_not_judged(of_both_and_of_one: tuple[Measured, Measured]) -> None:
    both, one = of_both_and_of_one
    found = judge(one, both)
    assert {j.change.label: j.verdict for j in found.methods} == {"topk": "pass"}
    assert found.exit_code == 0
    note = "not judged, since this run was not asked for them: bf16"
    assert note in verdicts.notes(found)
    assert note in verdicts.as_markdown(found)


def test_what_a_run_was_asked_for_and_never_started_is_inconclusive(make_run: MakeRun) -> None:
    run = make_run(around(500.0))
    run = replace(run, trials=run.trials.query("label != 'topk'"))
    assert verdict_of(judge(run, make_run(around(500.0)))) == ("inconclusive", 4)


def test_several_cases_are_judged_each(tmp_path: Path) -> None:
    overrides = ['link.rate=["10mbit", "unshaped"]', "rounds=4", "train.steps=8"]
    before, after = (read(make_store(tmp_path / name, overrides, methods=["topk"]).folder) for name in "ab")
    found = judge(after, before)
    assert [(j.change.case.split(",")[0], j.verdict) for j in found.methods] == [
        ("10 Mbit/s", "pass"),
        ("unshaped links", "pass"),
    ]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["link.rate=50mbit"], "link.rate_bps is 50000000 and was 100000000"),
        (["train.lr=0.01"], "train.lr is 0.01 and was 0.1"),
        (["cluster.workers=8"], "cluster.workers is 8 and was 3"),
        (["name=other"], "name is 'other' and was 'quickstart'"),
        (['link.rate=["50mbit", "100mbit"]'], "2 cases now and 1 before"),
    ],
)
def test_different_scenarios_are_not_compared(make_run: MakeRun, overrides: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=r"different scenarios: .*") as caught:
        judge(make_run(around(500.0), overrides=overrides), make_run(around(500.0)))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_how_long_trials_may_take_is_in_no_figure(make_run: MakeRun) -> None:
    run = make_run(around(500.0))
    assert judge(run, make_run(around(500.0), overrides=["train.timeout=5min"])).verdict == judge(run, run).verdict


def test_a_method_with_other_parameters_is_another_scenario(tmp_path: Path, make_run: MakeRun) -> None:
    before = make_run(around(500.0))
    scenario = before.scenario
    methods = tuple(
        method.model_copy(update={"params": {**method.params, "ratio": 0.02}}) if method.name == "topk" else method
        for method in scenario.methods
    )
    after = Measured(tmp_path, scenario.model_copy(update={"methods": methods}), before.trials, [])
    with pytest.raises(UsageError, match="topk's ratio is 0.02 and was 0.01"):
        judge(after, before)


def test_a_parameter_that_came_with_a_later_version_is_taken_to_have_had_its_default(make_run: MakeRun) -> None:
    run = make_run(around(500.0))
    methods = tuple(method.model_copy(update={"params": {}}) for method in run.scenario.methods)
    before = Measured(run.where, run.scenario.model_copy(update={"methods": methods}), run.trials, [])
    assert run.scenario.methods[1].params["ratio"] == 0.01, "its default"
    assert judge(run, before).verdict == "pass"


def test_scripted_and_measured_runs_are_not_compared(make_run: MakeRun) -> None:
    with pytest.raises(UsageError, match="measured on fake"):
        judge(make_run(around(500.0), cluster="fake"), make_run(around(500.0)))


def test_nothing_measured_is_an_error_not_a_pass(tmp_path: Path) -> None:
    empty = store_of(tmp_path / "empty", around(500.0), [100.0] * 5)
    for path in (empty.folder / "trials.parquet").iterdir():
        path.unlink()
    with pytest.raises(MeasurementError, match="nothing was measured"):
        read(empty.folder)
    without = store_of(tmp_path / "without", around(500.0), [None] * 5)
    with pytest.raises(MeasurementError, match="no trial of the baseline dense finished"):
        read(without.folder)
    alone = make_store(tmp_path / "alone", ["rounds=2", "train.steps=8"], methods=["dense"])
    with pytest.raises(MeasurementError, match="no method beside dense"):
        judge(read(alone.folder), read(alone.folder))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"format": 99}', "format: found 99; allowed: 2; make it anew"),
        ("[]", "not the file of a reference"),
        ("not json", "not the file of a reference"),
        ('{"format": 2, "scenario": {}, "trials": []}', "not a reference that this version can read"),
        ('{"format": 2, "scenario": {"name": "x", "brew": 1}}', "not a reference that this version can read"),
    ],
)
def test_a_file_that_is_no_reference_is_one_line(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "reference.json"
    path.write_text(content)
    with pytest.raises(UsageError) as caught:
        read(path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_path_and_no_name_is_told_the_names() -> None:
    with pytest.raises(UsageError, match="found 'nosuch'; allowed: the folder of a run, the file of a reference"):
        read(Path("nosuch"))


def test_a_reference_says_what_its_run_says(tmp_path: Path, make_run: MakeRun) -> None:
    run = make_run([*around(500.0)[:4], None])
    path = reference.write(Store.open(run.where), tmp_path / "deep" / "reference.json")
    found = read(path)
    assert found.scenario == run.scenario
    assert found.provenance == run.provenance
    kept, asked = (each.trials[list(reference.COLUMNS)].astype(object) for each in (found, run))
    pd.testing.assert_frame_equal(kept.where(kept.notna(), None), asked.where(asked.notna(), None))
    assert found.noise == run.noise
    after = make_run(around(480.0))
    by_file, by_run = judge(after, found), judge(after, run)
    assert [(j.verdict, j.slowdown) for j in by_file.methods] == [(j.verdict, j.slowdown) for j in by_run.methods]


def test_the_references_that_come_with_pacbench_can_be_read() -> None:
    for path in reference.REFERENCES.glob("*.json"):
        found = read(Path(path.stem))
        now = load(path.stem, [f"rounds={found.scenario.rounds}"])
        reference.require_comparable(found, replace(found, scenario=now))  # raises where the scenario has changed since
        assert [method.label for method in found.scenario.methods] == [method.label for method in now.methods]
        assert found.commits
        assert (found.trials["status"] == "done").all()
        assert found.trials.groupby("label").size().min() >= reference.ROUNDS
        assert set(found.trials["cluster"]) == {"netns"}


@pytest.fixture
def failed_gate(make_run: MakeRun) -> gate.Gate:
    return judge(make_run([None, *around(300.0)[1:]]), make_run(around(500.0)))


def test_markdown_is_one_whole_table_and_escaped(failed_gate: gate.Gate) -> None:
    markdown = verdicts.as_markdown(failed_gate)
    table = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(table) == 3
    assert {line.replace("\\|", "").count("|") for line in table} == {7}
    assert "<script" not in markdown
    assert "failed at a limit of 10 %: 1 failed" in markdown


def test_junit_is_xml_that_counts_right(failed_gate: gate.Gate, make_run: MakeRun) -> None:
    suite = ElementTree.fromstring(verdicts.as_junit(failed_gate)).find("testsuite")
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("1", "0", "1")
    case = suite.find("testcase")
    assert case is not None
    assert case.get("name") == "topk"
    error = case.find("error")
    assert error is not None
    assert "<script>alert(1)</script>" in (error.get("message") or "")

    slower = judge(make_run(around(300.0)), make_run(around(500.0)))
    suite = ElementTree.fromstring(verdicts.as_junit(slower)).find("testsuite")
    assert suite is not None
    assert (suite.get("failures"), suite.get("errors")) == ("1", "0")
    assert suite.find("testcase/failure") is not None

    passed = judge(make_run(around(500.0)), make_run(around(500.0)))
    case = ElementTree.fromstring(verdicts.as_junit(passed)).find("testsuite/testcase")
    assert case is not None
    assert list(case) == []


def test_json_holds_every_verdict_with_its_numbers(failed_gate: gate.Gate) -> None:
    content = json.loads(json.dumps(verdicts.as_json(failed_gate), allow_nan=False))
    assert (content["verdict"], content["exit_code"], content["max_slowdown"]) == ("failed", 5, 0.1)
    (method,) = content["methods"]
    assert method["label"] == "topk"
    assert method["unfinished"][0].startswith("round 0 crashed")
    assert method["slowdown"]["low"] < method["slowdown"]["value"] < method["slowdown"]["high"]
    assert content["run"]["trials"] == {"done": 9, "crashed": 1}


def test_pytest_benchmark_reads_the_export_as_its_own(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own comparison is the judge: the file must have every field that it asks for."""
    from pytest_benchmark import cli

    rates = around(500.0)
    run = make_run([*rates, None])
    path = tmp_path / "benchmarks.json"
    path.write_text(json.dumps(export.benchmark_json(run), allow_nan=False))
    monkeypatch.setattr(sys, "path", sys.path.copy())  # to which it adds the folders of other tiers
    monkeypatch.setattr(sys, "argv", ["pytest-benchmark", "compare", str(path), "--csv", str(tmp_path / "table.csv")])
    cli.main()
    table = pd.read_csv(tmp_path / "table.csv").set_index("name")
    step_s = [48 / rate for rate in rates if rate]
    row = table.filter(like="topk", axis=0).iloc[0]
    assert row["mean"] == pytest.approx(np.mean(step_s))
    assert row["stddev"] == pytest.approx(np.std(step_s, ddof=1))
    assert row["rounds"] == 5
    topk = next(each for each in json.loads(path.read_text())["benchmarks"] if each["param"] == "topk")
    assert topk["extra_info"]["unfinished"] == [f"round 5 crashed: {EVIL}"]


def test_what_was_never_started_is_noted(make_run: MakeRun) -> None:
    run = make_run(around(500.0))
    run = Measured(run.where, run.scenario, run.trials.query("round < 4"), run.provenance)
    before = make_run(around(500.0))
    assert "2 of the 10 trials that the scenario asks for were never started" in verdicts.notes(judge(run, before))

    ends_early = replace(run, provenance=[{"until": 0.02}])
    assert not any("never started" in note for note in verdicts.notes(judge(ends_early, before)))
    interrupted = replace(ends_early, trials=run.trials.query("round < 3 or label == 'topk'"))
    assert "1 of the 8 trials that the scenario asks for were never started" in verdicts.notes(
        judge(interrupted, before)
    )
