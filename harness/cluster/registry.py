"""The kinds of cluster by name, and which of them this machine can have.

A kind is a file with a class, as ``Cluster`` asks for, and a row here. Rows name their class by its place, so that the
command line can list all kinds without importing one.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from harness.errors import MeasurementError, UsageError

if TYPE_CHECKING:
    from harness.cluster.protocol import Check, Cluster, CommandCluster

AUTO = "auto"


@dataclass(frozen=True)
class Kind:
    """A kind of cluster."""

    name: str
    """Its class has the same ``name``."""
    place: str
    """Module and name of its class."""
    summary: str
    """What its nodes are, in a few words."""
    tried_by_auto: bool = False
    """Whether ``auto`` may choose it; its class then has ``why_it_works``, which raises MeasurementError otherwise."""
    can_be_kept: bool = False
    """Whether it can be left up at the end; its class then takes ``keep``."""
    runs_commands: bool = False
    """Whether its class is a ``CommandCluster``: ``pacbench exec`` runs on it."""
    has_images: bool = False
    """Whether its workers are made of an image; its class then takes ``image``."""
    has_universe: bool = False
    """Whether its class is a ``NetnsCluster``, on some kernel: ``pacbench calibrate`` measures on it."""
    examined_by: str = ""
    """A function that yields what ``pacbench doctor`` looks at, as a ``Check`` each; empty where that is nothing."""

    def load(self) -> Any:
        """Its class."""
        return _load(self.place)

    def checks(self) -> list[Check]:
        """What ``pacbench doctor`` says of it."""
        return list(_load(self.examined_by)()) if self.examined_by else []


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


KINDS: dict[str, Kind] = {}
"""All kinds, in the order in which messages name them and ``auto`` tries them."""


def register(kind: Kind) -> None:
    """Let ``--on`` name a kind of cluster."""
    KINDS[kind.name] = kind


register(
    Kind(
        name="netns",
        place="harness.cluster.netns:NetnsCluster",
        summary="network namespaces",
        tried_by_auto=True,
        runs_commands=True,
        has_universe=True,
        examined_by="harness.cluster.netns:examine",
    )
)
register(
    Kind(
        name="uml",
        place="harness.cluster.uml:UmlCluster",
        summary="a kernel with netem",
        runs_commands=True,
        has_universe=True,
        examined_by="harness.cluster.uml:examine",
    )
)
register(
    Kind(
        name="docker",
        place="harness.cluster.docker.compose:ComposeCluster",
        summary="containers",
        tried_by_auto=True,
        can_be_kept=True,
        runs_commands=True,
        has_images=True,
        examined_by="harness.cluster.docker.engine:examine",
    )
)
register(Kind(name="fake", place="harness.cluster.fake:FakeCluster", summary="scripted, for tests"))


HOSTS = "hosts"
"""Real ones: a run has their name, and no ``--on`` makes them."""


def names() -> list[str]:
    """What ``--on`` may name."""
    return [AUTO, *KINDS]


def help_text() -> str:
    """The help of ``--on``."""
    *others, last = sorted(KINDS.values(), key=lambda kind: not kind.tried_by_auto)
    first, *then = (kind.name for kind in KINDS.values() if kind.tried_by_auto)
    auto = ", ".join([f"{first} where it works", *(f"else {name}" for name in then)])
    named = [f"{kind.name} ({kind.summary})" for kind in others]
    return f"Where: {', '.join(named)}, {AUTO} ({auto}), or {last.name} ({last.summary})."


def check_name(asked: str) -> None:
    """Refuse what is no kind of cluster.

    Raises:
        UsageError: it names those that there are.
    """
    if asked == HOSTS:
        allowed = "emulated networks here; on real hosts a scheduler starts the ranks: srun pacbench worker SCENARIO"
        raise UsageError.at("command line", "--on", asked, allowed)
    if asked not in names():
        raise UsageError.at("command line", "--on", asked, ", ".join(names()))


def choose(asked: str) -> tuple[str, str]:
    """The kind of cluster to use, and why.

    Raises:
        UsageError: there is no such kind.
        MeasurementError: this machine can have none.
    """
    check_name(asked)
    if asked != AUTO:
        return asked, "as asked"
    refusals: list[str] = []
    for kind in KINDS.values():
        if kind.tried_by_auto:
            try:
                works = kind.load().why_it_works()
            except MeasurementError as error:
                refusals.append(f"and {kind.summary} are no way round: {error}" if refusals else str(error))
            else:
                return kind.name, "; ".join(refusals) or works
    raise MeasurementError("; ".join(refusals))


def make(kind: str, keep: bool = False, image: str | None = None) -> Cluster:
    """A cluster of a kind that was chosen; nothing is started before it is entered.

    Args:
        keep: leave it up at the end.
        image: of its workers; default: the kind's own.

    Raises:
        UsageError: this kind cannot be kept, or has no images.
    """
    chosen = KINDS[kind]
    if keep and not chosen.can_be_kept:
        raise _only_on("--keep", kind, [other for other in KINDS.values() if other.can_be_kept])
    if image and not chosen.has_images:
        raise _only_on("--image", kind, [other for other in KINDS.values() if other.has_images])
    options = {**({"keep": True} if keep else {}), **({"image": image} if image else {})}
    made: Cluster = chosen.load()(**options)
    return made


def kinds_for_commands() -> list[str]:
    """Those whose workers run any command."""
    return [name for name, kind in KINDS.items() if kind.runs_commands]


def make_for_commands(kind: str, keep: bool = False, image: str | None = None) -> CommandCluster:
    """The same, of a kind whose workers run any command.

    Raises:
        UsageError: this kind's do not.
    """
    if kind not in (able := kinds_for_commands()):
        raise UsageError.at("command line", "--on", kind, f"{AUTO}, {', '.join(able)}: what can run a command")
    return cast("CommandCluster", make(kind, keep, image))


def _only_on(option: str, kind: str, able: list[Kind]) -> UsageError:
    named = " or ".join(f"--on {other.name}" for other in able)
    return UsageError.at("command line", option, f"--on {kind}", f"with {named} alone")
