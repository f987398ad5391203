"""Show what can be named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Protocol

import typer

from harness.cli.console import say
from harness.cli.json_output import print_json
from harness.cli.options import AsJson
from harness.errors import UsageError
from harness.plain import prose


def verb(
    kind: Annotated[str | None, typer.Argument(metavar="[scenarios|methods|models|datasets|json]")] = None,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Methods, scenarios, json: all facts, as Markdown.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what can be named, also what installed packages bring; and, as json, which verbs print JSON."""
    catalogues = {
        "scenarios": _scenarios,
        "methods": _methods,
        "models": _models,
        "datasets": _datasets,
        "json": _verbs_with_json,
    }
    if kind is not None and kind not in catalogues:
        raise UsageError.at("command line", "list", kind, ", ".join(catalogues))
    if verbose and as_json:
        raise UsageError.at("command line", "--json", "with -v", "names as JSON; all facts are Markdown")
    if verbose:
        print(_page(kind), end="")
        return
    found = {name: catalogues[name]() for name in ([kind] if kind else catalogues)}
    if as_json:
        print_json(
            {
                name: [{"name": entry, "summary": prose(summary)} for entry, summary in entries.items()]
                for name, entries in found.items()
            }
        )
        return
    for name, entries in found.items():
        print(f"{name}:")
        width = max(map(len, entries), default=0)
        for entry, summary in entries.items():
            say(f"  {entry:{width}}  {prose(summary)}")


def _page(kind: str | None) -> str:
    """All facts of a kind, as Markdown."""
    match kind:
        case "methods":
            from harness.report import catalogue

            return catalogue.page()
        case "scenarios":
            from harness.report import fields

            return fields.page()
        case "json":
            from harness.cli import json_reference

            return json_reference.page()
    found = f"list {kind or ''}".strip()
    raise UsageError.at("command line", "-v", found, "list methods -v, list scenarios -v, list json -v")


def _scenarios() -> dict[str, str]:
    from harness.scenario.load import available

    return available()


def _methods() -> dict[str, str]:
    from harness.methods import KIND, method_named, names

    return _with_plugins(KIND, {name: method_named(name).summary for name in names()}, method_named)


def _models() -> dict[str, str]:
    from harness.workload.models import MODELS

    return _with_plugins("model", {name: model.summary for name, model in MODELS.items()}, MODELS.__getitem__)


def _datasets() -> dict[str, str]:
    from harness.workload.data import DATASETS

    return _with_plugins("dataset", {name: data.summary for name, data in DATASETS.items()}, DATASETS.__getitem__)


def _verbs_with_json() -> dict[str, str]:
    from harness.cli.json_reference import summaries

    return summaries()


class _Described(Protocol):
    @property
    def summary(self) -> str: ...


def _with_plugins(kind: str, own: dict[str, str], find: Callable[[str], _Described]) -> dict[str, str]:
    """Pacbench's own, and behind them what installed packages bring, each with where it comes from."""
    from harness.plugins import installed, origin_of

    entries = dict(own)
    for name, found in installed(kind).items():
        origin = " and ".join(map(origin_of, found))
        if name in own:
            entries[f"{name} of {origin}"] = "cannot be named: pacbench has one of that name"
            continue
        try:
            entries[name] = f"{find(name).summary} (from {origin})"
        except UsageError as error:
            entries[name] = f"cannot be used: {error}"
    return entries
