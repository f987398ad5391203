"""What later runs are held against: a run, or one file of JSON made from a run.

A file holds the scenario, where it was measured, and a row a trial with the figures that comparisons need. It is small
and can be read in a review. ``results/reference/`` has those that come with pacbench.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from harness import provenance
from harness.analysis.cases import CaseResult, case_results
from harness.analysis.noise import Noise, noise_of_cases
from harness.analysis.trials import CASE_COLUMNS
from harness.errors import MeasurementError, UsageError, in_one_line, short_repr
from harness.files import is_file, is_folder, make_folder, read_given, write_whole
from harness.methods import declared
from harness.plugins import short
from harness.provenance import ROOT
from harness.record.row import TRIAL_SCHEMA, check_form, check_value
from harness.record.store import OLDER_COLUMNS, Store, as_written_now, require_done
from harness.record.tables import json_digest
from harness.scenario.load import check_stored
from harness.scenario.schema import Case, MethodSpec, Scenario
from harness.scenario.section import in_words

FORMAT = 2
"""The file's version. It is raised whenever what is compared changes its meaning."""

REFERENCES = ROOT / "results" / "reference"
ROUNDS = 10
"""How many rounds a reference has: it is made once, and every gate afterwards leans on it."""

COLUMNS = (
    *("trial_id", "label", "round", "seed", "purpose", "replay", *CASE_COLUMNS, "status", "reason", "samples_per_s"),
    *("step_time_median_s", "compute_s_per_step", "processor_s_per_step", "yardstick_s", "wire_bytes_per_step"),
    "disturbed_share",
    *("final_accuracy", "final_loss", "final_perplexity", "time_to_target_s", "peak_memory_bytes"),
)
"""Columns of a trial that a reference keeps."""


@dataclass(frozen=True)
class Measured:
    """What a comparison takes from a run, or from a file made of one."""

    where: Path
    scenario: Scenario
    trials: pd.DataFrame
    """The last attempt of each, in the columns of ``TRIAL_SCHEMA``."""
    provenance: list[dict[str, Any]]

    @cached_property
    def cases(self) -> list[CaseResult]:
        """Its cases, in the order in which reports show them."""
        return case_results(self.trials, self.scenario)

    @property
    def clusters(self) -> set[str]:
        """The kinds of cluster that its trials ran on."""
        return set(self.trials["cluster"])

    @cached_property
    def noise(self) -> Noise | None:
        """The machine's noise while it was measured."""
        return noise_of_cases(self.cases, self.scenario.baseline)

    @property
    def machine(self) -> str:
        """The machine it was measured on, in words."""
        last = self.provenance[-1] if self.provenance else {}
        return f"{last.get('cpu') or 'an unknown CPU'}, {last.get('cpu_count', '?')} cores"

    @property
    def commits(self) -> list[str]:
        """The commits that its trials were measured at."""
        return list(dict.fromkeys(str(entry["commit"]) for entry in self.provenance if "commit" in entry))


def read(where: Path) -> Measured:
    """A run's folder, a reference's file, or the name of one in ``results/reference/``, here or of pacbench itself.

    Raises:
        UsageError: it is none of them, is damaged, or was written by another version of pacbench.
        MeasurementError: no trial of it finished, or none of the baseline.
    """
    files = [where, *(folder / f"{where}.json" for folder in (Path("results/reference"), REFERENCES))]
    if is_folder(where):
        found = _read_run(Store.open(where))
    elif file := next((path for path in files if is_file(path)), None):
        found = _read_file(file)
    else:
        known = ", ".join(sorted(path.stem for path in REFERENCES.glob("*.json"))) or "none so far"
        allowed = f"the folder of a run, the file of a reference, or the name of one ({known})"
        raise UsageError.at("command line", "RUN or REFERENCE", str(where), allowed)
    done = require_done(found.trials, found.where)
    if not (done["label"] == found.scenario.baseline).any():
        raise MeasurementError(
            f"{found.where}: no trial of the baseline {found.scenario.baseline} finished; without it nothing compares"
        )
    return found


def write(run: Store, path: Path) -> Path:
    """Make a reference of a run; what did not finish stays in it, with its reason.

    Raises:
        MeasurementError: no trial finished, or none of the baseline.
    """
    found = read(run.folder)
    rows = json.loads(found.trials[list(COLUMNS)].to_json(orient="records", double_precision=15))
    content: dict[str, Any] = {
        "format": FORMAT,
        "scenario": found.scenario.model_dump(mode="json", by_alias=True),
        "provenance": found.provenance,
        "trials": rows,
    }
    content["digest"] = json_digest(content)
    make_folder(path.parent)
    write_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return path


