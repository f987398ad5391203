"""Figures of a report hold the frame's numbers."""

from __future__ import annotations

import colorsys
import io
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from report_runs import FIGURES, Run, drawn
from synthetic import make_store

import baselines
from harness.analysis.cases import case_results
from harness.analysis.estimates import geometric_mean
from harness.report.figures import render
from harness.report.figures.changing_links import changing_links
from harness.report.figures.look import looks
from harness.report.figures.registry import Drawing, Results
from harness.report.figures.step import step_time
from harness.report.figures.sweep import sweep
from harness.report.figures.throughput import speedup, throughput
from harness.scenario.load import load


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
from harness.report.figures import render
from harness.report.figures.registry import Drawing
import pandas as pd
signal.signal(signal.SIGTERM, lambda *_: None)
drawing = Drawing("figure", "Title", "Caption", Figure(), pd.DataFrame())
print([svg[:5] for svg in render.render_all([drawing] * 3, Path({str(tmp_path)!r}), for_page=True)])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == str(["<?xml"] * 3), done.stderr


def test_a_method_without_a_finished_trial_keeps_its_place_in_figures(with_failures: Run) -> None:
    scenario = with_failures.store.scenario()
    cases = case_results(with_failures.store.trials(), scenario)
    results = replace(Results.of(cases, with_failures.store.events(), scenario), reference="dense")
    assert drawn(with_failures.store).keys() == {*FIGURES, "speedup"}
    for drawing in (*throughput(results), *step_time(results)):
        nothing = [text for text in drawing.figure.findobj(Text) if text.get_text() == "no trial finished"]
        assert len(nothing) == 1
        assert [label.get_text() for label in drawing.figure.axes[0].get_yticklabels()] == list(results.looks)


def words_of(drawing: Drawing) -> set[str]:
    return {text.get_text() for text in drawing.figure.findobj(Text)}


def test_a_method_that_finished_in_no_round_with_the_baseline_has_no_ratio(tmp_path: Path) -> None:
    lost = {"status": "crashed", "reason": "its host went away"}
    methods = ["topk", "dgc"]
    ends = {("dense", 0): lost, ("topk", 1): lost, ("dgc", 0): lost, ("dgc", 1): lost}
    store = make_store(tmp_path / "run", ["rounds=2", "train.steps=20"], methods=methods, ends=ends)
    scenario = store.scenario()
    (drawing,) = speedup(Results.of(case_results(store.trials(), scenario), store.events(), scenario))
    places = {text.get_position()[1]: text.get_text() for text in drawing.figure.axes[0].texts}
    rows = dict(zip(("topk", "dgc"), (places[0], places[1]), strict=True))
    assert rows == {"topk": "no ratio", "dgc": "no trial finished"}


def test_panels_of_changing_links_say_their_case(tmp_path: Path) -> None:
    settings = ["rounds=1", "train.steps=8", "train.pace=none", "train.batch_size=[16, 32]"]
    store = make_store(tmp_path / "run", settings, methods=["topk"])
    events, scenario = store.events(), store.scenario()
    rates = events.drop_duplicates("trial_id").assign(rank=-1, step=0, kind="link_rate_bps", value=1e8)
    cases = case_results(store.trials(), scenario)
    (drawing,) = changing_links(Results.of(cases, pd.concat([events, rates]), scenario))
    assert words_of(drawing) >= {f"{label}, batch {size}" for label in ("dense", "topk") for size in (16, 32)}
    assert any(words.startswith("100 Mbit/s, 3 workers") for words in words_of(drawing)), "what they share"


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
    store = make_store(tmp_path / "run", ["rounds=1"], scenario="convergence")
    numbers = drawn(store)
    assert numbers.keys() >= FIGURES
    assert set(numbers["bytes-per-step"]["label"]) == {method.label for method in store.scenario().methods}


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
    store = make_store(tmp_path / "run", scenario="pruning_sweep", ends=ends)
    swept = drawn(store, [sweep])["sweep"]
    assert set(swept["sweep"]) == {"pactrain"}
    assert swept["share"].tolist() == densities
    assert swept["final_accuracy"].tolist() == pytest.approx(accuracies)
    assert swept.loc[swept["is_limit"], "share"].tolist() == ([] if limit is None else [limit])


def test_columns_name_their_units(three_rates: Run) -> None:
    plain = {
        "loss",
        "lr",
        "training",
        "network",
        "workers",
        "model",
        "dataset",
        "dilation",
        "pace",
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
    found = looks(methods)
    assert len(set(found.values())) == len(methods)
    for method in methods:
        assert found[method.label].marker == baselines.get(method.name).marker
    (hue, lightness, _), (other_hue, other_lightness, _) = (
        colorsys.rgb_to_hls(*found[label].color) for label in ("pactrain-fp32", "pactrain-ternary")
    )
    assert hue == pytest.approx(other_hue, abs=0.01)
    assert abs(lightness - other_lightness) > 0.1
    assert found["pactrain-fp32"].line_style != found["pactrain-ternary"].line_style


def test_a_pages_pictures_are_smaller_and_the_same() -> None:
    figure = Figure()
    axes = figure.subplots()
    for marker, color in (("o", "red"), ("s", "blue")):
        axes.plot(np.linspace(0, 1, 40), np.sin(np.arange(40.0)), marker=marker, color=color)
    axes.scatter([0.1, 0.2, 0.3], [0.3, 0.1, 0.2], color=["red", "green", "blue"])
    written = io.StringIO()
    figure.savefig(written, format="svg")
    whole, small = written.getvalue(), render.compact(written.getvalue())
    assert len(small) < 0.75 * len(whole)
    assert len(markers(small)) == len(markers(whole)) > 80
    for one, other in zip(markers(whole), markers(small), strict=True):
        assert one[0] == other[0]
        assert one[1:] == pytest.approx(other[1:], abs=0.01)


def markers(svg: str) -> list[tuple[tuple[str, str | None], float, float]]:
    """What each is, its style, be it its own or its group's, and where it stands."""
    tree = ElementTree.fromstring(svg)
    parents = {child: parent for parent in tree.iter() for child in parent}
    return [
        (
            (each.attrib["{http://www.w3.org/1999/xlink}href"], each.get("style") or parents[each].get("style")),
            float(each.get("x", 0)),
            float(each.get("y", 0)),
        )
        for each in tree.iter("{http://www.w3.org/2000/svg}use")
    ]
