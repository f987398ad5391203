"""Runs with their reports, for tests of pages and figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from typing import Any

import matplotlib
import pandas as pd
import pytest
from synthetic import make_store, row_again

from harness.analysis.cases import case_results
from harness.record.store import Store
from harness.report import facts, page
from harness.report.figures import registry
from harness.report.figures.drawing import style
from harness.report.figures.registry import Draws, Results
from harness.report.figures.throughput import throughput

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
    """A run, and its report: with these figures, or with all."""

    def __init__(self, store: Store, figures: Sequence[Draws] | None = None) -> None:
        self.store = store
        self.plots = store.folder / "plots"
        settings = dict(matplotlib.rcParams)
        self.html = page.write(store, figures).read_text()
        self.changed_settings = [name for name, value in matplotlib.rcParams.items() if value != settings[name]]
        self.page = Page(self.html)
        self.markdown = (store.folder / "report.md").read_text()
        self.summary = facts.summary(store)
        self.done = store.trials().query("status == 'done'")

    def csv(self, name: str) -> pd.DataFrame:
        return pd.read_csv(self.plots / f"{name}.csv")


def drawn(store: Store, figures: Sequence[Draws] | None = None) -> dict[str, pd.DataFrame]:
    """Draw figures of a run, or all, but write none: that takes three times as long. Returns their numbers by name."""
    cases = case_results(store.trials(), store.scenario())
    results = Results.of(cases, store.events(), store.scenario())
    with style():
        chosen = registry.figures(for_paper=True) if figures is None else figures
        drawings = [each for draws in chosen for each in draws(results)]
        for drawing in drawings:
            drawing.figure.draw_without_rendering()
    return {drawing.name: drawing.data for drawing in drawings}


@pytest.fixture(scope="module")
def without_figures() -> Iterator[None]:
    """Reports of a file of tests have no figures: they are made of what everything else is made of, and take longer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "figures", lambda for_paper=False: [])
        yield


@pytest.fixture(scope="session")
def one_case(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Six methods, three rounds, one case."""
    return Run(make_store(tmp_path_factory.mktemp("one") / "run"))


@pytest.fixture(scope="session")
def three_rates(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three methods, two rounds, at two rates and on unshaped links."""
    overrides = ['link.rate=["10mbit", "1gbit", "unshaped"]', "rounds=2", "train.steps=20"]
    return Run(make_store(tmp_path_factory.mktemp("rates") / "run", overrides, methods=["pactrain"]))


@pytest.fixture(scope="session")
def with_failures(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """topk crashed once, dgc diverged once, pactrain-fp32 never finished; bf16 timed out and was run again."""
    ends: dict[tuple[str, int], dict[str, Any]] = {("pactrain-fp32", number): CRASHED for number in range(3)}
    ends |= {("topk", 1): CRASHED, ("dgc", 0): {"status": "diverged", "reason": "the test loss was not finite"}}
    ends |= {("bf16", 2): {"status": "timeout", "reason": "it took longer than 300 s"}}
    store = make_store(tmp_path_factory.mktemp("failures") / "run", ends=ends)
    timed_out = store.trials().query("label == 'bf16' and round == 2").iloc[0]
    other = store.trials().query("label == 'bf16' and round == 1").iloc[0]
    store.append(row_again(other, trial_id=timed_out["trial_id"], attempt=1, round=2), [])
    return Run(store, figures=[throughput])
