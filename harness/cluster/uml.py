"""A cluster inside user-mode-linux: a whole kernel as one process of this user, for machines whose own has no netem.

The same universe and the same workers run in it, on the host's files. It has one CPU, and its timers are coarse: its
figures are compared among themselves, never with those of another kind of cluster.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import psutil
from typing_extensions import Self

from harness.cluster.base import AgentConnection
from harness.cluster.netns import ONE_THREAD, NetnsCluster, universe_command
from harness.errors import MeasurementError

KERNEL = "linux.uml"
INSTALL = "apt-get install user-mode-linux busybox-static"
GUEST = Path(__file__).with_name("guest.py")
ROOT = GUEST.parents[2]

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

BOOT_TIMEOUT_S = 60.0

MEMORY_SHARE = 0.5
"""Of what the host has free: the guest takes pages as it touches them, and gives none back."""
MOST_MEMORY_BYTES = 8 << 30


class UmlCluster(NetnsCluster):
    """See the module."""

    name = "uml"
    surely_carried_bps = 250_000_000

    build_timeout_s = 120.0
    preload_timeout_s = 600.0
    probe_timeout_s = 240.0

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="pacbench-uml-")
        folder = Path(self._folder.name)
        settings = {"environment": _environment(folder), "folder": str(Path.cwd())}
        (folder / "settings.json").write_text(json.dumps(settings))
        scratch = {"TMPDIR": str(folder), "HOME": str(folder)}  # its memory, and the sockets of its own console
        self._agent = AgentConnection(command(folder), {**os.environ, **scratch})
        self._agent.wait_until_done("boot", BOOT_TIMEOUT_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._folder.cleanup()


def command(folder: Path) -> list[str]:
    """How the kernel is started: in a process tree of its own that ends with the harness, however that ends.

    Raises:
        MeasurementError: the kernel is not installed, or private processes are not allowed.
    """
    for program in (KERNEL, "busybox", "setpriv"):
        if shutil.which(program) is None:
            raise MeasurementError(f"{program} is missing; on Debian: {INSTALL} util-linux")
    return [
        *("setpriv", "--pdeathsig", "KILL"),
        *universe_command(),
        KERNEL,
        f"mem={_memory_bytes() >> 20}M",
        *("rootfstype=hostfs", "rw", "quiet"),
        *("con=null", "con0=null,fd:2", "con1=fd:0,fd:1"),
        *(f"init={sys.executable}", "--", str(GUEST), str(folder)),
    ]


def _environment(folder: Path) -> Mapping[str, str]:
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "OMP_NUM_THREADS") if name in os.environ}
    return {
        **kept,
        **ONE_THREAD,
        "PATH": PATH,
        "TMPDIR": str(folder),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONDONTWRITEBYTECODE": "1",  # the files are the host's
    }


def _memory_bytes() -> int:
    return min(int(MEMORY_SHARE * psutil.virtual_memory().available), MOST_MEMORY_BYTES)
