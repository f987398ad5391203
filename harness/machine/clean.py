"""Remove what a run that was killed may have left. The kernel removes networks by itself; this is for the rest."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import psutil

from harness.cluster.docker import engine
from harness.cluster.hosts import shaper
from harness.cluster.netns import UNIVERSE_MODULE
from harness.errors import MeasurementError, UsageError

HALF_WRITTEN = re.compile(r"\.(?P<name>.+\.(?:parquet|json))\.(?P<pid>\d+)")


def clean_up(results: Path) -> list[str]:
    """Remove what is left of a harness that is gone: universes, containers, half-written files, shaped interfaces.

    Only processes of this user, objects of the engine, queues of interfaces and files under ``results`` that carry
    pacbench's own marks are touched.

    Returns:
        One line for each thing that was removed.
    """
    return [*_end_orphans(), *_remove_containers(), *_put_interfaces_back(), *_delete_half_written(results)]


def _end_orphans() -> list[str]:
    removed = []
    for process in psutil.process_iter(["pid", "cmdline", "ppid"]):
        command = process.info["cmdline"] or []
        if UNIVERSE_MODULE in command and "unshare" in command[0] and process.info["ppid"] == 1:
            process.kill()
            removed.append(f"ended universe {process.pid}")
    return removed


def _remove_containers() -> list[str]:
    try:
        client = engine.connect()
    except engine.EngineError:
        return []  # no engine, no containers
    return engine.remove(client)


def _put_interfaces_back() -> list[str]:
    """What ``pacbench worker --shape`` shaped, where nobody is left to put it back."""
    removed = []
    with suppress(MeasurementError, UsageError):  # without tc nothing was shaped
        for name in shaper.shaped():
            with suppress(OSError), shaper.hold(name):  # who holds it is still there, and puts it back
                shaper.put_back(name)
                removed.append(f"put interface {name} back")
    return removed


def _delete_half_written(results: Path) -> list[str]:
    removed = []
    for path in results.rglob(".*"):
        match = HALF_WRITTEN.fullmatch(path.name)
        if match and not psutil.pid_exists(int(match["pid"])):
            path.unlink()
            removed.append(f"deleted {path}")
    return removed
