"""A cluster inside user-mode-linux: a whole kernel as one process of this user, for machines whose own has no netem.

The same universe and the same workers run in it, on the host's files. It has one CPU, and its timers are coarse: its
figures are compared among themselves, never with those of another kind of cluster.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

import psutil
from typing_extensions import Self

from harness import programs
from harness.cluster.connection import AgentConnection
from harness.cluster.netns import ONE_THREAD, UNIVERSE_MODULE, NetnsCluster, universe_command
from harness.cluster.protocol import Check
from harness.errors import MeasurementError, UsageError
from harness.files import LOCK, NoRoomError, is_file, locked, names_in
from harness.plan.machine import Machine

KERNEL = "linux.uml"
PREFIX = "pacbench-uml-"
"""Of the name of a kernel's folder, which the harness that made it keeps locked."""
INSTALL = "apt-get install user-mode-linux busybox-static"
GUEST = Path(__file__).with_name("guest.py")
WHOLE_REGISTERS = Path(__file__).with_name("whole_registers.c")

PROGRAMS = (KERNEL, "busybox", "setpriv")
"""What it needs beside what every universe does."""

COMPILER = "cc"
"""What it needs where processors have AMX; see ``whole_registers.c``."""

BOOT_TIMEOUT_S = 60.0

MEMORY_SHARE = 0.5
"""The guest's share of what the host has free. It takes pages as it touches them, and gives none back."""
MOST_MEMORY_BYTES = 8 << 30


class UmlCluster(NetnsCluster):
    """See the module."""

    name = "uml"
    machine = Machine(
        cpu_count=1,
        carried_bps=64e6,
        bring_up_s=30.0,
        network_s=6.5,
        trial_s=27.0,
        error_s=7e-3,
        is_here=True,
        changes_links=True,
    )
    surely_carried_bps = 250_000_000

    build_timeout_s = 120.0
    preload_timeout_s = 600.0
    probe_timeout_s = 240.0

    def __enter__(self) -> Self:
        self._held = ExitStack()
        folder = Path(self._held.enter_context(tempfile.TemporaryDirectory(prefix=PREFIX)))
        self._held.enter_context(locked(folder))
        settings = {
            "environment": _environment(folder),
            "folder": str(Path.cwd()),
            "command": programs.python(UNIVERSE_MODULE),
        }
        (folder / "settings.json").write_text(json.dumps(settings))
        scratch = {"TMPDIR": str(folder), "HOME": str(folder)}  # its memory, and the sockets of its own console
        self._agent = AgentConnection(command(folder), scratch)
        self._agent.wait_until_done("boot", BOOT_TIMEOUT_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._held.close()


def left() -> Iterator[Path]:
    """Folders of kernels whose harness was killed, among those of this user's. Each is locked while one looks at it."""
    place = Path(tempfile.gettempdir())
    for folder in (place / name for name in names_in(place) if name.startswith(PREFIX)):
        # Without a lock it is an older version's, or was made just now.
        if is_file(folder / LOCK) and folder.lstat().st_uid == os.getuid():
            with suppress(UsageError, NoRoomError), locked(folder) as lacks:
                if lacks is None:
                    yield folder


def command(folder: Path) -> list[str]:
    """How the kernel is started: in a process tree of its own that ends with the harness, however that ends.

    Raises:
        MeasurementError: a program is missing, or private processes are not allowed.
    """
    programs.require(*PROGRAMS)
    return [
        *("setpriv", "--pdeathsig", "KILL"),
        *universe_command(),
        *_with_whole_registers(folder),
        KERNEL,
        f"mem={_memory_bytes() >> 20}M",
        *("rootfstype=hostfs", "rw", "quiet"),
        *("con=null", "con0=null,fd:2", "con1=fd:0,fd:1"),
        *(f"init={sys.executable}", "--", str(GUEST), str(folder)),
    ]


def _with_whole_registers(folder: Path) -> list[str]:
    """What goes before the kernel where processors have more registers than it knows of: see ``whole_registers.c``.

    Raises:
        MeasurementError: there is no compiler for it.
    """
    if not _has_amx():
        return []
    programs.require(COMPILER)
    library = folder / "whole_registers.so"
    made = [COMPILER, "-shared", "-fPIC", "-O2", "-o", str(library), str(WHOLE_REGISTERS)]
    done = programs.run(made, capture_output=True, text=True)
    if done.returncode:
        reason = " ".join(done.stderr.split())
        raise MeasurementError(f"user-mode-linux needs a C compiler and its headers on a processor with AMX: {reason}")
    return ["env", f"LD_PRELOAD={library}"]


def _has_amx() -> bool:
    """Whether processors have these registers (proc_cpuinfo(5))."""
    return " amx_tile" in Path("/proc/cpuinfo").read_text()


def _environment(folder: Path) -> Mapping[str, str]:
    given = programs.environment()
    names = ("HOME", "LANG", "OMP_NUM_THREADS", "PATH", "PYTHONPATH")
    return {
        **{name: given[name] for name in names if name in given},
        **ONE_THREAD,
        "TMPDIR": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",  # the files are the host's
    }


def _memory_bytes() -> int:
    return min(int(MEMORY_SHARE * psutil.virtual_memory().available), MOST_MEMORY_BYTES)


def examine() -> Iterator[Check]:
    """What ``pacbench doctor`` looks at."""
    needed = [*PROGRAMS, COMPILER] if _has_amx() else PROGRAMS
    missing = [program for program in needed if programs.find(program) is None]
    found = f"{', '.join(missing)} missing" if missing else "--on uml runs a kernel with netem, on one CPU"
    install = f"{INSTALL} {programs.package(COMPILER)}" if COMPILER in missing else INSTALL
    yield Check("user-mode-linux", not missing, found, f"for netem on any kernel: {install}" if missing else "")
