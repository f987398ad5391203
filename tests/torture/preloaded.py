"""Faults that no kernel makes on demand, by a library that all processes of a run have: see ``preloaded.c``."""

from __future__ import annotations

import os
import shlex
import struct
from dataclasses import dataclass
from pathlib import Path

from harness import programs

SOURCE = Path(__file__).with_name("preloaded.c")

ORDERS = struct.Struct("=qq")
"""How the library reads orders: a step of the wall clock in seconds, and what writes end with, by errno(3)."""


@dataclass(frozen=True)
class Orders:
    """What the library is to do."""

    step_s: int = 0
    """By how much the wall clock is ahead of what the kernel says."""
    write_errno: int = 0
    """What writing to a file in the run's folder ends with; 0: it is written."""


class Preloaded:
    """The library for a run in a folder. Orders reach all processes of the run at once.

    Raises:
        MissingProgramError: there is no compiler.
    """

    def __init__(self, folder: Path) -> None:
        self._orders = folder / "orders"
        self._orders.write_bytes(ORDERS.pack(0, 0))
        self._library = folder / "preloaded.so"
        options = ["-shared", "-fPIC", "-O2", f'-DFOLDER="{folder}"']
        programs.run(["cc", *options, "-o", str(self._library), str(SOURCE)], check=True)

    def setup(self) -> str:
        """A shell's line that has ld.so(8) load it, where mounts are the run's own.

        The harness keeps LD_PRELOAD from whatever it starts. /etc/ld.so.preload reaches all.
        """
        library = shlex.quote(str(self._library))
        copy = "mkdir -p etc && mount -t tmpfs tmpfs etc && cp -a /etc/. etc"
        return f"{copy} && echo {library} > etc/ld.so.preload && mount --move etc /etc"

    def order(self, orders: Orders) -> None:
        """Have it done from now on."""
        file = os.open(self._orders, os.O_WRONLY)  # never cut: it is mapped
        os.pwrite(file, ORDERS.pack(orders.step_s, orders.write_errno), 0)
        os.close(file)
