"""The explorer in headless Chromium: its numbers are Python's, its sliders move it, at three widths."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from chromium import keeps_out
from in_process import call_pacbench
from piloted import TOPK, network, pilot
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from harness.analysis import prediction_map
from harness.analysis.pilot.elsewhere import elsewhere
from harness.analysis.pilot.forecast import Forecast
from harness.analysis.pilot.worth import worth
from harness.analysis.prediction_map import LINKS_TO_CROSS, Subject
from harness.network.topology import Topology
from harness.plan import predict
from harness.plan.collectives import Network
from harness.plan.expected import state_of
from harness.report import pilot as pilot_page
from harness.scenario.links import Link
from harness.scenario.load import load
from harness.scenario.schema import MethodSpec

POINTS = 200

WIDTHS = {"phone": 390, "laptop": 1366, "wide": 2560}

SLIDERS = ("rate", "rtt", "workers", "ranks", "passes", "speed")

SCENARIO = load("convergence")
SUBJECTS = prediction_map.subjects(SCENARIO)[0]
BUCKET_BYTES = SCENARIO.cases[0].train.bucket_bytes

SET_ALL = """
return arguments[0].map((point) => {
  for (const [name, place] of Object.entries(point)) document.getElementById(`explorer-${name}`).value = place;
  document.getElementById("explorer-rate").dispatchEvent(new Event("input"));
  const shown = Object.fromEntries(arguments[1].map((name) =>
    [name, Number(document.getElementById(`explorer-${name}-shown`).dataset.value)]));
  const rows = [...document.querySelectorAll("#explorer-steps tr")];
  return [shown, rows.map((row) => [row.dataset.label, Number(row.dataset.seconds)])];
});
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explorer")
    assert call_pacbench(("explore", "-o", "explorer.html"), folder).returncode == 0
    return folder / "explorer.html"


@pytest.fixture
def page(browser: webdriver.Chrome, written: Path) -> webdriver.Chrome:
    browser.get(written.as_uri())
    return browser


def settled(page: webdriver.Chrome) -> webdriver.Chrome:
    """The page when it has computed the break-evens and drawn its figure."""
    WebDriverWait(page, 120).until(
        lambda it: it.find_element(By.TAG_NAME, "body").get_attribute("data-explorer") == "settled"
    )
    return page


def test_it_fetches_nothing_and_the_console_has_nothing_to_say(page: webdriver.Chrome) -> None:
    assert settled(page).get_log("browser") == []
    assert page.execute_script("return performance.getEntriesByType('resource').length") == 0


def test_its_numbers_are_pythons(page: webdriver.Chrome) -> None:
    """At random places of all sliders, for every method of the profile."""
    dice = random.Random(7)
    ends = {name: [int(str(slider(page, name).get_attribute(end))) for end in ("min", "max")] for name in SLIDERS}
    places = [
        {"profile": dice.randrange(len(SUBJECTS)), **{name: dice.randint(*ends[name]) for name in SLIDERS}}
        for _ in range(POINTS)
    ]
    answers = page.execute_script(SET_ALL, places, SLIDERS)
    for place, (shown, rows) in zip(places, answers, strict=True):
        subject = SUBJECTS[place["profile"]]
        methods, seconds = {each.label: each for each in compared(subject)}, dict(rows)
        assert seconds.keys() == methods.keys()
        expected = {label: step_s(subject, method, shown) for label, method in methods.items()}
        assert seconds == pytest.approx(expected, rel=1e-9), f"{subject.name} at {shown}"
        assert list(seconds.values()) == sorted(seconds.values()), "the shortest comes first"


def compared(subject: Subject) -> list[MethodSpec]:
    dense = next(each for each in SCENARIO.methods if each.label == SCENARIO.baseline)
    return [dense, subject.base, *subject.methods]


def step_s(subject: Subject, method: MethodSpec, shown: dict[str, Any]) -> float:
    """A step as Python predicts it."""
    link = Link.model_validate({}).model_copy(
        update={"rate_bps": round(shown["rate"]), "delay_s": shown["rtt"] / LINKS_TO_CROSS}
    )
    network = Network(Topology(workers=round(shown["workers"]), link=link))
    profile = subject.profile.at(100 * shown["speed"] / shown["ranks"])
    earlier_s = (shown["passes"] - 1) * (profile.forward_s + profile.backward_s)
    return earlier_s + predict.step_s(profile, method, state_of(method), network, BUCKET_BYTES)


