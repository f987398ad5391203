"""Tutorials, followed to the letter: each command runs, and shows what the page shows (``...`` stands for anything)."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
BLOCK = re.compile(r"^``` ?(?:console|\{ \.console[^}]*\})\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def steps(page: Path) -> list[tuple[str, str]]:
    """The commands of a page in their order, each with what it is said to print."""
    lines = "".join(BLOCK.findall(page.read_text(encoding="utf-8"))).splitlines()
    found: list[tuple[str, str]] = []
    for line in lines:
        if line.startswith("$ "):
            found.append((line[2:], ""))
        else:
            command, shown = found.pop()
            found.append((command, f"{shown}{line}\n"))
    return found


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """The environment of a user's shell: ``pacbench`` is a command, and ``$PACBENCH`` the checkout."""
    command = tmp_path / "bin" / "pacbench"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT / "harness" / "start.py"} harness.cli.main "$@"\n')
    command.chmod(0o755)
    path = os.pathsep.join([str(command.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PACBENCH": str(ROOT), "COLUMNS": "100"}


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_what_a_tutorial_shows_is_what_comes_out(page: Path, tmp_path: Path, shell: dict[str, str]) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    followed = steps(page)
    assert followed
    for command, shown in followed:
        done = subprocess.run(
            ["bash", "-c", command], cwd=folder, env=shell, capture_output=True, text=True, timeout=280
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert doctest.OutputChecker().check_output(shown, done.stdout, FLAGS), f"{command}\n{done.stdout}"
