"""Pace: threads that are kept as late as the device that they stand for.

Whoever computes for real, or only waits, tells a ``Pace`` what the device would have done; the thread goes on when the
device would. Time may be dilated: the device is then k times slower than in truth, as the links are, and whoever
reports a time divides it by k. What this machine really does meanwhile does not become slower by itself; what it took
counts as part of what the device takes, and what it took beyond that is the overrun.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock, get_ident
from typing import Any, Literal

from torch import Tensor

from baselines._stopwatch import Clock, Stopwatch
from harness.workload.profile import Codec


class Pace:
    """Keeps threads as late as the device that they stand for, which does one thing at a time."""

    def __init__(self, dilation: float) -> None:
        self.dilation = dilation
        """How many times slower the device is; it may change between two steps."""
        self._due = time.perf_counter()
        """When the device has done what it was given."""
        self._late_s = self._overrun_s = 0.0
        self._lock = Lock()

    def begin(self) -> None:
        """The device begins now: what was before is over, and no part of what follows."""
        with self._lock:
            self._due, self._late_s = time.perf_counter(), 0.0

    def waited(self) -> None:
        """The device has waited until now for what came over the network, unless it still has work to do."""
        with self._lock:
            self._overrun_s += self._late_s
            self._due, self._late_s = max(self._due, time.perf_counter()), 0.0

    def take_overrun_s(self) -> float:
        """Undilated seconds, since this was last asked, by which this machine was slower than the device and never
        caught up: what it adds to a step at most, and a greater dilation takes away."""
        with self._lock:
            overrun_s, self._overrun_s = self._overrun_s, 0.0
        return overrun_s / self.dilation

    def work(self, seconds: float) -> None:
        """For the thread of the backward pass: go on when the device has worked for so long since the work before.

        What this thread has done since then is part of it; if it took longer, the next work is shorter by that.
        """
        with self._lock:
            self._due += self.dilation * seconds
        while (left_s := self._due - time.perf_counter()) > 0:  # another thread may have brought it more meanwhile
            time.sleep(left_s)
        with self._lock:
            self._late_s = max(0.0, time.perf_counter() - self._due)

    def work_beside(self, seconds: float, began: float) -> None:
        """For any other thread: from the moment ``began`` the device does this first, and the backward pass waits."""
        done = began + self.dilation * seconds
        with self._lock:
            self._due = max(self._due, began) + self.dilation * seconds
            self._overrun_s += max(0.0, time.perf_counter() - done)
        time.sleep(max(0.0, done - time.perf_counter()))


class SlowClock(Clock):
    """Tells the time of a world that is as slow as a pace."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def seconds(self, mark: Any) -> float:
        """See ``Clock.seconds``. Marks compare as long as the dilation stays what it is."""
        return float(mark) / self._pace.dilation


Kind = Literal["encode", "beside", "decode"]


class _Cost:
    """What one kind of codec work costs in a step, dealt out to its blocks.

    Each block is charged by the share of the processor's time that it took one step before. Were all of it charged to
    the first, what the others really take would come on top of it, however slow the device is.
    """

    def __init__(self, s_per_entry: float) -> None:
        self._s_per_entry = s_per_entry
        self._whole_s = self._owed_s = self._carried_s = 0.0
        """Of all buckets handed over in this step; not yet charged; of that, what is left of the steps before."""
        self._cpu_s: list[float] = []
        """Of this step's blocks so far."""
        self._charges_s: list[float] = []
        """For this step's blocks; none where no step has told them yet."""

    def hand_over(self, entries: int) -> None:
        """A bucket of so many entries will need this work."""
        self._whole_s += self._s_per_entry * entries
        self._owed_s += self._s_per_entry * entries

    def charge_s(self, cpu_s: float) -> float:
        """Seconds that the device takes for the next block, which took the processor so long."""
        number = len(self._cpu_s)
        self._cpu_s.append(cpu_s)
        if not self._charges_s:
            charge_s = self._owed_s
        else:
            charge_s = self._charges_s[number] if number < len(self._charges_s) else 0.0
            charge_s += max(0.0, self._carried_s) if number == 0 else 0.0
        self._owed_s -= charge_s
        return charge_s

    def end_step(self) -> None:
        """Deal out the next step's cost as this one's blocks have shown; without any, nothing was to be done."""
        if (cpu_s := sum(self._cpu_s)) > 0:
            self._charges_s = [self._whole_s * each_s / cpu_s for each_s in self._cpu_s]
            self._carried_s = self._owed_s
        self._owed_s = self._carried_s
        self._whole_s = 0.0
        self._cpu_s.clear()


