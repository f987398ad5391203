"""Warnings that our own code gives are errors in tests; those of others are theirs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


def test_warnings_of_each_module_of_ours_are_errors(pytestconfig: pytest.Config) -> None:
    (ours,) = (rule.removeprefix("error:::") for rule in pytestconfig.getini("filterwarnings") if "error" in rule)
    modules = {file.stem for file in TESTS.rglob("*.py")} - {"__init__"}
    assert sorted(name for name in modules if not re.match(ours, name)) == []
