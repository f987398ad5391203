"""Run ``ip`` and ``tc``, so that a failure says which line was refused, and why; and what the kernel has."""

from __future__ import annotations

import subprocess
from pathlib import Path

from harness.errors import MeasurementError, UsageError

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
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        raise MeasurementError(f"{command[0]} is missing; on Debian: apt-get install iproute2 util-linux") from None
    if done.returncode:
        complaint = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise MeasurementError(f"{' '.join(command)}: {complaint} {(text or '').strip()!r}")
    return done.stdout


def check_congestion_control(wanted: str) -> None:
    """Refuse a congestion control that this machine's kernel lacks.

    Raises:
        UsageError: with those that it has.
    """
    known = CONGESTION_CONTROLS.read_text().split()
    if wanted not in known:
        raise UsageError.at("scenario", "link.congestion_control", wanted, ", ".join(sorted(known)))
