"""What is known of a trial when it has ended: what its workers said, and whether that makes it count."""

from __future__ import annotations

import bisect
import itertools
import math
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from harness.messages import Events, Exit, Failed, LinksChanged, Log, Message, QueuesSeen, QueueUse, Trained
from harness.network.addresses import worker_number
from harness.network.readings import Readings
from harness.plan.dilation import Dilation
from harness.plan.expected import wire_bytes
from harness.plan.status import DISTURBED, DIVERGED, DONE, TIMEOUT, UNSETTLED_STEPS, Status
from harness.plan.trial import Trial
from harness.programs import how_it_ended
from harness.record.row import Event
from harness.run.interference import Interference

LOG_TAIL_LINES = 40

NO_RANK = -1
"""Rank of events that no worker reported."""

RESUMED = "resumed"
"""Kind of the event that a trial went on from a checkpoint, before this step; its value is the step, too."""

ADDED_TO = ("step_s", "comm_s")
"""Kinds of events that hold what this machine adds: it is no computation that a worker was seen to do."""

A_FAILURE, A_KILL, A_LOST_NODE = 1, 2, 3
"""How much a reason explains. Who lost its peer fails, too, and may be heard first: what became of the peer is why."""

MIN_SHARE_SEEN = 0.5
"""Share of the bytes a method must send below which they cannot have crossed the shaped link."""


@dataclass(frozen=True)
class Progress:
    """What a watcher may show while trials run."""

    trial: Trial
    step: int
    samples_per_s: float


Watch = Callable[[Progress], None]
Ended = Callable[[Trial, str, str | None], None]
"""Hears of each trial's status and reason."""


@dataclass
class Outcome:
    """What is known of a trial when it has ended, however it ended."""

    status: Status = DONE
    reason: str | None = None
    readings: Readings | None = None
    events: list[Event] = field(default_factory=list)
    steps_seen: int = 0
    """How many steps of rank 0 are among them, while a trial runs."""
    resumed_from: int | None = None
    """The step that it went on from; None: it began anew."""
    results: dict[int, Trained] = field(default_factory=dict)
    """Result of each rank that has one."""
    queues: dict[str, Mapping[str, QueueUse]] = field(default_factory=dict)
    """Use of each node's queues, by interface."""
    changes: list[LinksChanged] = field(default_factory=list)
    """Changes of the links, told by the player of their trace."""
    interference: Interference | None = None
    """What this machine did to it; None: it was not run."""
    added_s: float | None = None
    """Real seconds that this machine added to a step, which were taken off; None: nothing was looked for."""
    log: deque[str] = field(default_factory=lambda: deque(maxlen=LOG_TAIL_LINES))
    explained: int = 0
    """How much the reason explains; see ``A_FAILURE``."""

    def fail(self, status: Status, reason: str, explains: int = A_KILL) -> None:
        """It did not finish; of all that workers may still say, only that a node was lost explains more by default."""
        self.status, self.reason, self.explained = status, reason, explains

    def go_on_from(self, steps: int, events: Iterable[Event]) -> None:
        """So many steps were made before, and this was measured."""
        self.resumed_from = self.steps_seen = steps
        self.events.extend(events)
        clock_s = max((event.time_s for event in self.events if event.rank == 0), default=0.0)
        self.events.append(Event(NO_RANK, steps, clock_s, RESUMED, float(steps)))

    @property
    def resumed_at(self) -> list[int]:
        """The steps before which it went on from a checkpoint, each time: they begin like a training's first ones."""
        return [event.step for event in self.events if event.kind == RESUMED]

    @property
    def resumed_with(self) -> set[int]:
        """The steps with which it went on each time, which have not settled."""
        return {step for first in self.resumed_at for step in range(first, first + UNSETTLED_STEPS)}

    @property
    def is_over(self) -> bool:
        """Whether nothing is to go on: it has ended by itself, or fell over at once where it went on."""
        fell = self.status == "crashed" and self.steps_seen == self.resumed_from
        return bool(self.results) or self.status in (TIMEOUT, DISTURBED) or fell

    def take(self, message: Message, trial: Trial, watch: Watch) -> None:
        """Add what was said. The first failure counts, unless a later one explains more."""
        match message:
            case Events():
                rank = worker_number(message.node)
                rows = [Event(rank, *row) for row in message.rows]
                self.events.extend(rows)
                steps = [row for row in rows if row.kind == "step_s"]  # what evaluations find is of the next step
                if rank == 0 and steps:
                    self.steps_seen = steps[-1].step + 1
                    watch(_progress(trial, self.steps_seen, [step.value for step in steps]))
            case Trained():
                self.results[worker_number(message.node)] = message
                self.queues[message.node] = message.queues
            case QueuesSeen():
                self.queues[message.node] = message.queues
            case LinksChanged():
                self.changes.append(message)
            case Log():
                self.log.append(f"{message.node}: {message.text}")
            case Failed():
                self._crash(f"{message.node}: {message.reason}", A_LOST_NODE if message.lost else A_FAILURE)
            case Exit() if message.code:
                by_itself = message.code > 0 or message.code == -signal.SIGABRT
                reason = f"{message.node} ended with {how_it_ended(message.code)}"
                self._crash(reason, A_FAILURE if by_itself else A_KILL)

    def _crash(self, reason: str, explains: int) -> None:
        if explains > self.explained:
            self.fail("crashed", reason, explains)

    @property
    def step_s(self) -> list[float]:
        """Rank 0's time of each step so far."""
        return [event.value for event in self.events if event.kind == "step_s" and event.rank == 0]

    def kinds_of_steps(self, trial: Trial) -> list[float]:
        """What each of rank 0's steps sends, so that steps of a kind can be compared: bytes by the method's formula.

        Where these depend on the gradients' values, or on what was chosen, steps within a power of two are of a kind.
        """
        noted: dict[int, float] = {}
        for event in self.events:
            if event.kind == "formula_bytes" and event.rank == 0:
                noted[event.step] = noted.get(event.step, 0.0) + event.value
        return [
            float(math.frexp(noted[step])[1]) if step in noted else wire_bytes(trial.case, trial.method, step)
            for step in range(len(self.step_s))
        ]

    def take_off(self, added_s: float, slowing: Dilation, before_s: Sequence[float] = ()) -> None:
        """Take real seconds that this machine added to each step off all times: of steps, and of training clocks.

        Events of no rank, changes of links, are on rank 0's clock.

        Args:
            added_s: what it added to a step of the steady state.
            before_s: what it added to each step before that.
        """
        self.added_s = added_s
        ends_s: dict[int, list[float]] = {}
        for event in self.events:
            if event.kind == "step_s":
                ends_s.setdefault(event.rank, []).append(event.time_s)
        steps = max(map(len, ends_s.values()), default=0)
        off_s = [(before_s[step] if step < len(before_s) else added_s) / slowing.at(step) for step in range(steps)]
        until_s = list(itertools.accumulate(off_s, initial=0.0))
        self.events = [_earlier(event, off_s, until_s, ends_s[max(event.rank, 0)]) for event in self.events]
        self.results = {
            rank: replace(result, train_time_s=result.train_time_s - until_s[result.steps])
            for rank, result in self.results.items()
        }

    def note_changes_of_links(self, trial: Trial) -> None:
        """Add the links' changes as events of no rank, in the step and at the training time of rank 0 then."""
        self.events.extend(_changes_by_step(self.events, self.changes, trial.dilation, trial.shrink))

    def check(self, trial: Trial) -> None:
        """The proofs that make a finished trial count."""
        results = self.results
        if len(results) < trial.case.cluster.workers:
            self.fail("crashed", "a worker ended without a result")
        elif any(result.diverged for result in results.values()):
            self.fail(DIVERGED, _divergence(results))
        elif not all(result.parameters_identical for result in results.values()):
            self.fail("failed", "the ranks ended with different parameters")
        else:
            seen, expected = self.payload_per_step, trial.expected.wire_bytes_per_step
            if seen < MIN_SHARE_SEEN * expected:
                self.fail("failed", f"only {seen:.0f} of {expected:.0f} bytes a step crossed the shaped link")

    @property
    def payload_per_step(self) -> float:
        """Payload that a worker sent in a steady step; mean over ranks and steps."""
        return self._per_steady_step(sum(result.payload_bytes for result in self.results.values()))

    @property
    def headers_per_step(self) -> float:
        """Packet headers that a worker sent in a steady step; mean over ranks and steps."""
        return self._per_steady_step(sum(result.header_bytes for result in self.results.values()))

    def _per_steady_step(self, total: int) -> float:
        first = self.results[0]
        return total / len(self.results) / max(first.steps - first.steady_from_step, 1)


