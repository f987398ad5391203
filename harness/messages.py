"""What harness, agents and workers say to each other: a dataclass a kind, one writer, one reader.

A message is a line of JSON: ``kind``, which is the class's name in small letters, and the fields. The harness sends
requests; an agent answers each with ``Done`` or ``Refused``, and passes on what workers say in between. Whatever is
read is checked: an unknown kind, a missing field or a wrong type is a ``ProtocolError``, never a value that is used.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Annotated, Any, ClassVar, TypeVar, cast

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated_dataclass
from typing_extensions import dataclass_transform

from harness.errors import MOST_SHOWN, MeasurementError

GLOO = "gloo"

BACKEND_VARIABLE = "PACBENCH_BACKEND"
"""The environment variable that says which collectives training uses. Whoever gives out GPUs sets it: NCCL needs one
GPU for each worker."""

MOST_LINE_BYTES = 1 << 28
"""More than any message has: a whole training's events, of a million steps, are sent in parts."""

STRICT = ConfigDict(extra="forbid", str_min_length=0)
"""With any rule for text, pydantic looks whether it is text at all: halves of surrogate pairs cannot be stored."""

T = TypeVar("T")


class ProtocolError(MeasurementError):
    """A line is no message of this version."""


@dataclass_transform(kw_only_default=True, frozen_default=True)
def message_kind(cls: type[T]) -> type[T]:
    """Make a class's annotated fields those of a kind of message. The class is derived from ``Message``."""
    checked: Any = validated_dataclass(frozen=True, kw_only=True, config=STRICT)(cls)
    return cast(type[T], checked)


Step = Annotated[int, Field(ge=-(2**31), lt=2**31)]
"""A step of a training, as it is stored."""

Base64 = Annotated[str, Field(pattern=r"^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$")]
"""Bytes, as text (RFC 4648)."""

PART_BYTES = 1 << 16
"""How much of a file a message carries at most."""

HANDED = "handed"
"""In a task's spec: for the harness the file that each node is handed, by its name; for the task its own, open."""

KEPT = signal.SIGUSR1
"""By this signal ranks hear that what all have saved is kept, so that they may go on."""

KINDS: dict[str, type[Message]] = {}
"""All kinds of message by name. A subclass of ``Message`` enters itself."""


@message_kind
class Message:
    """Base of all kinds."""

    kind: ClassVar[str]
    node: str = ""
    """Node that says it; the agent fills it in."""

    def __init_subclass__(cls) -> None:
        cls.kind = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()
        KINDS[cls.kind] = cls


Send = Callable[[Message], None]
"""How a task reports."""

Task = Callable[[Mapping[str, Any], str, Send], None]
"""What runs on a node: it gets the task's spec, the node's name, and a way to report."""


# Requests of the harness.


@message_kind
class Preload(Message):
    """Import torch, and have ready what a training reads."""

    train: dict[str, Any] | None
    """Section ``[train]`` as JSON; None: nothing but torch."""


@message_kind
class Hand(Message):
    """A part of the file that a node's next task is handed."""

    to: str
    """The node."""
    part: Base64
    is_first: bool


@message_kind
class Start(Message):
    """Run a task on nodes."""

    task: str
    nodes: list[str]
    spec: dict[str, Any]


@message_kind
class Stop(Message):
    """End all workers at once."""


@message_kind
class Signal(Message):
    """Send a signal to the tasks of nodes, which may end in good order."""

    nodes: list[str]
    number: int
    """Of the signal, by signal(7)."""


@message_kind
class Quit(Message):
    """End the agent and all workers."""


@message_kind
class Build(Message):
    """Replace the network by this topology, and read back every queue."""

    topology: dict[str, Any]


@message_kind
class Check(Message):
    """Refuse the topology if this kernel cannot emulate it."""

    topology: dict[str, Any]


@message_kind
class Reset(Message):
    """Bring every queue back to what it was before a trace was played."""


@message_kind
class CheckCode(Message):
    """Refuse to run other code than the harness has."""

    digest: str


@message_kind
class CheckFile(Message):
    """Refuse to go on where a file is not the one that the harness has under the same name."""

    path: str
    digest: str


@message_kind
class ShapeLink(Message):
    """Give a host's own interface these rates, in bits per second on the wire; None leaves a direction as it is."""

    up_bps: int | None
    down_bps: int | None


# What hosts say to each other before one becomes the other's agent.


@message_kind
class Challenge(Message):
    """Rank 0 asks who comes to show that it knows the job's token."""

    nonce: str


@message_kind
class Hello(Message):
    """A rank says who it is, and asks the same."""

    rank: int
    world_size: int
    host: str
    address: str
    interface: str
    code: str
    torch: str
    clock_s: float
    """By ``time.time()``."""
    problem: str | None
    """Why it cannot take part."""
    nonce: str
    proof: str


@message_kind
class Welcome(Message):
    """Rank 0 shows that it knows the token, too."""

    proof: str


# Answers of an agent.


@message_kind
class Done(Message):
    """A request was carried out."""

    op: str
    """Kind of the request."""


@message_kind
class Refused(Message):
    """A request was not carried out."""

    op: str
    """Kind of the request."""
    reason: str
    exit_code: int


@message_kind
class Log(Message):
    """A line that a worker printed."""

    text: str


@message_kind
class Exit(Message):
    """A worker has ended."""

    code: int
    """Exit code; negative: the signal that ended it."""


@message_kind
class Tick(Message):
    """Nothing was said for a second."""


# What workers and other tasks report.


