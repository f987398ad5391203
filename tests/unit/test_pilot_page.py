"""A pilot's page: what it tells, the explorer in it, of the job's own profile, and that it runs nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from piloted import BF16, DENSE, TOPK, hostile, job, network, pilot

from harness.analysis.pilot.elsewhere import elsewhere
from harness.analysis.pilot.worth import worth
from harness.network.topology import Topology
from harness.plain import visible
from harness.record.pilot import Pilot
from harness.report import explorer
from harness.report import pilot as report

EVIL = "</script><script>document.title='taken'</script><!-- \u202e\x1b[2J"


def written(found: Pilot, folder: Path) -> str:
    return report.write(found, worth(found, 1000, None, None), folder).read_text(encoding="utf-8")


def scripts(page: str) -> list[tuple[str, str]]:
    """Attributes and text of each."""
    return re.findall(r"<script([^>]*)>(.*?)</script>", page, re.DOTALL)


def told(page: str) -> dict[str, Any]:
    """What the explorer of a page computes with."""
    (_, data), _ = scripts(page)
    found: dict[str, Any] = json.loads(data)
    return found


def places(page: str) -> dict[str, int]:
    """Where sliders stand."""
    return {name: int(value) for name, value in re.findall(r'id="explorer-(\w+)" min=.* value="(-?\d+)"', page)}


def test_it_tells_what_was_left_out(tmp_path: Path) -> None:
    page = written(pilot(left_out=("dgc, seed 2: <b>had</b> no room.",)), tmp_path)
    assert "&lt;b&gt;had&lt;/b&gt; no room" in page


def test_it_runs_the_script_that_its_policy_names_and_no_other(tmp_path: Path) -> None:
    page = written(hostile(EVIL, command=("python", EVIL), cluster=EVIL, left_out=(EVIL,)), tmp_path)
    (kind, _), (plain, script) = scripts(page)
    assert kind.startswith(' type="application/json"')
    assert plain == ""
    own = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert f"script-src 'sha256-{own}';" in policy
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline';")
    assert not re.search(r"\son\w+=|src=.?http|href=.?http", page)


def test_labels_are_text_in_what_the_script_reads(tmp_path: Path) -> None:
    (profile,) = told(written(hostile(EVIL), tmp_path))["profiles"]
    assert [each["label"] for each in profile["methods"]] == ["dense", "bf16", visible(EVIL)]


def test_the_explorer_knows_the_job_and_what_can_run_in_it() -> None:
    own = job()
    refused = [
        fit.model_copy(update={"refused": "it has no gradient"}) if fit.method == TOPK else fit for fit in own.fits
    ]
    for fits, labels in ((own.fits, ["dense", "bf16", TOPK.label]), (refused, ["dense", "bf16"])):
        found = elsewhere(pilot(job=own.model_copy(update={"fits": tuple(fits)}), beyond_s=0.004))
        (profile,) = found["profiles"]
        assert [each["label"] for each in profile["methods"]] == labels
        assert {each["beyond_s"] for each in profile["methods"]} == {0.004}
        assert (profile["batch"], profile["base"], profile["base_is_free"]) == (32, "bf16", False)
        assert profile["origin"] == "measured on a device"
    assert {DENSE.label, BF16.label} == set(labels)


@pytest.mark.parametrize(
    ("changes", "at"),
    [
        ({}, {"rate": 160, "rtt": -101, "workers": 1}),
        ({"network": network("25mbit", workers=3)}, {"rate": 148, "rtt": -101, "workers": 1}),
        ({"network": network("unshaped"), "per_node": 3}, {"rate": 220, "rtt": -101, "workers": 3}),
        (
            {"network": Topology.model_validate({"workers": 2, "link": {"rate": "1gbit", "delay": "5ms"}})},
            {"rate": 180, "rtt": -34, "workers": 0},
        ),
    ],
)
def test_its_sliders_stand_at_the_pilots_network(changes: dict[str, Any], at: dict[str, int], tmp_path: Path) -> None:
    found = pilot(**changes)
    page = written(found, tmp_path)
    assert places(page).items() >= at.items()
    workers = found.network.workers * found.per_node
    assert told(page)["workers"][at["workers"]] == workers
    assert f"Each rank, {workers} at first" in page


def test_a_network_beyond_all_sliders_has_them_at_their_ends() -> None:
    assert explorer.nearest({"workers": [2, 4]}, 1e3, 30.0, 4) == (explorer.RATES[0], explorer.RTTS[1], 1)
    assert explorer.nearest({"workers": [2, 4]}, 1e13, 1e-9, 2) == (explorer.RATES[1], explorer.RTTS[0] + 1, 0)
