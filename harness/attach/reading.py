"""What all ranks of a script found, typed; and whether they trained at all."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from harness.attach.findings import (
    Buckets,
    Distribution,
    Ended,
    Finding,
    Gradients,
    Looked,
    Metric,
    Model,
    Note,
    Refused,
    Sources,
    Step,
)
from harness.errors import MeasurementError
from harness.files import names_in

FINDING: TypeAdapter[Finding] = TypeAdapter(Annotated[Finding, Field(discriminator="kind")])

NAME = re.compile(r"rank-(?P<rank>[0-9]+)\.jsonl")
"""Of a rank's file."""

T = TypeVar("T")


@dataclass(frozen=True)
class RankFindings:
    """What one rank found."""

    rank: int
    findings: list[Finding] = field(repr=False)
    """All, in their order."""

    @property
    def steps(self) -> list[Step]:
        """The steps that were observed, in their order."""
        return self._all(Step)

    @property
    def metrics(self) -> list[Metric]:
        """What the script told by ``harness.metric``."""
        return self._all(Metric)

    @property
    def notes(self) -> list[Note]:
        """What the method told."""
        return self._all(Note)

    @property
    def model(self) -> Model | None:
        """The model; None where no step of one was seen."""
        return next(iter(self._all(Model)), None)

    @property
    def buckets(self) -> Buckets | None:
        """DDP's buckets; None where no step was seen."""
        return next(iter(self._all(Buckets)), None)

    @property
    def gradients(self) -> Gradients | None:
        """When gradients are ready; None where nobody looked."""
        return next(iter(self._all(Gradients)), None)

    @property
    def distribution(self) -> Distribution | None:
        """How gradients are spread; None where nobody looked."""
        return next(iter(self._all(Distribution)), None)

    @property
    def looked(self) -> list[Looked]:
        """What methods make of the gradients."""
        return self._all(Looked)

    @property
    def sources(self) -> dict[str, str]:
        """Path and hash of the script's own code."""
        return {path: digest for found in self._all(Sources) for path, digest in found.files}

    @property
    def refusal(self) -> str | None:
        """Why the script could not be attached to."""
        return next((refused.reason for refused in self._all(Refused)), None)

    @property
    def steps_done(self) -> int:
        """Steps of the optimizer. A process that was killed tells only those whose observation was written."""
        ended = self._all(Ended)
        return ended[-1].steps if ended else len(self.steps)

    def _all(self, kind: type[T]) -> list[T]:
        return [finding for finding in self.findings if isinstance(finding, kind)]


def read(folder: Path) -> list[RankFindings]:
    """What every rank that found anything wrote, by rank. The half line that a killed process left is not looked at.

    Raises:
        UsageError: the folder cannot be read.
        MeasurementError: a file holds something else.
    """
    names = filter(None, map(NAME.fullmatch, names_in(folder)))
    files = {int(name["rank"]): folder / name[0] for name in names}
    return [RankFindings(rank, _findings(files[rank])) for rank in sorted(files)]


def shortfall(folder: Path, world_size: int) -> str | None:
    """Why what was found is not that of a training on all ranks, in one line; None: it is.

    Args:
        world_size: ranks that were to train.

    Raises:
        MeasurementError: see ``read``.
    """
    found = read(folder)
    refused = next((rank.refusal for rank in found if rank.refusal), None)
    if refused:
        return refused
    trained = [rank.rank for rank in found if rank.steps_done]
    if not trained:
        return (
            "no rank made a step of a torch optimizer, so nothing was trained or observed "
            "(Python looks for nothing of ours with -E, -I or -S)"
        )
    if len(trained) < world_size:
        numbers = ", ".join(map(str, trained))
        return f"only {len(trained)} of {world_size} ranks made a step of their optimizer: {numbers}"
    return None


def _findings(path: Path) -> list[Finding]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # each ends with a line end, or is not whole
        return [FINDING.validate_python(json.loads(line)) for line in lines]
    except (ValueError, ValidationError, RecursionError) as error:
        raise MeasurementError(f"{path}: not findings of this version ({' '.join(str(error).split())})") from None
