"""What a rank finds, as lines of JSON in a file of its own. Needs Python's library alone: a script's Python may lack
ours.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from harness.attach.orders import read_orders


@dataclass(frozen=True)
class Model:
    """The model that is trained under DDP. Written when its first step has ended."""

    world_size: int
    """Ranks of DDP's process group."""
    device: str
    """Kind of device: ``cpu``, ``cuda``."""
    optimizer: str
    """Class of its optimizer."""
    parameters: list[tuple[str, list[int]]]
    """Name and shape of every parameter that DDP synchronises, in the model's order."""
    kind: Literal["model"] = "model"


@dataclass(frozen=True)
class Buckets:
    """DDP's buckets, in the order in which they travel. Written when DDP has grouped them for good."""

    sizes_bytes: list[int]
    parameters: list[list[str]] | None
    """Names of the parameters of each; None where DDP kept its first grouping, and does not tell."""
    kind: Literal["buckets"] = "buckets"


@dataclass(frozen=True)
class Step:
    """A step of the optimizer, with all forward and backward passes that led to it. Durations are seconds.

    On a GPU they are those of the device's own work, told apart by CUDA events.
    """

    step: int
    """From 0."""
    at_s: float
    """When it ended, by ``time.monotonic()``, which all processes of a machine share."""
    step_s: float
    """From the beginning of its first forward pass to the end of the optimizer's step, and of the method's."""
    between_s: float | None
    """From the end of the step before to its first forward pass: reading data, evaluating. None for the first."""
    forward_s: float
    """Sum of its forward passes."""
    ready_s: float
    """From its beginning until the last gradient of its last backward pass was ready."""
    exposed_s: float
    """Sum over its backward passes of the time from the last gradient to the return of ``backward``: communication,
    and a method's decoding, that hid behind nothing."""
    backwards: int
    """Backward passes; more than one where gradients are accumulated."""
    loss: float | None
    """Mean over the backward passes of the scalar that ``backward`` was called on, as the script scaled it; None where
    that was no scalar."""
    encode_s: float | None = None
    """What the method's encoding took, hidden or not; None without a method, and on a GPU."""
    decode_s: float | None = None
    """The same of its decoding."""
    sent: tuple[int, int] | None = None
    """Bytes and packets that had left the rank's own interface by then, see ``sent_by``; None: nobody asked."""
    kind: Literal["step"] = "step"


@dataclass(frozen=True)
class Gradients:
    """When gradients are ready, as a look has timed them."""

    batch_size: int
    """Samples of a rank in a step, by the first dimension of the model's first input."""
    bucket_bytes: int
    """At which DDP closes a bucket."""
    parameters: list[tuple[str, list[int], float]]
    """Name, shape and time of each, in the order of the times: seconds from the start of the last backward pass of a
    step, the median of all steps that were timed."""
    first_bucket_bytes: int | None = None
    """At which it closes the first one; None: as the others."""
    kind: Literal["gradients"] = "gradients"


@dataclass(frozen=True)
class Distribution:
    """How a rank's own gradients are spread over their entries; shares of all entries."""

    non_zero: float
    holding_90: float
    """The fewest that hold 90 % of the squared norm."""
    holding_99: float
    kind: Literal["distribution"] = "distribution"


@dataclass(frozen=True)
class Looked:
    """What a method makes of the script's gradients. Durations are seconds of a step, medians over steps."""

    place: int
    """Of the method in the orders."""
    refused: str | None = None
    """Why it cannot synchronise this training; None: it can."""
    nmse: float | None = None
    """Squared error of a synchronised gradient over the squared norm of the exact mean: the mean over steps. None of a
    method that synchronises parameters."""
    cosine: float | None = None
    """Between the synchronised gradient and the exact mean; likewise."""
    progress: float | None = None
    """How far the sum of all synchronised gradients reaches along that of the exact ones, as a share: an error feedback
    makes good later what a single step lacks. Likewise."""
    encode_s: float = 0.0
    beside_s: float = 0.0
    """Encoding on another thread than the backward pass."""
    decode_s: float = 0.0
    optimizer_s: float = 0.0
    """The optimizer's step, with what the method does before and after it."""
    held_bytes: int = 0
    """Memory that it holds between steps."""
    kind: Literal["looked"] = "looked"


@dataclass(frozen=True)
class Note:
    """Something that the method told of a step, see ``MethodState.note``."""

    step: int
    name: str
    value: float
    kind: Literal["note"] = "note"


@dataclass(frozen=True)
class Metric:
    """What the script told by ``harness.metric``."""

    steps: int
    """Steps of the optimizer that were done by then."""
    at_s: float
    """When, by ``time.monotonic()``."""
    name: str
    value: float
    kind: Literal["metric"] = "metric"


@dataclass(frozen=True)
class Refused:
    """The script cannot be attached to, and was ended."""

    reason: str
    kind: Literal["refused"] = "refused"


@dataclass(frozen=True)
class Sources:
    """The script's own code that was imported: neither Python's, nor that of installed packages, nor ours."""

    files: list[tuple[str, str]]
    """Path and hash of each; an empty hash: it was written since the training began, so what ran is not known."""
    kind: Literal["sources"] = "sources"


@dataclass(frozen=True)
class Ended:
    """The process ended in good order, or by an exception."""

    steps: int
    """Steps of the optimizer that were done."""
    kind: Literal["ended"] = "ended"


Finding = Model | Buckets | Step | Gradients | Distribution | Looked | Note | Metric | Refused | Sources | Ended


class Findings:
    """The file of this rank. It is made when there is something to write."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[str] | None = None
        self._process = os.getpid()
        self._is_lost = False
        self.steps = 0
        """Steps of the optimizer done so far."""

    def write(self, *found: Finding) -> None:
        """Append, so that it is in the file when this returns. A forked child writes nothing: it may load data."""
        if os.getpid() != self._process:
            return
        if self._is_lost:
            return
        try:
            if self._file is None:
                self._file = (self._folder / f"rank-{_own_rank()}.jsonl").open("a", encoding="utf-8")
            self._file.writelines(json.dumps(vars(finding)) + "\n" for finding in found)
            self._file.flush()
        except OSError as error:  # it is no fault of the script, which goes on
            self._is_lost = True
            print(f"pacbench: nothing more is recorded of this rank: {error}", file=sys.stderr, flush=True)


def _own_rank() -> int:
    """By the process group; the environment tells of scripts that have made none."""
    dist = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and dist.is_initialized():
        return int(dist.get_rank())
    return int(os.environ.get("RANK", "0"))


_of_this_process: Findings | None = None


def own_findings() -> Findings | None:
    """Those of this process; None where it is not attached to."""
    global _of_this_process
    if _of_this_process is None and (orders := read_orders()) is not None:
        _of_this_process = Findings(Path(orders.folder))
    return _of_this_process


def write_metric(name: str, value: float) -> None:
    """See ``harness.metric``."""
    findings = own_findings()
    if findings is not None:
        findings.write(Metric(findings.steps, time.monotonic(), name, value))
