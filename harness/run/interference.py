"""What this machine did to a trial: time stolen by other machines, throttling by a cgroup, CPUs that may not be used.

Read from the kernel before and after a trial. It is what the harness's own processes met: workers in containers may
have limits of their own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
STEAL_FIELD = 8
"""Place of the stolen ticks in the first line of /proc/stat, after the word ``cpu`` (proc_stat(5))."""


@dataclass(frozen=True)
class Interference:
    """What was done to the processes from one moment to another."""

    stolen_s: float
    throttled_s: float
    usable_cpus: float


@dataclass(frozen=True)
class Moment:
    """What the kernel has counted until now."""

    stolen_s: float
    throttled_s: float

    @classmethod
    def now(cls, root: Path = ROOT) -> Moment:
        """Read the counters; what a kernel does not count is 0."""
        return cls(stolen_s(root), throttled_s(root))

    def until_now(self, root: Path = ROOT) -> Interference:
        """What was done since this moment."""
        now = Moment.now(root)
        return Interference(
            now.stolen_s - self.stolen_s, now.throttled_s - self.throttled_s, usable_cpus(os.sched_getaffinity(0), root)
        )


def stolen_s(root: Path = ROOT) -> float:
    """Seconds that all CPUs together waited for other machines on the same host."""
    fields = _read(root / "proc/stat").partition("\n")[0].split()
    return int(fields[STEAL_FIELD]) / os.sysconf("SC_CLK_TCK") if len(fields) > STEAL_FIELD else 0.0


def throttled_s(root: Path = ROOT) -> float:
    """Seconds that the own cgroup and its parents were throttled; each CPU counts its own."""
    seconds = 0.0
    for group in own_cpu_groups(root):
        counted = dict(line.split() for line in _read(group / "cpu.stat").splitlines())
        seconds += int(counted.get("throttled_time", 0)) / 1e9  # version 1
        seconds += int(counted.get("throttled_usec", 0)) / 1e6  # version 2
    return seconds


def usable_cpus(affinity: set[int], root: Path = ROOT) -> float:
    """How many CPUs may be used: those of the affinity, or fewer where a cgroup has a quota."""
    return min([float(len(affinity)), *_quotas(root)])


def own_cpu_groups(root: Path = ROOT) -> list[Path]:
    """The folder of the own cgroup that limits CPU time, and those of its parents; none without such cgroups.

    Where version 1 has the controller, it is the one in force, though version 2 may be mounted beside it.
    """
    own = [line.split(":", 2) for line in _read(root / "proc/self/cgroup").splitlines()]
    by_controller = {name: path for _, names, path in own for name in names.split(",")}
    version, path = (
        ("cgroup", by_controller.get("cpu")) if "cpu" in by_controller else ("cgroup2", by_controller.get(""))
    )
    mounted = next(_mounts(root, version), None)
    if path is None or mounted is None:
        return []
    mount, top = mounted
    below = os.path.relpath(path, top)
    if below.startswith(".."):  # a namespace of cgroups shows only a part of them
        return [mount]
    group = mount / below
    return [group, *(parent for parent in group.parents if parent.is_relative_to(mount))]


def _mounts(root: Path, version: str) -> Iterator[tuple[Path, str]]:
    """Where cgroups of a version that have the CPU controller are mounted, and which group is at the top there."""
    for line in _read(root / "proc/self/mountinfo").splitlines():
        mount, _, filesystem = line.partition(" - ")
        kind, _, options = filesystem.split(" ", 2)
        if kind == version and (version == "cgroup2" or "cpu" in options.split(",")):
            top, place = mount.split()[3:5]
            yield root / place.lstrip("/"), top


def _quotas(root: Path) -> Iterator[float]:
    """The CPUs that the own cgroup and its parents may use, of those that have a quota."""
    for group in own_cpu_groups(root):
        quota_us, period_us = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
        if not quota_us:
            quota_us, _, period_us = _read(group / "cpu.max").partition(" ")
        if quota_us.strip() not in ("", "max", "-1"):
            yield int(quota_us) / int(period_us)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
