"""Tutorials, followed to the letter: each command shows on a terminal what the page shows (``...`` is anything).

A translation shares its commands with the page it is made from. They are followed once.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
BLOCK = re.compile(r"^``` ?(?:console|\{ \.console[^}]*\})\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def pattern(shown: str) -> str:
    """What is shown, as a regular expression: any blanks for blanks, and for a line of ``...`` any lines, or none."""
    lines = []
    for line in shown.splitlines():
        words = [".*?".join(map(re.escape, word.split("..."))) for word in line.split()]
        lines.append("(?:.*\\n)*?" if words == [".*?"] else f" *{' +'.join(words)} *\\n")
    return "".join(lines) + r"\s*"


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


def followed_together() -> dict[str, list[list[tuple[str, str]]]]:
    """The steps of pages that have the same commands, by the pages' names."""
    alike: dict[tuple[str, ...], list[Path]] = {}
    for page in TUTORIALS:
        alike.setdefault(tuple(command for command, _ in steps(page)), []).append(page)
    return {" ".join(page.stem for page in pages): [steps(page) for page in pages] for pages in alike.values()}


@pytest.mark.parametrize("pages", followed_together().values(), ids=list(followed_together()))
def test_what_a_tutorial_shows_is_what_comes_out(
    pages: list[list[tuple[str, str]]], tmp_path: Path, shell: dict[str, str]
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    assert all(pages)
    for alike in zip(*pages, strict=True):
        command, pipes = alike[0][0], {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        done = subprocess.run(["bash", "-c", command], cwd=folder, env=shell, text=True, timeout=560, **pipes)
        assert done.returncode == 0, f"{command}\n{done.stdout}"
        for _, shown in alike:
            assert re.fullmatch(pattern(shown), done.stdout), f"{command}\n{done.stdout}"


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a  b\n", "a b\n", True),
        ("a b\n", "a c\n", False),
        ("...\nb\n", "b\n", True),
        ("...\nb\n", "a\na\nb\n", True),
        ("a ... d\n", "a b c d\n", True),
        ("a ... d\n", "a b\nc d\n", False),
        ("a/...\n", "a/b\n", True),
        ("a\n", "a\nb\n", False),
        ("", "a\n", False),
    ],
)
def test_what_is_shown_is_told_from_what_is_not(shown: str, printed: str, same: bool) -> None:
    assert bool(re.fullmatch(pattern(shown), printed)) == same
