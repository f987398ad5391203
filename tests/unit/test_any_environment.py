"""The same figures, pages and lines in any environment: backends, settings of matplotlib, locales, encodings."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic import make_store

ODD_SETTINGS = (
    b"""
backend: nonsense
text.usetex: True
font.family: nothing-that-exists
axes.formatter.use_locale: True
figure.facecolor: red
this line is broken
"""
    + b"axes.titlesize: \xff\xfe\n"
)


def clean_environment() -> dict[str, str]:
    """Without what a test is about."""
    odd = ("MPL", "MATPLOTLIB", "LC_", "LANG", "PYTHONIOENCODING", "PYTHONUTF8")
    return {name: value for name, value in os.environ.items() if not name.startswith(odd)}


REPORT = """
import sys
from harness.cli.main import main
from harness.report.figures import registry, throughput
registry.figures = lambda for_paper=False: [throughput.throughput]
sys.argv = ["pacbench", "report", *sys.argv[1:]]
main()
"""
"""A report with one figure: what an environment would change in one, it would change in all."""


def report(run: Path, changes: dict[str, str | None]) -> subprocess.CompletedProcess[bytes]:
    """Report on a run by a process of its own, in the folder above it."""
    environment = {**clean_environment(), **changes}
    return subprocess.run(
        [sys.executable, "-c", REPORT, run.name],
        env={name: value for name, value in environment.items() if value is not None},
        cwd=run.parent,
        capture_output=True,
        timeout=280,
    )


def digests(run: Path) -> dict[str, str]:
    """The digest of each file that must not depend on the environment."""
    paths = [path for kind in ("png", "csv") for path in sorted((run / "plots").glob(f"*.{kind}"))]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in [*paths, run / "report.html"]}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("environment") / "run"
    scenario = folder.parent / "odd.toml"
    scenario.write_text(
        "rounds = 1\n[train]\nsteps = 8\n[[methods]]\nname = 'dense'\n"
        "[[methods]]\nname = 'topk'\nlabel = 'top-k 中文 😀 é'\n",
        encoding="utf-8",
    )
    make_store(folder, scenario=str(scenario))
    return folder


@pytest.fixture(scope="module")
def plain(run: Path) -> dict[str, str]:
    done = report(run, {})
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    assert "top-k 中文 😀 é" in done.stdout.decode()
    return digests(run)


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        (
            {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "LC_ALL": "tr_TR.UTF-8", "LANG": "de_DE.UTF-8"},
            "matplotlibrc",
        ),
        ({"MPLBACKEND": "nonsense", "PYTHONIOENCODING": "ascii", "HOME": None}, "elsewhere/matplotlibrc"),
        ({"MPLCONFIGDIR": "/proc/nowhere", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, None),
    ],
    ids=["jupyter", "no-backend", "ascii"],
)
def test_the_environment_and_settings_of_the_user_change_no_figure(
    run: Path, plain: dict[str, str], changes: dict[str, str | None], settings: str | None
) -> None:
    if settings:
        file = run.parent / settings
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(ODD_SETTINGS)
        done = report(run, {**changes, "MATPLOTLIBRC": str(file)})
        file.unlink()
    else:
        done = report(run, changes)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    assert digests(run) == plain
    assert b"report: run/report.html" in done.stdout


def test_our_import_of_matplotlib_leaves_environment_folder_and_locale(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_bytes(ODD_SETTINGS)
    program = (
        "import locale, os; before = dict(os.environ), os.getcwd(), locale.setlocale(locale.LC_ALL); "
        "import harness.report.figures.drawing; "
        "print(before == (dict(os.environ), os.getcwd(), locale.setlocale(locale.LC_ALL)))"
    )
    environment = {**clean_environment(), "MPLBACKEND": "nonsense", "MATPLOTLIBRC": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout == "True\n", done.stderr


def test_settings_that_were_there_before_us_stay_and_change_no_figure(tmp_path: Path) -> None:
    """In a notebook, say: matplotlib is imported already, and looks as its user likes it."""
    program = """
import matplotlib, io
from matplotlib.figure import Figure
matplotlib.rcParams.update({"text.usetex": True, "font.family": "nothing-that-exists", "figure.facecolor": "red"})
before = dict(matplotlib.rcParams)
from harness.report.figures import drawing, render
with drawing.style():
    figure = Figure()
    figure.text(0, 0, "text")
    figure.savefig(io.BytesIO(), format="png")
    print(matplotlib.rcParams["font.family"], figure.get_facecolor())
print(before == dict(matplotlib.rcParams))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "['sans-serif'] (1.0, 1.0, 1.0, 1.0)\nTrue\n", done.stderr
    assert done.stderr == ""
