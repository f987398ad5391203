"""Pages of hostile runs and commands in headless Chromium: labels, logs and pictures are shown, and run nothing."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from chromium import keeps_out
from piloted import hostile
from selenium import webdriver
from selenium.webdriver.common.by import By
from synthetic import make_store

from harness.analysis.pilot.worth import worth
from harness.cluster.fake import FakeCluster
from harness.network.topology import Topology
from harness.record.execution import Execution, LinkTraffic, Sample, WorkerUse
from harness.report import execution, page
from harness.report import pilot as pilot_page
from harness.scenario.links import Link

TAKEN = "document.title='taken'"

LABEL = f"--></text></svg><script>{TAKEN}</script><svg onload=\"{TAKEN}\"/><a href='javascript:{TAKEN}'>"
"""It would end a comment, a text and a picture. As long as a label may be."""

LOG = "\n".join(
    (
        f"</pre></script><script>{TAKEN}</script>",
        f"<img src=x onerror={TAKEN}>",
        f"<iframe srcdoc='<script>top.{TAKEN}</script>'>",
        f"<meta http-equiv=refresh content='0;url=javascript:{TAKEN}'>",
        "<base href=http://198.18.0.1/>]]>\0\x1b[2J\u202e",
    )
)

SCENARIO = f"""rounds = 2
description = '''{LOG.splitlines()[1]}'''
[train]
steps = 40
[[methods]]
name = "dense"
[[methods]]
name = "topk"
label = '''{LABEL}'''
"""

ACTIVE = "script, foreignObject, iframe, object, embed, base, form, a[href^='javascript'], [onload], [onerror]"
"""What could run or load something, had text become markup."""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run whose method, description and logs are hostile."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "hostile.toml").write_text(SCENARIO)
    lost = {"status": "crashed", "reason": LOG, "log_tail": LOG}
    return page.write(make_store(folder / "run", scenario=str(folder / "hostile.toml"), ends={(LABEL, 1): lost}))


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a command that is hostile in all that it says."""
    topology = Topology(workers=2, link=Link.model_validate({"rate": "10mbit"}))
    with FakeCluster() as cluster:
        before = cluster.use(topology)
    samples = tuple(Sample(time_s=time_s, wire_bytes=100 * time_s, backlog_bytes=0) for time_s in (0, 1, 2))
    counted = {"rate_bps_asked": None, "wire_bytes": 200, "payload_bytes": 100, "packets": 2, "drops": 0}
    links = tuple(
        LinkTraffic(link=LABEL, direction=direction, worker=worker, samples=samples, **counted)
        for worker in range(2)
        for direction in ("up", "down")
    )
    uses = tuple(
        WorkerUse(worker=LABEL, exit_codes={worker: 1}, retransmits=0, cpu_s=1.0, peak_memory_bytes=1)
        for worker in range(2)
    )
    said = {"command": ("sh", "-c", LOG), "folder": LABEL, "cluster": LABEL, "network_in_words": LOG}
    ended = {"ending": "failed", "reason": LOG, "exit_code": 1, "wall_time_s": 2.0, "drift": (LOG,)}
    seen = {"links": links, "uses": uses, "before": before, "after": before, "network": {}, "workers": 2, "per_node": 1}
    found = Execution(**said, **ended, **seen, provenance={"commit": LABEL, "command": [LOG, LABEL], LABEL: LOG})
    return execution.write(found, tmp_path_factory.mktemp("record"))


@pytest.fixture(scope="module")
def piloted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a pilot whose script, method and labels are hostile."""
    script = LOG.replace("\0", "")  # which no command holds
    said: dict[str, Any] = {"command": ("sh", "-c", script), "folder": LABEL, "cluster": LABEL, "left_out": (LOG,)}
    found = hostile(LABEL, **said, provenance={"commit": LABEL, "command": [LOG, LABEL], LABEL: LOG})
    return pilot_page.write(found, worth(found, 1000, None, None), tmp_path_factory.mktemp("pilot"))


OWN = {"report": 1, "record": 0, "piloted": 3}
"""What is active in each page and its own: the script that sorts; none; the explorer's form, data and script."""


def opened(browser: webdriver.Chrome, page: Path) -> webdriver.Chrome:
    browser.get(page.as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach((each) => each.open = true)")
    return browser


@pytest.mark.parametrize("kind", OWN)
def test_a_hostile_page_is_only_text(browser: webdriver.Chrome, request: pytest.FixtureRequest, kind: str) -> None:
    shown = opened(browser, request.getfixturevalue(kind))
    assert shown.title != "taken"
    assert shown.get_log("browser") == [], "nothing was so much as tried: the policy had nothing to forbid"
    assert len(shown.find_elements(By.CSS_SELECTOR, ACTIVE)) == OWN[kind]
    text = shown.find_element(By.TAG_NAME, "body").text
    assert "<script>" in text
    assert "<img src=x" in text
    assert not set("\0\x1b\u202e") & set(text)
    policy = shown.find_element(By.CSS_SELECTOR, "meta[http-equiv='Content-Security-Policy']").get_attribute("content")
    assert "default-src 'none'" in policy


@pytest.mark.parametrize("kind", OWN)
def test_pictures_of_hostile_labels_are_only_pictures(
    browser: webdriver.Chrome, request: pytest.FixtureRequest, kind: str, tmp_path: Path
) -> None:
    """Also when somebody saves one and opens it by itself, where no policy guards it."""
    images = opened(browser, request.getfixturevalue(kind)).find_elements(By.TAG_NAME, "img")
    pictures = [str(image.get_attribute("src")).partition("base64,")[2] for image in images]
    assert len(pictures) >= 1
    for number, picture in enumerate(pictures):
        file = tmp_path / f"{number}.svg"
        file.write_bytes(base64.b64decode(picture))
        browser.get(file.as_uri())
        assert browser.execute_script("return document.documentElement.tagName") == "svg", "it is well-formed"
        assert browser.execute_script(f'return document.querySelectorAll("{ACTIVE}").length') == 0
        assert browser.title != "taken"
        assert browser.get_log("browser") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nobody_is_kept_out_of_a_record(browser: webdriver.Chrome, record: Path, scheme: str) -> None:
    assert keeps_out(opened(browser, record), scheme) == []
