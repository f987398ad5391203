"""The one place of a column: schema, meaning, and what cannot be stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pytest
from synthetic import a_row

from harness.errors import UsageError
from harness.plan.status import Status
from harness.record.row import SCHEMA, TRIAL_SCHEMA, Event, Int32, TrialRow, arrow_schema, meanings, row
from harness.record.store import Store
from harness.scenario.load import load


def test_every_column_has_a_type_and_says_what_it_means_in_a_sentence() -> None:
    assert list(meanings(TrialRow)) == TRIAL_SCHEMA.names
    for name, meaning in meanings(TrialRow).items():
        assert meaning.endswith("."), name
        assert meaning[0].isupper() or meaning.startswith("``"), name
        assert not meaning.startswith("Of "), name


def test_units_are_in_the_names_of_numbers() -> None:
    units = ("_s", "_bps", "_bytes", "_per_step", "_per_s", "_packets", "_s_per_step", "_share", "_cpus")
    plain = {"dilation", "trial_dilation", "loss", "lr", "retransmits", "queue_drops"}
    plain |= {name for name in TRIAL_SCHEMA.names if name.startswith(("final_", "steps_"))}
    floats = {field.name for field in TRIAL_SCHEMA if pa.types.is_floating(field.type)}
    assert {name for name in floats - plain if not name.endswith(units)} == set()


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"samples_per_sec": 1.0}, "samples_per_sec"),
        ({"samples_per_s": "fast"}, "samples_per_s"),
        ({"steps": 1.5}, "steps"),
        ({"status": "finished"}, "status"),
        ({"label": None}, "label"),
    ],
    ids=str,
)
def test_an_unknown_name_or_a_wrong_type_cannot_be_stored(columns: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        a_row("a", **columns)


def test_a_column_is_one_field(tmp_path: Path) -> None:
    """A toy column, as CONTRIBUTING.md shows it: it has a type, a meaning, and null in what was stored before."""

    @row
    class Longer(TrialRow):
        kilowatt_hours: float | None = None
        """Energy of all workers."""
        fans: Int32 | None = None
        """Fans that turned."""

    assert arrow_schema(Longer).field("kilowatt_hours").type == pa.float64()
    assert arrow_schema(Longer).field("fans").type == pa.int32()
    assert meanings(Longer)["kilowatt_hours"] == "Energy of all workers."
    assert Longer(**vars(a_row("a"))).kilowatt_hours is None
    with pytest.raises(ValueError, match="kilowatt_hours"):
        Longer(**vars(a_row("a")), kilowatt_hours="much")  # type: ignore[arg-type]


def test_every_status_can_be_stored_and_read_back(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "run", load("quickstart"))
    for place, status in enumerate(get_args(Status)):
        store.append(a_row(status, status=status, round=place), [Event(0, 0, 0.0, "loss", 1.0)])
    assert store.trials()["status"].tolist() == list(get_args(Status))


def test_a_store_of_a_newer_version_is_refused_in_one_line(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "run", load("quickstart"))
    assert json.loads((store.folder / "store.json").read_text())["schema"] == SCHEMA
    (store.folder / "store.json").write_text(json.dumps({"schema": SCHEMA + 1}))
    for enter in (lambda: Store.open(store.folder), lambda: Store.create(store.folder, load("quickstart"))):
        with pytest.raises(UsageError, match=rf"store\.json: schema: found {SCHEMA + 1}; allowed: up to {SCHEMA}"):
            enter()
    (store.folder / "store.json").write_text("{")
    with pytest.raises(UsageError, match=r"store\.json: damaged"):
        Store.open(store.folder)
    (store.folder / "store.json").unlink()
    assert Store.open(store.folder).trials().empty, "runs from before there was a version have none"
