"""What looks at pages share: headless Chromium."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import started
from selenium import webdriver

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))


@pytest.fixture(scope="module")
def chromium() -> Iterator[webdriver.Chrome]:
    with started() as driver:
        yield driver


@pytest.fixture
def browser(chromium: webdriver.Chrome) -> webdriver.Chrome:
    """Chromium, with nothing in its log of what other tests made it say."""
    chromium.get_log("browser")
    return chromium