class PacedStopwatch(Stopwatch):
    """A stopwatch whose codec takes as long as the profile's device, for each bucket in proportion to its entries.

    A method that the profile does not know is charged the processor's time that it really takes, times the dilation.
    """

    def __init__(self, pace: Pace, codec: Codec | None, numel: int) -> None:
        super().__init__()
        self.clock = SlowClock(pace)
        self._pace = pace
        self._numel = numel
        self._known_costs: dict[tuple[float, ...], dict[Kind, _Cost]] = {}
        self._lock = Lock()
        self.charge_as(codec)
        self._backward_thread = get_ident()
        self._in_end_step = self._met_others = False
        """Whether a step is ending; and whether it has had codec work since, as it has where ranks meet there."""

    def charge_as(self, codec: Codec | None) -> None:
        """Charge the steps from now on for this codec: of a method that chooses, for what it has chosen."""
        seconds: dict[Kind, float] = {}
        if codec:
            seconds = {"encode": codec.encode_s, "beside": codec.beside_s, "decode": codec.decode_s}
        with self._lock:
            self._costs = self._known_costs.setdefault(
                tuple(seconds.values()), {kind: _Cost(each / self._numel) for kind, each in seconds.items()}
            )

    def host_s(self) -> float:
        """See ``Stopwatch.host_s``: a method that goes by its times must not see time run slower from some step on."""
        return super().host_s() / self._pace.dilation

    def bucket_ready(self, entries: int, members: Sequence[Tensor] = ()) -> None:
        """See ``Stopwatch.bucket_ready``."""
        super().bucket_ready(entries, members)
        self._backward_thread = get_ident()
        with self._lock:
            for cost in self._costs.values():
                cost.hand_over(entries)

    def waited(self) -> None:
        """See ``Stopwatch.waited``."""
        self._pace.waited()

    @contextmanager
    def __call__(self, phase: Literal["encode", "decode", "end_step"]) -> Iterator[None]:
        """See ``Stopwatch``: a block of codec work, which ends when the device would have ended it."""
        with super().__call__(phase):
            if phase == "end_step":
                yield from self._end_step()
                return
            if self._met_others:
                self._pace.waited()
            start, cpu_start = time.perf_counter(), time.thread_time()
            self._met_others = self._in_end_step
            yield
            on_backward = get_ident() == self._backward_thread
            charge_s = self._charge_s(phase, on_backward, time.thread_time() - cpu_start)
            if on_backward:
                self._pace.work(charge_s)
            else:
                self._pace.work_beside(charge_s, start)

    def _end_step(self) -> Iterator[None]:
        """The end of a step: where ranks meet there, no work of the device is under way while they wait."""
        self._in_end_step = True
        try:
            yield
            if self._met_others:
                self._pace.waited()
        finally:
            self._in_end_step = self._met_others = False

    def lap(self) -> Any:
        """See ``Stopwatch.lap``."""
        with self._lock:
            for cost in self._costs.values():
                cost.end_step()
        return super().lap()

    def _charge_s(self, phase: Literal["encode", "decode"], on_backward: bool, cpu_s: float) -> float:
        if not self._costs:
            return cpu_s
        with self._lock:
            return self._costs["beside" if phase == "encode" and not on_backward else phase].charge_s(cpu_s)
