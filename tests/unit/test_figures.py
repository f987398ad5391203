"""Figures are found by themselves, drawn in their order, and one from outside the package needs no edit in it."""

from __future__ import annotations

import ast
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import psutil
import pytest
from host import wait_until
from in_process import call_pacbench
from matplotlib.figure import Figure
from synthetic import make_store

from harness import programs
from harness.provenance import ROOT
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


REPORTING = """
import os, time
from pathlib import Path
from harness.cli.main import main
from harness.report.figures import render

def draw(drawing, folder, for_page):
    try:
        with open("first", "x") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        svg = drawn(drawing, folder, for_page)
        Path(f"drawn-{drawing.name}").touch()
        return svg
    while not Path("go").exists():
        time.sleep(0.01)
    return drawn(drawing, folder, for_page)

drawn, render._render = render._render, draw
os.cpu_count = lambda: 3
main()
"""
"""``pacbench`` whose first figure is not drawn before there is a file: whoever drew the others has nothing to do."""


@contextmanager
def while_a_figure_is_drawn(folder: Path) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """A report on its way, in a session of its own as on a terminal, and the processes that draw."""
    run = make_store(folder / "run", ["rounds=2", "train.steps=8"], methods=["topk"]).folder
    with subprocess.Popen(
        [sys.executable, "-c", REPORTING, "report", "run"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    ) as reporting:
        try:
            wait_until(lambda: 0 < len(list(folder.glob("drawn-*"))) == len(list(run.glob("plots/*.csv"))) - 1)
            yield reporting, psutil.Process(reporting.pid).children()
        finally:
            (folder / "go").touch()


def test_ctrl_c_while_figures_are_drawn_is_one_line(tmp_path: Path) -> None:
    with while_a_figure_is_drawn(tmp_path) as (reporting, artists):
        os.killpg(reporting.pid, signal.SIGINT)
        (tmp_path / "go").touch()
        _, said = reporting.communicate(timeout=300)
    assert len(artists) == 3
    assert reporting.returncode == 130
    assert said == "pacbench: interrupted; what had finished is kept\n"
    assert not any(each.is_running() for each in artists)


def test_a_process_that_is_killed_while_it_draws_is_one_line(tmp_path: Path) -> None:
    with while_a_figure_is_drawn(tmp_path) as (reporting, artists):
        os.kill(int((tmp_path / "first").read_text()), signal.SIGKILL)
        _, said = reporting.communicate(timeout=300)
    assert reporting.returncode == 5
    assert said.startswith("pacbench: run/plots: a process that draws figures was killed")
    assert said.count("\n") == 1
    assert not any(each.is_running() for each in artists)


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EMFILE])
def test_where_no_more_processes_can_be_had_figures_are_refused_in_one_line(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The second one cannot: the first one does not stay."""
    fork, forked = os.fork, []

    def forking() -> int:
        if forked:
            raise OSError(number, os.strerror(number))
        if pid := fork():
            forked.append(pid)
        return pid

    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(threading, "active_count", lambda: 1)  # other tests' threads draw nothing
    monkeypatch.setattr(os, "fork", forking)
    done = call_pacbench(("report", str(store.folder)), tmp_path)
    assert done.returncode == 5
    assert done.stderr == f"pacbench: a process that draws figures cannot be started: {programs.NO_MORE[number]}\n"
    assert not any(map(psutil.pid_exists, forked))
