"""What this machine can do, tried rather than guessed, each 'no' with its fix."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness import programs
from harness.cluster import netns, uml
from harness.cluster.docker import engine
from harness.cluster.netns import NetnsCluster, universe_command
from harness.cluster.universe import timer_resolution_s
from harness.errors import MeasurementError
from harness.units import format_rate, format_size, format_time

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
    containers = list(_containers())
    needed = not all(check.ok for check in containers)  # namespaces, where containers are no way round
    tools = list(_tools(needed))
    universe = _universe(needed)
    inside = [*_qdiscs(needed), _ceiling()] if universe.ok and all(tool.ok for tool in tools) else []
    return [
        *tools,
        universe,
        *inside,
        _netem_kernel(),
        _cpus(),
        _clock(),
        _timers(),
        _congestion_controls(),
        *containers,
    ]


def able(checks: list[Check]) -> bool:
    """Whether a cluster can be run here."""
    return all(check.ok for check in checks if check.needed)


def _tools(needed: bool) -> Iterator[Check]:
    for program in netns.PROGRAMS:
        path, package = programs.find(program), programs.package(program)
        fix = "" if path else f"install {package} (Debian: apt-get install {package})"
        yield Check(program, path is not None, path or "missing", fix, needed)


def _universe(needed: bool) -> Check:
    try:
        command = universe_command()
    except programs.MissingProgramError as error:
        return Check("private networks", False, "not tried", str(error), needed)
    except MeasurementError as error:
        return Check("private networks", False, "not allowed", str(error), needed)
    how = "rootless, by user namespaces" if "--user" in command else "as root"
    return Check("private networks", True, how, needed=needed)


def _qdiscs(needed: bool) -> Iterator[Check]:
    trials = {
        "tbf": ("tbf rate 1mbit burst 64kb latency 300ms", "the kernel needs CONFIG_NET_SCH_TBF", needed),
        "netem": (
            "netem delay 1ms",
            "delay and loss need CONFIG_NET_SCH_NETEM (try: modprobe sch_netem), or --on uml; rates work",
            False,
        ),
    }
    for name, (qdisc, fix, wanted) in trials.items():
        script = f"ip link add try0 type veth peer name try1 && tc qdisc add dev try0 root {qdisc}"
        done = programs.run([*universe_command(), "sh", "-c", script], capture_output=True, text=True, timeout=60)
        found = "works" if done.returncode == 0 else " ".join(done.stderr.split())
        yield Check(f"qdisc {name}", done.returncode == 0, found, "" if done.returncode == 0 else fix, wanted)


def _ceiling() -> Check:
    with NetnsCluster() as cluster:
        ceiling_bps = cluster.ceiling_bps(CEILING_WORKERS)
    found = f"{format_rate(ceiling_bps)} for each of {CEILING_WORKERS} workers at once, unshaped"
    return Check("ceiling", True, found)


def _netem_kernel() -> Check:
    missing = [program for program in uml.PROGRAMS if programs.find(program) is None]
    found = f"{', '.join(missing)} missing" if missing else "--on uml runs a kernel with netem, on one CPU"
    return Check("user-mode-linux", not missing, found, f"for netem on any kernel: {uml.INSTALL}" if missing else "")


def _timers() -> Check:
    late_s = timer_resolution_s()
    ok = late_s <= COARSE_S
    fix = "" if ok else "an idle machine, or a kernel with high-resolution timers: bursts must be long, delays are late"
    return Check("timers", ok, f"{format_time(late_s)} late; no finer jitter can be emulated", fix)


def _cpus() -> Check:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
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


def _containers() -> Iterator[Check]:
    """What ``--on docker`` takes, in the order in which one needs the other."""
    steps = {
        "container engine": lambda: str(engine.connect().version()["Version"]),
        "compose plugin": engine.compose_version,
        "worker image": lambda: format_size(engine.image_facts(engine.connect(), engine.IMAGE)["size_bytes"]),
    }
    for name, look in steps.items():
        try:
            yield Check(name, True, look())
        except engine.EngineError as error:
            yield Check(name, False, "no containers", str(error))
            return


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
