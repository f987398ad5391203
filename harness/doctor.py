"""What this machine can do, tried rather than guessed, each 'no' with its fix."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.cluster.netns import NetnsCluster, universe_command
from harness.cluster.uml import INSTALL, KERNEL
from harness.cluster.universe import timer_resolution_s
from harness.errors import MeasurementError
from harness.units import format_rate, format_time

CEILING_WORKERS = 4

COARSE_S = 1e-3
"""Timers later than this blur whatever is emulated."""


@dataclass(frozen=True)
class Check:
    """One thing looked at. ``needed`` tells what nothing runs without from what only some scenarios want."""

    name: str
    ok: bool
    found: str
    fix: str = ""
    needed: bool = False


def examine() -> list[Check]:
    """Look at everything. Nothing outside private universes is touched."""
    tools = list(_tools())
    universe = _universe()
    inside = [*_qdiscs(), _ceiling()] if universe.ok and all(tool.ok for tool in tools) else []
    return [*tools, universe, *inside, _netem_kernel(), _cpus(), _clock(), _timers(), _congestion_controls(), _engine()]


def able(checks: list[Check]) -> bool:
    """Whether a cluster can be run here."""
    return all(check.ok for check in checks if check.needed)


def _tools() -> Iterator[Check]:
    for program, package in (("ip", "iproute2"), ("tc", "iproute2"), ("unshare", "util-linux")):
        path = shutil.which(program)
        fix = "" if path else f"install {package} (Debian: apt-get install {package})"
        yield Check(program, path is not None, path or "missing", fix, needed=True)


def _universe() -> Check:
    try:
        command = universe_command()
    except MeasurementError as error:
        return Check("private networks", False, "not allowed", str(error), needed=True)
    how = "rootless, by user namespaces" if "--user" in command else "as root"
    return Check("private networks", True, how, needed=True)


def _qdiscs() -> Iterator[Check]:
    trials = {
        "tbf": ("tbf rate 1mbit burst 64kb latency 300ms", "the kernel needs CONFIG_NET_SCH_TBF", True),
        "netem": (
            "netem delay 1ms",
            "delay and loss need CONFIG_NET_SCH_NETEM (try: modprobe sch_netem), or --on uml; rates work",
            False,
        ),
    }
    for name, (qdisc, fix, needed) in trials.items():
        script = f"ip link add try0 type veth peer name try1 && tc qdisc add dev try0 root {qdisc}"
        done = subprocess.run([*universe_command(), "sh", "-c", script], capture_output=True, text=True, timeout=60)
        found = "works" if done.returncode == 0 else " ".join(done.stderr.split())
        yield Check(f"qdisc {name}", done.returncode == 0, found, "" if done.returncode == 0 else fix, needed)


def _ceiling() -> Check:
    with NetnsCluster() as cluster:
        ceiling_bps = cluster.ceiling_bps(CEILING_WORKERS)
    found = f"{format_rate(ceiling_bps)} for each of {CEILING_WORKERS} workers at once, unshaped"
    return Check("ceiling", True, found)


def _netem_kernel() -> Check:
    missing = [program for program in (KERNEL, "busybox", "setpriv") if shutil.which(program) is None]
    found = f"{', '.join(missing)} missing" if missing else "--on uml runs a kernel with netem, on one CPU"
    return Check("user-mode-linux", not missing, found, f"for netem on any kernel: {INSTALL}" if missing else "")


def _timers() -> Check:
    late_s = timer_resolution_s()
    ok = late_s <= COARSE_S
    fix = "" if ok else "an idle machine, or a kernel with high-resolution timers: bursts must be long, delays are late"
    return Check("timers", ok, f"{format_time(late_s)} late; no finer jitter can be emulated", fix)


def _cpus() -> Check:
    count = len(os.sched_getaffinity(0))
    ok = count >= 2
    fix = "" if ok else "with one CPU the workers' computations delay the network: read step times with care"
    return Check("CPUs", ok, f"{count}; workers beyond that share them, and their computation is metered apart", fix)


def _clock() -> Check:
    source = _read("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    slow = source in ("hpet", "acpi_pm")
    return Check("clock", not slow, source or "unknown", "boot with tsc as clock source" if slow else "")


def _congestion_controls() -> Check:
    allowed = _read("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
    current = _read("/proc/sys/net/ipv4/tcp_congestion_control")
    return Check("TCP congestion control", bool(current), f"{current} (available: {allowed})")


def _engine() -> Check:
    program = shutil.which("docker")
    if not program:
        return Check("container engine", False, "no docker command", "not needed: clusters run without one")
    asked = subprocess.run([program, "info", "-f", "{{.ServerVersion}}"], capture_output=True, text=True, timeout=30)
    ok = asked.returncode == 0 and bool(asked.stdout.strip())
    return Check("container engine", ok, asked.stdout.strip() or "not running", "" if ok else "start the engine")


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
