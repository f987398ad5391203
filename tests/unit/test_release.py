"""What ``nox -s release`` asks of the files that tell the version, before it builds anything."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = ("pyproject.toml", "CITATION.cff", "CHANGELOG.md")


class StoppedError(Exception):
    """The session said why it does not go on."""


def stop(*words: object) -> NoReturn:
    raise StoppedError(*words)


SESSION = SimpleNamespace(error=stop)


@pytest.fixture(scope="module")
def loaded() -> ModuleType:
    """The noxfile."""
    spec = importlib.util.spec_from_file_location("noxfile", ROOT / "noxfile.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def noxfile(loaded: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """It looks at copies of the project's files."""
    for name in FILES:
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(loaded, "ROOT", tmp_path)
    return loaded


def changelog(noxfile: ModuleType, text: str) -> None:
    (noxfile.ROOT / "CHANGELOG.md").write_text(f"# Changelog\n\n{text}", encoding="utf-8")


def test_the_projects_own_files_tell_one_version_that_is_released(noxfile: ModuleType) -> None:
    assert noxfile.release_version(SESSION) == "0.1.0"


def test_a_changelog_without_a_date_stops_it(noxfile: ModuleType) -> None:
    changelog(noxfile, "## 0.1.0 (unreleased)\n\n* A thing.\n")
    with pytest.raises(StoppedError, match=r"CHANGELOG\.md has no version that is released"):
        noxfile.release_version(SESSION)


def test_entries_that_belong_to_no_release_stop_it(noxfile: ModuleType) -> None:
    changelog(noxfile, "## Unreleased\n\n* A thing.\n\n## 0.1.0 (2026-11-28)\n\n* Another.\n")
    with pytest.raises(StoppedError, match=r"entries below 'Unreleased'.*such as ## 0\.2\.0"):
        noxfile.release_version(SESSION)


def test_versions_that_differ_stop_it(noxfile: ModuleType) -> None:
    changelog(noxfile, "## Unreleased\n\n## 0.2.0 (2026-12-24)\n\n* A thing.\n")
    with pytest.raises(StoppedError, match="versions differ"):
        noxfile.release_version(SESSION)
