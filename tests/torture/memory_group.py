"""A group of processes that may have no more memory: the kernel's OOM killer strikes there, and nowhere else."""

from __future__ import annotations

import re
import uuid
from pathlib import Path
from types import TracebackType

import psutil
from host import wait_until
from typing_extensions import Self

ROOT = Path("/sys/fs/cgroup")


class MemoryGroup:
    """A control group of the kernel: of version 2 where the machine has it, or else of version 1 (cgroups(7)).

    In version 1 it lies below this process's own, whose limit holds on. In version 2 a group with processes may have no
    groups below it that are limited: it lies beside all others. What a process had before it came does not count.

    Args:
        most_bytes: what all processes in it may take together.

    Raises:
        OSError: on entering, where this is not root, or the kernel limits no memory by groups.
    """

    def __init__(self, most_bytes: int) -> None:
        name = f"pacbench-torture-{uuid.uuid4().hex[:8]}"
        if (ROOT / "cgroup.controllers").exists():
            self._folder, self._kills = ROOT / name, "memory.events"
            self._limit, self._swap_limit = ("memory.max", most_bytes), ("memory.swap.max", 0)
        else:
            self._folder, self._kills = ROOT / "memory" / _own_group() / name, "memory.oom_control"
            self._limit = ("memory.limit_in_bytes", most_bytes)
            self._swap_limit = ("memory.memsw.limit_in_bytes", most_bytes)  # of memory and swap together

    def __enter__(self) -> Self:
        self._folder.mkdir()
        try:
            self._write(*self._limit)
            if (self._folder / self._swap_limit[0]).exists():  # a kernel without swap has no limit of it
                self._write(*self._swap_limit)
        except OSError:
            self._folder.rmdir()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        wait_until(lambda: not (self._folder / "cgroup.procs").read_text())
        self._folder.rmdir()

    def _write(self, name: str, value: int) -> None:
        (self._folder / name).write_text(str(value))

    def take(self, process: psutil.Process) -> None:
        """Move a process into it; what it forks from then on is in it, too."""
        self._write("cgroup.procs", process.pid)

    def kills(self) -> int:
        """How many processes the kernel has killed for its sake."""
        found = re.search(r"^oom_kill (\d+)$", (self._folder / self._kills).read_text(), re.MULTILINE)
        assert found, "this kernel does not count them"
        return int(found[1])


def _own_group() -> str:
    """This process's group of version 1, below the root of memory's hierarchy."""
    found = re.search(r"^\d+:memory:/(.*)$", Path("/proc/self/cgroup").read_text(), re.MULTILINE)
    assert found, "this machine has no control groups for memory"
    return found[1]