def _progress(trial: Trial, made: int, steps_s: list[float]) -> Progress:
    samples = trial.case.train.samples_per_step * trial.case.cluster.workers
    return Progress(trial, made, samples * len(steps_s) / sum(steps_s))


def _earlier(event: Event, off_s: list[float], until_s: list[float], ends_s: list[float]) -> Event:
    """An event, with so much taken off each of the steps that ended at these times of its rank's training clock."""
    time_s = event.time_s - until_s[bisect.bisect_right(ends_s, event.time_s)]
    if event.kind in ADDED_TO:
        return event._replace(time_s=time_s, value=max(0.0, event.value - off_s[event.step]))
    return event._replace(time_s=time_s)


def _changes_by_step(events: list[Event], changes: list[LinksChanged], dilation: float, shrink: int) -> Iterator[Event]:
    ends = [event for event in events if event.kind == "monotonic_s" and event.rank == 0]
    for change in changes:
        place = bisect.bisect_right([end.value for end in ends], change.at_s)
        step, time_s = (ends[place].step, ends[place].time_s) if place < len(ends) else (len(ends), 0.0)
        if ends and place == len(ends):
            time_s = ends[-1].time_s
        told = {
            "rate_bps": dilation * shrink * (change.rate_bps or 0),
            "late_s": change.late_s / dilation,
            "at_s": change.at_s,
        }
        for kind, value in told.items():
            yield Event(NO_RANK, step, time_s, f"link_{kind}", float(value))


def _divergence(results: Mapping[int, Trained]) -> str:
    reason = f"the test loss was not finite after step {results[0].steps}"
    found = [(*first, rank) for rank, result in results.items() if (first := result.first_non_finite)]
    if not found:
        return f"{reason}; every gradient was"
    step, parameter, rank = min(found)
    return f"{reason}; the first gradient that was not: {parameter} on rank {rank} in step {step}"
