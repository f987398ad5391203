"""The code of plug-ins that a trial runs: part of what it is, so that an edit makes new trials."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from harness import methods, plugins
from harness.errors import UsageError
from harness.scenario.schema import Case, MethodSpec
from harness.scenario.section import Section
from harness.workload.data import DATASETS
from harness.workload.models import MODELS


class PluginCode(Section):
    """A hash of the code of each plug-in that takes part; None where it is pacbench's own."""

    model: str | None = None
    dataset: str | None = None
    method: str | None = None


def code_of(case: Case, method: MethodSpec) -> PluginCode:
    """The code that this process finds; a replay reads no data set.

    Raises:
        UsageError: a plug-in is not there, or cannot be imported.
    """
    train = case.train
    return PluginCode(
        model=MODELS.digest(train.model),
        dataset=None if train.replay else DATASETS.digest(train.dataset),
        method=methods.digest(method.name),
    )


def check_code(planned: PluginCode, case: Case, method: MethodSpec) -> None:
    """Refuse to run other code than was planned: a file was edited since, or an image holds another version.

    Raises:
        UsageError: it names the plug-in.
    """
    found = code_of(case, method)
    for kind, name in (("model", case.train.model), ("dataset", case.train.dataset), ("method", method.name)):
        if (here := getattr(found, kind)) != (then := getattr(planned, kind)):
            raise UsageError(
                f"{kind} {plugins.short(name)}: its code is {here} where it runs, and was {then} when the run began; "
                "start the run again"
            )


def files_of(cases: Iterable[tuple[Case, MethodSpec]]) -> list[Path]:
    """Files of plug-ins that workers must be able to read."""
    names = [name for case, method in cases for name in (case.train.model, case.train.dataset, method.name)]
    return [file for name in dict.fromkeys(names) if (file := plugins.file_of(name))]
