"""What a paper gets: figures of the right width with their fonts, tables that LaTeX reads, every trial with its end."""

from __future__ import annotations

import csv
import re
from itertools import combinations
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from PIL import Image
from synthetic import make_store

import baselines
from harness.analysis.cases import case_results
from harness.plan.status import DONE
from harness.record.store import Store
from harness.report import paper
from harness.report.figures import drawing, registry
from harness.report.figures.look import PHASES, looks
from harness.report.figures.registry import Results
from harness.scenario.load import load

LOST = {"status": "crashed", "reason": "w1: 100 % of $x_1 & #2 {lost} ~^\\"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two rates, two methods and dense; one trial of top-k crashed, bf16 never finished."""
    ends = {("topk", 1): LOST} | {("bf16", number): LOST for number in range(2)}
    overrides = ['link.rate=["10mbit", "1gbit"]', "rounds=2", "train.steps=16"]
    store = make_store(tmp_path_factory.mktemp("paper") / "run", overrides, methods=["topk", "bf16"], ends=ends)
    paper.write(store)
    return store


@pytest.fixture(scope="module")
def table(run: Store) -> str:
    return (run.folder / "paper" / "results.tex").read_text()


@pytest.mark.parametrize("columns", paper.COLUMNS)
def test_figures_are_no_wider_than_their_columns_and_carry_their_fonts(run: Store, columns: str) -> None:
    width_in, dpi = paper.COLUMNS[columns]["figure.figsize"][0], paper.COLUMNS[columns]["savefig.dpi"]
    figures = sorted((run.folder / "paper" / columns).glob("*.pdf"))
    assert {path.stem for path in figures} >= {"accuracy", "speedup", "bandwidth", "throughput-bandwidth", "step-time"}
    for path in figures:
        content = path.read_bytes()
        (box,) = re.findall(rb"/MediaBox \[ 0 0 ([\d.]+) [\d.]+ \]", content)
        assert float(box) <= 72 * width_in + 0.1
        assert b"/FontFile2" in content
        assert b"/Type3" not in content
        with Image.open(path.with_suffix(".png")) as image:
            assert image.info["dpi"] == pytest.approx((dpi, dpi), abs=0.1)
        assert len(pd.read_csv(path.with_suffix(".csv")))


def test_the_one_style_file_changes_every_figure(run: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = tmp_path / "mine.mplstyle"
    changed.write_text(drawing.STYLE_FILE.read_text().replace("figure.figsize: 7.2", "figure.figsize: 4.0"))
    monkeypatch.setattr(drawing, "STYLE_FILE", changed)
    scenario, trials = run.scenario(), run.trials()
    cases = case_results(trials, scenario)
    results = Results.of(cases, run.events(), scenario)
    with drawing.style():
        drawings = [each for draws in registry.figures() for each in draws(results)]
    assert {each.figure.get_figwidth() for each in drawings} == {4.0}


def test_the_table_is_whole(run: Store, table: str) -> None:
    assert r"\toprule" in table
    assert table.count(r"\midrule") == 2
    rows = [line for line in table.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert len(rows) == 1 + 2 * 3
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {11}
    (alignment,) = re.findall(r"\\begin\{tabular\}\{(\w+)\}", table)
    assert len(alignment) == 12


def test_the_table_says_what_the_run_says(run: Store, table: str) -> None:
    case = case_results(run.trials(), run.scenario())[0]
    speedup = case.method("topk").speedup
    assert speedup is not None
    assert f"${speedup.value:.2f}\\times$" in table, "one paired round has no interval"
    assert "1 of 2 (crashed)" in table
    assert "0 of 2 (crashed)" in table
    assert table.count(r"bf16 & -- & -- & -- & -- & -- & -- & -- & -- & unknown & -- & 0 of 2 (crashed) \\") == 2
    assert table.splitlines()[6].startswith(
        "Method & Time to target & Sooner than bf16 & Sooner than dense & Samples/s"
    )


@pytest.mark.parametrize("text", ["100 % of $x_1 & #2 {lost} ~^\\", "<a|b>", "µs", "plain", "[a]*`'\"", "\x1b"])
def test_any_text_is_only_text_to_latex(text: str) -> None:
    found = paper.tex(text)
    bare = re.sub(
        r"\\(text(backslash|ascii(tilde|circum|grave)|less|greater|bar|mu|quotesingle)|[lr]brack)\{\}", "", found
    )
    bare = re.sub(r"\\[&%$#_{}]|\\symbol\{\d+\}", "", bare)
    assert not set(bare) & set("\\&%$#_{}~^<>|[]*`'\"\x1b")


def test_no_two_signs_become_another_in_latex() -> None:
    assert paper.tex("a--b ---c, ,, d-e") == "a-{}-b -{}-{}-c, ,{}, d-e"


def test_every_trial_is_in_the_table_of_trials_with_its_reason(run: Store) -> None:
    with (run.folder / "paper" / "trials.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 12
    assert sum(row["status"] == DONE for row in rows) == 6
    assert {row["reason"] for row in rows if row["status"] == "crashed"} == {LOST["reason"]}


def test_what_did_not_finish_is_in_no_figure(run: Store) -> None:
    for path in (run.folder / "paper" / "one-column").glob("*.csv"):
        assert "bf16" not in set(pd.read_csv(path).get("label", [])), path.name


def test_variants_and_methods_are_told_apart_without_colour() -> None:
    """In grey, lines keep their markers and dashes."""
    for scenario in ("quickstart", "ci"):
        found = looks(load(scenario).methods)
        assert len({(look.marker, look.line_style) for look in found.values()}) == len(found)
    luminances = [luminance(color) for color in PHASES.values()]
    assert all(abs(a - b) > 0.15 for a, b in combinations(luminances, 2))


def test_the_colours_of_the_methods_that_are_compared_most_are_safe_for_the_colour_blind() -> None:
    """Okabe and Ito's palette, and a grey."""
    palette = {"#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#555555"}
    for name in ("dense", "bf16", "topk", "dgc", "pactrain"):
        assert baselines.get(name).color.upper() in palette


def luminance(color: str) -> float:
    red, green, blue = to_rgb(color)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
