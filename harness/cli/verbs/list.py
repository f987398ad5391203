"""Show what can be named."""

from __future__ import annotations

from typing import Annotated

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
    """Show what can be named: scenarios, methods, models, data sets."""
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
    import baselines

    return {name: baselines.get(name).summary for name in baselines.names()}


def _models() -> dict[str, str]:
    from harness.workload.models import MODELS

    return {name: model.summary for name, model in MODELS.items()}


def _datasets() -> dict[str, str]:
    from harness.workload.data import DATASETS

    return {name: dataset.summary for name, dataset in DATASETS.items()}
