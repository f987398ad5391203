"""``nox -s tests``; and quickstart, further tiers of tests, docs, lint, audit, bench, and studies of hours.

All share one environment, at which ``audit`` looks from its own.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import nox

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT / ".nox" / "environment"
STAMP = ENVIRONMENT / "installed"
DEPENDENCIES = ("pyproject.toml", "constraints.txt")

ONE_THREAD = {"OMP_NUM_THREADS": "1"}

BESIDE = ("-n", str(2 + (os.cpu_count() or 1)), "--dist", "loadscope", "--no-loadscope-reorder")
"""Tests that measure networks mostly wait, so there are more processes than processors. ``tests/conftest.py`` says what
goes first."""

nox.options.sessions = ["lint", "tests"]
nox.options.default_venv_backend = "none"


@nox.session
def quickstart(session: nox.Session) -> None:
    """Run the quickstart scenario and write its report. Further arguments go to ``pacbench run``."""
    run(session, "pacbench", "run", "quickstart", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Pass the tests that need nothing but Linux. Arguments go to pytest: ``nox -s tests -- tests/unit -k plan``."""
    run_beside(session, "tests/netns", "tests/unit", "-m", "not job and not methods")


@nox.session
def methods(session: nox.Session) -> None:
    """Pass the tests that train with the methods on real ranks: what they learn, send, keep and go on from."""
    run_beside(session, "tests/unit", "-m", "methods")


@nox.session
def slow(session: nox.Session) -> None:
    """Pass the tests that take long: whole jobs, and another kernel, with netem (Debian: user-mode-linux)."""
    run_beside(session, "tests/netem", "tests/netns", "-m", "netem or job")


@nox.session
def compose(session: nox.Session) -> None:
    """Pass the tests that need a container engine and the image of the workers (``pacbench image``)."""
    run(session, "pytest", "tests/compose", *session.posargs, env=ONE_THREAD)


@nox.session
def engines(session: nox.Session) -> None:
    """Pass the tests of real schedulers: Slurm (Debian: slurm-wlm, munge) and Ray, which is installed beside."""
    beside = ROOT / ".nox" / "engines"
    if not (beside / "ray").exists():
        run(session, "pip", "install", "-q", "--target", str(beside), *SCHEDULERS)
    # These tests mostly wait: for leases, for hosts that do not answer. One file, and with it one Slurm, a process.
    wanted = session.posargs or ["-n", str(1 + (os.cpu_count() or 1)), "--dist", "loadscope"]
    run(session, "pytest", "tests/engines", *wanted, env={**ONE_THREAD, "PYTHONPATH": str(beside)})


SCHEDULERS = ("ray==2.60.0", "kubernetes-validate==1.37.0", "check-jsonschema")


@nox.session
def torture(session: nox.Session) -> None:
    """Do harm to real runs, and see what is left: an hour. ``-- --few 8 --seed 1`` tries some, of many kinds."""
    run(session, "pytest", "tests/torture", *session.posargs, env=ONE_THREAD)


@nox.session
def soak(session: nox.Session) -> None:
    """Run ``-- --replays 2000 --out FOLDER`` on one cluster, and look at memory and descriptors: half an hour."""
    run(session, "python", "tests/torture/soak.py", *session.posargs, env=ONE_THREAD)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Try new input on all that is read, as long as it is told: ``-- --for 20min --seed 7``."""
    run(session, "python", "tests/unit/fuzz.py", *session.posargs, env=ONE_THREAD)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, stages and types."""
    run(session, "ruff", "check", ".")
    run(session, "lint-imports")
    run(session, "ruff", "format", "--check", ".")
    run(session, "mypy")


@nox.session
def browser(session: nox.Session) -> None:
    """Look at the report in headless Chromium (Debian: chromium, chromium-driver)."""
    run(session, "pytest", "tests/browser", *session.posargs, env=ONE_THREAD)


