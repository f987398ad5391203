"""The command line as users run it, and a look at the host: what runs there, and that its network stays as it was."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from harness import programs

PACBENCH = [sys.executable, "-m", "harness"]
TIMEOUT_S = 240

MARK = "XDG_PACBENCH_TESTS"
"""A variable that is let through to all that is started, since it begins with XDG: by it a process of tests knows what
is its own."""


def run_pacbench(
    folder: Path, *arguments: str, prefix: tuple[str, ...] = (), **env: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a folder; ``prefix`` goes before it, and ``env`` to its environment."""
    return subprocess.run(
        [*prefix, *PACBENCH, *arguments],
        cwd=folder,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


def complaints(stderr: str) -> list[str]:
    """What was said on stderr, but for trials that run again because something else held up this machine."""
    return [line for line in stderr.splitlines() if ": disturbed: " not in line]


def universes() -> list[int]:
    """Processes of universes that this process's tests have started, inside and out, whoever is their parent now."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "environ"]):
        is_ours = (process.info["environ"] or {}).get(MARK) == os.environ[MARK]
        if is_ours and {"harness.cluster.universe", "linux.uml"} & {*(process.info["cmdline"] or [])}:
            found.append(process.info["pid"])
    return found


def host_network() -> str:
    """Everything about the host's own network that pacbench must not touch, with a firewall's rules if it has one."""
    commands = ["ip -o link", "ip -o addr", "ip route", "ip rule", "ip netns list", "tc qdisc show"]
    commands += [rules for rules in ("nft list ruleset", "iptables-save") if programs.find(rules.split()[0])]
    shown = [programs.run(command.split(), capture_output=True, text=True).stdout for command in commands]
    settings = sorted(Path("/proc/sys/net/ipv4").glob("[it][pc][_p]*"))  # ip_ and tcp_
    for setting in settings:
        with contextlib.suppress(OSError):
            shown.append(f"{setting.name}: {setting.read_text()}")
    return "\n".join(shown)


def wait_until(condition: Callable[[], object], timeout_s: float = 120.0) -> None:
    """Wait for a condition, and fail when it does not come."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def busy_workers(run: subprocess.Popen[str]) -> list[psutil.Process]:
    """Forked workers of a run that this test has started, which have been at it for some steps.

    Others may run clusters on the same machine. Whoever is to be stopped or killed is looked for below ``run`` alone.
    """
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for agent in psutil.Process(run.pid).children(recursive=True):
            if agent.pid in universes() and "unshare" not in agent.name():
                found += [worker for worker in agent.children() if worker.cpu_times().user > 0.5]
    return found
