"""Run ``ip`` and ``tc``, so that a failure says which line was refused, and why; and what the kernel has."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

from harness import programs
from harness.errors import MeasurementError, UsageError
from harness.network.wires import Command

CONGESTION_CONTROLS = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")


def run_lines(program: str, node: str | None, lines: list[str]) -> None:
    """Run lines of ``ip`` or ``tc`` by one process, in a network namespace where one is named.

    Raises:
        MeasurementError: a line was refused.
    """
    on_node = ["-n", node] if node else []
    run([program, *on_node, "-batch", "-"], "\n".join(lines) + "\n")


def run(command: list[str], text: str | None = None) -> str:
    """What a command prints, given ``text`` on its stdin.

    Raises:
        MeasurementError: it is missing, or failed.
    """
    done = programs.run(command, input=text, capture_output=True, text=True, timeout=60)
    if done.returncode:
        complaint = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise MeasurementError(f"{' '.join(command)}: {complaint} {(text or '').strip()!r}")
    return str(done.stdout)


MOST_LINES = 1000
"""After so many commands another tc(8) takes over: it keeps 4 kB of each that it has read."""


class TcConsole:
    """A tc(8) that stays and reads its commands one by one: each takes part of a millisecond.

    Args:
        node: a network namespace; without one, that of this process.
        options: such as ``-s`` and ``-j``.
    """

    def __init__(self, node: str | None = None, *options: str) -> None:
        self._name = f"tc on {node}" if node else "tc"
        on_node = ["-n", node] if node else []
        self._command = ["stdbuf", "-oL", "tc", *on_node, *options, "-batch", "-"]
        self._start()

    def _start(self) -> None:
        pipe = subprocess.PIPE
        self._process = programs.start(self._command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        self._lines = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    def tell(self, line: str) -> None:
        """Give it a command that prints nothing; it may wait until the next one that is asked."""
        assert self._process.stdin
        self._process.stdin.write(line + "\n")
        self._lines += 1

    def ask(self, line: str) -> str:
        """What a command prints, in one line; all that it was told before is done by then.

        Raises:
            OSError: tc has ended.
        """
        assert self._process.stdin
        assert self._process.stdout
        self.tell(line)
        self._process.stdin.flush()
        if not (answer := self._process.stdout.readline()):
            complaint = self._process.stderr.read().strip() if self._process.stderr else ""
            raise OSError(f"{self._name} ended: {complaint}")
        if self._lines >= MOST_LINES:
            self._process.communicate()
            self._start()
        return str(answer)


def apply(commands: Iterable[Command], consoles: Mapping[str, TcConsole]) -> None:
    """Run tc's commands on their nodes, and wait until tc has: it answers an empty question when it comes to it.

    Args:
        consoles: of every node that a command is for.
    """
    asked = set()
    for command in commands:
        consoles[command.node or ""].tell(command.line)
        asked.add(command.node or "")
    for node in asked:
        consoles[node].ask("qdisc show dev lo")


def check_congestion_control(wanted: str) -> None:
    """Refuse a congestion control that this machine's kernel lacks.

    Raises:
        UsageError: with those that it has.
    """
    known = CONGESTION_CONTROLS.read_text().split()
    if wanted not in known:
        raise UsageError.at("scenario", "link.congestion_control", wanted, ", ".join(sorted(known)))