def slider(page: webdriver.Chrome, name: str) -> Any:
    return page.find_element(By.ID, f"explorer-{name}")


def shown(page: webdriver.Chrome, name: str) -> float:
    return float(str(page.find_element(By.ID, f"explorer-{name}-shown").get_attribute("data-value")))


def test_at_a_break_even_python_turns_too(page: webdriver.Chrome) -> None:
    turned = 0
    for number, subject in enumerate(SUBJECTS):
        choose(page, number)
        at = {name: shown(page, name) for name in SLIDERS}
        for method in subject.methods:
            cell = page.find_element(By.CSS_SELECTOR, f"#explorer-steps tr[data-label='{method.label}'] td:last-child")
            if rate := cell.get_attribute("data-break-even"):
                below, above = (
                    step_s(subject, method, around) < step_s(subject, subject.base, around)
                    for around in ({**at, "rate": share * float(rate)} for share in (0.99, 1.01))
                )
                assert (below, above) == (True, False), f"{subject.name}, {method.label}: {cell.text}"
                turned += 1
    assert turned > len(SUBJECTS)


def choose(page: webdriver.Chrome, number: int) -> None:
    page.execute_script(
        "const own = document.getElementById('explorer-profile');"
        "own.value = arguments[0]; own.dispatchEvent(new Event('input'))",
        number,
    )
    settled(page)


def test_in_a_pilots_page_its_numbers_are_the_pilots(browser: webdriver.Chrome, tmp_path: Path) -> None:
    """At first those of its predictions, then what its step model says of other networks."""
    found = pilot(network=network(workers=3), beyond_s=0.004)
    browser.get(pilot_page.write(found, worth(found, 1000, None, None), tmp_path).as_uri())
    settled(browser)
    dice = random.Random(7)
    known = elsewhere(found)["workers"]
    places = [{}, *({name: dice.randint(*ends) for name, ends in NETWORKS.items()} for _ in range(POINTS))]
    answers = browser.execute_script(SET_ALL, places, SLIDERS)
    for shown, rows in answers:
        link = Link.model_validate({}).model_copy(
            update={"rate_bps": round(shown["rate"]), "delay_s": shown["rtt"] / LINKS_TO_CROSS}
        )
        there = Forecast(found.job, Topology(workers=round(shown["workers"]), link=link), beyond_s=0.004)
        expected = {fit.method.label: there.step_s(fit.method) for fit in found.job.fits}
        assert dict(rows) == pytest.approx(expected, rel=1e-9), shown
    assert {shown["workers"] for shown, _ in answers} <= set(known)
    at_first, predicted = dict(answers[0][1]), Forecast(found.job, found.network, beyond_s=0.004)
    assert at_first[TOPK.label] == pytest.approx(predicted.step_s(TOPK), rel=1e-9)
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0


NETWORKS = {"rate": (120, 220), "rtt": (-101, -10), "workers": (0, 10)}
"""Where the sliders of networks may stand."""


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_sliders_move_it_at_any_width(page: webdriver.Chrome, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        settled(page)
        for name in SLIDERS:
            before, table = shown(page, name), page.find_element(By.ID, "explorer-steps").text
            slider(page, name).send_keys(Keys.ARROW_RIGHT)
            settled(page)
            assert shown(page, name) > before
            assert page.find_element(By.ID, "explorer-steps").text != table, f"{name} changes steps"
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        assert len(page.find_elements(By.CSS_SELECTOR, "#explorer-figure polyline")) == len(
            page.find_elements(By.CSS_SELECTOR, "#explorer-steps tr")
        )
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_profile_of_ones_own_is_only_text(browser: webdriver.Chrome, tmp_path: Path) -> None:
    """Whatever it says of itself."""
    from harness.workload import profile as profiles

    evil = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
    content = json.loads(profiles.find("digits-cnn-epyc").read_text()) | {"device": evil, "model": evil}
    (tmp_path / "mine.json").write_text(json.dumps(content))
    assert call_pacbench(("explore", "mine.json", "-o", "made/mine.html"), tmp_path).returncode == 0
    browser.get((tmp_path / "made" / "mine.html").as_uri())
    assert evil in settled(browser).find_element(By.ID, "explorer-about").text
    assert browser.title == "Would it pay? · pacbench"
    assert browser.get_log("browser") == []
    assert len(browser.find_elements(By.TAG_NAME, "img")) == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nobody_is_kept_out_of_the_explorer(page: webdriver.Chrome, scheme: str) -> None:
    assert keeps_out(page, scheme) == []
