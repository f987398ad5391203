"""What a worker measures of itself: time per phase, bytes that left its shaped interface, memory."""

from __future__ import annotations

import itertools
import json
import os
import re
import statistics
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from baselines._stopwatch import Clock
from harness import programs
from harness.messages import Events, Send
from harness.network.bounds import FRAME_HEADER_BYTES

YARDSTICK_NUMEL = 1 << 17
YARDSTICK_REPETITIONS = 9

FLUSH_S = 1.0
"""How often events leave a worker, so that whoever watches sees it live."""


@dataclass(frozen=True)
class WireBytes:
    """Bytes that left an interface since it was shaped."""

    payload: int
    headers: int

    def __sub__(self, earlier: WireBytes) -> WireBytes:
        return WireBytes(self.payload - earlier.payload, self.headers - earlier.headers)


def wire_bytes(interface: str) -> WireBytes:
    """Read the kernel's counters of the interface's queue.

    The queue counts every segment with its own headers, also those that offloads sent down as one; so payload and
    headers can be told apart exactly, up to TCP options beyond the timestamp. Where an interface has no queue, as a
    host's may have none, its own counters are read: they may count such segments as one.
    """
    queue = _told(["tc", "-s", "-j", "qdisc", "show", "dev", interface, "root"])
    if queue["kind"] == "noqueue":  # by a socket: /sys may be that of another network namespace
        queue = _told(["ip", "-s", "-j", "link", "show", "dev", interface])["stats64"]["tx"]
    headers = FRAME_HEADER_BYTES * queue["packets"]
    return WireBytes(payload=queue["bytes"] - headers, headers=headers)


def _told(command: list[str]) -> dict[str, Any]:
    """The one thing that a program of iproute2 tells of."""
    (told,) = json.loads(programs.run(command, capture_output=True, check=True, timeout=30).stdout)
    return dict(told)


@dataclass(frozen=True)
class Transport:
    """What TCP says of a worker's connections, as ``ss`` shows it: medians over those that sent anything."""

    retransmits: int
    """Segments sent again, over all connections since they were made."""
    smoothed_rtt_s: float | None
    cwnd_packets: float | None
    """The congestion window."""

    def undilated(self, dilation: float) -> Transport:
        """The same of a world in which time is not so many times slower."""
        return replace(self, smoothed_rtt_s=self.smoothed_rtt_s and self.smoothed_rtt_s / dilation)


def transport() -> Transport:
    """Look at this process's established connections (ss(8), tcp(7): TCP_INFO); a host has others, of other users."""
    shown = programs.run(
        ["ss", "-tineH", "state", "established"], capture_output=True, check=True, timeout=30, text=True
    )
    return parse_transport(shown.stdout, own_sockets())


def own_sockets() -> set[str]:
    """Numbers of this process's sockets: the kernel's, which no namespace of processes changes."""
    opened = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that by which they are listed
            opened.append(os.readlink(descriptor))
    return {found[1] for name in opened if (found := re.fullmatch(r"socket:\[(\d+)\]", name))}


def parse_transport(shown: str, own: Collection[str]) -> Transport:
    """What ``ss -tineH`` printed: a line a connection, and an indented one with its figures.

    Args:
        own: numbers of the sockets that count.
    """
    pairs = itertools.pairwise(shown.splitlines())
    connections = ((re.search(r"\bino:(\d+)", first), figures) for first, figures in pairs)
    busy = [figures for number, figures in connections if number and number[1] in own and "bytes_sent:" in figures]

    def each(pattern: str) -> list[float]:
        return [float(found[1]) for line in busy if (found := re.search(pattern, line))]

    return Transport(
        retransmits=int(sum(each(r"\bretrans:\d+/(\d+)"))),
        smoothed_rtt_s=statistics.median(rtts) / 1e3 if (rtts := each(r"\brtt:([\d.]+)/")) else None,
        cwnd_packets=statistics.median(windows) if (windows := each(r"\bcwnd:(\d+)")) else None,
    )


def yardstick_s() -> float | None:
    """What a fixed piece of work takes of the processor, in seconds: how fast this machine computes at the moment.

    The median of some repetitions, in this thread's own time, so that whoever else runs counts only as far as caches,
    clock and memory are shared. It is what codecs are made of: magnitudes, a selection, rounding, a copy.

    None where the kernel counts that time in ticks that are longer than the work, as User-mode Linux does.
    """
    values = torch.arange(YARDSTICK_NUMEL, dtype=torch.float32).mul_(0.7).sin_()
    seconds = []
    for _ in range(YARDSTICK_REPETITIONS):
        start = time.thread_time()
        values.abs().topk(YARDSTICK_NUMEL // 100)
        values.mul(127).round_().to(torch.int8).float()
        seconds.append(time.thread_time() - start)
    return statistics.median(seconds) if min(seconds) else None


def peak_memory_bytes() -> int:
    """The most memory this process ever had resident, shared pages included (VmHWM, proc_pid_status(5))."""
    return _kilobytes("/proc/self/status", "VmHWM")


def peak_gpu_memory_bytes() -> int | None:
    """The most memory that tensors of this process ever had on its GPU; None without one."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else None


def own_memory_bytes() -> int:
    """This process's proportional share of the memory it uses (PSS): pages shared by n count as 1 / n each."""
    return _kilobytes("/proc/self/smaps_rollup", "Pss")


def _kilobytes(path: str, field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path(path).read_text(), re.MULTILINE)
    return 1024 * int(found[1]) if found else 0


class CudaClock(Clock):
    """A clock of events in the device's own stream of work, so that nothing waits for it before a step is over."""

    def __init__(self) -> None:
        self._origin = self.mark()

    def restart(self) -> torch.cuda.Event:
        """See ``Clock.restart``. The time between events is a 32-bit float, so it must not grow for hours."""
        self._origin = self.mark()
        return self._origin

    def mark(self) -> torch.cuda.Event:
        """See ``Clock.mark``."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, mark: torch.cuda.Event) -> float:
        """See ``Clock.seconds``; waits until the device has come there."""
        mark.synchronize()
        return float(self._origin.elapsed_time(mark)) / 1e3


class Recorder:
    """Events of one rank: held in memory while a step runs, sent in batches between steps.

    ``clock_s`` is the training clock: it advances by the steps' times and stands still while anything else happens.
    """

    def __init__(self, send: Send) -> None:
        self.clock_s = 0.0
        self._send = send
        self._rows: list[tuple[int, float, str, float]] = []
        self._flushed_at = perf_counter()

    def advance(self, step: int, seconds: dict[str, float]) -> None:
        """A step ended: add its time (``step_s``) to the clock, and note its phases."""
        self.clock_s += seconds["step_s"]
        self._rows.extend((step, self.clock_s, kind, value) for kind, value in seconds.items())
        if perf_counter() - self._flushed_at > FLUSH_S:
            self.flush()

    def note(self, step: int, kind: str, value: float) -> None:
        """Add an event at the clock's present time."""
        self._rows.append((step, self.clock_s, kind, value))

    def flush(self) -> None:
        """Send what has gathered."""
        self._send(Events(rows=self._rows))
        self._rows, self._flushed_at = [], perf_counter()
