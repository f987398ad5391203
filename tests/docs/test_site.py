"""The built site in headless Chromium, from files alone: search, the explorer, and what axe says of its pages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import keeps_out, started
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

SITE = Path(__file__).resolve().parents[2] / "build" / "site"
PAGES = (
    *("index.html", "index.ja.html", "tutorials/first-run.html", "how/links-and-time.html", "troubleshooting.html"),
    *("METHODS.html", "scenarios/index.html", "results/index.html", "reference/verbs.html", "reference/json.html"),
    *("reference/columns.html", "reference/exit-codes.html", "reference/library.html", "explorer.html"),
    *("results/reference/quickstart/report.html", "results/reference/map/map.html", "SECURITY.html"),
    *("results/reference/claims/claims.html", "tutorials/your-own-job.html", "CONTRIBUTING.html"),
    *("tutorials/pilot.html", "tutorials/pilot.ja.html", "tutorials/figure-for-a-paper.html"),
    *("tutorials/gate-in-ci.html", "tutorials/method-of-your-own.html", "tutorials/cluster.html", "CHANGELOG.html"),
    *("harness/index.html", "docker/index.html", "docker/wheels/index.html"),
    *("examples/scripts/index.html", "examples/plugins/index.html"),
)
LIKE_OTHERS = re.compile(r"(404|JSON|results/reference/.+/(report|claims)|explorer-page)\.html")
"""Pages like one of these: the same at another place, or of another run; the explorer, which tests/browser looks at."""

COPY_BUTTONS = ".md-code__button[data-md-type=copy]"


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    """A browser for all of it."""
    with started() as driver:
        yield driver


def test_every_page_of_the_site_is_looked_at() -> None:
    built = {str(path.relative_to(SITE)) for path in SITE.rglob("*.html")}
    assert {page for page in built - set(PAGES) if not LIKE_OTHERS.match(page)} == set()
    assert set(PAGES) <= built


@pytest.mark.parametrize("page", PAGES)
def test_nobody_is_kept_out_of_a_page(browser: webdriver.Chrome, page: str) -> None:
    browser.get((SITE / page).as_uri())
    assert keeps_out(browser) == []


def test_of_a_console_the_command_alone_is_copied(browser: webdriver.Chrome) -> None:
    browser.get((SITE / "tutorials" / "gate-in-ci.html").as_uri())
    browser.execute_script("document.addEventListener('copy', event => { window.copied = `${getSelection()}` })")
    buttons = WebDriverWait(browser, 20).until(lambda _: browser.find_elements(By.CSS_SELECTOR, COPY_BUTTONS))
    ActionChains(browser).move_to_element(buttons[0]).click(buttons[0]).perform()
    copied = WebDriverWait(browser, 20).until(lambda _: browser.execute_script("return window.copied"))
    assert copied == "pacbench run ci --method topk --rounds 3 --out before"


def test_search_finds_a_page_without_a_server(browser: webdriver.Chrome) -> None:
    browser.get((SITE / "index.html").as_uri())
    browser.execute_script("document.querySelector('[data-md-toggle=search]').click()")
    (box,) = browser.find_elements(By.CSS_SELECTOR, ".md-search__input")
    wait = WebDriverWait(browser, 20)
    wait.until(lambda _: box.is_displayed())
    box.send_keys("dilation")
    links = wait.until(lambda _: browser.find_elements(By.CSS_SELECTOR, "a.md-search-result__link"))
    assert any("how/links-and-time.html" in str(link.get_attribute("href")) for link in links)


def test_the_explorer_answers_within_its_page(browser: webdriver.Chrome) -> None:
    browser.get((SITE / "explorer.html").as_uri())
    browser.switch_to.frame(browser.find_element(By.TAG_NAME, "iframe"))
    rows = WebDriverWait(browser, 20).until(lambda _: browser.find_elements(By.CSS_SELECTOR, "tbody tr"))
    assert len(rows) > 3