def require_comparable(before: Measured, after: Measured) -> None:
    """Both must have measured the same thing; rounds, seeds and which methods took part may differ.

    Raises:
        UsageError: one line that names the first difference.
    """
    for difference in _differences(before.scenario, after.scenario):
        raise UsageError(f"{after.where} and {before.where} are of different scenarios: {difference}")
    clusters = [sorted(set(side.trials["cluster"])) for side in (before, after)]
    if clusters[0] != clusters[1]:
        raise UsageError(
            f"{after.where} was measured on {', '.join(clusters[1])} and {before.where} on {', '.join(clusters[0])}: "
            "the two are not to be compared"
        )


def _differences(before: Scenario, after: Scenario) -> list[str]:
    found = []
    for field in ("name", "baseline"):
        if getattr(before, field) != getattr(after, field):
            found.append(f"{field} is {getattr(after, field)!r} and was {getattr(before, field)!r}")
    if len(before.cases) != len(after.cases):
        found.append(f"{len(after.cases)} cases now and {len(before.cases)} before")
    for old, new in zip(before.cases, after.cases, strict=False):
        found += _differences_of_cases(old, new)
    old_methods = {method.label: method for method in before.methods}
    for method in after.methods:
        if then := old_methods.get(method.label):
            found += _differences_of_methods(then, method)
    return found


def _differences_of_methods(old: MethodSpec, new: MethodSpec) -> list[str]:
    """A parameter that only one side knows came or went with a version: it is taken to have its default there."""
    if short(old.name) != short(new.name):
        return [f"{new.label} is {short(new.name)} and was {short(old.name)}"]
    found = declared(new.name)
    defaults = found.State().parameters if found else {}
    return [
        f"{new.label}'s {parameter} is {now!r} and was {then!r}"
        for parameter in dict.fromkeys([*old.params, *new.params])
        if (now := new.params.get(parameter, defaults.get(parameter)))
        != (then := old.params.get(parameter, defaults.get(parameter)))
    ]


def _differences_of_cases(old: Case, new: Case) -> list[str]:
    return [
        f"{section}.{field} is {now!r} and was {then!r}"
        for section in Case.model_fields
        for field in type(getattr(old, section)).model_fields
        if field != "timeout_s"  # it ends what hangs, and is in no figure
        if (now := _said(new, section, field)) != (then := _said(old, section, field))
    ]


def _said(case: Case, section: str, field: str) -> object:
    """What a case says, as another machine would say it."""
    return short(getattr(getattr(case, section), field))


def _read_run(store: Store) -> Measured:
    return Measured(store.folder, store.scenario(), store.trials(), store.provenance())


def _read_file(path: Path) -> Measured:
    try:
        content = json.loads(read_given(path))
        found_format = content["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{path}: not the file of a reference ({type(error).__name__}: {error})") from None
    if found_format != FORMAT:
        raise UsageError.at(path, "format", found_format, f"{FORMAT}; make it anew with `pacbench reference`")
    try:
        _check_digest(content)
        scenario = Scenario.model_validate_json(json.dumps(content["scenario"]))
        check_stored(scenario, path)
        provenance.check(content["provenance"])
        return Measured(path, scenario, _frame(content["trials"]), content["provenance"])
    except (ValueError, KeyError, TypeError) as error:
        reason = in_words(error) if isinstance(error, ValidationError) else in_one_line(error)
        raise UsageError(f"{path}: not a reference that this version can read ({reason})") from None


def _check_digest(content: dict[str, Any]) -> None:
    """What is no longer as it was written; of files from before there were digests nobody knows."""
    expected = content.pop("digest", None)
    if expected not in (None, json_digest(content)):
        raise ValueError("its content is not what was written")


def _frame(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Rows as the store would give them; what a reference does not keep is unknown."""
    known = [*COLUMNS, *OLDER_COLUMNS.names]
    for number, row in enumerate(rows, start=1):
        _check_trial(number, row)
    frame = as_written_now(pd.DataFrame(list(rows), columns=known)).reindex(columns=TRIAL_SCHEMA.names)
    numeric = [name for name in TRIAL_SCHEMA.names if str(TRIAL_SCHEMA.field(name).type) == "double"]
    frame[numeric] = frame[numeric].astype(float)
    return frame


def _check_trial(number: int, row: object) -> None:
    """Refuse what no trial of a reference can be.

    Raises:
        ValueError: it names the trial and the column.
    """
    if not isinstance(row, dict):
        raise ValueError(f"trial {number}: no table")
    if unknown := [name for name in row if name not in TRIAL_SCHEMA.names + OLDER_COLUMNS.names]:
        raise ValueError(f"trial {number}: nobody knows a column {short_repr(unknown[0])}")
    for name in (*COLUMNS, *OLDER_COLUMNS.names):
        try:
            if name in COLUMNS:
                check_value(name, row.get(name))
            check_form(name, row.get(name))
        except ValueError as error:
            raise ValueError(f"trial {number}: {error}") from None
