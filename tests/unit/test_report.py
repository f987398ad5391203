"""The report: figures that hold the frame's numbers, a page that stands alone, and sentences that do not flatter."""

from __future__ import annotations

import colorsys
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from PIL import Image
from synthetic import make_store, row_again

import baselines
from harness.analysis.byte_model import StepModel, mean_model, payoff, step_models
from harness.analysis.cases import case_results
from harness.analysis.estimates import geometric_mean
from harness.errors import MeasurementError
from harness.plan.status import DONE
from harness.record.store import Store
from harness.report import page
from harness.report.figures import plots
from harness.scenario.load import load

EVIL = "w1: <script>alert(1)</script> | `x` *y* \"&'"
CRASHED = {"status": "crashed", "reason": EVIL, "log_tail": f"{EVIL}\n</pre><b>bold</b>"}

FIGURES = {"accuracy", "bytes-per-step", "step-time", "throughput", "time-to-target", "when-it-pays"}


class Page(HTMLParser):
    """A page's elements with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.text += " "

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


class Run:
    """A run, and its report."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.plots = store.folder / "plots"
        settings = dict(matplotlib.rcParams)
        self.html = page.write(store).read_text()
        self.changed_settings = [name for name, value in matplotlib.rcParams.items() if value != settings[name]]
        self.page = Page(self.html)
        self.markdown = (store.folder / "report.md").read_text()
        self.summary = page.summary(store)
        self.done = store.trials().query("status == 'done'")

    def csv(self, name: str) -> pd.DataFrame:
        return pd.read_csv(self.plots / f"{name}.csv")


