"""The report: a page that stands alone, and sentences that do not flatter."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_runs import CRASHED, EVIL, FIGURES, Run, drawn
from synthetic import make_store, row_again

from harness.analysis.byte_model import StepModel, mean_model, payoff, step_models
from harness.analysis.cases import case_results
from harness.analysis.estimates import geometric_mean
from harness.cli.reporting import show_summary
from harness.errors import MeasurementError
from harness.plan.status import DONE
from harness.report import facts, page
from harness.report.figures.throughput import throughput
from harness.report.figures.when_it_pays import when_it_pays


def test_the_page_stands_alone(one_case: Run, with_failures: Run) -> None:
    for run in (one_case, with_failures):
        tags = {tag for tag, _ in run.page.elements}
        assert tags.isdisjoint({"link", "iframe", "object", "embed", "base"})
        assert len(re.findall(r"<script", run.html)) == 1, "its own, which sorts tables"
        assert "default-src 'none'; img-src data:" in run.html
        for _, attributes in run.page.elements:
            image = "data:image/svg+xml;base64,"
            assert (attributes.get("src") or image).startswith(image)
            assert re.match(r"(#|plots/|$)", attributes.get("href") or "")
            assert not any(name.startswith("on") for name in attributes)
        assert not re.search(r"@import|url\(", run.html)
    assert [tag for tag, _ in one_case.page.elements].count("img") == len(FIGURES)


def test_the_page_shows_each_method_and_its_figures(one_case: Run) -> None:
    for label, trials in one_case.done.groupby("label"):
        rows = re.findall(rf'<th scope="row">{label}</th>(.*?)</tr>', one_case.html, re.DOTALL)
        how_soon, how_fast, *_ = rows
        assert "3 of 3" in how_soon
        assert f"{100 * trials['final_accuracy'].mean():.1f} %" in how_soon
        assert f"{geometric_mean(trials['samples_per_s'].to_numpy()).value:.1f}" in how_fast


def test_links_are_shown_as_they_were_asked_and_measured(three_rates: Run) -> None:
    at_10mbit = three_rates.done[three_rates.done["rate_bps"] == 1e7]
    measured = [link["rate_bps_measured"] for links in at_10mbit["links"] for link in json.loads(links)]
    assert f"{min(measured) / 1e7:.3f}–{max(measured) / 1e7:.3f}" in three_rates.page.words
    readings = len(at_10mbit) * 3 * 2
    assert three_rates.html.count("<td>10 Mbit/s</td>") == readings + 1


def test_the_command_that_made_it_is_shown(one_case: Run) -> None:
    assert "pacbench run quickstart" in one_case.page.words
    assert "    pacbench run quickstart" in one_case.markdown
    assert "libraries.torch" in one_case.page.words


def test_what_was_never_started_is_in_plain_sight(tmp_path: Path) -> None:
    store = make_store(tmp_path / "run", ["rounds=3", "train.steps=8"], methods=["topk"])
    for row in store.trials().query("label == 'topk' and round > 0").itertuples():
        (store.folder / "trials.parquet" / f"{row.trial_id}-0.parquet").unlink()
    run = Run(store, figures=[])
    for text in (run.page.words, run.markdown):
        assert "topk, rounds 1, 2 (100 Mbit/s, 3 workers, digits-cnn on digits)" in text


def test_a_label_may_hold_any_sign(tmp_path: Path) -> None:
    """Neither matplotlib's formulas, nor markup, nor a file's name may be made of it."""
    scenario = tmp_path / "odd.toml"
    label = "<b>$x_{$ & 'k' | \\"
    scenario.write_text(
        f"rounds = 1\n[train]\nsteps = 8\n[[methods]]\nname = 'dense'\n[[methods]]\nname = 'topk'\n"
        f"label = {json.dumps(label)}\n"
    )
    store = make_store(tmp_path / "run", scenario=str(scenario))
    assert drawn(store).keys() >= FIGURES
    run = Run(store, figures=[throughput])
    assert label in run.page.text
    assert "b" not in {tag for tag, _ in run.page.elements}


def test_a_trial_can_be_looked_into(with_failures: Run) -> None:
    attempts = with_failures.store.attempts()
    rows = with_failures.html.split('<section id="trials">')[1].split("</section>")[0]
    assert rows.count('<th scope="row"') == len(attempts)
    assert rows.count('<tr class="lost">') == (attempts["status"] != DONE).sum()
    assert rows.count("<polyline") == len(with_failures.done) - 1, "the one that ran again has no events"
    for trial_id in attempts["trial_id"]:
        assert f"trial {trial_id}" in rows


def test_the_picture_of_steps_shows_the_slowest_of_each_group() -> None:
    assert facts._spark(np.array([1.0, 1.0, 2.0])) == "1,12 60,12 119,1"
    points = facts._spark(np.array([1.0] * 999 + [100.0])).split()
    assert len(points) == facts.SPARK_WIDTH
    assert points[-1] == "119,1"


def test_500_trials_leave_room_for_figures_in_a_page_of_5_mb(tmp_path: Path) -> None:
    """Figures of 25 cases take 3 MB. Steps are so many that the pictures of trials cannot grow."""
    steps = f"train.steps={facts.SPARK_WIDTH + 10}"
    few, many = (
        page.write(make_store(tmp_path / str(rounds), [steps, f"rounds={rounds}"]), figures=[]).stat().st_size
        for rounds in (1, 3)
    )
    assert 500 * (many - few) / (2 * 6) < 2_000_000


def test_when_it_pays_follows_from_bytes_and_times(one_case: Run) -> None:
    (case,) = case_results(one_case.store.trials(), one_case.store.scenario())
    models = {result.label: mean_model(list(step_models(result.done).values())) for result in case.methods}
    dense, topk = models["dense"], models["topk"]
    assert dense is not None
    assert topk is not None
    rate_bps = case.rate_bps or 0.0
    rounds = one_case.done.pivot(index="round", columns="label", values="samples_per_s")
    measured = (1 / rounds["dense"]).mean() / (1 / rounds["topk"]).mean()
    assert dense.step_s(rate_bps) / topk.step_s(rate_bps) == pytest.approx(measured), "there it is what was measured"
    half = models["bf16"]
    assert half is not None
    found = payoff(topk, half)
    assert found.where == "below"
    assert found.rate_bps is not None
    assert half.step_s(found.rate_bps) == pytest.approx(topk.step_s(found.rate_bps))
    assert topk.step_s(found.rate_bps / 2) < half.step_s(found.rate_bps / 2)
    assert f"topk {found} " in one_case.page.words


@pytest.mark.parametrize(
    ("method", "where"),
    [((0.02, 1e5), "below"), ((0.01, 1e5), "at every rate"), ((0.02, 1e6), "at no rate"), ((0.005, 2e6), "above")],
)
def test_a_method_pays_below_above_everywhere_or_nowhere(method: tuple[float, float], where: str) -> None:
    dense, other = StepModel(0.01, 1e6), StepModel(*method)
    found = payoff(other, dense)
    assert found.where == where
    faster = [other.step_s(rate_bps) < dense.step_s(rate_bps) for rate_bps in (1e3, 1e12)]
    assert faster == {"below": [True, False], "at every rate": [True, True], "above": [False, True]}.get(
        where, [False] * 2
    )


def test_what_did_not_finish_is_in_plain_sight(with_failures: Run) -> None:
    words = with_failures.page.words
    assert "6 attempts did not finish" in words
    assert "topk, round 1: crashed" in words
    assert "dgc, round 0: diverged the test loss was not finite" in words
    assert "it took longer than 300 s" in words
    assert words.count("run again: done") == 1
    finished = {row["method"]: row["finished"] for row in with_failures.summary.rows}
    three, two = ("dense", "bf16", "pactrain-ternary"), ("topk", "dgc")
    assert finished == dict.fromkeys(three, "3 of 3") | dict.fromkeys(two, "2 of 3") | {"pactrain-fp32": "0 of 3"}


def test_reasons_and_logs_are_escaped(with_failures: Run) -> None:
    assert (
        with_failures.page.words.count(EVIL) == 16
    )  # four crashes, each with reason and log, twice: at the top and with its trial
    assert "</pre><b>bold</b>" in with_failures.page.text
    assert "b" not in {tag for tag, _ in with_failures.page.elements}
    prose = [line for line in with_failures.markdown.splitlines() if not line.startswith("    ")]
    assert not [line for line in prose if "<script" in line or "`x`" in line or "*y*" in line]
    assert sum("&lt;script>" in line for line in prose) == 4


def test_tables_in_markdown_are_whole(with_failures: Run, three_rates: Run) -> None:
    for run in (with_failures, three_rates):
        tables = re.findall(r"(?:^\|.*\n)+", run.markdown, re.MULTILINE)
        assert len(tables) == 1 + 5 * len({row["case"] for row in run.summary.rows})
        for table in tables:
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_a_mask_in_fp32_is_said_to_have_a_limit(one_case: Run) -> None:
    dense, masked = (
        one_case.done.query(f"label == '{label}'")["wire_bytes_per_step"].mean() for label in ("dense", "pactrain-fp32")
    )
    assert (
        "pactrain-fp32 keeps a share of 0.2 of the weights and sends them as fp32: that cannot save more than 5x in "
        f"bytes against dense; measured: {dense / masked:.3g}x."
    ) in one_case.page.words


def test_an_adaptive_mask_has_no_such_limit(tmp_path: Path) -> None:
    chosen = {"scenario": "bandwidth_sweep", "methods": ["pactrain-adaptive"]}
    run = Run(make_store(tmp_path / "run", ["rounds=1", "link.rate=100mbit"], **chosen), figures=[])
    assert "cannot save" not in run.page.words


def test_scripted_numbers_are_loudly_marked(tmp_path: Path) -> None:
    run = Run(make_store(tmp_path / "run", ["rounds=1"], cluster="fake", methods=["bf16"]), figures=[])
    assert "SCRIPTED, not measured: a fake cluster recited these numbers." in run.page.words
    assert "**SCRIPTED, not measured: a fake cluster" in run.markdown
    assert all(sentence.startswith("SCRIPTED") for sentence in run.summary.sentences)
    assert all("SCRIPTED" in row["case"] for row in run.summary.rows)


def test_nothing_finished_is_an_error(tmp_path: Path) -> None:
    ends = {(label, 0): CRASHED for label in ("dense", "bf16")}
    store = make_store(tmp_path / "run", ["rounds=1"], methods=["bf16"], ends=ends)
    for make in (page.write, facts.summary):
        with pytest.raises(MeasurementError, match="no trial finished"):
            make(store)


def test_a_case_in_which_nothing_finished_is_shown_empty(tmp_path: Path) -> None:
    store = make_store(
        tmp_path / "run", ['link.rate=["unshaped", "10mbit"]', "rounds=1", "train.steps=8"], methods=["bf16"]
    )
    trials = store.trials()
    for part in ("trials", "events"):
        for path in (store.folder / f"{part}.parquet").iterdir():
            path.unlink()
    for _, row in trials.iterrows():
        lost = {"status": "crashed", "reason": "boom", "links": None, "measured_rtt_s": None}
        store.append(row_again(row, **({} if pd.isna(row["rate_bps"]) else lost)), [])
    assert drawn(store).keys() >= {"throughput", "when-it-pays", "bandwidth"}
    run = Run(store, figures=[throughput])
    assert [row["samples/s"] for row in run.summary.rows if row["case"].startswith("10 Mbit/s")] == ["–", "–"]
    assert run.summary.sentences[0].startswith("No method stands beside bf16 and dense at 10 Mbit/s")
    assert set(run.csv("throughput")["rate_bps"].isna()) == {True}


def test_where_a_trial_was_too_short_to_be_timed_the_others_of_its_method_are_put_beside_their_round_s(
    tmp_path: Path,
) -> None:
    store = make_store(tmp_path / "run", ["rounds=3"], methods=["bf16", "topk"])
    trials = store.trials()
    short = trials[(trials["label"] == "topk") & (trials["round"] == 1)].iloc[0]
    for part in ("trials", "events"):
        (store.folder / f"{part}.parquet" / f"{short['trial_id']}-0.parquet").unlink()
    store.append(row_again(short, samples_per_s=None), [])
    (paybacks,) = facts.collect(store).paybacks.values()
    assert {each.label for each in paybacks} == {"dense", "topk"}


def test_a_run_whose_baseline_never_finished_has_a_report_and_figures(tmp_path: Path) -> None:
    """A claim over another method needs no dense trials, for one."""
    overrides = ['link.rate=["10mbit", "1gbit"]', "rounds=1"]
    ends = {("dense", 0): CRASHED}
    store = make_store(tmp_path / "run", overrides, methods=["pactrain"], ends=ends)
    assert drawn(store).keys() >= {"throughput", "when-it-pays", "bandwidth"}
    run = Run(store, figures=[when_it_pays])
    assert "dense finished in no round, so that nothing tells whether accuracy is kept" in run.page.words
    assert (run.store.folder / "plots" / "when-it-pays.png").exists()


def test_the_terminal_shows_every_row_and_whole_sentences(
    with_failures: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    show_summary(with_failures.summary)
    shown = capsys.readouterr().out
    for row in with_failures.summary.rows:
        for value in row.values():
            assert all(part in shown for part in re.split(r" (?=[\[(])", value)), (
                "an interval may stand below its value"
            )
    assert shown.splitlines()[-1].rstrip() == with_failures.summary.sentences[-1]


def test_only_done_trials_are_counted_as_done(with_failures: Run) -> None:
    statuses = with_failures.store.trials()["status"].value_counts()
    assert f"Trials: {statuses[DONE]} done, 4 crashed, 1 diverged" in with_failures.page.words
