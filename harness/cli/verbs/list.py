"""Show what can be named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Protocol

import typer

from harness.cli.console import say
from harness.errors import UsageError
from harness.plain import prose


def verb(
    kind: Annotated[str | None, typer.Argument(metavar="[scenarios|methods|models|datasets]")] = None,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Methods, scenarios: all facts, as Markdown.")
    ] = False,
) -> None:
    """Show what can be named: scenarios, methods, models, data sets; also those of packages that are installed."""
    catalogues = {"scenarios": _scenarios, "methods": _methods, "models": _models, "datasets": _datasets}
    if kind is not None and kind not in catalogues:
        raise UsageError.at("command line", "list", kind, ", ".join(catalogues))
    if verbose:
        print(_page(kind), end="")
        return
    for name in [kind] if kind else catalogues:
        print(f"{name}:")
        entries = catalogues[name]()
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
    found = f"list {kind or ''}".strip()
    raise UsageError.at("command line", "-v", found, "list methods -v, list scenarios -v")


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