@nox.session(venv_backend="venv")
def docs(session: nox.Session) -> None:
    """Build the site into build/site, look at it in headless Chromium, and follow its tutorials to the letter.

    What is read from the code is made in the environment that has it. MkDocs has one of its own.
    """
    run(session, "python", "docs/made.py", "build/docs")
    wanted = nox.project.load_toml("pyproject.toml")["project"]["optional-dependencies"]["docs"]
    session.install("-q", "-c", "constraints.txt", *wanted)
    session.run("mkdocs", "build", "--strict", "--clean", "--quiet")
    run(session, "pytest", "tests/docs", *session.posargs, env=ONE_THREAD)


@nox.session(venv_backend="venv")
def audit(session: nox.Session) -> None:
    """Ask PyPI which versions that are installed have known vulnerabilities. What it cannot tell of fails, too."""
    pip = str(environment(session) / "pip")
    installed = session.run(pip, "freeze", "--exclude-editable", silent=True, external=True)
    listed = Path(session.create_tmp()) / "installed.txt"
    listed.write_text(re.sub(r"\+\S+", "", str(installed)))  # advisories know no local versions, such as +cpu
    session.install("pip-audit")
    session.run("pip-audit", "--strict", "--no-deps", "--disable-pip", "-r", str(listed), *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure speed, as ratios: codecs against a memcpy, networks against their bounds."""
    run(session, "pytest", "tests/bench", "--benchmark-only", *session.posargs, env=ONE_THREAD)


@nox.session
def gates(session: nox.Session) -> None:
    """Make real regression gates over unchanged and over slower code, and count their verdicts: hours."""
    run(session, "python", "tests/bench/gates.py", *session.posargs)


@nox.session
def replays(session: nox.Session) -> None:
    """Compare replays with real training of the same model, in turns: minutes a round."""
    run(session, "python", "tests/bench/replays.py", *session.posargs, env=ONE_THREAD)


@nox.session
def plans(session: nox.Session) -> None:
    """Run shipped scenarios, and compare what they take with what was planned: hours."""
    run(session, "python", "tests/bench/plans.py", *session.posargs, env=ONE_THREAD)


@nox.session
def flow_model(session: nox.Session) -> None:
    """Compare predicted collectives with emulation, or with SimGrid's fluid model."""
    run(session, "python", "tests/bench/flow_model.py", *session.posargs, env=ONE_THREAD)


@nox.session
def pilots(session: nox.Session) -> None:
    """Judge pilots over listed links, count what rechecks find, or ask torch's profiler: `-- links`, for example."""
    kind, *arguments = session.posargs or ["links"]
    scripts = {"links": "pilot_links.py", "rechecks": "pilot_rechecks.py", "profiler": "profiled_communication.py"}
    if kind not in scripts:
        session.error(f"found {kind!r}; allowed: {', '.join(scripts)}")
    run(session, "python", f"tests/bench/{scripts[kind]}", *arguments, env=ONE_THREAD)


@nox.session(venv_backend="venv")
def release(session: nox.Session) -> None:
    """Build sdist and wheel into dist/, and run what is installed from them, with the oldest torch and with the newest.

    The oldest goes with the oldest Python that is supported and found here, as ``python3.10`` or the like, the newest
    with the newest. Further arguments are versions of torch instead of these: ``nox -s release -- 2.13.0``. Each
    environment is several gigabytes, one after the other.
    """
    version = release_version(session)
    session.install("-q", "build", "twine", "cffconvert")
    session.run("cffconvert", "--validate", "-i", str(ROOT / "CITATION.cff"))
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    session.run("python", "-m", "build", "-q", str(ROOT))
    wheel, sdist = (ROOT / "dist" / f"pacbench-{version}{end}" for end in ("-py3-none-any.whl", ".tar.gz"))
    session.run("twine", "check", "--strict", str(wheel), str(sdist))
    tried = session.posargs or [OLDEST_TORCH, NEWEST_TORCH]
    for torch, package, python in zip(tried, [wheel, sdist], oldest_and_newest_python(), strict=False):
        try_installed(session, package, torch, python)


OLDEST_TORCH, NEWEST_TORCH = "2.6.0", "2.14.1"
AWAY = {"PYTHONPATH": ""}
"""Nothing of a checkout is found, whatever the user's shell says."""


def release_version(session: nox.Session) -> str:
    """The version of pyproject.toml, of which CITATION.cff and CHANGELOG.md must speak, too."""
    found = {
        "pyproject.toml": r'^version = "(.+)"$',
        "CITATION.cff": r"^version: (.+)$",
        "CHANGELOG.md": r"^## (\S+) \(\d{4}-\d\d-\d\d\)$",
    }
    versions = {name: re.search(wanted, (ROOT / name).read_text(), re.M) for name, wanted in found.items()}
    for name, match in versions.items():
        if match is None:
            session.error(f"{name} has no version that is released")
    told = {name: match.group(1) for name, match in versions.items() if match}
    if len(set(told.values())) > 1:
        session.error(f"versions differ: {told}")
    if re.search(r"^## Unreleased\n\s*[^#\s]", (ROOT / "CHANGELOG.md").read_text(), re.M):
        session.error("CHANGELOG.md has entries below 'Unreleased': give them a heading, such as ## 0.2.0 (2026-12-24)")
    return told["pyproject.toml"]


def oldest_and_newest_python() -> tuple[str, str]:
    """Of those that are found here and that pyproject.toml allows; this one, where there is no other."""
    oldest = re.fullmatch(r">=3\.(\d+)", nox.project.load_toml("pyproject.toml")["project"]["requires-python"])
    assert oldest
    named = (shutil.which(f"python3.{minor}") for minor in range(int(oldest[1]), 20))
    # A shim may stand for a version that is not there.
    found = [each for each in named if each and not subprocess.run([each, "-c", ""], capture_output=True).returncode]
    return (found[0], found[-1]) if found else (sys.executable, sys.executable)


def try_installed(session: nox.Session, package: Path, torch: str, python: str) -> None:
    """Install a package into an environment of its own, and use it away from the checkout."""
    place = Path(session.create_tmp()).resolve() / f"torch-{torch}"
    shutil.rmtree(place, ignore_errors=True)
    session.run(python, "-m", "venv", str(place), external=True)
    programs, empty = place / "bin", place / "elsewhere"
    empty.mkdir()
    session.run(str(programs / "pip"), "install", "-q", str(package), f"torch=={torch}", external=True)
    with session.chdir(empty):
        for arguments in (
            ["list"],
            ["plan", "quickstart", "--on", "fake"],
            ["run", "quickstart", "--on", "fake", "--out", "run"],
            ["report", "run", "--paper"],
        ):
            found = session.run(str(programs / "pacbench"), *arguments, env=AWAY, silent=True, external=True)
            session.log(str(found).strip().rpartition("\n")[2])
    shutil.rmtree(place)


@nox.session
def pruning_scores(session: nox.Session) -> None:
    """Prune trainings by magnitude and by GraSP's scores, at three moments, and compare what they learn."""
    run(session, "python", "tests/bench/pruning_scores.py", *session.posargs, env=ONE_THREAD)


def run_beside(session: nox.Session, *wanted: str) -> None:
    """Run these tests beside one another, or what pytest is told by the session's own arguments."""
    run(session, "pytest", *(session.posargs or [*wanted, *BESIDE]), env=ONE_THREAD)


def run(session: nox.Session, program: str, *arguments: str, env: dict[str, str] | None = None) -> None:
    """Run a program of the shared environment."""
    session.run(str(environment(session) / program), *arguments, env=env, external=True)


def environment(session: nox.Session) -> Path:
    """The folder of the shared environment's programs; installed when what it is made from has changed."""
    programs = ENVIRONMENT / ("Scripts" if sys.platform == "win32" else "bin")
    wanted = fingerprint()
    if not STAMP.exists() or STAMP.read_text() != wanted:
        session.log(f"installing into {ENVIRONMENT} (torch is large: minutes, once)")
        venv.create(ENVIRONMENT, with_pip=True, clear=True)
        pip = str(programs / "pip")
        session.run(pip, "install", "-q", "-c", "constraints.txt", "-e", ".[dev,paper]", silent=False, external=True)
        STAMP.write_text(wanted)
    return programs


def fingerprint() -> str:
    """Changes whenever the environment must be made anew."""
    parts = [sys.version, str(ROOT), *((ROOT / name).read_text() for name in DEPENDENCIES)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
