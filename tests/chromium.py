"""Headless Chromium (Debian: chromium, chromium-driver), and what axe finds there."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--window-size=1280,900"),
)

RUN = "axe.run(document, {iframes: false}).then(arguments[0], (error) => arguments[0]({error: String(error)}))"
"""Pages in frames are pages of their own: of files, one may not look into another."""


@contextmanager
def started() -> Iterator[webdriver.Chrome]:
    """A browser with a profile of its own, whose log can be read."""
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = "/usr/bin/chromium"
        for argument in (*QUIET, f"--user-data-dir={profile}"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
        try:
            yield driver
        finally:
            driver.quit()


def keeps_out(driver: webdriver.Chrome, scheme: str = "light") -> list[tuple[str, list[str]]]:
    """What axe calls serious or critical in the page that is shown: each rule, with the first elements that break it.

    Args:
        scheme: ``light`` or ``dark``, as a reader's system may prefer.
    """
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": features})
    try:
        driver.execute_script((files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8"))
        found = driver.execute_async_script(RUN)
    finally:
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    assert "violations" in found, found
    grave = [each for each in found["violations"] if each["impact"] in ("serious", "critical")]
    return [(each["id"], [node["html"] for node in each["nodes"]][:3]) for each in grave]
