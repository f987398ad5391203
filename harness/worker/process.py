"""What a process that computes asks of its allocator and of the scheduler, so that its steps take equally long."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from contextlib import suppress

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Parameters of mallopt(3), by <malloc.h>."""

KEPT = {M_TRIM_THRESHOLD: 1 << 30, M_TOP_PAD: 1 << 26, M_MMAP_THRESHOLD: 1 << 26}
"""In bytes: what may lie free before any goes back, by how much the heap grows, what is too large to lie in it."""


SHORT_SLICE_NS = 100_000
"""The shortest slice that Linux gives to who asks for one (sched_setattr(2), ``sched_runtime``; from 6.12 on)."""

SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
"""Numbers of the system call sched_setattr(2), for which there is no function in Python."""

SCHED_ATTR = struct.Struct("IIQiIQQQ")
"""size, policy, flags, nice, priority, runtime, deadline, period."""


def prepare_process(sleeps: bool = False) -> None:
    """Have its memory kept, and its scheduling chosen; for this thread and those that it starts afterwards.

    Args:
        sleeps: whether it sleeps most of the time, as workers do that keep a profile's time. They have no use for batch
            scheduling: beside two busy programs on two cores their steps came later by 20 %, without it by 5 %.
    """
    keep_freed_memory()
    if sleeps:
        ask_for_short_slices()
    else:
        use_batch_scheduling()


def keep_freed_memory() -> None:
    """Have malloc keep this process's memory (mallopt(3)); where the C library has no such thing, change nothing.

    By itself, glibc gives a step's activations back to the kernel or not as chance has laid out the heap. Of the small
    CNN, two processes then took 3,500 page faults a step or 1,500, and 15 ms instead of 10.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        for parameter, size in KEPT.items():
            mallopt(parameter, size)


def use_batch_scheduling() -> None:
    """No thread takes the processor from another of ours by waking up: SCHED_BATCH (sched(7)), as anybody may ask for.

    Gloo's event loop asks again and again for a lock that one of Gloo's other threads holds. If it has just taken the
    processor from that thread, it goes on until its time is up, a tick or more: of two processes on two cores a small
    all-reduce takes 1.9 ms then instead of 0.14, of eight 21 ms instead of 3.9, in the mean
    (``tests/bench/test_batch_scheduling_speed.py``). Workers with cores of their own, for whom these stand, would not
    meet it.
    """
    with suppress(AttributeError, PermissionError):  # not on Linux; a sandbox that refuses it
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def ask_for_short_slices() -> None:
    """Whoever wakes up runs at once, also beside busy programs: their slices are longer (sched_setattr(2)).

    The kernel gives the processor first to whose slice ends first. Beside two loops on two cores, a thread that slept
    for 4 ms woke up 0.17 to 0.27 ms late in the mean, and up to 2.8 ms in 95 of 100 times; with this 0.12 ms in both.
    Kernels before 6.12 take no notice of it.
    """
    number = SCHED_SETATTR.get(platform.machine())
    if number is not None:
        asked = SCHED_ATTR.pack(
            SCHED_ATTR.size, os.SCHED_OTHER, 0, os.getpriority(os.PRIO_PROCESS, 0), 0, SHORT_SLICE_NS, 0, 0
        )
        ctypes.CDLL(None).syscall(number, 0, asked, 0)
