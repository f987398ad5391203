"""What this machine can do, tried rather than guessed, each 'no' with its fix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from harness.cluster import registry
from harness.cluster.protocol import Check
from harness.cluster.universe import timer_resolution_s
from harness.network.iproute import CONGESTION_CONTROLS
from harness.plan.machine import this_machine
from harness.provenance import read_setting
from harness.units import format_time

COARSE_S = 1e-3
"""Timers later than this blur whatever is emulated."""


def examine() -> list[Check]:
    """Look at everything. Nothing outside private universes is touched."""
    by_kind = {kind.name: kind.checks() for kind in registry.KINDS.values()}
    universes = [name for name, kind in registry.KINDS.items() if kind.has_universe]
    others = [name for name in by_kind if name not in universes]
    return [
        *(check for name in universes for check in _needed(name, by_kind)),
        _cpus(),
        _clock(),
        _timers(),
        _congestion_controls(),
        *(check for name in others for check in _needed(name, by_kind)),
    ]


def _needed(name: str, by_kind: Mapping[str, list[Check]]) -> list[Check]:
    """The checks of a kind of cluster. Nothing is needed where another kind that ``auto`` tries is a way round."""
    ways_round = [by_kind[kind.name] for kind in registry.KINDS.values() if kind.tried_by_auto and kind.name != name]
    if any(checks and all(check.ok for check in checks) for checks in ways_round):
        return [replace(check, needed=False) for check in by_kind[name]]
    return by_kind[name]


def able(checks: list[Check]) -> bool:
    """Whether a cluster can be run here."""
    return all(check.ok for check in checks if check.needed)


def _timers() -> Check:
    late_s = timer_resolution_s()
    ok = late_s <= COARSE_S
    fix = "" if ok else "an idle machine, or a kernel with high-resolution timers: bursts must be long, delays are late"
    return Check("timers", ok, f"{format_time(late_s)} late; no finer jitter can be emulated", fix)


def _cpus() -> Check:
    count = this_machine().cpu_count
    ok = count >= 2
    fix = "" if ok else "with one CPU the workers' computations delay the network: read step times with care"
    return Check("CPUs", ok, f"{count}; workers beyond that share them, and their computation is metered apart", fix)


def _clock() -> Check:
    source = read_setting("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    slow = source in ("hpet", "acpi_pm")
    return Check("clock", not slow, source or "unknown", "boot with tsc as clock source" if slow else "")


def _congestion_controls() -> Check:
    available = read_setting(str(CONGESTION_CONTROLS))
    current = read_setting("/proc/sys/net/ipv4/tcp_congestion_control")
    return Check("TCP congestion control", bool(current), f"{current} (available: {available})")