@message_kind
class Failed(Message):
    """A task ended by an error, or its node was lost."""

    reason: str
    lost: bool = False
    """Whether the node's agent was lost."""


@message_kind
class Events(Message):
    """Numbers that a worker recorded: step, time on the training clock in seconds, kind, value."""

    rows: list[tuple[Step, float, str, float]]


@message_kind
class Saved(Message):
    """A part of what a rank needs to go on after a step."""

    steps: Step
    """Steps completed."""
    part: Base64
    is_last: bool


@validated_dataclass(frozen=True)
class QueueUse:
    """Use of an interface's queue since the watch began."""

    drops: int
    """Packets dropped: for want of room, or because the link was asked to lose some."""
    most_backlog_bytes: int


@message_kind
class QueuesSeen(Message):
    """How a node's queues were used, by interface."""

    queues: dict[str, QueueUse]


@message_kind
class Trained(Message):
    """What a rank measured of a whole training. Times are undilated."""

    steps: Step
    """Steps completed."""
    steady_from_step: Step
    first_non_finite: tuple[Step, str] | None = None
    """Step and parameter of this rank's first gradient that was not finite."""
    diverged: bool
    payload_bytes: int
    """Payload that left the shaped interface in the steady state."""
    header_bytes: int
    retransmits: int
    smoothed_rtt_s: float | None
    cwnd_packets: float | None
    queues: dict[str, QueueUse]
    """Use of this node's own queues, by interface."""
    train_time_s: float
    evaluation_time_s: float
    yardstick_s: float | None
    """Processor time of a fixed piece of work, when the trial began and ended; None where clocks are too coarse."""
    peak_memory_bytes: int
    peak_gpu_memory_bytes: int | None = None
    own_memory_bytes: int
    held_memory_bytes: int
    parameter_hash: str
    parameters_identical: bool


@message_kind
class FirstCollective(Message):
    """The first collective of a process group is over."""


@message_kind
class AllReduced(Message):
    """Median time of a large all-reduce."""

    seconds: float


@message_kind
class LinksMeasured(Message):
    """What all links are."""

    readings: str
    """``Readings`` as JSON."""


@message_kind
class CeilingMeasured(Message):
    """What each worker can send while all do, with nothing limited."""

    ceiling_bps: float


@message_kind
class LinksChanged(Message):
    """A row of a trace came into force on all links."""

    row: int
    rate_bps: int | None
    at_s: float
    """When the last link was changed, by ``time.monotonic()``."""
    late_s: float


# What nodes report of a user's command.


@message_kind
class Output(Message):
    """What a rank has printed."""

    rank: int
    lines: list[str]
    to_stderr: bool


@message_kind
class RankEnded(Message):
    """A rank's process has ended; what it started may go on."""

    rank: int
    code: int
    """Exit code; negative: the signal that ended it."""


@message_kind
class CommandEnded(Message):
    """No process of the command is left on a node."""

    cpu_s: float
    """Processor time of all its processes, in user and kernel mode."""
    peak_memory_bytes: int
    """The most memory that they had resident together, as seen at each look, or that one of them ever had."""


@validated_dataclass(frozen=True)
class QueueCount:
    """Counters of an interface's queue since it was made, and what waits in it."""

    wire_bytes: int
    """What has left, headers included."""
    packets: int
    drops: int
    backlog_bytes: int


@message_kind
class Traffic(Message):
    """What a node's queues have carried, by interface, and its TCP has sent again."""

    at_s: float
    """By ``time.monotonic()``."""
    queues: dict[str, QueueCount]
    retransmits: int
    """Segments, of all connections of the node (RFC 1213, tcpRetransSegs)."""


class Lines:
    """Cuts what is read from a pipe into lines, without their ends. What is not yet a whole line is kept."""

    def __init__(self) -> None:
        self._begun: list[bytes] = []
        self._begun_bytes = 0

    def cut(self, chunk: bytes) -> list[bytes]:
        """The lines that a chunk completes.

        Raises:
            ProtocolError: a line has become longer than any message.
        """
        first, *others = chunk.split(b"\n")
        self._begun.append(first)
        self._begun_bytes += len(first)
        if self._begun_bytes > MOST_LINE_BYTES:
            raise ProtocolError(f"a line of more than {MOST_LINE_BYTES} bytes is no message")
        if not others:
            return []
        lines = [b"".join(self._begun), *others]
        self._begun, self._begun_bytes = [lines.pop()], len(others[-1])
        return lines

    @property
    def rest(self) -> bytes:
        """What has been read of a line that is not yet whole."""
        return b"".join(self._begun)


def encode(said: Message, node: str = "") -> bytes:
    """A message as a line.

    Args:
        node: whose message it is, where the message itself does not say.
    """
    content = {field.name: getattr(said, field.name) for field in fields(cast(Any, said))}
    content["node"] = said.node or node
    return json.dumps({"kind": said.kind, **content}, default=asdict).encode() + b"\n"


def _whole_number(digits: str) -> int:
    if -(2**63) <= (number := int(digits)) < 2**63:
        return number
    raise ValueError("a whole number has 64 bits")


def decode(line: bytes | str) -> Message:
    """The message that a line holds.

    Raises:
        ProtocolError: it holds none of this version's.
    """
    try:
        content = json.loads(line, parse_int=_whole_number)
        return KINDS[content.pop("kind")](**content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ProtocolError(f"not a message of this version: {line[:MOST_SHOWN]!r} ({reason[:MOST_SHOWN]})") from None
