"""Processes that others have started: found, counted and ended, whoever their parent is by now."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
"""Operations of prctl(2), by <linux/prctl.h>."""

CLONE_NEWNS = 0x00020000
MNT_DETACH = 2
MS_REC, MS_PRIVATE = 1 << 14, 1 << 18
"""Flags of mount(2), by <sys/mount.h>."""

PROC = Path("/proc")

_libc = ctypes.CDLL(None, use_errno=True)


def adopt_orphans() -> None:
    """What this process's children leave behind becomes its own child (PR_SET_CHILD_SUBREAPER)."""
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_with_parent() -> None:
    """Have the kernel end this process when its parent ends (PR_SET_PDEATHSIG); for a child, just after its fork."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def descendants() -> set[int]:
    """All that this process has started, directly or not: their numbers in its own PID namespace.

    Empty where /proc shows another namespace's processes, or the kernel does not list children (CONFIG_PROC_CHILDREN).
    """
    with suppress(OSError):
        if int(os.readlink(PROC / "self")) != os.getpid():
            return set()
    found: set[int] = set()
    unseen = [os.getpid()]
    while unseen:
        new = _children(unseen.pop()) - found
        found |= new
        unseen += new
    return found


def _children(pid: int) -> set[int]:
    found: set[int] = set()
    with suppress(OSError):  # it has ended
        for thread in (PROC / str(pid) / "task").iterdir():
            with suppress(OSError):
                found |= set(map(int, (thread / "children").read_text().split()))
    return found


def resident_bytes(pids: Iterable[int]) -> int:
    """What processes have in memory; pages that they share count for each (proc_pid_statm(5))."""
    pages = 0
    for pid in pids:
        with suppress(OSError):
            pages += int((PROC / str(pid) / "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def kill(pids: Iterable[int]) -> None:
    """End processes at once."""
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def uncover(folders: Iterable[str]) -> None:
    """Let this process, and what it starts, see what lies below mounts of ours, and their own processes in /proc.

    Only this process's view changes (mount_namespaces(7)); ip(8) shares its mounts, so that must be undone first. Where
    /proc may not be mounted, as inside of some containers, it stays as it is.

    Raises:
        OSError: a mount cannot be taken away.
    """
    if _libc.unshare(CLONE_NEWNS) or _libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None):
        raise OSError(ctypes.get_errno(), "cannot have mounts of its own")
    for folder in folders:
        if _libc.umount2(folder.encode(), MNT_DETACH):
            raise OSError(ctypes.get_errno(), f"cannot uncover {folder}")
    _libc.mount(b"proc", bytes(PROC), b"proc", 0, None)
