"""Pages in a real browser, headless Chromium: nothing fetched, nothing wrong, tables that sort, at two widths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from chromium import keeps_out
from piloted import pilot, trainings
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait
from synthetic import make_store

from harness.analysis.claims import schema
from harness.analysis.claims.figures import Run
from harness.analysis.claims.judgements import judge
from harness.analysis.claims.plans import plans
from harness.analysis.pilot.worth import Price, worth
from harness.plan import plan
from harness.record.store import Store
from harness.report import claims_page
from harness.report import page as report
from harness.report import pilot as pilot_page
from harness.report.figures.claims import write_claims

EVIL = "w1: <script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\"> \"&'"

WIDTHS = {"laptop": 1280, "phone": 390}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two cases, six methods; one trial crashed and speaks evil, one method never finished."""
    lost = {"status": "crashed", "reason": EVIL, "log_tail": f"{EVIL}\nthe end of the log"}
    ends: dict[tuple[str, int], dict[str, Any]] = {("topk", 1): lost}
    ends |= {("bf16", number): {"status": "diverged", "reason": "the test loss was not finite"} for number in range(3)}
    store = make_store(
        tmp_path_factory.mktemp("page") / "run",
        ['link.rate=["10mbit", "1gbit"]', "train.steps=40", f"description={EVIL}"],
        ends=ends,
    )
    report.write(store)
    return store


@pytest.fixture
def page(browser: webdriver.Chrome, run: Store) -> webdriver.Chrome:
    """The page, freshly opened."""
    browser.get((run.folder / "report.html").as_uri())
    return browser


def column(table: WebElement, number: int) -> list[str]:
    return [
        row.find_elements(By.CSS_SELECTOR, "th,td")[number].text
        for row in table.find_elements(By.CSS_SELECTOR, "tbody tr")
    ]


def heading(table: WebElement, text: str) -> tuple[int, WebElement]:
    headings = table.find_elements(By.CSS_SELECTOR, "thead th")
    return next((number, each) for number, each in enumerate(headings) if each.text.startswith(text))


def test_the_console_has_nothing_to_say(page: webdriver.Chrome) -> None:
    assert page.get_log("browser") == []


def test_nothing_is_fetched(page: webdriver.Chrome) -> None:
    fetched = page.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert [name for name in fetched if not name.startswith("data:")] == []


def test_the_page_forbids_itself_to_fetch_and_to_run_what_is_not_its_own(page: webdriver.Chrome) -> None:
    violations = page.execute_async_script(
        """
        const finish = arguments[0], found = [];
        document.addEventListener("securitypolicyviolation", (event) => {
          found.push(event.effectiveDirective);
          if (found.length === 2) finish(found.sort());
        });
        const script = document.createElement("script");
        script.textContent = "document.title = 'taken'";
        document.body.append(script);
        new Image().src = "http://198.18.0.1/pixel.png";
        """
    )
    assert violations == ["img-src", "script-src-elem"]
    assert page.title != "taken"


def test_text_of_scenarios_and_logs_is_only_text(page: webdriver.Chrome) -> None:
    assert page.title == "quickstart · pacbench"
    assert len(page.find_elements(By.TAG_NAME, "script")) == 1
    assert all(image.get_attribute("src").startswith("data:") for image in page.find_elements(By.TAG_NAME, "img"))
    assert page.find_element(By.TAG_NAME, "body").text.count(EVIL.split("<")[0] + "<script>") >= 2


def test_every_figure_is_drawn(page: webdriver.Chrome) -> None:
    widths = page.execute_script("return [...document.images].map((image) => image.complete && image.naturalWidth)")
    assert len(widths) == 7
    assert all(widths)


def test_a_click_sorts_by_number_and_a_second_one_turns_it_round(page: webdriver.Chrome) -> None:
    _, table, *_ = page.find_elements(By.CSS_SELECTOR, "#results ~ section table.sortable")  # the second: throughput
    number, samples = heading(table, "samples/s")
    button = samples.find_element(By.TAG_NAME, "button")
    for direction, reverse in (("ascending", False), ("descending", True)):
        button.click()
        assert samples.get_attribute("aria-sort") == direction
        values = column(table, number)
        assert values[-1] == "–", "what is not known stays last"
        known = [float(value) for value in values[:-1]]
        assert known == sorted(known, reverse=reverse)
        assert len(known) == 5


def test_columns_with_units_sort_by_size_not_by_text(page: webdriver.Chrome) -> None:
    table = next(
        table
        for table in page.find_elements(By.CSS_SELECTOR, "table.sortable")
        if table.find_elements(By.CSS_SELECTOR, "th")[1].text == "payload"
    )
    number, payload = heading(table, "payload")
    payload.find_element(By.TAG_NAME, "button").click()
    labels = column(table, 0)
    assert labels.index("topk") < labels.index("pactrain-fp32") < labels.index("dense") < labels.index("bf16")
    assert {value.split()[-1] for value in column(table, number)[:-1]} == {"kB", "MB"}


def test_a_trial_opens_and_shows_its_reason_and_its_log(page: webdriver.Chrome) -> None:
    page.find_element(By.CSS_SELECTOR, "#trials > details > summary").click()
    lost = page.find_element(By.CSS_SELECTOR, "#trials tr.lost")
    _, status = heading(page.find_element(By.CSS_SELECTOR, "#trials table"), "status")
    status.find_element(By.TAG_NAME, "button").click()
    lost = next(row for row in page.find_elements(By.CSS_SELECTOR, "#trials tr.lost") if row.text.startswith("topk"))
    assert "the end of the log" not in lost.text
    lost.find_element(By.TAG_NAME, "summary").click()
    assert "the end of the log" in lost.text
    assert EVIL in lost.text


