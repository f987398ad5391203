"""Figures are found by themselves, drawn in their order, and one from outside the package needs no edit in it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure
from synthetic import make_store

from harness.record.store import Store
from harness.report import page
from harness.report.figures import registry
from harness.report.figures.registry import Drawing, Results, figure


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("figures") / "run", ["rounds=2", "train.steps=8"], methods=["topk"])


@pytest.fixture(autouse=True)
def _the_package_alone_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    registry.figures()  # loads the package's own, which stay
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))


def names(for_paper: bool = False) -> list[str]:
    return [draws.__name__ for draws in registry.figures(for_paper)]


def test_figures_come_in_their_order() -> None:
    shown = ["time_to_target", "throughput", "when_it_pays", "bandwidth", "accuracy", "perplexity", "changing_links"]
    shown += ["sweep", "step_time", "bytes_per_step"]
    assert names() == shown
    assert names(for_paper=True) == [*shown, "speedup", "throughput_over_bandwidth"]


def test_a_figure_from_outside_is_drawn_written_and_shown_in_its_place(store: Store) -> None:
    @figure(order=15)
    def finished(results: Results) -> Iterator[Drawing]:
        """How many trials of each method finished."""
        (case,) = results.cases
        drawn = Figure()
        counts = {each.label: len(each.done) for each in case.methods}
        drawn.subplots().bar(list(counts), list(counts.values()), color=[look.color for look in results.looks.values()])
        yield Drawing("finished", "Finished", "Of each method.", drawn, pd.DataFrame(counts.items()))

    @figure(order=16, for_paper=True)
    def apart(results: Results) -> Iterator[Drawing]:
        """Nothing to show."""
        yield from ()

    assert names()[:3] == ["time_to_target", "finished", "throughput"]
    assert names(for_paper=True)[:3] == ["time_to_target", "finished", "apart"]
    html = page.write(store, figures=[finished, apart]).read_text()
    assert {path.name for path in (store.folder / "plots").iterdir()} == {f"finished.{kind}" for kind in KINDS}
    assert "<strong>Finished.</strong> Of each method." in html
    assert html.count("<img ") == 1


KINDS = ("pdf", "png", "csv")


def test_a_page_without_figures_writes_none(store: Store, tmp_path: Path) -> None:
    for path in (store.folder / "plots").glob("*"):
        path.unlink()
    assert "<img " not in page.write(store, figures=[]).read_text()
    assert not list((store.folder / "plots").iterdir())


def test_results_are_those_that_the_scenario_asks_for(store: Store) -> None:
    results = Results.of([], store.events(), store.scenario())
    assert list(results.looks) == [method.label for method in store.scenario().methods]
    assert results.reference == "dense"


def test_the_report_prints_nothing_and_knows_no_command_line() -> None:
    for path in Path(registry.__file__).parents[1].rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        imported = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
        imported += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        assert not [name for name in imported if name.startswith("harness.cli")], path
        called = [node.func for node in nodes if isinstance(node, ast.Call)]
        assert not [each for each in called if isinstance(each, ast.Name) and each.id == "print"], path
