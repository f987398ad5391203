"""Arguments and options that verbs share, and what their values mean."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cluster import registry
from harness.errors import UsageError

if TYPE_CHECKING:
    from harness.network.topology import Topology


def complete_scenario(begun: str) -> list[str]:
    """Scenarios that a word may become when a shell completes it: names, and files."""
    from harness.scenario.load import available

    files = [str(each) for each in Path().glob(f"{glob.escape(begun)}*") if each.is_dir() or each.suffix == ".toml"]
    return [name for name in available() if name.startswith(begun)] + sorted(files)


def complete_method(begun: str) -> list[str]:
    """Likewise methods."""
    from harness.methods import names

    return [name for name in names() if name.startswith(begun)]


def complete_on(begun: str) -> list[str]:
    """Likewise kinds of clusters."""
    return [name for name in registry.names() if name.startswith(begun)]


ScenarioName = Annotated[
    str,
    typer.Argument(
        metavar="SCENARIO", help="A name from `pacbench list`, or a .toml file.", autocompletion=complete_scenario
    ),
]
ScenarioNames = Annotated[
    list[str],
    typer.Argument(metavar="SCENARIO...", help="Names or .toml files.", autocompletion=complete_scenario),
]
RunDir = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The folder of a run.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a field: train.steps=50.")]
Method = Annotated[
    list[str] | None,
    typer.Option("--method", help="Only these methods, and the baseline.", autocompletion=complete_method),
]
Rounds = Annotated[int | None, typer.Option("--rounds", help="Override the scenario's rounds.")]
On = Annotated[
    str,
    typer.Option("--on", help=registry.help_text(), autocompletion=complete_on),
]
Gpu = Annotated[bool, typer.Option("--gpu", help="On docker: compute on GPUs, at their own pace.")]
Keep = Annotated[bool, typer.Option("--keep", help="On docker: leave the containers up, and say how to enter them.")]
Until = Annotated[
    str | None,
    typer.Option(
        "--until", metavar="PCT", help="Run rounds until every speedup's interval reaches no further, such as 2%."
    ),
]
Seeds = Annotated[
    int | None,
    typer.Option(
        "--seeds",
        min=0,
        help="Train more seeds on unshaped links, up to so many, where rounds leave it unknown if accuracy is kept.",
    ),
]
Workers = Annotated[int, typer.Option("--workers", help="How many.")]
PerNode = Annotated[int, typer.Option("--per-node", min=1, max=64, help="Ranks behind each link.")]
Rate = Annotated[str, typer.Option("--rate", help="Of each link and direction, such as 100mbit; or unshaped.")]
SetLinks = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="More of the links: link.delay=5ms.")
]
LinkFile = Annotated[
    Path | None,
    typer.Option("--link", metavar="FILE", help="Links of a file that `pacbench link` has written, before --set."),
]
RunOrReference = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, or a reference.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def topology(workers: int, rate: str, overrides: Sequence[str] | None) -> Topology:
    """The network that ``Workers``, ``Rate`` and ``SetLinks`` ask for.

    Raises:
        UsageError: there is no such network.
    """
    from harness.network.topology import Topology
    from harness.scenario import limits
    from harness.scenario.load import apply_override
    from harness.scenario.section import checked_section

    values: dict[str, Any] = {"workers": workers, "link": {"rate": rate}}
    for override in overrides or []:
        apply_override(values, override)
    found = checked_section(Topology, values, "command line")
    check_emulated(workers)
    if complaint := limits.complaint(found.link, found.fabric, found.workers):
        raise UsageError(f"command line: {complaint}")
    return found


def check_emulated(workers: int) -> None:
    """Refuse more workers than a run may have.

    Raises:
        UsageError: these are more.
    """
    from harness.scenario.schema import MOST_EMULATED

    if workers > MOST_EMULATED:
        raise UsageError.at("command line", "--workers", workers, f"at most {MOST_EMULATED}")


def refuse_beside(context: typer.Context, option: str, others: Collection[str], allowed: str) -> None:
    """Refuse what the command line gives and an option would leave unread.

    Args:
        others: names of the verb's parameters.

    Raises:
        UsageError: one of them was given.
    """
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name) if parameter.name in others else None
        if source is not None and source.name == "COMMANDLINE":
            raise UsageError.at("command line", max(parameter.opts, key=len), f"with {option}", allowed)


def with_link(file: Path | None, overrides: Sequence[str] | None) -> list[str]:
    """Overrides that put a file's link in the place of what a scenario says, and then do what they did.

    Raises:
        UsageError: the file holds no link.
    """
    from harness.scenario.link_file import as_setting

    return [*([as_setting(file)] if file else []), *(overrides or [])]


def share(option: str, text: str) -> float:
    """Read a percentage above zero: with none, nothing would ever be narrow enough, or slow enough.

    Raises:
        UsageError: it is none.
    """
    from harness.units import parse_share

    try:
        found = parse_share(text)
    except ValueError:
        found = 0.0
    if not found:
        raise UsageError.at("command line", option, text, "a percentage above zero, such as '10%'")
    return found


def time_s(option: str, text: str) -> float:
    """Read a time, in seconds.

    Raises:
        UsageError: it is none.
    """
    from harness.units import parse_time_s

    try:
        return parse_time_s(text)
    except ValueError as error:
        raise UsageError.at("command line", option, text, str(error)) from None


def time_above_zero(option: str, text: str | None, example: str) -> float | None:
    """The same; None where none was given.

    Raises:
        UsageError: it is none, or zero.
    """
    if text is None:
        return None
    found = time_s(option, text)
    if not found:
        raise UsageError.at("command line", option, text, f"a time above zero, such as {example!r}")
    return found


def current_folder() -> Path:
    """As the user's shell names it, where that is right: a link is not resolved for him.

    Raises:
        UsageError: the folder is gone.
    """
    try:
        here = Path.cwd()
    except FileNotFoundError:
        raise UsageError.at("command line", "current folder", "none", "one that exists") from None
    named = os.environ.get("PWD", "")
    try:
        is_here = os.path.isabs(named) and os.path.samefile(named, here)
    except OSError:  # it is of another time or place
        return here
    return Path(named) if is_here else here


def write(path: Path, content: str) -> None:
    """Write a file that an option names.

    Raises:
        NoRoomError, UsageError: it cannot be written.
    """
    from harness.files import NoRoomError, UnwritableError, keep_elsewhere, write_whole

    try:
        write_whole(path, content)
    except (NoRoomError, UnwritableError) as error:
        kept = keep_elsewhere("pacbench-", {path.name: content})
        what = f"it is kept in {kept}" if kept else "it is lost"
        if isinstance(error, UnwritableError):
            raise UnwritableError(path, f"{error.reason}; {what}") from None
        raise NoRoomError(f"{error}; {what}") from None


def command() -> list[str]:
    """The command line that was given, for the record. Bytes that are no text, which JSON cannot hold, are escapes."""
    return ["pacbench", *(word.encode(errors="backslashreplace").decode() for word in sys.argv[1:])]