def test_what_did_not_finish_is_seen_without_scrolling(page: webdriver.Chrome) -> None:
    alarm = page.find_element(By.CSS_SELECTOR, ".alarm")
    assert "8 attempts did not finish" in alarm.text
    assert alarm.rect["y"] < 900


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_the_page_never_scrolls_sideways(page: webdriver.Chrome, width: int) -> None:
    """Wide tables scroll within themselves."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        page.execute_script("document.querySelectorAll('details').forEach((each) => each.open = true)")
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        assert page.execute_script("return Math.max(...[...document.images].map((image) => image.width))") <= width
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of some claims of which nothing was run, and of some of which nothing can be."""
    chosen = schema.select(schema.load(), ["pactrain-throughput/vgg19", "byteps-100mbit-topk", "thc-in-network"])
    planned = plans(chosen, lambda scenario: plan.make(scenario, "netns"))
    judged = [judge(each, {name: Run(own) for name, own in planned.items()}) for each in chosen]
    folder = tmp_path_factory.mktemp("verdicts")
    return claims_page.write(judged, folder, {"command": ["pacbench", EVIL]}, write_claims(judged, folder))


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_the_page_of_verdicts_fetches_nothing_and_never_scrolls_sideways(
    browser: webdriver.Chrome, verdicts: Path, width: int
) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        browser.get(verdicts.as_uri())
        assert browser.title == "Claims, judged · pacbench"
        assert browser.get_log("browser") == []
        fetched = browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
        assert [name for name in fetched if not name.startswith("data:")] == []
        assert all(browser.execute_script("return [...document.images].map((image) => image.naturalWidth)"))
        browser.execute_script("document.querySelectorAll('details').forEach((each) => each.open = true)")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_every_number_says_what_it_is(page: webdriver.Chrome) -> None:
    silent = page.execute_script(
        """
        const numbers = [...document.querySelectorAll(".case td, #trials td, #links table.sortable td")];
        return [numbers.length, numbers.filter((each) => !each.title).map((each) => each.outerHTML)];
        """
    )
    assert silent[0] > 100
    assert silent[1] == []


@pytest.mark.parametrize(("width", "columns"), [(1280, 1), (2560, 2)])
def test_a_wide_screen_shows_figures_side_by_side(page: webdriver.Chrome, width: int, columns: int) -> None:
    metrics = {"width": width, "height": 1400, "deviceScaleFactor": 1, "mobile": False}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        lefts = page.execute_script(
            "return [...document.querySelectorAll('#figures figure')].map((each) => each.getBoundingClientRect().left)"
        )
        assert len(set(lefts)) >= columns
        assert (len(set(lefts)) > 1) == (columns > 1)
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        used = page.execute_script("return document.body.getBoundingClientRect().width")
        assert used > 0.9 * width
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_in_the_dark_and_on_paper_text_stands_out(page: webdriver.Chrome) -> None:
    for media, scheme, darker in (("screen", "dark", "paper"), ("screen", "light", "ink"), ("print", "dark", "ink")):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
        try:
            ink, paper = page.execute_script(
                """
                const style = getComputedStyle(document.body);
                const light = (color) => color.match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0);
                return [light(style.color), light(style.backgroundColor)];
                """
            )
            assert abs(ink - paper) > 500
            assert (paper < ink) == (darker == "paper")
            shown = page.execute_script("return getComputedStyle(document.querySelector('nav')).display")
            assert (shown == "none") == (media == "print")
        finally:
            page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})


@pytest.fixture(scope="module")
def recommendation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a pilot that recommends a method."""
    found = pilot()
    priced = worth(found, 100_000, Price(2.49, "$"), Price(0.09, "$"))
    return pilot_page.write(found, priced, tmp_path_factory.mktemp("pilot"))


@pytest.fixture(scope="module")
def refusal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a pilot that recommends no compression, and that left something out."""
    found = pilot(trainings(topk_end=1.3), left_out=("dgc, seed 2, had no room.",), beyond_s=0.004)
    assert not found.verdict.compress
    return pilot_page.write(found, worth(found, 100_000, None, None), tmp_path_factory.mktemp("refusal"))


@pytest.mark.parametrize("kind", ["recommendation", "refusal"])
@pytest.mark.parametrize("width", [*WIDTHS.values(), 2560], ids=[*WIDTHS, "wide"])
def test_the_page_of_a_pilot_fetches_nothing_and_never_scrolls_sideways(
    browser: webdriver.Chrome, request: pytest.FixtureRequest, kind: str, width: int
) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        browser.get(request.getfixturevalue(kind).as_uri())
        WebDriverWait(browser, 120).until(
            lambda it: it.find_element(By.TAG_NAME, "body").get_attribute("data-explorer") == "settled"
        )
        assert browser.get_log("browser") == []
        fetched = browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
        assert [name for name in fetched if not name.startswith("data:")] == []
        assert len(browser.find_elements(By.CSS_SELECTOR, "#explorer-steps tr")) == 3
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["report", "verdicts", "recommendation", "refusal"])
def test_nobody_is_kept_out(
    browser: webdriver.Chrome, request: pytest.FixtureRequest, run: Store, kind: str, scheme: str
) -> None:
    page = run.folder / "report.html" if kind == "report" else request.getfixturevalue(kind)
    browser.get(page.as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach((each) => each.open = true)")
    assert keeps_out(browser, scheme) == []
