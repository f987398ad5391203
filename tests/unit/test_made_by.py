"""Which code made a figure: each page and table of ours tells the version, the code digest and the commit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from executed import execution
from gate_runs import around, store_of
from piloted import pilot
from synthetic import make_store, row_again

from harness import provenance
from harness.analysis import explorer, gate, prediction_map
from harness.analysis.claims import schema
from harness.analysis.claims.judgements import Judgement
from harness.analysis.compare import changes as changes_between
from harness.analysis.pilot.worth import worth
from harness.analysis.prediction_map import Grid
from harness.analysis.reference import read
from harness.report import changes, claims_page, page, paper, verdicts
from harness.report import execution as execution_page
from harness.report import explorer as explorer_page
from harness.report import pilot as pilot_page
from harness.report import prediction_map as map_page
from harness.scenario.load import load

ORIGIN = {"version": "7.8.9", "code_digest": "ba9876543210", "commit": "0123456789ab"}
TOLD = "pacbench version 7.8.9, code digest ba9876543210, commit 0123456789ab"


def reports(folder: Path) -> dict[str, str]:
    store = make_store(folder / "run", methods=["topk"])
    store.add_provenance({"command": ["pacbench", "run", "quickstart"], **ORIGIN})
    written = page.write(store, [])
    table = paper.write(store, []) / "results.tex"
    return {
        "report": written.read_text(),
        "report.md": (store.folder / "report.md").read_text(),
        "tex": table.read_text(),
    }


def judged(folder: Path) -> dict[str, str]:
    claim = schema.select(schema.load(), ["thc-in-network"])[0]
    html = claims_page.write([Judgement(claim, "not testable here", None, "", "", ())], folder, ORIGIN)
    return {"claims": html.read_text(), "claims.md": (folder / "claims.md").read_text()}


def predicted(folder: Path) -> dict[str, str]:
    scenario = load("convergence", only_methods=["topk"])
    chosen, _ = prediction_map.subjects(scenario, ["fashion-cnn-xeon"])
    grid, bucket_bytes = Grid((10**8,), (0.0,), (2,), (100,)), scenario.cases[0].train.bucket_bytes
    found = prediction_map.gains(chosen, bucket_bytes, grid)
    drawn = map_page.as_markdown(found, prediction_map.errors(), chosen, grid, "pacbench map")
    sliders = explorer_page.write(explorer.exported(chosen, None, bucket_bytes), folder / "explorer.html")
    return {"map.md": drawn, "explorer": sliders.read_text()}


def piloted(folder: Path) -> dict[str, str]:
    found = pilot(provenance={"command": ["pacbench", "pilot"], **ORIGIN})
    return {"pilot": pilot_page.write(found, worth(found, 1000, None, None), folder).read_text()}


def executed(folder: Path) -> dict[str, str]:
    record = execution(provenance={"command": ["pacbench", "exec"], **ORIGIN})
    return {"exec": execution_page.write(record, folder).read_text()}


def held_against(folder: Path) -> dict[str, str]:
    stores = [store_of(folder / name, around(500.0), around(100.0)) for name in ("before", "after")]
    for store in stores:
        store.add_provenance(ORIGIN)
    before, after = (read(store.folder) for store in stores)
    found = gate.judge(after, before, 0.1)
    compared = "\n".join(changes.notes(before, after, changes_between(before, after)))
    return {"gate": verdicts.as_markdown(found), "gate.json": str(verdicts.as_json(found)), "compare": compared}


@pytest.mark.parametrize("make", [reports, judged, predicted, piloted, executed, held_against])
def test_every_page_tells_which_code_made_it(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(provenance, "code", lambda: ORIGIN)
    for name, text in make(tmp_path).items():
        assert TOLD in text, name


def test_a_report_tells_all_code_that_ran_trials(tmp_path: Path) -> None:
    store = make_store(tmp_path / "run", methods=["topk"])
    last = store.trials().iloc[-1]
    store.append(row_again(last, attempt=1, code_digest="fedcba987654", commit="9876"), [])
    text = page.write(store, []).read_text()
    assert (
        "Made by pacbench version unknown, code digest ba9876543210 and fedcba987654, commit 0123456789ab and 9876."
        in text
    )


def test_what_is_collected_tells_it() -> None:
    found = provenance.made_by([provenance.collect([])])
    assert "unknown" not in found.partition("commit")[0]
    assert provenance.code_digest() in found


@pytest.mark.parametrize(
    ("edited", "is_another"),
    [
        ("harness/report/text.py", False),
        ("harness/analysis/claims/summary.py", False),
        ("harness/cli/main.py", False),
        ("harness/worker/training.py", True),
        ("harness/run/added.py", True),
        ("baselines/topk.py", True),
    ],
)
def test_an_edit_of_what_looks_on_makes_no_other_experiment(
    edited: str, is_another: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("harness", "baselines"):
        shutil.copytree(provenance.ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    before = provenance.trial_digest.__wrapped__(), provenance.code_digest.__wrapped__()
    with (tmp_path / edited).open("a") as file:
        file.write("# edited\n")
    after = provenance.trial_digest.__wrapped__(), provenance.code_digest.__wrapped__()
    assert (before[0] != after[0], before[1] != after[1]) == (is_another, True)
