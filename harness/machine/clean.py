"""Remove what a run that was killed may have left. The kernel removes networks by itself; this is for the rest."""

from __future__ import annotations

import os
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path

import psutil

from harness.cluster import uml
from harness.cluster.docker import engine
from harness.cluster.hosts import shaper
from harness.cluster.netns import UNIVERSE_MODULE
from harness.errors import MeasurementError, UsageError
from harness.files import files_below

HALF_WRITTEN = re.compile(r"\..+\.\d+\.[0-9a-f]{12}|\..+\.(?:parquet|json)\.(?:\d+|[0-9a-f]{32})")
"""Names of files that are not whole yet: they end in their writer's number and one drawn for them (``files.py``), or in
one of both, as older versions had it."""

LEFT_S = 600.0
"""A file that nobody has written to for so long is left. Who writes it may be on another machine, and takes seconds."""

INIT = 1
"""The process that whoever outlives his parent becomes a child of. In a container it may be the harness itself."""


def clean_up(results: Path) -> list[str]:
    """Remove what is left of a harness that is gone: universes, containers, files, shaped interfaces.

    Only processes and temporary folders of this user, objects of the engine, queues of interfaces and files under
    ``results`` that carry pacbench's own marks are touched.

    Returns:
        One line for each thing that was removed.
    """
    return [
        *_end_orphans(),
        *_remove_containers(),
        *_put_interfaces_back(),
        *_delete_folders_of_kernels(),
        *_delete_half_written(results),
    ]


def _end_orphans() -> list[str]:
    removed = []
    for process in psutil.process_iter(["pid", "cmdline", "ppid", "uids"]):
        if _is_own_universe(process) and process.info["ppid"] == INIT and not _is_spoken_to(process.pid):
            with suppress(psutil.Error):  # it has just ended
                process.kill()
                removed.append(f"ended universe {process.pid}")
    return removed


def _is_own_universe(process: psutil.Process) -> bool:
    command, users = process.info["cmdline"] or [], process.info["uids"]
    return UNIVERSE_MODULE in command and "unshare" in command[0] and users is not None and users.real == os.getuid()


def _is_spoken_to(pid: int) -> bool:
    """Whether process 1 holds the other end of a process's stdin: then it is its harness, and lives."""
    stdin = _opened(Path(f"/proc/{pid}/fd/0"))
    with suppress(PermissionError):  # process 1 is none of this user's
        return stdin.startswith("pipe:") and stdin in map(_opened, Path(f"/proc/{INIT}/fd").iterdir())
    return False


def _opened(descriptor: Path) -> str:
    """What a process has open there; empty where it has been closed, or is none of this user's."""
    try:
        return os.readlink(descriptor)
    except OSError:
        return ""


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


def _delete_folders_of_kernels() -> list[str]:
    removed = []
    for folder in uml.left():
        shutil.rmtree(folder, ignore_errors=True)
        removed.append(f"deleted {folder}")
    return removed


def _delete_half_written(results: Path) -> list[str]:
    removed = []
    for path in files_below(results):
        with suppress(OSError):  # its writer has just made it whole; or it is another user's
            if HALF_WRITTEN.fullmatch(path.name) and time.time() - path.stat().st_mtime > LEFT_S:
                path.unlink()
                removed.append(f"deleted {path}")
    return removed