@pytest.fixture(scope="module")
def one_case(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Six methods, three rounds, one case."""
    return Run(make_store(tmp_path_factory.mktemp("one") / "run"))


@pytest.fixture(scope="module")
def three_rates(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three methods, two rounds, at two rates and on unshaped links."""
    overrides = ['link.rate=["10mbit", "1gbit", "unshaped"]', "rounds=2", "train.steps=20"]
    return Run(make_store(tmp_path_factory.mktemp("rates") / "run", overrides, methods=["pactrain"]))


@pytest.fixture(scope="module")
def with_failures(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """topk crashed once, dgc diverged once, pactrain-fp32 never finished; bf16 timed out and was run again."""
    ends: dict[tuple[str, int], dict[str, Any]] = {("pactrain-fp32", number): CRASHED for number in range(3)}
    ends |= {("topk", 1): CRASHED, ("dgc", 0): {"status": "diverged", "reason": "the test loss was not finite"}}
    ends |= {("bf16", 2): {"status": "timeout", "reason": "it took longer than 300 s"}}
    store = make_store(tmp_path_factory.mktemp("failures") / "run", ends=ends)
    timed_out = store.trials().query("label == 'bf16' and round == 2").iloc[0]
    other = store.trials().query("label == 'bf16' and round == 1").iloc[0]
    store.append(row_again(other, trial_id=timed_out["trial_id"], attempt=1, round=2), [])
    return Run(store)


# Figures


def test_every_figure_is_a_pdf_a_png_and_a_table(one_case: Run, three_rates: Run) -> None:
    for run, names in ((one_case, FIGURES), (three_rates, FIGURES | {"bandwidth"})):
        assert {path.name for path in run.plots.iterdir()} == {
            f"{name}.{kind}" for name in names for kind in ("pdf", "png", "csv")
        }
        for name in names:
            pdf = (run.plots / f"{name}.pdf").read_bytes()
            assert pdf.startswith(b"%PDF-")
            assert pdf.rstrip().endswith(b"%%EOF")
            with Image.open(run.plots / f"{name}.png") as image:
                image.load()
                assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)
            assert len(run.csv(name))


def test_pdfs_carry_their_fonts_as_truetype(one_case: Run) -> None:
    for path in one_case.plots.glob("*.pdf"):
        pdf = path.read_bytes()
        assert b"/FontFile2" in pdf
        assert b"/Type3" not in pdf
        assert not re.search(rb"/Subtype\s*/Type1\b", pdf)


def test_drawing_leaves_no_trace_in_the_process(one_case: Run) -> None:
    assert not one_case.changed_settings


def test_drawing_ends_where_a_signal_is_no_more_than_noted(tmp_path: Path) -> None:
    """The command line takes SIGTERM as Ctrl-C. In a process of its own: only one without threads forks to draw."""
    program = f"""
import signal
from pathlib import Path
from matplotlib.figure import Figure
from harness.report.figures import plots
import pandas as pd
signal.signal(signal.SIGTERM, lambda *_: None)
drawing = plots.Drawing("figure", "Title", "Caption", Figure(), pd.DataFrame())
print([svg[:5] for svg in plots._render_all([drawing] * 3, Path({str(tmp_path)!r}))])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == str(["<?xml"] * 3), done.stderr


def test_a_method_without_a_finished_trial_keeps_its_place_in_figures(with_failures: Run) -> None:
    scenario = with_failures.store.scenario()
    cases = case_results(with_failures.store.trials(), scenario)
    looks = plots.looks(scenario.methods)
    for drawing in (plots.throughput(cases, looks, "dense"), plots.step_time(cases, looks)):
        nothing = [text for text in drawing.figure.findobj(Text) if text.get_text() == "no trial finished"]
        assert len(nothing) == 1
        assert [label.get_text() for label in drawing.figure.axes[0].get_yticklabels()] == list(looks)


def test_the_throughput_figure_holds_every_finished_trial(with_failures: Run) -> None:
    plotted = with_failures.csv("throughput").set_index(["label", "round"])["samples_per_s"]
    measured = with_failures.done.set_index(["label", "round"])["samples_per_s"]
    pd.testing.assert_series_equal(plotted.sort_index(), measured.sort_index(), check_index_type=False)


def test_the_throughput_figure_holds_means_intervals_and_speedups(one_case: Run) -> None:
    plotted = one_case.csv("throughput").groupby("label").first()
    rounds = one_case.done.pivot(index="round", columns="label", values="samples_per_s")
    for label, row in plotted.iterrows():
        assert tuple(row[row.index.str.startswith("mean_samples_per_s")]) == pytest.approx(
            geometric_mean(rounds[label].to_numpy())[:3]
        )
        ratio = geometric_mean((rounds[label] / rounds["bf16"]).to_numpy()).value
        assert row["speedup_over_baseline"] == pytest.approx(ratio)
        assert row["baseline"] == "bf16"


@pytest.mark.parametrize(
    ("figure", "columns"),
    [
        ("step-time", ["compute_s_per_step", "codec_s_per_step", "comm_s_per_step", "lower_bound_s_per_step"]),
        ("bytes-per-step", ["wire_bytes_per_step", "formula_bytes_per_step"]),
    ],
)
def test_figures_of_a_step_hold_the_means_over_rounds(three_rates: Run, figure: str, columns: list[str]) -> None:
    plotted = three_rates.csv(figure).set_index(["rate_bps", "label"])[columns].sort_index()
    measured = three_rates.done.groupby(["rate_bps", "label"], dropna=False)[columns].mean().sort_index()
    pd.testing.assert_frame_equal(plotted, measured, check_index_type=False)


def test_the_accuracy_figure_holds_the_evaluations(one_case: Run) -> None:
    events = one_case.store.events().query("kind == 'accuracy'").merge(one_case.done, on="trial_id")
    measured = events.groupby(["label", "step"]).agg({"time_s": "mean", "value": ["mean", "min", "max"]})
    plotted = one_case.csv("accuracy").set_index(["label", "step"]).sort_index()
    for column, expected in zip(("time_s", "accuracy", "accuracy_min", "accuracy_max"), measured, strict=True):
        assert plotted[column].to_numpy() == pytest.approx(measured[expected].to_numpy())
    assert set(plotted["rounds"]) == {3}


def test_the_bandwidth_figure_holds_ratios_paired_within_rounds(three_rates: Run) -> None:
    plotted = three_rates.csv("bandwidth")
    assert len(plotted) == 3 * 3
    for row in plotted.itertuples():
        same = three_rates.done[three_rates.done["rate_bps"].fillna(0) == pd.Series([row.rate_bps]).fillna(0)[0]]
        rounds = same.pivot(index="round", columns="label", values="samples_per_s")
        expected = geometric_mean((rounds[row.label] / rounds["dense"]).to_numpy())
        assert (row.speedup, row.speedup_low, row.speedup_high, row.rounds) == pytest.approx(expected)


def test_every_method_can_be_drawn(tmp_path: Path) -> None:
    every = Run(make_store(tmp_path / "run", ["rounds=1"], scenario="convergence"))
    assert set(every.csv("bytes-per-step")["label"]) == {method.label for method in every.store.scenario().methods}


@pytest.mark.parametrize(
    ("accuracies", "limit"),
    [
        ([0.85, 0.85, 0.84, 0.831, 0.82, 0.7, 0.5], 0.1),  # 0.05 is 2.1 points below
        ([0.85, 0.80, 0.85, 0.85, 0.85, 0.85, 0.85], 1.0),  # what recovers further down does not hold
        ([0.82, 0.85, 0.85, 0.85, 0.85, 0.85, 0.85], None),
    ],
)
def test_the_sweep_figure_marks_where_accuracy_stops_to_hold(
    tmp_path: Path, accuracies: list[float], limit: float | None
) -> None:
    densities = [1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01]
    labels = ["dense", *(f"pactrain-density={density}" for density in densities)]
    ends = {
        (label, number): {"final_accuracy": accuracy + offset}
        for label, accuracy in zip(labels, [0.841, *accuracies], strict=True)
        for number, offset in enumerate((-0.01, 0.0, 0.01))
    }
    swept = Run(make_store(tmp_path / "run", scenario="pruning_sweep", ends=ends)).csv("sweep")
    assert set(swept["sweep"]) == {"pactrain"}
    assert swept["share"].tolist() == densities
    assert swept["final_accuracy"].tolist() == pytest.approx(accuracies)
    assert swept.loc[swept["is_limit"], "share"].tolist() == ([] if limit is None else [limit])


def test_columns_name_their_units(three_rates: Run) -> None:
    plain = {
        "loss",
        "network",
        "workers",
        "model",
        "dataset",
        "dilation",
        "batch_size",
        "cluster",
        "cpuset",
        "device",
        "target",
        "metric",
        "value",
        "baseline",
        "label",
        "round",
        "rounds",
        "step",
    }
    for name in FIGURES | {"bandwidth"}:
        for column in set(three_rates.csv(name).columns) - plain:
            assert re.search(r"(_|^)(bps|s|s_per_step|bytes|bytes_per_step|accuracy|speedup)(_|$)", column), column


def test_methods_look_as_their_files_say_and_variants_share_the_hue() -> None:
    methods = load("quickstart").methods
    looks = plots.looks(methods)
    assert len(set(looks.values())) == len(methods)
    for method in methods:
        assert looks[method.label].marker == baselines.get(method.name).marker
    (hue, lightness, _), (other_hue, other_lightness, _) = (
        colorsys.rgb_to_hls(*looks[label].color) for label in ("pactrain-fp32", "pactrain-ternary")
    )
    assert hue == pytest.approx(other_hue, abs=0.01)
    assert abs(lightness - other_lightness) > 0.1
    assert looks["pactrain-fp32"].line_style != looks["pactrain-ternary"].line_style


# The page


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
    readings = len(at_10mbit) * 4 * 2
    assert three_rates.html.count("<td>10 Mbit/s</td>") == readings + 1


def test_the_command_that_made_it_is_shown(one_case: Run) -> None:
    assert "pacbench run quickstart" in one_case.page.words
    assert "    pacbench run quickstart" in one_case.markdown
    assert "libraries.torch" in one_case.page.words


def test_what_was_never_started_is_in_plain_sight(tmp_path: Path) -> None:
    store = make_store(tmp_path / "run", ["rounds=3", "train.steps=8"], methods=["topk"])
    for row in store.trials().query("label == 'topk' and round > 0").itertuples():
        (store.folder / "trials.parquet" / f"{row.trial_id}-0.parquet").unlink()
    run = Run(store)
    for text in (run.page.words, run.markdown):
        assert "topk, rounds 1, 2 (100 Mbit/s, 4 workers, digits-cnn on digits)" in text


def test_a_label_may_hold_any_sign(tmp_path: Path) -> None:
    """Neither matplotlib's formulas, nor markup, nor a file's name may be made of it."""
    scenario = tmp_path / "odd.toml"
    label = "<b>$x_{$ & 'k' | \\"
    scenario.write_text(
        f"rounds = 1\n[train]\nsteps = 8\n[[methods]]\nname = 'dense'\n[[methods]]\nname = 'topk'\n"
        f"label = {json.dumps(label)}\n"
    )
    run = Run(make_store(tmp_path / "run", scenario=str(scenario)))
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
    assert page._spark(np.array([1.0, 1.0, 2.0])) == "1,12 60,12 119,1"
    points = page._spark(np.array([1.0] * 999 + [100.0])).split()
    assert len(points) == page.SPARK_WIDTH
    assert points[-1] == "119,1"


# When it pays


def test_when_it_pays_follows_from_bytes_and_times(one_case: Run) -> None:
    (case,) = case_results(one_case.store.trials(), one_case.store.scenario())
    models = {result.label: mean_model(step_models(result.done)) for result in case.methods}
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
    run = Run(make_store(tmp_path / "run", ["rounds=1", "link.rate=100mbit"], **chosen))
    assert "cannot save" not in run.page.words


def test_scripted_numbers_are_loudly_marked(tmp_path: Path) -> None:
    run = Run(make_store(tmp_path / "run", ["rounds=1"], cluster="fake", methods=["bf16"]))
    assert "SCRIPTED, not measured: a fake cluster recited these numbers." in run.page.words
    assert "**SCRIPTED, not measured: a fake cluster" in run.markdown
    assert all(sentence.startswith("SCRIPTED") for sentence in run.summary.sentences)
    assert all("SCRIPTED" in row["case"] for row in run.summary.rows)


def test_nothing_finished_is_an_error(tmp_path: Path) -> None:
    ends = {(label, 0): CRASHED for label in ("dense", "bf16")}
    store = make_store(tmp_path / "run", ["rounds=1"], methods=["bf16"], ends=ends)
    for make in (page.write, page.summary):
        with pytest.raises(MeasurementError, match="no trial finished"):
            make(store)


def test_a_case_in_which_nothing_finished_is_shown_empty(tmp_path: Path) -> None:
    store = make_store(
        tmp_path / "run", ['link.rate=["unshaped", "10mbit"]', "rounds=1", "train.steps=8"], methods=["bf16"]
    )
    trials = store.trials()
    for path in (store.folder / "trials.parquet").iterdir():
        path.unlink()
    for _, row in trials.iterrows():
        lost = {"status": "crashed", "reason": "boom", "links": None, "measured_rtt_s": None}
        store.append(row_again(row, **({} if pd.isna(row["rate_bps"]) else lost)), [])
    run = Run(store)
    assert [row["samples/s"] for row in run.summary.rows if row["case"].startswith("10 Mbit/s")] == ["–", "–"]
    assert run.summary.sentences[0].startswith("No method stands beside bf16 and dense at 10 Mbit/s")
    assert set(run.csv("throughput")["rate_bps"].isna()) == {True}


# What could not be compared


def test_a_run_whose_baseline_never_finished_has_a_report_and_figures(tmp_path: Path) -> None:
    """A claim over another method needs no dense trials, for one."""
    overrides = ['link.rate=["10mbit", "1gbit"]', "rounds=1"]
    ends = {("dense", 0): CRASHED}
    run = Run(make_store(tmp_path / "run", overrides, methods=["pactrain"], ends=ends))
    assert "dense finished in no round, so that nothing tells whether accuracy is kept" in run.page.words
    assert (run.store.folder / "plots" / "when-it-pays.png").exists()


def test_the_terminal_shows_every_row_and_whole_sentences(
    with_failures: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with_failures.summary.print()
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
